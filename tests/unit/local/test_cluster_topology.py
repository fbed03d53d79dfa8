"""The steps that form a local cluster and mend it, by what its nodes say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from payswitch.local.cluster_topology import (
    NODES,
    PRIMARIES,
    SLOTS,
    Address,
    Member,
    View,
    Views,
    has_failed_over,
    is_whole,
    members_of,
    next_steps,
    primary_of,
)

ADDRESSES = [Address("127.0.0.1", 7000 + number, 7100 + number) for number in range(NODES)]
THIRDS = [range(0, 5461), range(5461, 10922), range(10922, SLOTS)]


@dataclass
class Node:
    """A node that does what the steps say, and tells all others at once."""

    node_id: str
    primary_id: str | None = None
    slots: tuple[range, ...] = ()
    known: set[str] = field(default_factory=set)


@dataclass
class Nodes:
    """Six nodes that begin empty."""

    nodes: dict[Address, Node] = field(
        default_factory=lambda: {a: Node(f"id-{a.port}") for a in ADDRESSES}
    )
    gone: dict[str, Member] = field(default_factory=dict)

    def views(self) -> Views:
        """The cluster as each node sees it."""
        return {address: self._view(address) for address in self.nodes}

    def settle(self) -> list[str]:
        """Carry out all steps; returns their kinds in order."""
        kinds: list[str] = []
        for _ in range(10):
            steps = next_steps(ADDRESSES, self.views())
            if not steps:
                return kinds
            kinds.append(str(steps[0].command[1]))
            for address, command in steps:
                getattr(self, f"_{str(command[1]).lower()}")(self.nodes[address], *command[2:])
        raise AssertionError(kinds)

    def wipe(self, address: Address) -> None:
        """A node comes back without its files, after its failover if it was a primary."""
        old = self.nodes[address]
        for node in self.nodes.values():
            if node.primary_id == old.node_id and old.slots:
                node.slots, node.primary_id, old.slots = old.slots, None, ()
        self.gone[old.node_id] = _member(address, old, {"master", "fail"})
        self.nodes[address] = Node(f"new-{address.port}")

    def _view(self, address: Address) -> View:
        me = self.nodes[address]
        roles = {True: {"master"}, False: {"slave"}}
        seen = [
            _member(at, node, {*roles[node.primary_id is None], *(["myself"] * (at == address))})
            for at, node in self.nodes.items()
            if node is me or node.node_id in me.known
        ]
        return View((*seen, *(self.gone[each] for each in me.known if each in self.gone)), True)

    def _meet(self, node: Node, host: str, port: int, bus: int) -> None:
        other = self.nodes[Address(host, port, bus)]
        node.known.add(other.node_id)
        other.known.add(node.node_id)

    def _addslotsrange(self, node: Node, first: int, last: int) -> None:
        node.slots = (range(first, last + 1),)

    def _replicate(self, node: Node, primary_id: str) -> None:
        node.primary_id = primary_id

    def _forget(self, node: Node, node_id: str) -> None:
        node.known.remove(node_id)


def _member(address: Address, node: Node, flags: set[str]) -> Member:
    return Member(
        node.node_id, address.host, address.port, frozenset(flags), node.primary_id, node.slots
    )


@pytest.fixture
def formed() -> Nodes:
    nodes = Nodes()
    nodes.settle()
    return nodes


def test_empty_nodes_become_three_primaries_with_a_replica_each() -> None:
    nodes = Nodes()
    assert nodes.settle() == ["MEET", "ADDSLOTSRANGE", "REPLICATE"]
    assert [node.slots for node in nodes.nodes.values()] == [
        *((each,) for each in THIRDS),
        (),
        (),
        (),
    ]
    assert {node.primary_id for node in nodes.nodes.values()} == {
        *(f"id-{address.port}" for address in ADDRESSES[:PRIMARIES]),
        None,
    }
    assert is_whole(ADDRESSES, nodes.views())


def test_a_formed_cluster_is_left_alone(formed: Nodes) -> None:
    assert formed.settle() == []


@pytest.mark.parametrize("number", range(NODES))
def test_a_node_that_lost_its_files_returns_as_a_replica_and_its_old_self_is_forgotten(
    formed: Nodes, number: int
) -> None:
    formed.wipe(ADDRESSES[number])
    assert not is_whole(ADDRESSES, formed.views())
    assert formed.settle() == ["MEET", "REPLICATE", "FORGET"]
    assert formed.nodes[ADDRESSES[number]].primary_id is not None
    assert is_whole(ADDRESSES, formed.views())


def test_nodes_whose_addresses_changed_meet_again(formed: Nodes) -> None:
    views = formed.views()
    moved = {
        address: replace(
            view,
            members=tuple(
                each if "myself" in each.flags else replace(each, port=each.port - 1000)
                for each in view.members
            ),
        )
        for address, view in views.items()
    }
    assert {step.command[1] for step in next_steps(ADDRESSES, moved)} == {"MEET"}


def test_no_slot_is_assigned_while_a_node_is_silent() -> None:
    nodes = Nodes()
    for node in nodes.nodes.values():
        node.known = {each.node_id for each in nodes.nodes.values()}
    views = {address: nodes.views()[address] for address in ADDRESSES[1:]}
    assert next_steps(ADDRESSES, views) == []


def test_a_shard_without_its_data_is_not_replaced_by_an_empty_one(formed: Nodes) -> None:
    for number in (0, PRIMARIES):
        address = ADDRESSES[number]
        formed.gone[formed.nodes[address].node_id] = _member(
            address, formed.nodes[address], {"master", "fail"}
        )
        formed.nodes[address] = Node(f"new-{address.port}")
    assert "ADDSLOTSRANGE" not in formed.settle()
    assert not is_whole(ADDRESSES, formed.views())


def _silent(view: View) -> View:
    return replace(view, works=False)


def _suspicious(view: View) -> View:
    first, *others = view.members
    return replace(view, members=(replace(first, flags=first.flags | {"fail?"}), *others))


@pytest.mark.parametrize("change", [_silent, _suspicious])
def test_a_cluster_is_not_whole_while_one_node_has_doubts(
    formed: Nodes, change: Callable[[View], View]
) -> None:
    views = formed.views()
    assert not is_whole(ADDRESSES, {**views, ADDRESSES[4]: change(views[ADDRESSES[4]])})


def test_a_shard_is_failed_over_once_nobody_sees_slots_at_its_address(formed: Nodes) -> None:
    first, *others = ADDRESSES
    others_see = {address: formed.views()[address] for address in others}
    assert has_failed_over(first, others_see) is False
    assert has_failed_over(first, {}) is None
    formed.wipe(first)
    assert has_failed_over(first, formed.views()) is True


def test_the_primary_of_a_slot_is_that_of_the_majority(formed: Nodes) -> None:
    old = formed.views()[ADDRESSES[0]]
    formed.wipe(ADDRESSES[0])
    formed.settle()
    views = {**formed.views(), ADDRESSES[0]: old}
    promoted = primary_of(0, views)
    assert promoted in ADDRESSES[PRIMARIES:]
    assert primary_of(0, {}) is None


def test_the_nodes_answer_is_read() -> None:
    me, gone, moving = members_of(
        "07c3 127.0.0.1:30004@31004,host-4 myself,slave 67ed 0 1426238317239 4 connected\n"
        "67ed :0@0 master,noaddr - 0 1426238316232 2 disconnected 5461-5463 7\n"
        "292f 127.0.0.1:30003@31003 master - 0 1426238318243 3 connected 9 [93-<-67ed]\n"
    )
    assert (me.node_id, me.host, me.port, me.primary_id) == ("07c3", "127.0.0.1", 30004, "67ed")
    assert (me.slots, me.is_primary) == ((), False)
    assert (gone.slots, gone.is_gone) == ((range(5461, 5464), range(7, 8)), False)
    assert (moving.slots, moving.primary_id) == ((range(9, 10),), None)

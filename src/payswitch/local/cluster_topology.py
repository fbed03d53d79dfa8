"""The steps that a local Redis Cluster lacks: three primaries with a replica each. Pure.

Redis itself elects, replicates and tells the slots. The steps form a cluster of empty nodes, and
take a node back that has lost its files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

PRIMARIES = 3
NODES = 2 * PRIMARIES
CLUSTER_PORTS = 2 * NODES
"""Each node has one for clients and one for the other nodes."""
SLOTS = 16_384


class Address(NamedTuple):
    """The place of a node, for clients and (`bus`) for other nodes."""

    host: str
    port: int
    bus: int


@dataclass(frozen=True, slots=True)
class Member:
    """A node as another one sees it (`CLUSTER NODES`)."""

    node_id: str
    host: str
    port: int
    flags: frozenset[str]
    primary_id: str | None
    """The primary of a replica."""
    slots: tuple[range, ...]
    """The slots that it serves, or has served if it is gone."""

    @property
    def has_slots(self) -> bool:
        """Whether it serves any slot."""
        return bool(self.slots)

    @property
    def is_primary(self) -> bool:
        """Whether it is a primary, with slots or without."""
        return "master" in self.flags

    @property
    def is_gone(self) -> bool:
        """Whether the majority counts it as failed, or another node has taken its address."""
        return bool(self.flags & {"fail", "noaddr"}) and not self.has_slots


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as one of its nodes sees it."""

    members: tuple[Member, ...]
    works: bool
    """Whether it serves its slots; for a replica, whether it also has its primary's writes."""

    @property
    def me(self) -> Member:
        """The node itself."""
        return next(each for each in self.members if "myself" in each.flags)

    def of(self, node_id: str) -> Member | None:
        """The node with this id, if it is known."""
        return next((each for each in self.members if each.node_id == node_id), None)


Views = Mapping[Address, View]
"""By node; those that don't answer are missing."""


class Step(NamedTuple):
    """A command for one node."""

    node: Address
    command: tuple[str | int, ...]


def members_of(text: str) -> tuple[Member, ...]:
    """The answer to `CLUSTER NODES`."""
    return tuple(_member(line.split()) for line in text.splitlines())


def _member(words: Sequence[str]) -> Member:
    node_id, address, flags, primary_id, _, _, _, _, *slots = words
    host, _, port = address.partition("@")[0].rpartition(":")
    return Member(
        node_id,
        host,
        int(port),
        frozenset(flags.split(",")),
        None if primary_id == "-" else primary_id,
        tuple(_range(each) for each in slots if not each.startswith("[")),  # [: it moves
    )


def _range(slots: str) -> range:
    first, _, last = slots.partition("-")
    return range(int(first), int(last or first) + 1)


def next_steps(nodes: Sequence[Address], views: Views) -> list[Step]:
    """The commands that bring the cluster closer to its form; none if it has it, or if it can only
    wait. Each kind of step needs what the one before it has brought about."""
    for steps in (_meet(views), _assign(nodes, views), _replicate(views), _forget(nodes, views)):
        if found := [*steps]:
            return found
    return []


def is_whole(nodes: Sequence[Address], views: Views) -> bool:
    """Whether all nodes agree, all slots are served, and each primary has one replica in step."""
    if len(views) < len(nodes) or next_steps(nodes, views):
        return False
    ids = {view.me.node_id for view in views.values()}
    primaries = {view.me.node_id for view in views.values() if view.me.has_slots}
    replicated = Counter(view.me.primary_id for view in views.values() if view.me.primary_id)
    return (
        len(primaries) == PRIMARIES
        and replicated == Counter(primaries)
        and all(view.works and _knows_only(view, ids) for view in views.values())
    )


def _knows_only(view: View, ids: set[str]) -> bool:
    known = {each.node_id for each in view.members}
    return known == ids and not any(each.flags & {"fail", "fail?"} for each in view.members)


def primary_of(slot: int, views: Views) -> Address | None:
    """The node that serves a slot as most nodes see it; None if they know of none."""
    owners = Counter(
        each.node_id
        for view in views.values()
        for each in view.members
        if any(slot in slots for slots in each.slots)
    )
    addresses = {view.me.node_id: node for node, view in views.items()}
    [(node_id, _)] = owners.most_common(1) or [("", 0)]
    return addresses.get(node_id)


def has_failed_over(node: Address, views: Views) -> bool | None:
    """Whether no slots are served from this node's address any more; None if nobody answers."""
    if not views:
        return None
    return not any(
        each.has_slots and (each.host, each.port) == (node.host, node.port)
        for view in views.values()
        for each in view.members
    )


def _meet(views: Views) -> Iterator[Step]:
    """Each node learns the others' ids and addresses."""
    for node, view in views.items():
        for other, seen in views.items():
            known = view.of(seen.me.node_id)
            if other != node and (known is None or known.port != other.port):
                yield Step(node, ("CLUSTER", "MEET", other.host, other.port, other.bus))


def _assign(nodes: Sequence[Address], views: Views) -> Iterator[Step]:
    """If no slot was ever assigned, the first nodes get a third each. Never later: an empty node
    must not pass for a shard that has lost its data."""
    everything = (each for view in views.values() for each in view.members)
    if len(views) < len(nodes) or any(each.has_slots for each in everything):
        return
    for number, node in enumerate(nodes[:PRIMARIES]):
        first, end = (SLOTS * each // PRIMARIES for each in (number, number + 1))
        yield Step(node, ("CLUSTER", "ADDSLOTSRANGE", first, end - 1))


def _replicate(views: Views) -> Iterator[Step]:
    """A node without slots becomes the replica of a primary that lacks one."""
    replicas = Counter(view.me.primary_id for view in views.values())
    primaries = [view.me.node_id for view in views.values() if view.me.has_slots]
    for node, view in views.items():
        if not view.me.is_primary or view.me.has_slots:
            continue
        lacking = [each for each in primaries if view.of(each) and not replicas[each]]
        if lacking:
            replicas[lacking[0]] += 1
            yield Step(node, ("CLUSTER", "REPLICATE", lacking[0]))


def _forget(nodes: Sequence[Address], views: Views) -> Iterator[Step]:
    """All nodes forget a node that came back without its files, under another id."""
    ids = {view.me.node_id for view in views.values()}
    if len(views) < len(nodes):
        return
    for node, view in views.items():
        for each in view.members:
            if each.node_id not in ids and each.is_gone:
                yield Step(node, ("CLUSTER", "FORGET", each.node_id))

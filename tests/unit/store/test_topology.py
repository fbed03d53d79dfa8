"""Which node has which slot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from payswitch.store.errors import WrongNodeError
from payswitch.store.nodes import ServerNode
from payswitch.store.topology import SlotRange, Topology, slot_ranges

A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"
Slots = list[list[Any]]


def slots(*primaries: str) -> Slots:
    """An answer to `CLUSTER SLOTS`: equal ranges without replicas."""
    edges = [16_384 * number // len(primaries) for number in range(len(primaries) + 1)]
    nodes = [address.split(":") for address in primaries]
    return [
        [first, end - 1, [host.encode(), int(port), b"id"]]
        for (host, port), first, end in zip(nodes, edges, edges[1:], strict=False)
    ]


class Nodes:
    """Nodes that say what they are told to; those without an answer are away."""

    def __init__(self, **answers: Slots) -> None:
        self.answers = {{"a": A, "b": B, "c": C}[name]: each for name, each in answers.items()}
        self.asked: list[str] = []
        self.closed: list[str] = []
        self.while_asked: Callable[[], object] = lambda: None

    def make(self, address: str, topology: Topology) -> ServerNode:
        return cast(ServerNode, _Node(self, address))

    async def ask(self, address: str) -> Slots:
        self.asked.append(address)
        self.while_asked()
        if address not in self.answers:
            raise RedisConnectionError("away")
        return self.answers[address]


class _Node:
    def __init__(self, nodes: Nodes, address: str) -> None:
        self.address = address
        self._nodes = nodes

    def ask(self, *command: str) -> Awaitable[Slots]:
        assert command == ("CLUSTER", "SLOTS")
        return self._nodes.ask(self.address)

    def forget_run(self) -> None:
        pass

    async def aclose(self) -> None:
        self._nodes.closed.append(self.address)


def moved(address: str) -> WrongNodeError:
    error = WrongNodeError("moved")
    host, port = address.split(":")
    error.moved_to = host, int(port)
    return error


def test_an_answer_names_the_primary_first_and_its_own_host_may_be_unknown() -> None:
    nodes = [[b"10.0.0.1", 7000, b"id"], [b"", 7001, b"id", []], [None, 7002, b"id"]]
    assert slot_ranges([[0, 5460, *nodes]], "::1:7009") == [
        SlotRange(0, 5460, (A, "::1:7001", "::1:7002"))
    ]


async def test_a_slot_belongs_to_the_node_that_the_cluster_names() -> None:
    nodes = Nodes(a=slots(A, B))
    topology = Topology([A], nodes.make)
    assert topology.home(0) == ""
    assert (await topology.locate(0)).address == A
    assert (await topology.locate(16_383)).address == B
    assert (topology.home(8191), topology.home(8192)) == (A, B)
    assert nodes.asked == [A]


async def test_a_node_that_is_away_or_knows_less_is_passed_over() -> None:
    nodes = Nodes(b=slots(B, A)[:1], c=slots(A, C))
    topology = Topology([A, B, C], nodes.make)
    await topology.read_again()
    assert nodes.asked == [A, B, C]
    assert topology.home(0) == A
    del nodes.answers[C]
    await topology.read_again()
    assert topology.home(0) == B  # it knows the most of those that answer
    nodes.answers[B] = []
    with pytest.raises(RedisConnectionError, match="no node of the cluster answers"):
        await topology.read_again()
    assert topology.home(0) == B


async def test_a_move_is_followed_and_counted_once() -> None:
    nodes = Nodes(a=slots(A, A), b=slots(B, B))
    topology = Topology([A], nodes.make)
    await topology.read_again()
    assert await topology.locate_again(0, RedisConnectionError("away")) is None
    found = await topology.locate_again(0, moved(B))
    assert found is not None
    assert found.address == B
    assert topology.changes == 1
    assert await topology.locate_again(0, moved(B)) is None  # as known already
    await topology.read_again()
    assert topology.changes == 1
    await topology.aclose()


async def test_a_reading_asks_each_node_whatever_is_doubted_meanwhile() -> None:
    nodes = Nodes(c=slots(A))
    topology = Topology([A, B, C], nodes.make)
    nodes.while_asked = lambda: topology.doubt(A)
    await topology.read_again()
    assert nodes.asked[:3] == [A, B, C]
    await topology.aclose()


async def test_a_new_replica_moves_nothing() -> None:
    nodes = Nodes(a=slots(A))
    topology = Topology([A], nodes.make)
    await topology.read_again()
    nodes.answers[A] = [[*nodes.answers[A][0], [b"10.0.0.3", 7000, b"id"]]]
    await topology.read_again()
    assert topology.changes == 0
    assert [each.address for each in topology.replicas(0)] == [C]


async def test_a_doubted_node_is_asked_last_and_others_are_forgotten_when_they_are_gone() -> None:
    nodes = Nodes(a=slots(A, B), b=slots(B))
    topology = Topology([A, B], nodes.make)
    await topology.locate(0)
    nodes.asked.clear()
    topology.doubt(A)
    await until(lambda: topology.home(0) == B)
    assert nodes.asked == [B]
    assert nodes.closed == []  # REDIS_URL names it
    nodes.answers[B] = slots(C)
    await topology.read_again()
    await topology.locate(0)
    nodes.answers[B] = slots(B)
    await topology.read_again()
    assert nodes.closed == [C]
    await topology.aclose()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait while the loop turns."""
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)

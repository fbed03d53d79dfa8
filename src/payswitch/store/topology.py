"""Which node of a Redis Cluster has which slot, as its nodes tell it (`CLUSTER SLOTS`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from payswitch.store.errors import WrongNodeError, in_words
from payswitch.store.nodes import ServerNode
from payswitch.store.together import shared

logger = logging.getLogger(__name__)

_PAUSE_S = 0.1
"""Between two readings that nobody waits for."""
_LIMIT_S = 1.0
"""A node that takes longer is passed over."""


class SlotRange(NamedTuple):
    """Slots in a row with the same nodes."""

    first: int
    last: int
    nodes: tuple[str, ...]
    """The addresses of the primary, then of its replicas."""


def slot_ranges(answer: Sequence[Sequence[Any]], asked: str) -> list[SlotRange]:
    """The answer to `CLUSTER SLOTS`. A node that doesn't know its own host has that of the address
    by which it was `asked`."""
    own_host = asked.rpartition(":")[0]
    return [
        SlotRange(
            first,
            last,
            tuple(f"{host.decode() if host else own_host}:{port}" for host, port, *_ in nodes),
        )
        for first, last, *nodes in answer
    ]


class Topology:
    """The nodes of a cluster. It is read before the first call, after each sign that a partition
    has moved, and whenever a node fails. While one is away that is ten times a second, so a reading
    that finds nothing new is one question."""

    def __init__(
        self, given: Sequence[str], make_node: Callable[[str, Topology], ServerNode]
    ) -> None:
        """`given` are the addresses of the nodes that tell of the others."""
        self._given = given
        self._order = [*given]
        """The addresses to ask, in this order."""
        self._make_node = make_node
        self._nodes: dict[str, ServerNode] = {}
        self._ranges: list[SlotRange] = []
        self._by_slot: dict[int, Sequence[str]] = {}
        """The nodes of slots that were asked for: each payment asks several times."""
        self._reading: asyncio.Task[None] | None = None
        self._doubting: asyncio.Task[None] | None = None
        self.changes = 0
        """How often a partition's node has changed."""

    def home(self, slot: int) -> str:
        """As `Nodes.home`."""
        return next(iter(self._of(slot)), "")

    async def locate(self, slot: int) -> ServerNode:
        """As `Nodes.locate`."""
        if not self.home(slot):
            await self.read_again()
        home = self.home(slot)
        if not home:
            raise RedisConnectionError("the cluster has no node for this partition")
        return self._node(home)

    async def locate_again(self, slot: int, wrong: Exception) -> ServerNode | None:
        """As `Nodes.locate_again`."""
        before = self.home(slot)
        if not isinstance(wrong, WrongNodeError) or wrong.moved_to is None:
            self.doubt(before)
            return None
        host, port = wrong.moved_to
        self._order = [*dict.fromkeys([f"{host}:{port}", *self._order])]
        await self.read_again()
        return None if self.home(slot) == before else await self.locate(slot)

    def replicas(self, slot: int) -> list[ServerNode]:
        """The replicas of a slot's node, as known now."""
        return [self._node(address) for address in self._of(slot)[1:]]

    def doubt(self, address: str) -> None:
        """Read the topology again soon, from another node than this one, if possible."""
        self._order.sort(key=lambda each: each == address)
        if self._doubting is None or self._doubting.done():
            self._doubting = asyncio.create_task(self._read_soon(), name="read the topology")

    async def read_again(self) -> None:
        """Read it now; concurrent callers share a reading. Raises `RedisConnectionError`."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="read the topology")
        await shared(self._reading)

    async def aclose(self) -> None:
        """Close every connection."""
        tasks = [task for task in (self._doubting, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in self._nodes.values():
            await node.aclose()

    def _of(self, slot: int) -> Sequence[str]:
        """The addresses of a slot's nodes, the primary first; empty if none is known."""
        found = self._by_slot.get(slot)
        if found is None:
            among = (each.nodes for each in self._ranges if each.first <= slot <= each.last)
            found = self._by_slot[slot] = next(among, ())
        return found

    async def _read(self) -> None:
        ranges = await self._ask()
        primaries = {each.nodes[0] for each in ranges}
        for address in self._nodes.keys() - primaries:
            self._nodes[address].forget_run()
        if ranges == self._ranges:
            return
        if self._ranges and _primaries(self._ranges) != _primaries(ranges):
            self.changes += 1
            logger.warning("redis: a partition has moved to another node")
        self._ranges = ranges
        self._by_slot.clear()
        known = [*(node for each in ranges for node in each.nodes), *self._given]
        self._order = [each for each in dict.fromkeys([*self._order, *known]) if each in known]
        for address in self._nodes.keys() - set(known):
            await self._nodes.pop(address).aclose()

    async def _ask(self) -> list[SlotRange]:
        """What the first node says that knows of all slots, or the one that knows of the most.
        Raises `RedisConnectionError` if none does."""
        best: list[SlotRange] = []
        error: Exception = RedisConnectionError("it knows of no slots")
        for address in [*self._order]:
            try:
                async with asyncio.timeout(_LIMIT_S):
                    answer = await self._node(address).ask("CLUSTER", "SLOTS")
            except (RedisError, OSError) as failed:
                error = failed
                continue
            best = max(best, slot_ranges(answer, address), key=_count)
            if _count(best) == SLOTS:
                break
        if not best and isinstance(error, ResponseError):  # it is no cluster, or not for this user
            raise RedisConnectionError(in_words(error))
        if not best:
            raise RedisConnectionError(f"no node of the cluster answers: {in_words(error)}")
        return best

    async def _read_soon(self) -> None:
        try:
            await self.read_again()
        except (RedisError, OSError) as error:
            logger.debug("the topology can't be read: %(error)s", {"error": in_words(error)})
        await asyncio.sleep(_PAUSE_S)

    def _node(self, address: str) -> ServerNode:
        found = self._nodes.get(address)
        if found is None:
            found = self._nodes[address] = self._make_node(address, self)
        return found


def _count(ranges: Sequence[SlotRange]) -> int:
    return sum(each.last - each.first + 1 for each in ranges)


def _primaries(ranges: Sequence[SlotRange]) -> list[tuple[int, int, str]]:
    return [(each.first, each.last, each.nodes[0]) for each in ranges]


class SlotPool(ConnectionPool):
    """A pool for ordinary commands on one slot's keys: each connection is of the node that has the
    slot now."""

    def __init__(self, topology: Topology, slot: int, **connection_kwargs: Any) -> None:
        super().__init__(**connection_kwargs)
        self._topology = topology
        self._slot = slot
        self._pools: dict[AbstractConnection, ConnectionPool] = {}

    async def get_connection(
        self, command_name: Any = None, *keys: Any, **options: Any
    ) -> AbstractConnection:
        """A connection to the slot's node. Raises `RedisError`."""
        node = await self._topology.locate(self._slot)
        try:
            connection: AbstractConnection = await node.pool.get_connection()
        except (RedisError, OSError):
            node.epoch.doubt()
            raise
        self._pools[connection] = node.pool
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give the connection back to its node's pool."""
        await self._pools.pop(connection).release(connection)

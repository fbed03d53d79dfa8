"""Which node of a Redis Cluster has which slot, as redis-py's `NodesManager` reads it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
)

from payswitch.store.errors import WrongNodeError, in_words
from payswitch.store.nodes import ServerNode
from payswitch.store.together import shared

logger = logging.getLogger(__name__)

_PAUSE_S = 0.1
"""Between two readings that nobody waits for."""


class Topology:
    """The nodes of a cluster. It is read before the first call, after each sign that a partition
    has moved, and whenever a node fails."""

    def __init__(
        self, manager: NodesManager, make_node: Callable[[str, int, Topology], ServerNode]
    ) -> None:
        self._manager = manager
        self._make_node = make_node
        self._nodes: dict[str, ServerNode] = {}
        self._reading: asyncio.Task[None] | None = None
        self._doubting: asyncio.Task[None] | None = None
        self.changes = 0
        """How often a partition's node has changed."""

    def home(self, slot: int) -> str:
        """As `Nodes.home`."""
        node = self._primary(slot)
        return "" if node is None else node.name

    async def locate(self, slot: int) -> ServerNode:
        """As `Nodes.locate`."""
        primary = self._primary(slot)
        if primary is None:
            await self.read_again()
            primary = self._primary(slot)
        if primary is None:
            raise RedisConnectionError("the cluster has no node for this partition")
        return self._node(primary)

    async def locate_again(self, slot: int, wrong: Exception) -> ServerNode | None:
        """As `Nodes.locate_again`."""
        before = self.home(slot)
        if not isinstance(wrong, WrongNodeError) or wrong.moved_to is None:
            self.doubt(before)
            return None
        self._ask_first(*wrong.moved_to)
        await self.read_again()
        return None if self.home(slot) == before else await self.locate(slot)

    def primaries(self) -> list[ServerNode]:
        """The nodes that have slots, as known now."""
        found = {nodes[0].name: nodes[0] for nodes in self._manager.slots_cache.values()}
        return [self._node(node) for node in found.values()]

    def replicas(self, slot: int) -> list[ServerNode]:
        """The replicas of a slot's node, as known now."""
        return [self._node(node) for node in self._manager.slots_cache.get(slot, [])[1:]]

    def doubt(self, address: str) -> None:
        """Read the topology again soon, from another node than this one, if possible."""
        nodes = self._manager.startup_nodes
        if address in nodes:
            nodes[address] = nodes.pop(address)
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
        await self._manager.aclose()
        await self._manager.aclose("startup_nodes")

    async def _read(self) -> None:
        before = {slot: nodes[0].name for slot, nodes in self._manager.slots_cache.items()}
        try:
            await self._manager.initialize()
        except (RedisClusterException, IndexError) as error:
            raise RedisConnectionError(_why_unreadable(error)) from None
        now = {slot: nodes[0].name for slot, nodes in self._manager.slots_cache.items()}
        if any(now[slot] != name for slot, name in before.items() if slot in now):
            self.changes += 1
            logger.warning("redis: a partition has moved to another node")
        for address in self._nodes.keys() - set(now.values()):
            self._nodes[address].forget_run()
        for address in self._nodes.keys() - self._manager.nodes_cache.keys():
            await self._nodes.pop(address).aclose()

    async def _read_soon(self) -> None:
        try:
            await self.read_again()
        except (RedisError, OSError) as error:
            logger.debug("the topology can't be read: %(error)s", {"error": in_words(error)})
        await asyncio.sleep(_PAUSE_S)

    def _primary(self, slot: int) -> ClusterNode | None:
        try:
            return self._manager.get_node_from_slot(slot)
        except (SlotNotCoveredError, KeyError):
            return None

    def _node(self, node: ClusterNode) -> ServerNode:
        found = self._nodes.get(node.name)
        if found is None:
            found = self._nodes[node.name] = self._make_node(node.host, int(node.port), self)
        return found

    def _ask_first(self, host: str, port: int) -> None:
        known = self._manager.startup_nodes
        name = f"{host}:{port}"
        first = known.pop(name, None) or ClusterNode(host, port, **self._manager.connection_kwargs)
        rest = dict(known)
        known.clear()
        known.update({name: first, **rest})


def _why_unreadable(error: Exception) -> str:
    """The reason why no node told the slots."""
    reason = error.__cause__ or error
    if isinstance(reason.__context__, ResponseError):  # which redis-py takes for one node's setting
        return in_words(reason.__context__)
    return f"no node of the cluster answers: {in_words(reason)}"


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
            self._topology.doubt(node.address)
            raise
        self._pools[connection] = node.pool
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give the connection back to its node's pool."""
        await self._pools.pop(connection).release(connection)

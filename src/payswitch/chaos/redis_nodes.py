"""The Redis servers of a chaos run. A fault names them by their roles, which change in the run."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.crc import key_slot

from payswitch.chaos.plan import ALL_NODES, PRIMARY, REPLICA, SELECTION
from payswitch.local.cluster_topology import PRIMARIES, SLOTS, primary_of
from payswitch.local.machine import MachineError
from payswitch.local.redis_cluster import LocalCluster, RedisNode
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.client import connect

_ANSWER_LIMIT_S = 2.0
_WHOLE_WITHIN_S = 60.0
_POLL_S = 0.1
_FIRST_SLOTS = [SLOTS * number // PRIMARIES for number in range(PRIMARIES)]


class RedisNodes:
    """The single Redis, or the nodes of the cluster.

    One fault at a time meets a shard: a replica that restarts while its primary's files are gone is
    never promoted, as it can't know how old it is. One shard at a time is away for long: a replica
    that waited 30 s for a majority of the primaries is never promoted either.
    """

    def __init__(self, settings: Settings, cluster: LocalCluster | None) -> None:
        self.cluster = cluster
        urls = {node.name: node.url for node in cluster.nodes} if cluster else {}
        urls = urls or {"redis": settings.redis_url}
        self._clients = {name: connect(url, limit_s=_ANSWER_LIMIT_S) for name, url in urls.items()}
        self._locks = [asyncio.Lock() for _ in range(PRIMARIES)]
        self._majority = asyncio.Lock()

    @property
    def clients(self) -> dict[str, Redis]:
        """A client of each server, by its part."""
        return {**self._clients}

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.aclose(close_connection_pool=True)

    @contextlib.asynccontextmanager
    async def held(self, target: str, *, away: bool = False) -> AsyncIterator[None]:
        """Other faults leave the target's shards alone while the context lasts; `away`: and take no
        other shard away for long."""
        async with contextlib.AsyncExitStack() as stack:
            if away:
                await stack.enter_async_context(self._majority)
            for shard in _shards_of(target):
                await stack.enter_async_context(self._locks[shard])
            yield

    async def parts(self, target: str) -> list[str]:
        """The parts that a fault of this target meets: nodes by their present roles, or the part
        itself."""
        shards = _shards_of(target)
        if not shards:
            return [target]
        if target == ALL_NODES:
            return [*self._clients]
        copies = await self._copies(shards[0])
        if target.startswith(PRIMARY):
            return copies[:1]
        return copies[1:] if target.startswith(REPLICA) else copies

    async def until_in_step(self, target: str) -> None:
        """Return once the target's shards have a primary and a replica in step. Raises
        `MachineError` if that takes too long."""
        assert self.cluster is not None
        for shard in _shards_of(target):
            async with _limit(f"shard {shard + 1}"):
                while not await self._is_in_step(shard):
                    await asyncio.sleep(_POLL_S)

    async def until_whole(self) -> None:
        """Return once the cluster, if there is one, is whole. Raises `MachineError` if that takes
        too long."""
        async with _limit("the cluster"):
            while self.cluster is not None and not await self.cluster.is_whole():
                await asyncio.sleep(_POLL_S)

    def forget_files(self, part: str) -> None:
        """Remove all files of a node that is frozen."""
        for entry in self._node(part).folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    async def _is_in_step(self, shard: int) -> bool:
        assert self.cluster is not None
        views = await self.cluster.views()
        copies = [views.get(self._node(part).address) for part in await self._copies(shard)]
        return len(copies) == 2 and all(view is not None and view.works for view in copies)

    async def _copies(self, shard: int) -> list[str]:
        """The primary of a shard, then its replica, without those that don't answer."""
        assert self.cluster is not None
        views = await self.cluster.views()
        address = primary_of(_FIRST_SLOTS[shard], views)
        if address is None:
            return []
        names = {node.address: node.name for node in self.cluster.nodes}
        primary_id = views[address].me.node_id
        replicas = [at for at, view in views.items() if view.me.primary_id == primary_id]
        return [names[at] for at in (address, *replicas)]

    def _node(self, part: str) -> RedisNode:
        assert self.cluster is not None
        return next(node for node in self.cluster.nodes if node.name == part)


@contextlib.asynccontextmanager
async def _limit(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_WHOLE_WITHIN_S):
            yield
    except TimeoutError:
        raise MachineError(f"{what} isn't whole after {_WHOLE_WITHIN_S:.0f} s") from None


def _shards_of(target: str) -> list[int]:
    if target == ALL_NODES:
        return [*range(PRIMARIES)]
    if target == SELECTION:
        slot = key_slot(keys.SELECTION.encode())
        return [max(shard for shard, first in enumerate(_FIRST_SLOTS) if first <= slot)]
    if target.startswith((PRIMARY, REPLICA)):
        return [int(target.rpartition("-")[2]) - 1]
    return []

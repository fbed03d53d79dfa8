"""The faults of a chaos run's cluster, on a real one."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import cast

import pytest
from redis.asyncio import Redis

from payswitch.chaos.inject import Injector
from payswitch.chaos.plan import PlannedFault
from payswitch.chaos.system import ChaosSystem
from payswitch.local.cluster_topology import PRIMARIES, Address
from payswitch.local.redis_cluster import LocalCluster
from payswitch.settings import Settings
from tests.cluster import ClusterServer
from tests.support import SLACK_S

SLOTS = (0, 5461, 10922)
"""The first of each shard."""


class NodesOnly:
    """A chaos system without any part but the nodes."""

    def __init__(self, cluster: ClusterServer) -> None:
        self._cluster = cluster
        self.settings = Settings()
        self.processors: dict[str, str] = {}
        self.token = ""
        self.clocks = None
        self.island = None

    @property
    def cluster(self) -> LocalCluster:
        return self._cluster.local

    def pid(self, part: str) -> int | None:
        return self._cluster.pid(part)

    def signal(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)


async def run(cluster: ClusterServer, *plan: PlannedFault) -> None:
    """Carry out a plan while the nodes are kept running; the cluster is whole afterwards."""
    injector = Injector(cast(ChaosSystem, NodesOnly(cluster)), plan, seed=1)
    async with cluster.supervised(), asyncio.timeout(SLACK_S):
        await injector.run()
    await injector.close()
    await cluster.whole()


async def primaries(cluster: ClusterServer) -> list[Address]:
    return [await cluster.primary_of(slot) for slot in SLOTS]


async def ids(cluster: ClusterServer) -> dict[Address, str]:
    views = await cluster.local.views()
    return {address: view.me.node_id for address, view in views.items()}


@pytest.mark.long
async def test_a_primary_loses_its_files_while_other_shards_are_failed_over_and_frozen(
    cluster: ClusterServer,
) -> None:
    async with cluster.client() as client:
        for number in range(100):
            await client.set(f"key-{number}", number)
    before, ids_before = await primaries(cluster), await ids(cluster)
    await run(
        cluster,
        PlannedFault(0, "node-wipe", "primary-1"),
        PlannedFault(0, "failover", "replica-2"),
        PlannedFault(0, "redis-pause", "replica-3", 1.0),
    )
    after, ids_after = await primaries(cluster), await ids(cluster)
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, True, False]
    assert {at for at in ids_before if ids_before[at] != ids_after[at]} == {before[0]}
    async with cluster.client() as client:
        kept = [await client.get(f"key-{number}") for number in range(100)]
    assert kept == [str(number).encode() for number in range(100)]


async def test_all_nodes_are_killed_and_all_of_a_shard_frozen(cluster: ClusterServer) -> None:
    before = await ids(cluster)
    pids = {node.name: cluster.pid(node.name) for node in cluster.local.nodes}
    await run(
        cluster,
        PlannedFault(0, "nodes-restart", "nodes"),
        PlannedFault(0.5, "shard-pause", "selection", 1.0),
    )
    assert await ids(cluster) == before
    assert all(cluster.pid(name) != pid for name, pid in pids.items())


async def test_scripts_are_flushed_and_memory_runs_out_at_the_node_with_the_role(
    cluster: ClusterServer,
) -> None:
    nodes = [Redis(port=address.port) for address in await primaries(cluster)]
    hashes = [str(await node.script_load("return 1")) for node in nodes]
    await run(cluster, PlannedFault(0, "redis-flush", "primary-2"))
    loaded = [await node.script_exists(sha) for node, sha in zip(nodes, hashes, strict=True)]
    assert loaded == [[True], [False], [True]]
    memory = asyncio.create_task(run(cluster, PlannedFault(0, "redis-memory", "primary-1", 0.5)))
    full: set[int] = set()
    while not memory.done():
        for number, node in enumerate(nodes):
            if (await node.config_get("maxmemory"))["maxmemory"] != "0":
                full.add(number)
        await asyncio.sleep(0.02)
    await memory
    assert full == {0}
    assert len(nodes) == PRIMARIES
    for node in nodes:
        await node.aclose()

"""The cluster of `payswitch up --redis cluster`: formed by commands, and taken back whole whatever
happens to a node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from payswitch.local.cluster_topology import NODES, Address, View
from tests.cluster import ClusterServer
from tests.support import SLACK_S, eventually

SLOTS = {"{3560}": 0, "{0}": 13907, "{1}": 9842}
"""Tags with their slots: one in each third."""
SLOT = 0


@pytest.fixture
async def client(cluster: ClusterServer) -> AsyncIterator[RedisCluster]:
    async with cluster.client() as redis:
        for tag in SLOTS:
            await redis.set(tag, "kept")
        yield redis


async def require_everything(cluster: ClusterServer) -> None:
    """All keys are there, for a client that comes new, once all nodes know who serves them."""
    found: list[bytes | None] = []

    async def is_served() -> bool:
        with contextlib.suppress(RedisError, RedisClusterException, OSError):
            async with cluster.client() as redis:
                found[:] = [await redis.get(tag) for tag in SLOTS]
                return True
        return False

    await eventually(is_served, what="every slot is served")
    assert found == [b"kept"] * len(SLOTS)


async def view_of(cluster: ClusterServer, address: Address) -> View:
    """The cluster as a node sees it."""
    return (await cluster.local.views())[address]


async def test_each_third_has_a_primary_and_a_replica(
    cluster: ClusterServer, client: RedisCluster
) -> None:
    primaries = {await cluster.primary_of(slot) for slot in SLOTS.values()}
    assert len(primaries) == NODES / 2
    await require_everything(cluster)


async def test_every_node_is_set_up_to_lose_nothing(
    cluster: ClusterServer, client: RedisCluster
) -> None:
    for address in cluster.local.addresses:
        async with Redis(port=address.port, decode_responses=True) as node:
            config = await node.config_get("*")
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "cluster-require-full-coverage": "no",
            "cluster-allow-replica-migration": "no",
        }
        assert {name: config[name] for name in wanted} == wanted
        assert int(config["cluster-replica-validity-factor"]) > 0


async def test_all_nodes_restart_with_all_that_they_had(
    cluster: ClusterServer, client: RedisCluster
) -> None:
    before = {view.me.node_id for view in (await cluster.local.views()).values()}
    cluster.kill_all()
    await cluster.start_nodes()
    assert {view.me.node_id for view in (await cluster.local.views()).values()} == before
    await require_everything(cluster)


@pytest.mark.long
async def test_a_primary_that_comes_back_after_its_failover_is_a_replica(
    cluster: ClusterServer, client: RedisCluster
) -> None:
    primary = await cluster.primary_of(SLOT)
    cluster.kill(primary)
    promoted = await cluster.promoted(primary, SLOT)
    await cluster.start_node(primary)
    await cluster.whole()
    new = (await view_of(cluster, promoted)).me
    assert (await view_of(cluster, primary)).me.primary_id == new.node_id
    await require_everything(cluster)


async def test_a_primary_without_its_files_waits_for_its_failover_and_returns_as_a_replica(
    cluster: ClusterServer, client: RedisCluster
) -> None:
    primary = await cluster.primary_of(SLOT)
    old_id = (await view_of(cluster, primary)).me.node_id
    cluster.wipe(primary)
    async with asyncio.timeout(SLACK_S):
        await cluster.start_node(primary)
    promoted = await cluster.primary_of(SLOT)
    assert promoted != primary
    await cluster.whole()
    back = await view_of(cluster, primary)
    assert back.me.primary_id == (await view_of(cluster, promoted)).me.node_id
    assert all(view.of(old_id) is None for view in (await cluster.local.views()).values())
    await require_everything(cluster)


@pytest.mark.long
async def test_a_replica_without_its_files_returns_in_step(
    cluster: ClusterServer, client: RedisCluster
) -> None:
    primary = await cluster.primary_of(SLOT)
    primary_id = (await view_of(cluster, primary)).me.node_id
    [replica] = [
        address
        for address, view in (await cluster.local.views()).items()
        if view.me.primary_id == primary_id
    ]
    cluster.wipe(replica)
    await cluster.start_node(replica)
    await cluster.whole()
    assert (await view_of(cluster, replica)).me.primary_id == primary_id
    cluster.kill(primary)
    assert await cluster.promoted(primary, SLOT) == replica
    await require_everything(cluster)

"""A node of the cluster on a host of its own, which is cut off from the others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.chaos.island import Island, why_no_island
from tests.cluster import ClusterServer
from tests.support import eventually

SLOT, KEY = 0, "{3560}"


@pytest.fixture
def island() -> Iterator[Island]:
    if (why := why_no_island()) is not None:
        pytest.skip(why)
    island = Island(os.getpid())
    with island.made():
        yield island
    assert f"payswitch-{os.getpid()}" not in output("ip", "netns", "list")
    assert f"ps{os.getpid()}" not in output("ip", "link")


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.long
async def test_a_primary_that_is_cut_off_takes_nothing_after_its_failover_and_returns_as_a_replica(
    island: Island, tmp_path: Path
) -> None:
    cluster = ClusterServer(tmp_path, island)
    try:
        await cluster.start_nodes()
        alone = cluster.local.addresses[0]
        assert await cluster.primary_of(SLOT) == alone
        island.cut_off()
        promoted = await cluster.promoted(alone, SLOT)
        async with Redis(host=promoted.host, port=promoted.port) as node:
            await eventually(lambda: takes(node), what="the promoted replica takes writes")
        island.join()
        await cluster.whole()
        views = await cluster.local.views()
        assert views[alone].me.primary_id == views[promoted].me.node_id
    finally:
        cluster.kill_all()


async def takes(node: Redis) -> bool:
    """Whether a node takes a write for the slot."""
    try:
        return bool(await node.set(KEY, 1))
    except RedisError:
        return False

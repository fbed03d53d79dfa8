"""`payswitch up --redis cluster`: everything that `payswitch up` runs, on a cluster of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import pytest

from payswitch.local.cluster_topology import NODES, primary_of
from payswitch.local.redis_cluster import LocalCluster
from tests.end_to_end.conftest import StartSystem
from tests.end_to_end.harness import HOST, System
from tests.support import eventually

FIRST_SLOTS = (0, 5461, 10922)
"""One of each shard."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


def cluster_of(system: System) -> LocalCluster:
    """The system's cluster, to look at."""
    return LocalCluster([HOST] * NODES, system.ports.redis, system.state / "redis-cluster")


async def pay_some(system: System) -> list[str]:
    """Payments enough to fall into each shard."""
    return await asyncio.gather(*(system.pay(100 + number) for number in range(20)))


async def total(system: System) -> int:
    """The number of settled payments."""
    return sum(count for count, _ in (await system.summary()).values())


async def test_payments_survive_lost_nodes_and_a_restart_of_all(start_system: StartSystem) -> None:
    system = start_system("--redis=cluster", "--workers=1")
    cluster = cluster_of(system)
    assert await cluster.is_whole()
    await system.settled(*await pay_some(system))

    for slot in FIRST_SLOTS[:2]:
        primary = primary_of(slot, await cluster.views())
        node = next(each for each in cluster.nodes if each.address == primary)
        pid = system.kill(node.name, signal.SIGSTOP)
        for entry in node.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        os.kill(pid, signal.SIGKILL)
        await system.settled(*await pay_some(system))
        await system.runs_again(node.name, pid)
        await eventually(cluster.is_whole, what="the lost node is a replica in step")
        assert primary_of(slot, await cluster.views()) != primary
    assert await total(system) == 60

    assert system.stop() == 0
    again = start_system("--redis=cluster", "--workers=1", state=system.state)
    assert await total(again) == 60
    await again.settled(*await pay_some(again))
    assert await total(again) == 80
    assert "Begun before" in again.output

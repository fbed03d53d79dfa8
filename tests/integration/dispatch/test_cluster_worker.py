"""Ingress, workers and health check on a real Redis Cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest

from payswitch.durability import Deployment, Durability
from payswitch.ingress.app import create_app
from payswitch.payments.claims import Claims
from payswitch.selection.selector import parse_selection
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.beginning import begin
from payswitch.store.client import Client, connect
from payswitch.store.partitions import Partition, partition_of
from tests.cluster import ClusterServer
from tests.support import PROCESSORS, SLACK_S, ScriptedProcessor, eventually

SAFE = Deployment(16, Durability.REPLICAS, 1)


@dataclass
class System:
    """A deployment in a cluster, its ingress, and two processors."""

    cluster: ClusterServer
    redis: Client
    client: httpx.AsyncClient
    default: ScriptedProcessor
    environment: dict[str, str]

    @contextlib.asynccontextmanager
    async def part(
        self, name: str, **environment: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """A part of Payswitch in a process of its own while the context is open."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "payswitch", name),
            env={**os.environ, **self.environment, **environment},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def pay(self, partition: int | None = None) -> httpx.Response:
        """Send a new payment, of this partition if one is named."""
        correlation_id = str(uuid4())
        while partition not in (None, partition_of(correlation_id, 16)):
            correlation_id = str(uuid4())
        payment = {"correlationId": correlation_id, "amount": 19.9}
        return await self.client.post("/payments", json=payment)

    async def accept(self, partition: int | None = None) -> str:
        """As `pay`, until it is accepted; its location."""
        async with asyncio.timeout(SLACK_S):
            while (answer := await self.pay(partition)).status_code != 202:
                assert answer.status_code == 503
                assert "retry-after" in answer.headers
                await asyncio.sleep(0.05)
        return answer.headers["location"]

    async def settled(self, *locations: str) -> None:
        """Wait until these payments are settled."""

        async def are_settled() -> bool:
            answers = await asyncio.gather(*map(self.client.get, locations))
            return all(
                answer.status_code == 200 and answer.json()["state"] == "settled"
                for answer in answers
            )

        await eventually(are_settled, what=f"{len(locations)} payments are settled")

    @property
    def partition(self) -> Partition:
        """One that is on another node than the common keys."""
        common = self.redis.partitions.common
        return next(each for each in self.redis.partitions if each.home != common.home)


@pytest.fixture
async def system(cluster: ClusterServer) -> AsyncIterator[System]:
    redis = connect(cluster.url, limit_s=SLACK_S, deployment=SAFE)
    await begin(redis)
    async with ScriptedProcessor().running() as default, ScriptedProcessor().running() as fallback:
        environment = {
            "REDIS_URL": cluster.url,
            "PAYSWITCH_DURABILITY": "replicas",
            "PAYSWITCH_REPLICAS": "1",
            "PAYMENT_PROCESSOR_URL_DEFAULT": default.url,
            "PAYMENT_PROCESSOR_URL_FALLBACK": fallback.url,
        }
        app = create_app(Settings.from_environment(environment))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
                yield System(cluster, redis, client, default, environment)
    await redis.aclose(close_connection_pool=True)


async def test_payments_of_all_partitions_are_paid_once(system: System) -> None:
    async with system.part("worker"), system.part("worker"):
        locations = await asyncio.gather(*(system.accept(number % 16) for number in range(64)))
        await system.settled(*locations)
    assert len(system.default.posts) == 64
    total = (await system.client.get("/payments-summary")).json()["default"]
    assert total == {"totalRequests": 64, "totalAmount": 1273.6}


async def test_the_health_check_selects(system: System) -> None:
    async def selects() -> bool:
        raw = await system.redis.get(keys.SELECTION)
        found = parse_selection(raw, PROCESSORS)
        return found is not None and found.healthy

    async with system.part("health"):
        await eventually(selects, what="a processor is selected")


async def test_a_small_claim_finds_the_one_due_payment_among_all_partitions(
    system: System,
) -> None:
    claims = Claims(system.redis, lease_ms=60_000, deadline_ms=10**9, max_delay_ms=300)
    for number in (3, 11):
        location = await system.accept(number)
        [claimed] = (await claims.take(1)).taken
        assert location.endswith(claimed.claim.correlation_id)
    assert (await claims.take(1)).taken == []


@pytest.mark.long
async def test_a_killed_primary_takes_only_its_partitions_until_its_failover(
    system: System,
) -> None:
    async with system.part("worker"):
        await system.settled(*await asyncio.gather(*map(system.accept, range(16))))
        lost = system.partition
        others = [each.number for each in system.redis.partitions if each.home != lost.home]
        primary = await system.cluster.primary_of(lost.slot)
        system.cluster.kill(primary)
        refused = await system.pay(lost.number)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert (await system.client.get("/readyz")).status_code == 200
        accepted = await asyncio.gather(*map(system.pay, others))
        assert {each.status_code for each in accepted} == {202}
        await system.settled(*(each.headers["location"] for each in accepted))
        await system.cluster.start_node(primary)  # the shard needs a replica for its accepts
        await system.settled(await system.accept(lost.number))


@pytest.mark.long
@pytest.mark.parametrize("has_common_keys", [False, True])
async def test_a_frozen_primary_holds_up_nothing_of_the_others(
    system: System, has_common_keys: bool
) -> None:
    async with system.part("worker"):
        await system.settled(*await asyncio.gather(*map(system.accept, range(16))))
        lost = system.redis.partitions[8] if has_common_keys else system.partition
        assert (lost.home == system.redis.partitions.common.home) is has_common_keys
        others = [each.number for each in system.redis.partitions if each.home != lost.home]
        primary = await system.cluster.primary_of(lost.slot)
        system.cluster.signal(primary, signal.SIGSTOP)
        accepted = await asyncio.gather(*map(system.pay, others))
        assert {each.status_code for each in accepted} == {202}
        await system.settled(*(each.headers["location"] for each in accepted))
        system.cluster.signal(primary, signal.SIGCONT)
        await system.settled(await system.accept(lost.number))


@pytest.mark.long
async def test_a_try_without_confirmation_is_not_sent_and_no_processor_pays_for_it(
    system: System,
) -> None:
    async with system.part("worker"):
        await system.settled(*await asyncio.gather(*map(system.accept, range(16))))
        sent = len(system.default.posts)
        lost = system.partition
        replica = await system.cluster.replica_of(lost.slot)
        system.cluster.signal(replica, signal.SIGSTOP)
        answer = await system.pay(lost.number)
        assert answer.status_code == 503  # it is there, but not confirmed
        payment = await _open_payment(system.redis, lost)

        async def is_held() -> bool:
            record = await lost.redis.hgetall(lost.record(payment))  # type: ignore[misc]
            return b"not sent" in record.get(b"last_error", b"")

        await eventually(is_held, what="the try is closed")
        assert len(system.default.posts) == sent
        system.cluster.signal(replica, signal.SIGCONT)
        await system.settled(f"/payments/{payment}")
        assert len(system.default.posts) == sent + 1


@pytest.mark.long
async def test_a_primary_that_freezes_under_load_leaves_no_error_that_nobody_has_seen(
    system: System, capfd: pytest.CaptureFixture[str]
) -> None:
    async with system.part("worker"), system.part("worker"):
        await system.settled(*await asyncio.gather(*map(system.accept, range(16))))
        for lost in (system.partition, system.redis.partitions[8]):
            primary = await system.cluster.primary_of(lost.slot)
            load = asyncio.gather(*(system.pay(number % 16) for number in range(64)))
            system.cluster.signal(primary, signal.SIGSTOP)
            await load
            await system.cluster.promoted(primary, lost.slot)
            system.cluster.signal(primary, signal.SIGCONT)
            await system.cluster.whole()
            await system.settled(*await asyncio.gather(*map(system.accept, range(16))))
    said = capfd.readouterr().err
    assert [line for line in said.splitlines() if "never retrieved" in line] == []


async def _open_payment(redis: Client, partition: Partition) -> str:
    [job_id] = await partition.redis.zrange(partition.key(keys.OPEN), 0, -1)
    return partition.correlation_id(job_id)

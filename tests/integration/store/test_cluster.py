"""Scripts on a real Redis Cluster: three primaries with a replica each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from payswitch.durability import Deployment, Durability
from payswitch.money import Total
from payswitch.payments.accepting import Acceptance, AcceptQueue
from payswitch.payments.claims import Claim, Claims
from payswitch.payments.ledger import Ledger, Settlement
from payswitch.payments.payment import Payment
from payswitch.payments.tries import Findings, Tries
from payswitch.store.beginning import begin
from payswitch.store.client import Client, connect
from tests.cluster import ClusterServer
from tests.support import PROCESSORS, SLACK_S

SAFE = Deployment(8, Durability.REPLICAS, 1)


@pytest.fixture
async def redis(cluster: ClusterServer) -> AsyncIterator[Client]:
    client = connect(cluster.url, limit_s=SLACK_S, deployment=SAFE)
    await begin(client)
    yield client
    await client.aclose(close_connection_pool=True)


def queue_of(redis: Client, *, limit_ms: int = SLACK_S * 1000) -> AcceptQueue:
    return AcceptQueue(redis, limit_ms=limit_ms, max_backlog=1000)


def tries_of(redis: Client) -> Tries:
    return Tries(redis, max_delay_ms=300, lease_ms=60_000, retention_ms=600_000)


async def claim_all(redis: Client, count: int) -> list[Claim]:
    claims = Claims(redis, lease_ms=60_000, deadline_ms=10**9, max_delay_ms=300)
    found: list[Claim] = []
    async with asyncio.timeout(SLACK_S):
        while len(found) < count:
            found += [each.claim for each in (await claims.take(64)).taken]
    return found


async def test_payments_of_all_partitions_are_accepted_claimed_settled_and_summed(
    redis: Client,
) -> None:
    payments = [Payment(str(uuid4()), 100 + number) for number in range(100)]
    queue = queue_of(redis)
    assert await asyncio.gather(*map(queue.accept, payments)) == [Acceptance.NEW] * 100
    assert await asyncio.gather(*map(queue.accept, payments)) == [Acceptance.SAME] * 100
    claims = await claim_all(redis, 100)
    assert {each.correlation_id for each in claims} == {each.correlation_id for each in payments}
    assert Counter(each.partition for each in claims).keys() == {*range(8)}
    tries, ledger = tries_of(redis), Ledger(redis, processors=PROCESSORS, retention_ms=600_000)
    routed = await asyncio.gather(*(tries.open(each, "default", Findings()) for each in claims))
    settled = await asyncio.gather(
        *(
            ledger.settle(claim, "default", each.requested_at)
            for claim, each in zip(claims, routed, strict=True)
            if each is not None
        )
    )
    assert settled == [Settlement.SETTLED] * 100
    total = Total(100, sum(each.cents for each in payments))
    assert (await ledger.window(None, None)).totals["default"] == total
    first = min(each.requested_at for each in routed if each is not None)
    assert (await ledger.window(first, first + 60_000)).totals["default"] == total

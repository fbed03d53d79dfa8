"""Claiming by lease on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from payswitch.clock import boottime_ms
from payswitch.money import Total
from payswitch.payments.claims import Claims, FirstTries, Routed
from payswitch.payments.tries import Findings, Tries
from tests.integration.harness import Bench, bench
from tests.support import Reply


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


def claims(redis: ArqRedis, lease_ms: int = 60_000) -> Claims:
    return Claims(redis, lease_ms=lease_ms, deadline_ms=60_000, max_delay_ms=10_000)


async def test_what_is_claimed_is_not_claimed_again_while_the_lease_runs(
    b: Bench, redis: ArqRedis
) -> None:
    payments = {await b.accept() for _ in range(5)}
    first = await claims(redis).take(3)
    second = await claims(redis).take(10)
    third = await claims(redis).take(10)
    assert len(first.taken) == 3
    taken = {each.claim.correlation_id for each in (*first.taken, *second.taken)}
    assert taken == payments
    assert third.taken == []


@pytest.mark.parametrize("metadata", [None, b'{"n":1.10}'])
async def test_a_claim_brings_the_metadata_as_it_was_accepted(
    b: Bench, redis: ArqRedis, metadata: bytes | None
) -> None:
    await b.accept(metadata=metadata)
    [first] = (await claims(redis, lease_ms=1).take(1)).taken
    second = await claims(redis).take(1)
    while not second.taken:
        second = await claims(redis).take(1)
    assert first.claim.metadata == second.taken[0].claim.metadata == metadata
    assert "1.10" not in repr(first)


async def test_a_lease_that_ended_gives_the_payment_back_by_itself(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await b.accept()
    first = await claims(redis, lease_ms=1).take(1)
    second = await claims(redis).take(1)
    while not second.taken:
        second = await claims(redis).take(1)
    assert second.taken[0].claim.correlation_id == payment
    assert second.taken[0].claim.token != first.taken[0].claim.token
    assert second.taken[0].claim.job_try == 2


async def test_the_backlog_stays_visible_while_payments_are_in_flight(
    b: Bench, redis: ArqRedis
) -> None:
    for _ in range(4):
        await b.accept()
    await claims(redis).take(3)
    assert await redis.zcard("arq:queue") == 4
    assert await redis.zcard("payments:in-flight") == 3


async def test_a_lease_is_counted_from_before_the_claim_was_written(
    b: Bench, redis: ArqRedis
) -> None:
    await b.accept()
    before = boottime_ms()
    batch = await claims(redis, lease_ms=5000).take(1)
    after = boottime_ms()
    assert before + 5000 <= batch.taken[0].claim.expires_at < after + 5000


async def test_no_lease_has_the_token_of_one_before_though_redis_lost_all(
    b: Bench, redis: ArqRedis
) -> None:
    await b.accept()
    first = (await claims(redis).take(1)).taken[0]
    await redis.flushall()
    await b.accept()
    second = (await claims(redis).take(1)).taken[0]
    assert second.claim.token != first.claim.token


async def test_a_strangers_job_is_left_in_the_queue_and_put_aside(
    b: Bench, redis: ArqRedis
) -> None:
    await redis.enqueue_job("send_newsletter", _job_id="stranger")
    batch = await claims(redis).take(5)
    assert (batch.taken, batch.strays) == ([], ["stranger"])
    assert await redis.exists("arq:job:stranger")
    assert await redis.zscore("arq:queue", "stranger") is not None
    assert (await claims(redis).take(5)).strays == []


async def test_an_entry_without_job_or_record_is_dropped(redis: ArqRedis) -> None:
    await redis.zadd("arq:queue", {"ghost": 1})
    assert (await claims(redis).take(5)).strays == ["ghost"]
    assert await redis.zcard("arq:queue") == 0


async def test_a_payment_whose_job_key_is_gone_is_claimed_all_the_same(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await b.accept()
    await redis.delete(f"arq:job:{payment}")
    [claimed] = (await claims(redis).take(5)).taken
    assert (claimed.claim.correlation_id, claimed.job) == (payment, None)


async def test_accepting_wakes_one_idle_worker(b: Bench, redis: ArqRedis) -> None:
    await b.accept()
    await b.accept()
    assert await redis.llen("payments:wake") == 1  # type: ignore[misc]
    await claims(redis).take(1)
    assert await redis.llen("payments:wake") == 1  # type: ignore[misc]
    await claims(redis).take(1)
    assert await redis.llen("payments:wake") == 0  # type: ignore[misc]


async def test_a_claim_says_when_the_next_payment_is_due(b: Bench, redis: ArqRedis) -> None:
    b.use(replace(b.settings, retry_base_ms=60_000, retry_cap_ms=60_000))
    payment = await b.accept()
    b.default.script = [Reply(500)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    batch = await claims(redis).take(1)
    assert batch.next_due_ms is not None
    assert 30_000 < batch.next_due_ms <= 60_000


async def test_nothing_is_claimed_while_a_purge_waits(b: Bench, redis: ArqRedis) -> None:
    await b.accept()
    await redis.set("payments:purging", 1)
    assert (await claims(redis).take(5)).taken == []


async def test_out_of_memory_the_backlog_still_drains(b: Bench, redis: ArqRedis) -> None:
    payments = [await b.accept() for _ in range(3)]
    b.default.script = [Reply(500), Reply(422)]
    await redis.config_set("maxmemory", 1)
    try:
        while await redis.zcard("payments:open"):
            for claim in await b.claim():
                await b.dispatcher.dispatch(claim)
    finally:
        await redis.config_set("maxmemory", 0)
    states = [(await b.record(payment)).state for payment in payments]
    assert sorted(states) == ["dead", "settled", "settled"]
    assert await b.summary() == {"default": Total(2, 3980), "fallback": Total()}


async def test_a_record_of_an_earlier_generation_is_not_claimed(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    await redis.incr("payments:generation")
    batch = await claims(redis).take(1)
    assert (batch.taken, batch.strays) == ([], [payment])


AT_DEFAULT = FirstTries("default", (None, None))
"""As no selection stands."""


async def test_a_claim_opens_a_first_try_as_a_route_after_it_would(
    b: Bench, redis: ArqRedis
) -> None:
    at_once, routed = await b.accept(), await b.accept()
    tries = Tries(redis, max_delay_ms=10_000, lease_ms=60_000, retention_ms=10**9)
    own = claims(redis)
    [first] = (await own.take(1, first=AT_DEFAULT)).taken
    [second] = (await own.take(1)).taken
    assert await tries.open(second.claim, "default", Findings()) is not None
    claim = first.claim
    assert claim.unsent == Routed("default", claim.claimed_at, claim.token, 1)
    assert second.claim.unsent is None
    assert {claim.correlation_id, second.claim.correlation_id} == {at_once, routed}
    assert await b.open_tries(claim.correlation_id) == ["open"]
    for payment in (at_once, routed):
        lease_until = int(await b.field(payment, "lease_until") or 0)
        assert await b.field(payment, "horizon") == str(lease_until + 10_000)
    for name in ("state", "processor", "tries", "quiet", "delay"):
        assert await b.field(at_once, name) == await b.field(routed, name), name


async def test_a_claim_opens_no_try_beside_another_one(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    [first] = (await claims(redis, lease_ms=1).take(1, first=AT_DEFAULT)).taken
    at_fallback = replace(AT_DEFAULT, processor="fallback")
    second = await claims(redis).take(1, first=at_fallback)
    while not second.taken:
        second = await claims(redis).take(1, first=at_fallback)
    [claimed] = second.taken
    assert claimed.claim.unsent is None
    assert [each.id for each in claimed.claim.open_tries] == [first.claim.token]
    assert await b.field(payment, "processor") == "default"


@pytest.mark.parametrize("key", ["selected_payment_processor", "selection:override"])
async def test_a_claim_opens_no_try_by_a_selection_that_is_past(
    b: Bench, redis: ArqRedis, key: str
) -> None:
    payment = await b.accept()
    await redis.set(key, "another")
    [claimed] = (await claims(redis).take(1, first=AT_DEFAULT)).taken
    assert claimed.claim.unsent is None
    assert await b.open_tries(payment) == []


async def test_a_claim_opens_no_try_after_the_deadline(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    late = Claims(redis, lease_ms=60_000, deadline_ms=-1, max_delay_ms=10_000)
    [claimed] = (await late.take(1, first=AT_DEFAULT)).taken
    assert claimed.claim.overdue
    assert claimed.claim.unsent is None
    assert await b.open_tries(payment) == []

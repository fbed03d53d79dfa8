"""The record's tries on a real Redis: who may unpin, give back and bury, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from payswitch.tries import Burial, Claim, Findings, Routed, Tries
from tests.integration.harness import Bench, bench
from tests.support import Reply

NOTHING = Findings()


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


def tries(b: Bench, *, max_delay_ms: int = 60_000) -> Tries:
    return Tries(b.redis, max_delay_ms=max_delay_ms, lease_ms=b.settings.lease_ms)


async def sent(b: Bench, *, max_delay_ms: int = 60_000) -> tuple[Claim, Routed]:
    """A payment with one open try."""
    claim = await b.claim_when_due(await b.accept())
    routed = await tries(b, max_delay_ms=max_delay_ms).open(claim, "default", NOTHING)
    assert routed is not None
    return claim, routed


async def test_an_open_try_keeps_processor_and_instant(b: Bench) -> None:
    claim, first = await sent(b)
    second = await tries(b).open(claim, "fallback", NOTHING)
    assert second == replace(first, number=2)


async def test_with_every_try_closed_the_payment_is_pinned_anew(b: Bench) -> None:
    claim, _ = await sent(b)
    second = await tries(b).open(claim, "fallback", Findings(closed={1}))
    assert second is not None
    assert (second.processor, second.number) == ("fallback", 2)


async def test_an_ended_try_is_still_open(b: Bench) -> None:
    claim, _ = await sent(b)
    second = await tries(b).open(claim, "fallback", Findings(ended={1}))
    assert second is not None
    assert second.processor == "default"
    assert await b.field(claim.correlation_id, "open") == "1e 2"


async def test_a_former_holder_can_not_open_a_try(b: Bench) -> None:
    claim, _ = await sent(b)
    await b.claim_when_due(claim.correlation_id)
    assert await tries(b).open(claim, "fallback", Findings(closed={1})) is None
    assert await b.field(claim.correlation_id, "processor") == "default"


async def test_who_gave_a_payment_back_can_not_open_a_try(b: Bench) -> None:
    claim, _ = await sent(b)
    await tries(b).release(claim, delay_ms=0, findings=NOTHING, error="")
    assert await tries(b).open(claim, "default", NOTHING) is None


async def test_what_a_former_holder_learned_of_its_try_counts(b: Bench) -> None:
    claim, _ = await sent(b)
    await b.claim_when_due(claim.correlation_id)
    released = await tries(b).release(claim, delay_ms=0, findings=Findings(closed={1}), error="x")
    assert not released
    assert await b.field(claim.correlation_id, "open") == ""
    assert await b.field(claim.correlation_id, "last_error") is None


async def test_a_settled_payment_is_not_touched_by_late_findings(b: Bench) -> None:
    claim, routed = await sent(b)
    await b.ledger.settle(claim, "default", routed.requested_at)
    await tries(b).release(claim, delay_ms=0, findings=Findings(closed={1}), error="x")
    assert (await b.record(claim.correlation_id)).state == "settled"
    assert await b.redis.zcard("arq:queue") == 0


async def test_a_try_that_has_ended_does_not_hinder_a_burial(b: Bench) -> None:
    claim, _ = await sent(b)
    burial = await tries(b).bury(claim, "why", Findings(ended={1}), horizon_passed=False)
    assert burial is Burial.BURIED
    record = await b.record(claim.correlation_id)
    assert (record.state, record.processor, record.last_error) == ("dead", "default", "why")


@pytest.mark.parametrize(
    ("max_delay_ms", "passed_here", "burial"),
    [
        (60_000, False, Burial.STILL_OPEN),
        (60_000, True, Burial.STILL_OPEN),
        (-60_000, False, Burial.STILL_OPEN),
        (-60_000, True, Burial.BURIED),
    ],
    ids=["neither clock", "only the worker's", "only Redis'", "both clocks"],
)
async def test_nothing_is_buried_before_the_horizon_by_both_clocks(
    b: Bench, max_delay_ms: int, passed_here: bool, burial: Burial
) -> None:
    claim, _ = await sent(b, max_delay_ms=max_delay_ms)
    answer = await tries(b).bury(claim, "why", NOTHING, horizon_passed=passed_here)
    assert answer is burial


async def test_a_former_holder_can_not_bury(b: Bench) -> None:
    claim = await b.claim_when_due(await b.accept())
    await b.claim_when_due(claim.correlation_id)
    answer = await tries(b).bury(claim, "why", NOTHING, horizon_passed=True)
    assert answer is Burial.LOST
    assert (await b.record(claim.correlation_id)).state == "processing"


async def test_a_purged_payment_is_neither_routed_released_nor_buried(b: Bench) -> None:
    claim, _ = await sent(b)
    await b.redis.incr("payments:generation")
    assert await tries(b).open(claim, "default", NOTHING) is None
    assert not await tries(b).release(claim, delay_ms=0, findings=NOTHING, error="")
    answer = await tries(b).bury(claim, "why", NOTHING, horizon_passed=True)
    assert answer is Burial.GONE


@pytest.mark.parametrize(
    ("horizon_passed", "quiet_ms"),
    [(True, 60_000), (False, 0)],
    ids=["only Redis'", "only the worker's"],
)
async def test_one_clock_alone_does_not_unpin(
    b: Bench, horizon_passed: bool, quiet_ms: int
) -> None:
    """A step of either clock must not send the payment elsewhere while it may be recorded yet."""
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    claim = await b.claim_when_due(payment)
    await b.dispatcher.dispatch(replace(claim, horizon_passed=horizon_passed, quiet_ms=quiet_ms))
    assert not b.fallback.posts
    assert len(b.default.posts) == 2

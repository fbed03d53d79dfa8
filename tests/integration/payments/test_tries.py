"""The record's tries on a real Redis: the conditions to unpin, give back and bury."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.payments.claims import Claim, Claims, Routed
from payswitch.payments.tries import Burial, Findings, Tries
from payswitch.store import scripts
from payswitch.store.scripts import Script
from tests.integration.harness import Bench, bench
from tests.model.stepped import replace_once
from tests.support import Reply

NOTHING = Findings()
_CLOCK = "return time[1] * 1000 + math.floor(time[2] / 1000)"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


def tries(b: Bench, *, max_delay_ms: int = 60_000) -> Tries:
    return Tries(
        b.redis, max_delay_ms=max_delay_ms, lease_ms=b.settings.lease_ms, retention_ms=600_000
    )


async def sent(b: Bench, *, max_delay_ms: int = 60_000) -> tuple[Claim, Routed]:
    """A payment with one open try."""
    claim = await b.claim_when_due(await b.accept())
    routed = await tries(b, max_delay_ms=max_delay_ms).open(claim, "default", NOTHING)
    assert routed is not None
    return claim, routed


async def test_an_open_try_keeps_processor_and_instant(b: Bench) -> None:
    claim, first = await sent(b)
    second = await tries(b).open(claim, "fallback", NOTHING)
    assert second is not None
    assert second == replace(first, id=second.id, number=2)
    assert second.id != first.id


async def test_with_every_try_closed_the_payment_is_pinned_again(b: Bench) -> None:
    claim, first = await sent(b)
    second = await tries(b).open(claim, "fallback", Findings(closed={first.id}))
    assert second is not None
    assert (second.processor, second.number) == ("fallback", 2)


async def test_an_ended_try_is_still_open(b: Bench) -> None:
    claim, first = await sent(b)
    second = await tries(b).open(claim, "fallback", Findings(ended={first.id}))
    assert second is not None
    assert second.processor == "default"
    assert await b.field(claim.correlation_id, "open") == f"{first.id}e {second.id}"


async def test_two_tries_of_one_number_are_two_tries(b: Bench) -> None:
    """As after a failover that undid the first: its count is lost, while its call is under way."""
    claim, first = await sent(b)
    await b.redis.hset(f"payment:{claim.correlation_id}", "tries", "0")  # type: ignore[misc]
    second = await tries(b).open(claim, "default", NOTHING)
    assert second is not None
    assert second.number == first.number
    unsent = Findings(closed={second.id})
    await tries(b).release(claim, delay_ms=0, findings=unsent, error="")
    assert await b.field(claim.correlation_id, "open") == first.id


async def test_a_former_holder_can_not_open_a_try(b: Bench) -> None:
    claim, first = await sent(b)
    await b.claim_when_due(claim.correlation_id)
    assert await tries(b).open(claim, "fallback", Findings(closed={first.id})) is None
    assert await b.field(claim.correlation_id, "processor") == "default"


async def test_who_gave_a_payment_back_can_not_open_a_try(b: Bench) -> None:
    claim, _ = await sent(b)
    await tries(b).release(claim, delay_ms=0, findings=NOTHING, error="")
    assert await tries(b).open(claim, "default", NOTHING) is None


async def test_what_a_former_holder_learned_of_its_try_counts(b: Bench) -> None:
    claim, first = await sent(b)
    await b.claim_when_due(claim.correlation_id)
    learned = Findings(closed={first.id})
    assert not await tries(b).release(claim, delay_ms=0, findings=learned, error="x")
    assert await b.field(claim.correlation_id, "open") == ""
    assert await b.field(claim.correlation_id, "last_error") is None


async def test_a_settled_payment_is_not_touched_by_late_findings(b: Bench) -> None:
    claim, routed = await sent(b)
    await b.ledger.settle(claim, "default", routed.requested_at)
    late = Findings(closed={routed.id})
    await tries(b).release(claim, delay_ms=0, findings=late, error="x")
    assert (await b.record(claim.correlation_id)).state == "settled"
    assert await b.redis.zcard("arq:queue") == 0


async def test_a_try_that_has_ended_does_not_hinder_a_burial(b: Bench) -> None:
    claim, first = await sent(b)
    ended = Findings(ended={first.id})
    burial = await tries(b).bury(claim, "why", ended, horizon_passed=False)
    assert burial is Burial.BURIED
    record = await b.record(claim.correlation_id)
    assert (record.state, record.processor, record.why) == ("dead", "default", "why")


@pytest.mark.parametrize(
    ("passed_in_redis", "passed_here", "burial"),
    [
        (False, False, Burial.STILL_OPEN),
        (False, True, Burial.STILL_OPEN),
        (True, False, Burial.STILL_OPEN),
        (True, True, Burial.BURIED),
    ],
    ids=["neither clock", "only the worker's", "only Redis'", "both clocks"],
)
async def test_nothing_is_buried_before_the_horizon_by_both_clocks(
    b: Bench, passed_in_redis: bool, passed_here: bool, burial: Burial
) -> None:
    claim, _ = await sent(b)
    if passed_in_redis:
        await b.redis.hset(f"payment:{claim.correlation_id}", "horizon", "1")  # type: ignore[misc]
    answer = await tries(b).bury(claim, "why", NOTHING, horizon_passed=passed_here)
    assert answer is burial


async def test_a_former_holder_can_not_bury(b: Bench) -> None:
    claim = await b.claim_when_due(await b.accept())
    await b.claim_when_due(claim.correlation_id)
    answer = await tries(b).bury(claim, "why", NOTHING, horizon_passed=True)
    assert answer is Burial.LOST
    assert (await b.record(claim.correlation_id)).state == "processing"


# What a processor has pending or has declined.


async def test_a_pending_try_stays_so_whatever_a_former_holder_brings(b: Bench) -> None:
    claim, first = await sent(b)
    await tries(b).release(claim, delay_ms=0, findings=Findings(pending={first.id}), error="")
    for late in (Findings(ended={first.id}), Findings(closed={first.id})):
        await tries(b).release(claim, delay_ms=0, findings=late, error="")
        assert await b.field(claim.correlation_id, "open") == f"{first.id}p"


async def test_a_pending_payment_is_not_routed_by_a_holder_that_does_not_know(b: Bench) -> None:
    former, first = await sent(b)
    claim = await b.claim_when_due(former.correlation_id)
    await tries(b).release(former, delay_ms=0, findings=Findings(pending={first.id}), error="")
    assert await tries(b).open(claim, "fallback", Findings(closed={first.id})) is None
    assert await b.field(claim.correlation_id, "open") == f"{first.id}p"


async def test_the_deadline_begins_again_with_each_word_that_a_payment_is_pending(
    b: Bench,
) -> None:
    claim, first = await sent(b)
    payment = claim.correlation_id
    await b.redis.hset(f"payment:{payment}", "accepted_at", "1")  # type: ignore[misc]
    claim = await b.claim_when_due(payment)
    assert claim.overdue
    await tries(b).release(claim, delay_ms=0, findings=Findings(pending={first.id}), error="")
    assert not (await b.claim_when_due(payment)).overdue
    await b.redis.hset(f"payment:{payment}", "pending_at", "1")  # type: ignore[misc]
    assert (await b.claim_when_due(payment)).overdue


async def test_a_decline_closes_what_was_pending(b: Bench) -> None:
    claim, first = await sent(b)
    await tries(b).release(claim, delay_ms=0, findings=Findings(pending={first.id}), error="")
    claim = await b.claim_when_due(claim.correlation_id)
    assert await decline(b, claim, Findings(closed={first.id})) is Burial.BURIED
    assert (await b.record(claim.correlation_id)).state == "declined"


async def test_a_former_holders_decline_is_kept_and_ends_the_payment(b: Bench) -> None:
    former, first = await sent(b)
    claim = await b.claim_when_due(former.correlation_id)
    assert await decline(b, former, Findings(closed={first.id})) is Burial.LOST
    assert await tries(b).open(claim, "fallback", NOTHING) is None
    assert await tries(b).bury(claim, "why", NOTHING, horizon_passed=True) is Burial.BURIED
    record = await b.record(claim.correlation_id)
    assert (record.state, record.declined, record.why) == ("declined", "no_funds", None)


async def test_a_kept_decline_does_not_end_a_payment_whose_earlier_try_is_open(b: Bench) -> None:
    former, first = await sent(b)
    claim = await b.claim_when_due(former.correlation_id)
    second = await tries(b).open(claim, "default", NOTHING)
    assert second is not None
    assert await decline(b, former, Findings(closed={first.id})) is Burial.LOST
    assert await decline(b, claim, NOTHING) is Burial.STILL_OPEN
    assert await b.field(claim.correlation_id, "open") == second.id


async def test_a_decline_does_not_touch_what_is_settled(b: Bench) -> None:
    claim, routed = await sent(b)
    await b.ledger.settle(claim, "default", routed.requested_at)
    assert await decline(b, claim, Findings(closed={routed.id})) is Burial.LOST
    record = await b.record(claim.correlation_id)
    assert (record.state, record.declined) == ("settled", None)


async def test_proof_of_payment_for_a_declined_payment_settles_it_and_is_an_incident(
    b: Bench,
) -> None:
    claim, routed = await sent(b)
    await decline(b, claim, Findings(closed={routed.id}))
    await b.ledger.settle(claim, "default", routed.requested_at)
    assert (await b.record(claim.correlation_id)).state == "settled"
    [raw] = await b.redis.lrange("payments:incidents", 0, -1)  # type: ignore[misc]
    incident = orjson.loads(raw)
    assert (incident["correlationId"], incident["state"]) == (claim.correlation_id, "declined")


async def decline(b: Bench, claim: Claim, findings: Findings) -> Burial:
    return await tries(b).bury(claim, "no_funds", findings, horizon_passed=False, declined=True)


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


# A limit that was raised: records of workers that knew a smaller one.


async def test_a_worker_with_a_larger_limit_does_not_bury_before_it_has_passed(b: Bench) -> None:
    claim, _ = await sent(b, max_delay_ms=500)
    await b.redis.hset(f"payment:{claim.correlation_id}", "horizon", "1")  # type: ignore[misc]
    far = 10**13
    for max_delay_ms, burial in ((far, Burial.STILL_OPEN), (500, Burial.BURIED)):
        own = tries(b, max_delay_ms=max_delay_ms)
        assert await own.bury(claim, "why", NOTHING, horizon_passed=True) is burial


@pytest.mark.parametrize(
    ("sent_with", "then_sent_with", "own", "delay"),
    [
        (500, None, 10_000, 10_000),
        (10_000, None, 500, 10_000),
        (10_000, 500, 500, 10_000),
        (500, 10_000, 500, 10_000),
        (10_000, 500, 20_000, 20_000),
    ],
)
async def test_horizon_and_quiet_time_are_those_of_the_largest_limit_that_is_known(
    b: Bench, sent_with: int, then_sent_with: int | None, own: int, delay: int
) -> None:
    lease_ms = b.settings.lease_ms
    before, _ = await sent(b, max_delay_ms=sent_with)
    lease_until = int(await b.field(before.correlation_id, "lease_until") or 0)
    if then_sent_with is not None:
        await tries(b, max_delay_ms=then_sent_with).open(before, "default", NOTHING)
    [seen, after] = [
        await claim_at(b, before.correlation_id, lease_until + ms, max_delay_ms=own)
        for ms in (delay - 1, delay)
    ]
    assert (seen.horizon_passed, after.horizon_passed) == (False, True)
    assert seen.quiet_ms == lease_ms + delay


async def test_what_was_counted_with_a_smaller_limit_grows_by_the_difference(b: Bench) -> None:
    before, _ = await sent(b, max_delay_ms=500)
    record = f"payment:{before.correlation_id}"
    far = 10**13
    await b.redis.hset(record, mapping={"horizon": far, "quiet": 70_000})  # type: ignore[misc]
    await tries(b, max_delay_ms=10_000).open(before, "default", NOTHING)
    assert await b.field(before.correlation_id, "horizon") == str(far + 9_500)
    assert await b.field(before.correlation_id, "quiet") == "79500"


@pytest.mark.parametrize("spoilt", [None, "10000", "10000 1", "x 2", "10000 2 3", ""])
async def test_a_try_of_a_worker_that_wrote_no_limit_is_waited_for_one_more_limit(
    b: Bench, spoilt: str | None
) -> None:
    before, _ = await sent(b, max_delay_ms=500)
    await tries(b, max_delay_ms=500).open(before, "default", NOTHING)
    record = f"payment:{before.correlation_id}"
    if spoilt is None:
        await b.redis.hdel(record, "delay")  # type: ignore[misc]
    else:
        await b.redis.hset(record, "delay", spoilt)  # type: ignore[misc]
    horizon = int(await b.field(before.correlation_id, "horizon") or 0)
    [seen, after] = [
        await claim_at(b, before.correlation_id, horizon + ms, max_delay_ms=10_000)
        for ms in (9_999, 10_000)
    ]
    assert (seen.horizon_passed, after.horizon_passed) == (False, True)
    assert seen.quiet_ms == b.settings.lease_ms + 10_500


async def claim_at(b: Bench, payment: str, now_ms: int, *, max_delay_ms: int) -> Claim:
    """Take the payment under this limit, when Redis' clock shows this instant."""
    text = replace_once(scripts.source("claim"), _CLOCK, f"return {now_ms}")
    own = Claims(
        b.redis, lease_ms=b.settings.lease_ms, deadline_ms=10**9, max_delay_ms=max_delay_ms
    )
    own._script = Script(b.redis, text)
    await b.redis.zadd("arq:queue", {payment: 0}, xx=True)
    [claimed] = (await own.take(1)).taken
    return claimed.claim

"""The life of one payment, against processors that answer as a script says: every row of the table
of outcomes, on a real Redis and over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.clock import boottime_ms
from payswitch.dispatch.routing import BreakerLimits, BreakerState
from payswitch.instants import format_instant
from payswitch.money import Total
from payswitch.payments.claims import Claim
from payswitch.payments.dead_letters import DeadLetters
from payswitch.payments.tries import Findings, Tries
from tests.integration.harness import FAST, PATIENT, Bench, bench
from tests.support import ANA, LOST_REPLY, NEVER, PAID, SLACK_S, Reply, eventually, free_port

pytestmark = pytest.mark.usefixtures("redis")


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


async def test_a_payment_is_paid_and_its_record_says_so(b: Bench) -> None:
    payment = await b.accept(cents=1990)
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.processor, record.tries) == ("settled", "default", 1)
    assert b.default.posts[0]["amount"] == 19.9
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_settled_leaves_nothing_in_the_queue(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    await b.dispatch_until_done(payment)
    keys = {key.decode() for key in await redis.keys("*") if b"ledger" not in key}
    assert keys == {f"payment:{payment}"}


async def test_a_settled_record_keeps_nothing_of_its_tries(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429)]
    await b.dispatch_until_done(payment)
    fields = {key.decode() for key in await redis.hkeys(f"payment:{payment}")}  # type: ignore[misc]
    assert not fields & {"open", "horizon", "quiet", "delay", "token", "lease_until"}


async def test_a_settled_record_expires_after_its_retention(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    assert await redis.pttl(f"payment:{payment}") == -1
    await b.dispatch_until_done(payment)
    assert 0 < await redis.pttl(f"payment:{payment}") <= b.settings.retention_ms


async def test_a_try_is_open_in_redis_before_the_processor_is_called(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [NEVER]
    claim = await b.claim_when_due(payment)
    task = asyncio.create_task(b.dispatcher.dispatch(claim))
    while not b.default.posts:
        await asyncio.sleep(0)
    assert await b.open_tries(payment) == ["open"]
    assert await b.field(payment, "processor") == "default"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("status", [422, 400])
async def test_refused_because_an_earlier_try_was_recorded_is_settled(
    b: Bench, status: int
) -> None:
    payment = await b.accept()
    b.default.script = [LOST_REPLY]
    b.default.finds = [Reply(404, b"")]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.default.script = [Reply(status)]
    b.default.finds = [Reply(404, b"")]
    record = await b.dispatch_until_done(payment)
    assert record.state == "settled"
    assert len(b.default.books) == 1
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_it_settles_with_the_instant_that_the_processor_recorded(b: Bench) -> None:
    payment = await b.accept()
    b.default.books[payment] = {
        "correlationId": payment,
        "amount": 19.9,
        "requestedAt": "2026-01-02T03:04:05.6Z",
    }
    record = await b.dispatch_until_done(payment)
    assert record.requested_at == 1767323045600


@pytest.mark.parametrize("status", [422, 400])
async def test_refused_and_not_there_is_a_dead_letter(b: Bench, status: int) -> None:
    payment = await b.accept()
    b.default.script = [Reply(status)]
    record = await b.dispatch_until_done(payment)
    assert record.state == "dead"
    assert record.why == f"default: refused with status {status}"


async def test_a_refusal_by_a_processor_that_failed_otherwise_is_a_dead_letter(b: Bench) -> None:
    b.use(limits=replace(PATIENT, failures=1, probe_ms=1))
    b.default.script = [Reply(500), Reply(422)]
    b.fallback.script = [Reply(500)] * 50
    record = await b.dispatch_until_done(await b.accept())
    assert (record.state, record.why) == ("dead", "default: refused with status 422")


async def test_another_amount_over_there_is_a_dead_letter_with_its_pin(b: Bench) -> None:
    payment = await b.accept()
    b.default.books[payment] = {
        "correlationId": payment,
        "amount": 1.0,
        "requestedAt": "2026-01-02T03:04:05Z",
    }
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.processor) == ("dead", "default")
    assert record.why == "default has it with another amount"
    assert await b.summary() == {"default": Total(), "fallback": Total()}


async def test_an_open_try_is_asked_about_before_anything_is_sent(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [LOST_REPLY]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.open_tries(payment) == ["open"]
    record = await b.dispatch_until_done(payment)
    assert record.state == "settled"
    assert len(b.default.posts) == 1


async def test_after_an_unknown_outcome_it_is_sent_to_the_same_processor_with_the_same_instant(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    await b.dispatch_until_done(payment)
    first, second = b.default.posts
    assert first == second
    assert not b.fallback.posts


@pytest.mark.parametrize(
    "reply",
    [
        Reply(408),
        Reply(502),
        Reply(503),
        Reply(504),
        Reply(hang_up=True),
        NEVER,
        Reply(200, b"", until_close=True),
        Reply(200, b"<html>"),
        Reply(200, b"0" * 100_000),
    ],
    ids=["408", "502", "503", "504", "reset", "silence", "cut off", "nonsense", "endless"],
)
async def test_an_unknown_outcome_keeps_the_try_open(b: Bench, reply: Reply) -> None:
    payment = await b.accept()
    b.default.script = [reply]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.open_tries(payment) == ["open"]
    assert (await b.record(payment)).state == "queued"


async def test_an_empty_success_that_ends_by_close_is_asked_about(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(200, b"", until_close=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert (await b.record(payment)).state == "queued"
    await b.dispatch_until_done(payment)
    assert b.default.questions == [payment]
    assert list(b.default.books) == [payment]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(204, b"", record=True),
        Reply(200, b"", record=True),
        Reply(200, b"{}", record=True, until_close=True),
    ],
    ids=["204", "a length of 0", "JSON that ends by close"],
)
async def test_a_success_that_is_complete_is_settled(b: Bench, reply: Reply) -> None:
    payment = await b.accept()
    b.default.script = [reply]
    await b.dispatch_until_done(payment, times=1)
    assert b.default.questions == []


@pytest.mark.parametrize("times", [1, 5])
async def test_after_a_429_it_is_sent_again_to_the_same_processor_without_a_question(
    b: Bench, times: int
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429)] * times
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.processor, record.tries) == ("settled", "default", times + 1)
    assert b.default.questions == []
    assert b.default.posts == [b.default.posts[0]] * (times + 1)


async def test_after_many_429s_the_processor_is_asked_so_that_the_record_stays_small(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429)] * 40
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.tries) == ("settled", 41)
    assert b.default.questions == [payment] * 2


@pytest.mark.parametrize("status", [401, 404, 429, 500])
async def test_an_answer_after_the_commit_never_lets_the_payment_go_elsewhere(
    b: Bench, status: int
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(status, record=True)]
    b.default.finds = [Reply(503)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.processor) == ("settled", "default")
    assert not b.fallback.posts
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_a_429_after_the_commit_is_settled_by_the_same_processors_refusal(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429, record=True)]
    record = await b.dispatch_until_done(payment, times=2)
    assert (record.state, len(b.default.posts)) == ("settled", 2)


@pytest.mark.parametrize("status", [408, 502, 503, 504])
async def test_what_is_recorded_after_a_gateways_answer_is_never_sent_elsewhere(
    b: Bench, status: int
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(status)] * 2
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert b.default.questions == [payment]
    b.default.books[payment] = b.default.posts[0]
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.processor) == ("settled", "default")


@pytest.mark.parametrize("status", [401, 403, 404, 405, 425, 429, 500])
async def test_an_ended_try_that_the_processor_does_not_have_lets_the_payment_go_elsewhere(
    b: Bench, status: int
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(status)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    record = await b.dispatch_until_done(payment, times=1)
    assert record.processor == "fallback"
    assert len(b.default.posts) == len(b.default.questions) == 1


async def test_an_ended_try_whose_processor_can_not_tell_keeps_the_payment(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429)]
    b.default.finds = [Reply(429)] * 3
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    for _ in range(3):
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.open_tries(payment) == ["ended"]
    assert not b.fallback.posts


async def test_an_open_breaker_makes_it_ask_before_the_payment_goes_elsewhere(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429, record=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    breaker = b.dispatcher.router.breakers["default"]
    breaker.state, breaker._probe_at = BreakerState.OPEN, float("inf")
    record = await b.dispatch_until_done(payment, times=1)
    assert (record.state, record.processor) == ("settled", "default")
    assert not b.fallback.posts


async def test_a_refusal_that_the_processor_does_not_know_closes_what_had_ended_before(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429), Reply(422)]
    record = await b.dispatch_until_done(payment, times=2)
    assert (record.state, record.open_tries) == ("dead", ())


@pytest.mark.parametrize("status", [500, 302])
async def test_an_error_after_recording_is_settled_by_asking(b: Bench, status: int) -> None:
    payment = await b.accept()
    b.default.script = [Reply(status, record=True)]
    record = await b.dispatch_until_done(payment, times=1)
    assert (record.state, record.tries) == ("settled", 1)


@pytest.mark.parametrize("status", [500, 302])
async def test_an_error_without_recording_lets_the_payment_go_elsewhere(
    b: Bench, status: int
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(status)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    assert (await b.dispatch_until_done(payment)).processor == "fallback"


async def test_an_ended_try_that_could_not_be_asked_about_is_closed_by_a_later_404(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(500)]
    b.default.finds = [Reply(429)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.open_tries(payment) == ["ended"]
    b.choose("fallback")
    record = await b.dispatch_until_done(payment, times=1)
    assert record.processor == "fallback"


async def test_the_500_of_a_second_try_does_not_unpin_while_the_first_is_open(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True), Reply(500)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.open_tries(payment) == ["open"]
    b.choose("fallback")
    await b.dispatch_until_done(payment, times=1)
    assert len(b.default.posts) == 3
    assert not b.fallback.posts


async def test_a_payment_recorded_late_is_never_sent_elsewhere(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.choose("fallback")
    b.default.books[payment] = b.default.posts[0]
    record = await b.dispatch_until_done(payment)
    assert record.processor == "default"
    assert not b.fallback.posts
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_after_the_horizon_a_payment_that_is_not_there_goes_elsewhere(b: Bench) -> None:
    """Nothing is sent to the silent processor meanwhile, because its breaker is open."""
    limits = BreakerLimits(failures=1, probe_ms=60_000)
    b.dispatcher.router.breakers["default"]._limits = limits
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]

    async def is_settled() -> bool:
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
        assert not b.fallback.posts or await b.horizon_is_over(payment)
        return (await b.record(payment)).state == "settled"

    await eventually(is_settled, what="the payment is settled")
    record = await b.record(payment)
    assert record.processor == "fallback"
    assert len(b.default.posts) == 1


async def test_questions_to_a_silent_processor_do_not_hold_every_slot(b: Bench) -> None:
    b.use(replace(b.settings, processor_find_limit_ms=SLACK_S * 1000))
    payments = [await b.accept() for _ in range(70)]
    b.default.script = [Reply(hang_up=True)] * 70
    for payment in payments:
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.default.finds = [NEVER] * 70
    claims = [await b.claim_when_due(payment) for payment in payments]
    asking = [asyncio.create_task(b.dispatcher.dispatch(claim)) for claim in claims]

    async def every_slot_is_taken() -> bool:
        return len(b.default.questions) == 64 and sum(each.done() for each in asking) == 6

    await eventually(every_slot_is_taken, what="64 questions wait for their answers")
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_a_refused_connection_closes_the_try(redis: ArqRedis) -> None:
    async with bench(redis) as b:
        gone = FAST.with_urls(default=f"http://127.0.0.1:{free_port()}", fallback=b.fallback.url)
        b.use(gone)
        payment = await b.accept()
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
        assert await b.open_tries(payment) == []
        assert (await b.record(payment)).why == "default: connection refused"
        b.choose("fallback")
        assert (await b.dispatch_until_done(payment)).processor == "fallback"


IN_FIVE_SECONDS = (
    ("date", "Sun, 22 Nov 2026 16:05:00 GMT"),
    ("retry-after", "Sun, 22 Nov 2026 16:05:05 GMT"),
)


async def pause_of(payment: str, redis: ArqRedis) -> float:
    """Seconds until the payment is due."""
    due = await redis.zscore("arq:queue", payment)
    seconds, _ = await redis.time()
    assert due is not None
    return float(due / 1000 - seconds)


@pytest.mark.parametrize("headers", [(("retry-after", "5"),), IN_FIVE_SECONDS])
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_heeded_if_the_payment_can_not_go_elsewhere(
    b: Bench, redis: ArqRedis, status: int, headers: tuple[tuple[str, str], ...]
) -> None:
    b.use(replace(b.settings, retry_cap_ms=10_000))
    payment = await b.accept()
    b.default.script = [Reply(status, headers=headers)]
    b.default.finds = [Reply(429)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert 3 < await pause_of(payment, redis) <= 6


async def test_retry_after_of_a_question_is_heeded(b: Bench, redis: ArqRedis) -> None:
    b.use(replace(b.settings, retry_cap_ms=10_000))
    payment = await b.accept()
    b.default.script = [Reply(500)]
    b.default.finds = [Reply(503, headers=IN_FIVE_SECONDS)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert 3 < await pause_of(payment, redis) <= 6


async def test_a_500_of_a_recorded_payment_settles_despite_its_retry_after(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(500, record=True, headers=IN_FIVE_SECONDS)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert (await b.record(payment)).state == "settled"


async def test_a_retry_after_of_a_429_sends_the_payment_and_all_others_elsewhere_at_once(
    b: Bench, redis: ArqRedis
) -> None:
    b.use(replace(b.settings, retry_cap_ms=3_600_000, retry_base_ms=1))
    payment = await b.accept()
    b.default.script = [Reply(429, headers=(("retry-after", "3600"),))]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await pause_of(payment, redis) <= 1
    for each in (payment, await b.accept()):
        assert (await b.dispatch_until_done(each, times=1)).processor == "fallback"
    assert len(b.default.posts) == len(b.default.questions) == 1


async def test_a_retry_after_of_a_429_counts_for_the_processor_up_to_the_longest_pause(
    b: Bench,
) -> None:
    b.use(replace(b.settings, retry_cap_ms=20_000))
    b.default.script = [Reply(429, headers=(("retry-after", "3600"),))]
    await b.dispatcher.dispatch(await b.claim_when_due(await b.accept()))
    wait_ms = b.dispatcher.router.breakers["default"].reopens_in(boottime_ms())
    assert 10_000 < wait_ms <= 20_000


async def test_429s_in_a_row_open_the_breaker(b: Bench, caplog: pytest.LogCaptureFixture) -> None:
    b.use(limits=replace(PATIENT, failures=3))
    b.default.script = [Reply(429)] * 3
    for _ in range(3):
        await b.dispatcher.dispatch(await b.claim_when_due(await b.accept()))
    assert [record.getMessage() for record in caplog.records] == [
        "default keeps failing, so its circuit breaker opens: status 429"
    ]


async def test_a_limit_that_is_partly_met_closes_nothing(b: Bench) -> None:
    b.use(limits=replace(PATIENT, failures=2))
    b.default.script = [Reply(429), PAID] * 20
    for _ in range(20):
        await b.dispatcher.dispatch(await b.claim_when_due(await b.accept()))
    assert b.dispatcher.router.breakers["default"].state is BreakerState.CLOSED


async def refuse(b: Bench, times: int) -> list[str]:
    """Have payments refused by `default`; returns their ids."""
    payments = [await b.accept() for _ in range(times)]
    b.default.script = [Reply(422)] * times
    for payment in payments:
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    return payments


async def test_what_is_refused_is_held_once_too_many_are(
    b: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    b.use(limits=replace(PATIENT, refusals=3))
    payments = await refuse(b, 3)
    assert [(await b.record(payment)).state for payment in payments] == ["dead", "dead", "queued"]
    [said] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert said.getMessage() == (
        "default refuses most payments, so they are held or go elsewhere instead of becoming "
        "dead letters: refused with status 422"
    )
    assert await b.open_tries(payments[2]) == []
    assert (await b.dispatch_until_done(payments[2], times=1)).processor == "fallback"


async def test_a_refusal_among_payments_is_a_dead_letter_each_time(b: Bench) -> None:
    b.use(limits=replace(PATIENT, refusals=3))
    for _ in range(5):
        for reply in (Reply(422), PAID, PAID):
            b.default.script = [reply]
            record = await b.dispatch_until_done(await b.accept(), times=1)
            assert record.state == ("settled" if reply is PAID else "dead")


async def test_a_422_for_a_payment_that_the_processor_has_is_no_refusal(b: Bench) -> None:
    b.use(limits=replace(PATIENT, refusals=1))
    payment = await b.accept()
    b.default.script = [Reply(429, record=True)]
    assert (await b.dispatch_until_done(payment, times=2)).state == "settled"
    assert b.dispatcher.router.breakers["default"].state is BreakerState.CLOSED


async def test_a_processor_that_refuses_and_can_not_tell_keeps_failing(b: Bench) -> None:
    b.use(limits=replace(PATIENT, failures=3))
    b.default.finds = [Reply(400)] * 3
    await refuse(b, 3)
    assert b.dispatcher.router.breakers["default"].state is BreakerState.OPEN


async def test_a_payment_that_pays_ends_the_hold_and_a_bad_one_is_buried(
    b: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "payswitch.dispatch.dispatcher")
    b.use(limits=replace(PATIENT, refusals=1, probe_ms=1))
    [bad] = await refuse(b, 1)
    breaker = b.dispatcher.router.breakers["default"]

    async def probe_is_due() -> bool:
        return breaker.probe_due(boottime_ms())

    await eventually(probe_is_due, what="the probe is due")
    await b.dispatch_until_done(await b.accept(), times=1)
    assert (
        caplog.records[-1].getMessage() == "default takes payments again: they are no longer held"
    )
    b.use(limits=replace(PATIENT, refusals=2))
    b.default.script = [Reply(422)]
    assert (await b.dispatch_until_done(bad, times=1)).state == "dead"


async def test_at_its_deadline_a_held_payment_says_that_it_was_refused(b: Bench) -> None:
    b.use(limits=replace(PATIENT, refusals=1))
    [payment] = await refuse(b, 1)
    await b.dispatcher.dispatch(replace(await b.claim_when_due(payment), overdue=True))
    record = await b.record(payment)
    assert (record.state, record.why) == (
        "dead",
        "unpaid at its deadline; default: refused with status 422",
    )


async def test_retry_after_is_capped(b: Bench, redis: ArqRedis) -> None:
    b.use(replace(b.settings, retry_cap_ms=2000))
    payment = await b.accept()
    b.default.script = [Reply(503, headers=(("retry-after", "3600"),))]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await pause_of(payment, redis) <= 3


async def test_a_breaker_that_opens_says_why(
    redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(redis) as b:
        gone = f"http://127.0.0.1:{free_port()}"
        b.use(FAST.with_urls(default=gone), limits=replace(PATIENT, failures=1))
        await b.dispatcher.dispatch(await b.claim_when_due(await b.accept()))
    assert [record.getMessage() for record in caplog.records] == [
        "default keeps failing, so its circuit breaker opens: connection refused"
    ]


async def test_a_lease_that_ran_out_sends_nothing(b: Bench) -> None:
    payment = await b.accept()
    claim = replace(await b.claim_when_due(payment), expires_at=0.0)
    await b.dispatcher.dispatch(claim)
    assert not b.default.posts
    assert await b.open_tries(payment) == []
    assert (await b.record(payment)).state == "queued"


async def with_first_try(b: Bench) -> Claim:
    """A claimed payment whose first try the claim has opened."""
    await b.accept()
    [claim] = await b.claim(first=b.dispatcher.first_tries((None, None)))
    assert claim.unsent is not None
    return claim


async def test_the_try_that_a_claim_has_opened_is_sent(b: Bench) -> None:
    claim = await with_first_try(b)
    await b.dispatcher.dispatch(claim)
    [post] = b.default.posts
    assert post["requestedAt"] == format_instant(claim.claimed_at)
    assert await b.field(claim.correlation_id, "tries") == "1"
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_a_payment_given_back_unsent_is_free_to_go_elsewhere(b: Bench) -> None:
    claim = await with_first_try(b)
    await b.dispatcher.give_back(claim, delay_ms=0, error="the worker stopped")
    assert await b.open_tries(claim.correlation_id) == []
    [event] = (await b.record(claim.correlation_id)).history
    assert event.what == "try 1 at default: the worker stopped; closed, as nothing was sent"
    b.choose("fallback")
    await b.dispatch_until_done(claim.correlation_id)
    assert (len(b.default.posts), len(b.fallback.posts)) == (0, 1)


async def test_a_payment_is_given_back_once_it_was_sent_with_its_try_open(b: Bench) -> None:
    claim = await with_first_try(b)
    b.default.script = [NEVER]
    task = asyncio.create_task(b.dispatcher.dispatch(claim))
    while not b.default.posts:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await b.dispatcher.give_back(claim, delay_ms=0, error="the worker stopped")
    assert await b.open_tries(claim.correlation_id) == ["open"]


async def test_a_first_try_of_which_no_worker_heard_stays_with_its_processor(b: Bench) -> None:
    """The answer to the claim was lost, and whether the worker sent it isn't known."""
    claim = await with_first_try(b)
    b.choose("fallback")
    await b.dispatch_until_done(claim.correlation_id)
    [post] = b.default.posts
    assert post["requestedAt"] == format_instant(claim.claimed_at)
    assert not b.fallback.posts
    assert b.default.questions == [claim.correlation_id]
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_nothing_is_sent_where_a_breaker_opened_after_the_claim(b: Bench) -> None:
    claim = await with_first_try(b)
    b.dispatcher.router.breakers["default"].state = BreakerState.OPEN
    await b.dispatcher.dispatch(claim)
    assert not b.default.posts
    assert await b.open_tries(claim.correlation_id) == []
    assert (await b.record(claim.correlation_id)).state == "queued"
    assert b.dispatcher.first_tries((None, None)) is None  # it is only probed


async def test_claims_open_no_first_tries_while_payments_may_wait_for_another_processor(
    b: Bench,
) -> None:
    b.use(replace(b.settings, patience_ms=1000))
    b.dispatcher.router.breakers["default"].state = BreakerState.OPEN
    assert b.dispatcher.first_tries((None, None)) is None


async def test_a_payment_taken_over_is_not_sent_by_its_former_holder(b: Bench) -> None:
    payment = await b.accept()
    former = await b.claim_when_due(payment)
    await b.claim_when_due(payment)
    await b.dispatcher.dispatch(former)
    assert not b.default.posts


async def test_a_former_holder_can_not_give_back_what_another_holds(b: Bench) -> None:
    payment = await b.accept()
    former = await b.claim_when_due(payment)
    await b.claim_when_due(payment)
    await b.dispatcher.give_back(former, delay_ms=0)
    assert (await b.record(payment)).state == "processing"


async def test_proof_of_payment_by_a_former_holder_settles(b: Bench) -> None:
    payment = await b.accept()
    former = await b.claim_when_due(payment)
    b.default.script = [NEVER]
    task = asyncio.create_task(b.dispatcher.dispatch(former))
    while not b.default.posts:
        await asyncio.sleep(0)
    await b.claim_when_due(payment)
    requested_at = int(await b.field(payment, "requested_at") or 0)
    settlement = await b.ledger.settle(former, "default", requested_at)
    assert settlement.value == "settled"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_proof_from_a_processor_it_is_not_pinned_to_is_kept_as_an_incident(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    await b.dispatcher.dispatch(claim)
    assert (await b.ledger.settle(claim, "fallback", 1)).value == "incident"
    [raw] = await redis.lrange("payments:incidents", 0, -1)  # type: ignore[misc]
    incident = orjson.loads(raw)
    assert (incident["correlationId"], incident["paidBy"]) == (payment, "fallback")
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_proof_for_a_dead_letter_settles_it(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    b.default.script = [Reply(422)]
    claim = await b.claim_when_due(payment)
    await b.dispatcher.dispatch(claim)
    assert await redis.zcard("payments:dead") == 1
    assert (await b.ledger.settle(claim, "default", 1)).value == "settled"
    assert await redis.zcard("payments:dead") == 0
    assert (await b.record(payment)).state == "settled"


async def test_an_overdue_payment_becomes_a_dead_letter(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    claim = replace(await b.claim_when_due(payment), overdue=True)
    await b.dispatcher.dispatch(claim)
    record = await b.record(payment)
    assert (record.state, record.why) == ("dead", "unpaid at its deadline")
    assert not b.default.posts
    assert [key async for key in redis.scan_iter("arq:*")] == []


async def test_an_overdue_payment_whose_try_has_ended_is_asked_about_and_not_sent_again(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    await b.dispatcher.dispatch(replace(await b.claim_when_due(payment), overdue=True))
    assert (await b.record(payment)).state == "dead"
    assert len(b.default.posts) == len(b.default.questions) == 1


async def test_a_replayed_payment_is_asked_about_though_the_same_processor_is_chosen(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(400)]
    assert (await b.dispatch_until_done(payment)).state == "dead"
    b.default.books[payment] = b.default.posts[0]
    assert [page async for page in DeadLetters(b.redis).replay([payment], ANA)]
    assert (await b.dispatch_until_done(payment, times=1)).state == "settled"
    assert len(b.default.posts) == 1


async def test_an_overdue_payment_with_an_open_try_is_not_buried_before_the_horizon(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    b.default.finds = [Reply(500)]
    await b.dispatcher.dispatch(replace(await b.claim_when_due(payment), overdue=True))
    assert (await b.record(payment)).state == "queued"


async def test_an_overdue_payment_with_an_open_try_is_waited_for_and_not_sent_again(
    b: Bench,
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))

    async def is_dead() -> bool:
        await b.dispatcher.dispatch(replace(await b.claim_when_due(payment), overdue=True))
        return (await b.record(payment)).state == "dead"

    await eventually(is_dead, what="the payment is a dead letter")
    assert len(b.default.posts) == 1
    assert await b.field(payment, "processor") == "default"


async def test_a_purged_payment_is_neither_sent_nor_recorded(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    await redis.incr("payments:generation")
    await b.dispatcher.dispatch(claim)
    assert not b.default.posts
    assert (await b.ledger.settle(claim, "default", 1)).value == "gone"
    assert await b.summary() == {"default": Total(), "fallback": Total()}


async def test_while_the_processor_has_no_free_slot_the_payment_is_given_back(
    b: Bench,
) -> None:
    b.use(replace(b.settings, processor_slots=1))
    first, second = await b.accept(), await b.accept()
    b.default.script = [NEVER, PAID]
    task = asyncio.create_task(b.dispatcher.dispatch(await b.claim_when_due(first)))
    while not b.default.posts:
        await asyncio.sleep(0)
    await b.dispatcher.dispatch(await b.claim_when_due(second))
    assert len(b.default.posts) == 1
    assert (await b.record(second)).state == "queued"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_after_a_purge_both_clocks_watch_the_same_id_from_the_start(b: Bench) -> None:
    """Its tries are counted from one again; Redis' clock alone, set forth, must not unpin it."""
    payment = await b.accept()
    b.default.script.append(NEVER)
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    await b.purge()
    quiet_ms = b.settings.lease_ms + b.settings.processor_max_delay_ms
    began = boottime_ms()

    async def quiet_time_is_over() -> bool:
        return boottime_ms() > began + quiet_ms

    await eventually(quiet_time_is_over, what="the first life's quiet time is over")
    await b.accept(correlation_id=payment)
    other = Tries(b.redis, max_delay_ms=300, lease_ms=b.settings.lease_ms, retention_ms=600_000)
    await other.open(await b.claim_when_due(payment), "default", Findings())
    await b.redis.hset(f"payment:{payment}", "horizon", "1")  # type: ignore[misc]
    b.choose("fallback")
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert b.fallback.posts == []


async def test_a_record_that_somebody_spoilt_stops_no_other_payment(
    b: Bench, redis: ArqRedis
) -> None:
    payments = [await b.accept() for _ in range(5)]
    await redis.hset(f"payment:{payments[2]}", "open", "nonsense")  # type: ignore[misc]
    claims = await b.claim()
    await asyncio.gather(*(b.dispatcher.dispatch(claim) for claim in claims))
    states = [await b.field(payment, "state") for payment in payments]
    assert states == ["settled", "settled", "processing", "settled", "settled"]

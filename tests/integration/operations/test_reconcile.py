"""Reconciliation of a real ledger with the books of two real simulators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from uuid import uuid4

import pytest
from arq.connections import ArqRedis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payswitch.dispatch.assembly import make_dispatcher
from payswitch.money import Total
from payswitch.operations.comparison import DifferenceKind, Unexplained, Window
from payswitch.operations.reconcile import ReconcileReport
from payswitch.payments.accepting import AcceptQueue
from payswitch.payments.claims import Claims
from payswitch.payments.incidents import Incident
from payswitch.payments.payment import Payment
from payswitch.payments.records import Unreadable
from payswitch.processors.processor import CannotAskError
from payswitch.simulator.book import BookEntry
from tests.integration.books import AT, Books, books
from tests.support import SLACK_S, free_port

SECOND = 1000


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Books]:
    async with books(redis) as made:
        for n in range(20):
            await made.pay(at=AT - n * SECOND, processor="fallback" if n % 3 else "default")
        yield made


def kinds(report: ReconcileReport) -> dict[str, DifferenceKind]:
    return {each.record.correlation_id: each.kind for each in report.payments}


def broken(report: ReconcileReport) -> dict[str, str]:
    return {each.correlation_id: each.problem for each in report.unreadable}


# What is equal.


async def test_equal_books_are_equal(b: Books) -> None:
    report = await b.reconcile()
    assert report.equal
    assert report.ours == report.theirs
    assert report.ours == {"default": Total(7, 13930), "fallback": Total(13, 25870)}


async def test_nothing_at_all_is_equal(redis: ArqRedis) -> None:
    async with books(redis) as b:
        assert (await b.reconcile()).equal


@pytest.mark.parametrize("state", ["queued", "processing", "dead"])
async def test_what_is_unpaid_and_not_there_is_equal(b: Books, state: str) -> None:
    await b.leave_unpaid(state)
    assert (await b.reconcile()).equal


async def test_a_running_system_is_equal(redis: ArqRedis) -> None:
    async with books(redis) as b:
        b.simulators["default"].config.delay_ms = 100
        dispatcher = make_dispatcher(b.settings, redis, b.transport)
        queue = AcceptQueue(redis, limit_ms=SLACK_S * 1000, max_backlog=10**6)
        claims = Claims(redis, lease_ms=15_000, deadline_ms=10**8, max_delay_ms=10_000)

        async def pay_for_ever() -> None:
            while True:
                await queue.accept(Payment(str(uuid4()), 1990))
                for claimed in (await claims.take(1)).taken:
                    await dispatcher.dispatch(claimed.claim)

        payers = [asyncio.create_task(pay_for_ever()) for _ in range(10)]
        reports: list[ReconcileReport] = []
        while len(reports) < 4 or reports[-1].ours["default"].count < 50:
            reports.append(await b.reconcile(pause_s=1.5))
        for payer in payers:
            payer.cancel()
        await asyncio.gather(*payers, return_exceptions=True)
        assert [report for report in reports if not report.equal] == []


# What differs.


async def test_settled_here_and_unknown_there(b: Books) -> None:
    payment = await b.settle_here(at=AT + 7)
    report = await b.reconcile()
    assert kinds(report) == {payment: DifferenceKind.UNKNOWN_THERE}
    assert report.payments[0].theirs == {"default": None, "fallback": None}
    assert report.unexplained == []


async def test_settled_here_with_another_amount(b: Books) -> None:
    payment = await b.settle_here(at=AT + 7, cents=1990)
    b.record_there(payment, at=AT + 7, cents=1991)
    report = await b.reconcile()
    assert kinds(report) == {payment: DifferenceKind.OTHER_DETAILS}
    assert report.unexplained == []


async def test_settled_here_with_another_amount_and_instant(b: Books) -> None:
    payment = await b.settle_here(at=AT + 1007, cents=1990)
    b.record_there(payment, at=AT + 3007, cents=1991)
    report = await b.reconcile()
    assert kinds(report) == {payment: DifferenceKind.OTHER_DETAILS}
    assert report.unexplained == []


async def test_another_instant_alone_is_found_by_looking_thoroughly(b: Books) -> None:
    payment = await b.settle_here(at=AT + 1007)
    b.record_there(payment, at=AT + 3007)
    assert (await b.reconcile()).equal
    report = await b.reconcile(thorough=True)
    assert kinds(report) == {payment: DifferenceKind.OTHER_DETAILS}
    assert report.unexplained == []
    assert not report.equal


async def test_another_instant_alone_is_seen_by_a_window_that_holds_one_of_both(b: Books) -> None:
    payment = await b.settle_here(at=AT + 1007)
    b.record_there(payment, at=AT + 3007)
    instant = Window(AT + 3007, AT + 3007)
    report = await b.reconcile(AT + 2000, AT + 4000)
    assert report.unexplained == [Unexplained("default", instant, Total(1, 1990))]
    assert kinds(await b.reconcile(AT, AT + 2000)) == {payment: DifferenceKind.OTHER_DETAILS}


async def test_settled_here_and_recorded_at_the_other_processor(b: Books) -> None:
    payment = await b.settle_here(at=AT + 7, processor="default")
    b.record_there(payment, at=AT + 7, processor="fallback")
    report = await b.reconcile()
    assert kinds(report) == {payment: DifferenceKind.ELSEWHERE}
    assert report.unexplained == []


@pytest.mark.parametrize("processor", ["default", "fallback"])
@pytest.mark.parametrize("state", ["queued", "processing", "dead"])
async def test_recorded_there_and_not_settled_here(b: Books, state: str, processor: str) -> None:
    payment = await b.leave_unpaid(state, at=AT + 7)
    b.record_there(payment, at=AT + 7, processor=processor)
    report = await b.reconcile()
    assert kinds(report) == {payment: DifferenceKind.NOT_SETTLED}
    assert report.unexplained == []


async def test_recorded_at_both_processors(b: Books) -> None:
    payment = await b.pay(at=AT + 7)
    b.record_there(payment, at=AT + 9, processor="fallback")
    report = await b.reconcile()
    assert kinds(report) == {payment: DifferenceKind.PAID_TWICE}
    assert report.unexplained == []


async def test_recorded_at_both_and_settled_nowhere(b: Books) -> None:
    payment = await b.leave_unpaid("dead", at=AT + 7)
    b.record_there(payment, at=AT + 7)
    b.record_there(payment, at=AT + 9, processor="fallback")
    report = await b.reconcile()
    assert kinds(report) == {payment: DifferenceKind.PAID_TWICE}
    assert report.unexplained == []


async def test_a_strangers_payment_is_told_by_its_millisecond(b: Books) -> None:
    b.record_there(at=AT - 30 * SECOND, cents=555)
    report = await b.reconcile()
    instant = Window(AT - 30 * SECOND, AT - 30 * SECOND)
    assert report.payments == []
    assert report.unexplained == [Unexplained("default", instant, Total(1, 555))]


@pytest.mark.parametrize("year_ms", [-62_135_596_800_000, 33_000_000_000_000])
async def test_a_strangers_payment_is_found_in_any_year(b: Books, year_ms: int) -> None:
    b.record_there(at=year_ms)
    [found] = (await b.reconcile()).unexplained
    assert found.window == Window(year_ms, year_ms)


async def test_a_strangers_payment_between_two_milliseconds_is_told_by_the_first(
    b: Books,
) -> None:
    b.simulators["default"].book.record(BookEntry(str(uuid4()), 7, (AT + 50) * 1000 + 999))
    [found] = (await b.reconcile()).unexplained
    assert found.window == Window(AT + 50, AT + 50)


async def test_an_expired_record_that_is_unknown_there_is_told_by_its_window(
    b: Books, redis: ArqRedis
) -> None:
    payment = await b.settle_here(at=AT + 7)
    await redis.delete(f"payment:{payment}")
    report = await b.reconcile()
    instant = Window(AT + 7, AT + 7)
    assert report.payments == []
    assert report.unexplained == [Unexplained("default", instant, Total(-1, -1990))]


async def test_an_expired_record_that_is_there_is_equal(b: Books, redis: ArqRedis) -> None:
    payment = await b.pay(at=AT + 7)
    await redis.delete(f"payment:{payment}")
    assert (await b.reconcile()).equal


async def test_what_was_purged_here_alone_differs_in_total(b: Books, redis: ArqRedis) -> None:
    await redis.incr("payments:generation")
    report = await b.reconcile()
    assert report.ours == {"default": Total(), "fallback": Total()}
    assert report.payments == []
    left = [each.missing_here for each in report.unexplained if each.processor == "fallback"]
    assert (sum(each.count for each in left), sum(each.cents for each in left)) == (13, 25870)


async def test_processors_that_forgot_everything_are_told_payment_by_payment(b: Books) -> None:
    for n in range(300):
        await b.pay(at=AT + n * SECOND)
    b.simulators["default"].book.purge()
    report = await b.reconcile()
    assert len(report.payments) == 307
    assert set(kinds(report).values()) == {DifferenceKind.UNKNOWN_THERE}
    assert report.unexplained == []


async def test_incidents_are_differences(b: Books, redis: ArqRedis) -> None:
    payment = await b.leave_unpaid("dead", processor="fallback")
    entry = (
        f'{{"correlationId":"{payment}","at":{AT + 5},"state":"dead","pinned":"fallback",'
        f'"paidBy":"default","requestedAt":"{AT}","what":"proof"}}'
    )
    await redis.rpush("payments:incidents", entry, "nonsense")  # type: ignore[misc]
    report = await b.reconcile()
    assert report.incidents == [
        Incident(payment, "default", "fallback", AT, AT + 5, "proof", "dead"),
        Incident("nonsense"),
    ]
    assert not report.equal


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize(
    ("key", "place"),
    [("payments:open", "in the backlog"), ("payments:dead", "among the dead letters")],
)
@pytest.mark.parametrize("differs", [False, True])
async def test_an_unpaid_payment_without_a_record_is_a_difference(
    b: Books, redis: ArqRedis, key: str, place: str, thorough: bool, differs: bool
) -> None:
    lost = str(uuid4())
    await redis.zadd(key, {lost.encode(): 1, b"\xff": 2})
    other = [await b.settle_here(at=AT + 7)] if differs else []
    report = await b.reconcile(thorough=thorough)
    problem = f"no record, though {place}"
    assert not report.equal
    assert report.unreadable == [Unreadable(lost, problem), Unreadable("\\xff", problem)]
    assert list(kinds(report)) == other


async def test_a_record_that_can_not_be_read_is_a_difference(b: Books, redis: ArqRedis) -> None:
    settled = await b.pay(at=AT + 7)
    dead, foreign = await b.leave_unpaid("dead"), await b.leave_unpaid("queued")
    await redis.delete(f"payment:{foreign}")
    await redis.set(f"payment:{foreign}", "x")
    for payment in (settled, dead):
        await redis.hset(f"payment:{payment}", "cents", "x")  # type: ignore[misc]
    unpaid = {
        dead: "cents is 'x'",
        foreign: "Redis holds something else under its key",
    }
    assert broken(await b.reconcile()) == unpaid
    assert broken(await b.reconcile(thorough=True)) == {**unpaid, settled: "cents is 'x'"}


async def test_a_key_of_somebody_elses_is_no_difference(b: Books, redis: ArqRedis) -> None:
    await redis.hset("payment:method:1", "kind", "card")  # type: ignore[misc]
    assert (await b.reconcile(thorough=True)).equal


async def test_a_payment_that_was_purged_while_we_compared_is_no_difference(
    b: Books, redis: ArqRedis
) -> None:
    payment = await b.leave_unpaid("queued")
    await redis.delete(f"payment:{payment}")
    looked_at = asyncio.Event()
    comparing = asyncio.create_task(b.reconcile(pause_s=2, on_looked_up=lambda _: looked_at.set()))
    await looked_at.wait()
    await redis.zrem("payments:open", payment)
    assert (await comparing).equal


CASES = ["paid", "unknown", "amount", "elsewhere", "unpaid", "dead", "recorded", "twice", "foreign"]
KINDS = {
    "unknown": DifferenceKind.UNKNOWN_THERE,
    "amount": DifferenceKind.OTHER_DETAILS,
    "instant": DifferenceKind.OTHER_DETAILS,
    "elsewhere": DifferenceKind.ELSEWHERE,
    "recorded": DifferenceKind.NOT_SETTLED,
    "twice": DifferenceKind.PAID_TWICE,
}


SEVERAL = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
MIXTURES = st.lists(st.tuples(st.sampled_from(CASES), st.integers(0, 100_000)), max_size=12)


@SEVERAL
@given(cases=MIXTURES)
async def test_any_mixture_is_reported_exactly(
    redis: ArqRedis, cases: list[tuple[str, int]]
) -> None:
    """Amounts are powers of two, so that no two differences cancel out."""
    await redis.flushall()
    async with books(redis) as b:
        expected: dict[str, DifferenceKind] = {}
        foreign = 0
        for (case, offset), power in zip(cases, count(), strict=False):
            at, cents = AT + offset, 2**power
            payment = await make(b, case, at, cents)
            foreign += cents if case == "foreign" else 0
            if case in KINDS:
                expected[payment] = KINDS[case]
        report = await b.reconcile()
        assert kinds(report) == expected
        assert sum(each.missing_here.cents for each in report.unexplained) == foreign
        assert report.equal is not (expected or foreign)


@SEVERAL
@given(
    cases=st.lists(
        st.tuples(st.sampled_from([*CASES, "instant"]), st.integers(0, 100_000)), max_size=12
    )
)
async def test_looking_thoroughly_finds_what_cancels_out(
    redis: ArqRedis, cases: list[tuple[str, int]]
) -> None:
    """All amounts are the same, so that missing and surplus payments cancel out."""
    await redis.flushall()
    async with books(redis) as b:
        made = [(case, await make(b, case, AT + offset, 1990)) for case, offset in cases]
        report = await b.reconcile(thorough=True)
        assert kinds(report) == {id: KINDS[case] for case, id in made if case in KINDS}
        foreign = [case for case, _ in made].count("foreign")
        left = [each.missing_here for each in report.unexplained]
        assert sum(each.count for each in left) == foreign
        assert sum(each.cents for each in left) == 1990 * foreign
        assert report.equal is not any(case in (*KINDS, "foreign") for case, _ in cases)


async def make(b: Books, case: str, at: int, cents: int) -> str:
    if case == "foreign":
        return b.record_there(at=at, cents=cents)
    if case in ("unpaid", "dead", "recorded"):
        payment = await b.leave_unpaid("dead" if case == "dead" else "queued", at=at)
        return b.record_there(payment, at=at, cents=cents) if case == "recorded" else payment
    payment = await b.settle_here(at=at, cents=cents)
    if case in ("paid", "twice"):
        b.record_there(payment, at=at, cents=cents)
    if case in ("elsewhere", "twice"):
        b.record_there(payment, at=at + 3, cents=cents, processor="fallback")
    if case == "instant":
        b.record_there(payment, at=at + 3, cents=cents)
    if case == "amount":
        b.record_there(payment, at=at, cents=cents + 2**40)
    return payment


# Windows.


@pytest.mark.parametrize(
    ("first", "last", "is_equal"),
    [
        (AT + 7, AT + 7, False),
        (AT + 8, None, True),
        (None, AT + 6, True),
        (AT - 1, AT + 7, False),
        (AT + 7, None, False),
        (None, AT + 7, False),
        (2**43, None, True),
    ],
)
@pytest.mark.parametrize("case", ["unknown", "foreign", "recorded", "twice"])
async def test_only_what_lies_in_the_window_is_compared(
    b: Books, case: str, first: int | None, last: int | None, is_equal: bool
) -> None:
    await make(b, case, AT + (4 if case == "twice" else 7), 1990)
    assert (await b.reconcile(first, last)).equal is is_equal


async def test_incidents_outside_the_window_are_left_out(b: Books, redis: ArqRedis) -> None:
    entry = f'{{"correlationId":"x","at":1,"pinned":"","paidBy":"default","requestedAt":"{AT}"}}'
    await redis.rpush("payments:incidents", entry)  # type: ignore[misc]
    assert (await b.reconcile(AT + 1)).equal
    assert not (await b.reconcile(AT)).equal


async def test_one_of_ten_thousand_is_found_with_few_questions(redis: ArqRedis) -> None:
    async with books(redis) as b:
        await b.pay_many(10_000, every_ms=10)
        missing = await b.settle_here(at=AT + 43_217)
        report = await b.reconcile()
        assert kinds(report) == {missing: DifferenceKind.UNKNOWN_THERE}
        assert report.ours["default"].count == 10_001
        assert b.calls.summaries < 150
        assert b.calls.payments < 20


# Who can't be asked.


async def test_a_processor_that_is_away_is_never_equal(b: Books) -> None:
    b.settings = b.settings.with_urls(fallback=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(CannotAskError, match=r"fallback at http.*: connection refused"):
        await b.reconcile()


async def test_a_wrong_token_is_never_equal(b: Books) -> None:
    b.simulators["fallback"].config.token = "other"
    with pytest.raises(CannotAskError, match="fallback refuses PAYSWITCH_PROCESSOR_ADMIN_TOKEN"):
        await b.reconcile()


async def test_the_token_is_a_setting(b: Books) -> None:
    for simulator in b.simulators.values():
        simulator.config.token = "other"
    b.settings = replace(b.settings, processor_admin_token="other")
    assert (await b.reconcile()).equal


async def test_a_processor_that_can_not_tell_of_a_payment_is_never_equal(b: Books) -> None:
    payment = await b.leave_unpaid("queued")
    b.record_there(payment, at=32_503_680_000_000)
    with pytest.raises(CannotAskError, match=f"default: asked for payment {payment}: an absurd"):
        await b.reconcile()


# Windows of a folded ledger. The ledger of these tests folds what is ten minutes old.


async def folded(b: Books) -> None:
    """Fold all that the tests' payments are in, and forget their records."""
    while await b.ledger.fold():
        pass
    async for key in b.redis.scan_iter("payment:*"):
        await b.redis.delete(key)


async def test_folded_books_are_equal(b: Books) -> None:
    await folded(b)
    assert (await b.reconcile()).equal


async def test_a_window_of_a_folded_ledger_is_compared_by_whole_entries(b: Books) -> None:
    await folded(b)
    report = await b.reconcile(AT - 3 * SECOND, AT - 2 * SECOND)
    assert report.equal
    assert report.windows == [Window(AT - 10 * SECOND, AT - 1)]
    assert sum(total.count for total in report.ours.values()) == 10


async def test_what_differs_in_a_folded_ledger_is_reported_by_its_entry(b: Books) -> None:
    b.record_there(at=AT - 13 * SECOND, cents=7)
    await folded(b)
    report = await b.reconcile()
    entry = Window(AT - 20 * SECOND, AT - 10 * SECOND - 1)
    assert report.unexplained == [Unexplained("default", entry, Total(1, 7))]

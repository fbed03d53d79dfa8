"""The dispatcher pays through a provider that speaks `charges`: the simulated one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from payswitch.ingress import openapi
from payswitch.money import BRL, Total
from payswitch.operations.overview import read_overview
from payswitch.payments.dead_letters import DeadLetters, Handling
from payswitch.payments.incidents import read_incidents
from payswitch.payments.records import Record
from payswitch.payments.tries import Burial, Findings
from payswitch.settings import ProcessorSettings
from payswitch.simulator.charges import ChargesDialect
from payswitch.simulator.dialect import SimulatorConfig
from payswitch.simulator.server import Simulator
from tests.integration.harness import Bench, bench
from tests.support import ANA, PROCESSORS, SLACK_S, Reply

pytestmark = pytest.mark.usefixtures("redis")


@dataclass
class Acme:
    """A bench whose `default` is a simulator that speaks `charges`."""

    bench: Bench
    simulator: Simulator

    url: str

    async def set_faults(self, **faults: object) -> None:
        """Set them as an operator does."""
        async with httpx.AsyncClient(trust_env=False, timeout=SLACK_S) as http:
            response = await http.put(
                f"{self.url}/admin/configurations/faults",
                json=faults,
                headers={"X-Rinha-Token": "secret"},
            )
            assert response.status_code == 200


@pytest.fixture
async def acme(redis: ArqRedis) -> AsyncIterator[Acme]:
    simulator = Simulator(SimulatorConfig("default", token="secret"), ChargesDialect)
    url = f"http://127.0.0.1:{await simulator.start('127.0.0.1', 0)}"
    async with bench(redis) as made:
        provider = ProcessorSettings("default", url, connector="charges", token="secret")
        settings = replace(made.settings, processors=(provider, made.settings.processors[1]))
        made.use(settings)
        yield Acme(made, simulator, url)
    await simulator.close()


def is_described(record: Record) -> bool:
    """Whether the description of `GET /payments/{id}` has its state and all its members."""
    shown = orjson.loads(record.public_json(BRL))
    members = openapi.document()["components"]["schemas"]["PaymentState"]["properties"]
    return shown.keys() <= members.keys() and shown["state"] in members["state"]["enum"]


async def test_a_payment_is_settled_with_the_providers_reference(acme: Acme) -> None:
    payment = await acme.bench.accept(cents=1990)
    record = await acme.bench.dispatch_until_done(payment)
    assert (record.state, record.reference) == ("settled", f"ch_{payment}")
    assert is_described(record)
    assert await acme.bench.summary() == {"default": Total(1, 1990), "fallback": Total()}
    assert acme.simulator.book.totals() == Total(1, 1990)


async def test_a_declined_payment_ends_as_declined(acme: Acme) -> None:
    await acme.set_faults(decisions={"decline": 1})
    record = await acme.bench.dispatch_until_done(await acme.bench.accept())
    assert (record.state, record.declined) == ("declined", "card_declined")
    assert is_described(record)
    assert acme.bench.fallback.posts == []
    assert await acme.bench.summary() == {"default": Total(), "fallback": Total()}


async def test_declined_payments_are_counted_until_there_is_proof_of_payment(acme: Acme) -> None:
    await acme.set_faults(decisions={"decline": 1})
    for _ in range(2):
        payment = await acme.bench.accept()
        claim = await acme.bench.claim_when_due(payment)
        await acme.bench.dispatcher.dispatch(claim)
    overview = await read_overview(acme.bench.redis, PROCESSORS)
    assert (overview.accepted, overview.declined) == (2, {"default": 2, "fallback": 0})
    await acme.bench.ledger.settle(claim, "default", 1)
    overview = await read_overview(acme.bench.redis, PROCESSORS)
    assert (overview.accepted, overview.declined) == (2, {"default": 1, "fallback": 0})
    [incident] = await read_incidents(acme.bench.redis)
    assert str(incident) == "default has paid it, though it was declined"


async def test_a_pending_payment_ends_as_the_provider_decides(acme: Acme) -> None:
    await acme.set_faults(decisions={"pending": 1}, decideMs=[100, 200])
    # Decisions follow from the id, and of these some are paid and some declined.
    ids = [await acme.bench.accept(cents=100, correlation_id=str(UUID(int=n))) for n in range(8)]
    records = [await acme.bench.dispatch_until_done(each, times=500) for each in ids]
    states = [each.state for each in records]
    paid = acme.simulator.book.totals().count
    assert {*states} == {"settled", "declined"}
    assert states.count("settled") == paid
    assert await acme.bench.summary() == {"default": Total(paid, 100 * paid), "fallback": Total()}
    assert acme.bench.fallback.posts == []


DECLINED = Reply(402, b'{"error":{"code":"no_funds"}}')
NO_CHARGE = Reply(200, b'{"data":[]}')


def charge(payment: str, status: str) -> dict[str, object]:
    """A charge as `charges` tells it."""
    return {
        **{"id": "ch_1", "status": status, "amount": 1990, "currency": "BRL"},
        **{"reference": payment, "requested_at": "2026-01-02T03:04:05Z"},
    }


@pytest.fixture
async def forgetful(redis: ArqRedis) -> AsyncIterator[Bench]:
    """A bench whose `default` speaks `charges`, and keeps no charge that it has declined."""
    async with bench(redis) as made:
        provider = replace(made.settings.processors[0], connector="charges", token="secret")
        made.use(replace(made.settings, processors=(provider, made.settings.processors[1])))
        made.default.script = [DECLINED]
        made.default.finds = [NO_CHARGE] * 500
        yield made


def before_bury(
    b: Bench, monkeypatch: pytest.MonkeyPatch, happen: Callable[[], Awaitable[None]]
) -> None:
    """Let something happen between a processor's answer and the end of the payment."""
    tries = b.dispatcher._tries
    bury = tries.bury

    async def late(*args: Any, **options: Any) -> Burial:
        await happen()
        return await bury(*args, **options)

    monkeypatch.setattr(tries, "bury", late)


async def test_a_decline_that_comes_after_the_lease_was_lost_ends_the_payment(
    forgetful: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = await forgetful.accept()
    former = await forgetful.claim_when_due(payment)

    async def take_over() -> None:
        await forgetful.claim_when_due(payment)

    before_bury(forgetful, monkeypatch, take_over)
    await forgetful.dispatcher.dispatch(former)
    monkeypatch.undo()
    assert (await forgetful.record(payment)).state == "processing"
    record = await forgetful.dispatch_until_done(payment)
    assert (record.state, record.declined) == ("declined", "no_funds")
    assert (len(forgetful.default.posts), forgetful.fallback.posts) == (1, [])


@pytest.mark.parametrize("is_resolved", [False, True])
async def test_a_decline_that_comes_to_a_dead_letter_is_kept(
    forgetful: Bench, monkeypatch: pytest.MonkeyPatch, is_resolved: bool
) -> None:
    payment = await forgetful.accept()
    former = await forgetful.claim_when_due(payment)
    letters, bury = DeadLetters(forgetful.redis), forgetful.dispatcher._tries.bury

    async def die() -> None:
        claim = await forgetful.claim_when_due(payment)
        missing = Findings(closed={each.id for each in claim.open_tries})
        assert await bury(claim, "unpaid", missing, horizon_passed=True) == Burial.BURIED
        if is_resolved:
            done = await letters.resolve([payment], ANA, retention_ms=60_000)
            assert done == {payment: Handling.DONE}

    before_bury(forgetful, monkeypatch, die)
    await forgetful.dispatcher.dispatch(former)
    monkeypatch.undo()
    record = await forgetful.record(payment)
    assert (record.state, record.declined) == ("dead" if is_resolved else "declined", "no_funds")
    assert await letters.count() == 0
    *_, before, last = [event.what for event in record.history]
    assert is_resolved or before == "dead letter: unpaid"
    assert last.startswith("try 1 at default: declined: no_funds")
    overview = await read_overview(forgetful.redis, PROCESSORS)
    assert overview.declined["default"] == (0 if is_resolved else 1)
    if is_resolved:
        async for page in letters.replay([payment], ANA, even_resolved=True):
            assert page == {payment: Handling.DONE}
        record = await forgetful.dispatch_until_done(payment)
        assert (record.state, record.declined) == ("declined", "no_funds")
    assert (len(forgetful.default.posts), forgetful.fallback.posts) == (1, [])


async def test_a_decline_is_brought_again_until_redis_answers(
    forgetful: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = await forgetful.accept()
    failures = [RedisConnectionError("cut"), RedisConnectionError("cut")]

    async def fail() -> None:
        if failures:
            raise failures.pop()

    before_bury(forgetful, monkeypatch, fail)
    await forgetful.dispatcher.dispatch(await forgetful.claim_when_due(payment))
    assert (await forgetful.record(payment)).state == "declined"


async def test_a_decline_waits_for_an_earlier_try_that_is_recorded_after_it(
    forgetful: Bench,
) -> None:
    payment = await forgetful.accept(cents=1990)
    forgetful.default.script = [Reply(hang_up=True), DECLINED]
    for _ in range(2):
        await forgetful.dispatcher.dispatch(await forgetful.claim_when_due(payment))
    record = await forgetful.record(payment)
    assert (record.state, record.declined) == ("queued", "no_funds")
    found = {"data": [charge(payment, "succeeded")]}
    forgetful.default.finds = [Reply(200, orjson.dumps(found))]
    record = await forgetful.dispatch_until_done(payment)
    assert (record.state, record.declined, record.reference) == ("settled", None, "ch_1")
    assert len(forgetful.default.posts) == 2


async def test_a_decline_counts_once_an_earlier_try_can_not_be_recorded(forgetful: Bench) -> None:
    payment = await forgetful.accept()
    forgetful.default.script = [Reply(hang_up=True), DECLINED]
    record = await forgetful.dispatch_until_done(payment, times=500)
    assert (record.state, record.declined) == ("declined", "no_funds")
    assert (len(forgetful.default.posts), forgetful.fallback.posts) == (2, [])


async def test_a_pending_payment_that_the_provider_denies_is_never_sent_again(
    forgetful: Bench,
) -> None:
    payment = await forgetful.accept()
    forgetful.default.script = [Reply(202, orjson.dumps(charge(payment, "pending")))]
    await forgetful.dispatcher.dispatch(await forgetful.claim_when_due(payment))
    forgetful.choose("fallback")
    while not await forgetful.horizon_is_over(payment):
        await forgetful.dispatcher.dispatch(await forgetful.claim_when_due(payment))
        await asyncio.sleep(0.02)
    assert (len(forgetful.default.posts), forgetful.fallback.posts) == (1, [])
    assert await forgetful.open_tries(payment) == ["pending"]
    forgetful.use(replace(forgetful.settings, payment_deadline_ms=1))
    record = await forgetful.dispatch_until_done(payment, times=500)
    assert record.why == "unpaid at its deadline; default had it pending and lost it"


async def declined_with_open_tries(b: Bench, count: int) -> list[str]:
    """So many that wait in line: they are declined, and the answer to a try was lost."""
    payments = [await b.accept() for _ in range(count)]
    for payment in payments * 2:
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    line = [each.decode() for each in await b.redis.zrange("payments:waiting:default", 0, -1)]
    assert line == payments
    return payments


async def are_due(b: Bench, payments: Sequence[str]) -> list[bool]:
    """Whether a worker may claim each now."""
    seconds, microseconds = await b.redis.time()
    now_ms = seconds * 1000 + microseconds // 1000
    return [(await b.redis.zscore("arq:queue", each) or 0) <= now_ms for each in payments]


@pytest.mark.parametrize("is_new", [False, True], ids=["known to the worker", "new to it"])
async def test_a_declined_payment_whose_horizon_passed_wakes_the_next_in_line(
    acme: Acme, is_new: bool
) -> None:
    """It ends, or a worker that didn't know it begins its own wait: both are progress."""
    b = acme.bench
    await acme.set_faults(decisions={"decline": 1}, payments={"commit-close": 1})
    first, *others = await declined_with_open_tries(b, 7)
    passed = {"horizon": 1} | ({} if is_new else {"quiet": 0})
    await b.redis.hset(f"payment:{first}", mapping=passed)  # type: ignore[misc]
    if is_new:
        b.use(b.settings)
    claim = await b.claim_when_due(first)
    for other in others:  # as behind a long line
        for key in ("payments:waiting:default", "arq:queue"):
            await b.redis.zincrby(key, 1_000_000, other)
    await b.dispatcher.dispatch(claim)
    assert await b.field(first, "state") == ("queued" if is_new else "declined")
    assert await are_due(b, others) == [True] * 4 + [False] * 2
    assert b.fallback.posts == []


async def test_the_first_question_about_a_pending_payment_comes_soon_whatever_came_before(
    acme: Acme, redis: ArqRedis
) -> None:
    payment = await acme.bench.accept()
    acme.simulator.config.failing = True
    for _ in range(12):
        await acme.bench.dispatcher.dispatch(await acme.bench.claim_when_due(payment))
    acme.simulator.config.failing = False
    await acme.set_faults(decisions={"pending": 1}, decideMs=[10**8, 10**8])
    await acme.bench.dispatcher.dispatch(await acme.bench.claim_when_due(payment))
    assert (await acme.bench.open_tries(payment))[-1] == "pending"
    seconds, microseconds = await redis.time()
    due = await redis.zscore("arq:queue", payment)
    assert due is not None
    assert due - (seconds * 1000 + microseconds // 1000) <= 1000


@pytest.mark.parametrize("fault", ["commit-close", "commit-500"])
async def test_a_payment_whose_answer_was_lost_is_paid_once(acme: Acme, fault: str) -> None:
    await acme.set_faults(payments={fault: 1})
    record = await acme.bench.dispatch_until_done(await acme.bench.accept())
    assert (record.state, record.processor) == ("settled", "default")
    assert acme.simulator.book.totals() == Total(1, 1990)
    assert acme.bench.fallback.posts == []


async def test_a_wrong_token_pays_nothing_there(acme: Acme) -> None:
    acme.simulator.config.token = "another"
    payment = await acme.bench.accept()
    await acme.bench.dispatcher.dispatch(await acme.bench.claim_when_due(payment))
    assert await acme.bench.field(payment, "open") is not None
    assert acme.bench.fallback.posts == []
    assert acme.simulator.book.totals() == Total(0, 0)

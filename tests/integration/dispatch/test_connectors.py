"""The dispatcher with connectors of somebody else's: what they may do, and what they do wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.dispatch.routing import BreakerLimits, BreakerState
from payswitch.processors.connector import Instruction, NotUnderstoodError, Request, Response
from payswitch.processors.outcomes import PayOutcome
from payswitch.processors.rinha import RinhaConnector
from tests.integration.harness import Bench, bench
from tests.support import NEVER, PAID, Reply, eventually


class SmallOnly(RinhaConnector):
    """For payments of up to 10.00."""

    def eligible(self, instruction: Instruction) -> bool:
        return instruction.cents <= 1000


class EuropeOnly(RinhaConnector):
    """For payments whose metadata says so."""

    def eligible(self, instruction: Instruction) -> bool:
        return bool(orjson.loads(instruction.metadata or b"{}").get("region") == "eu")


class WithToken(RinhaConnector):
    """It needs a token that it is given once."""

    token: str | None = None

    def prepare(self, now_ms: int) -> Request | None:
        return Request("GET", "/payments/token") if self.token is None else None

    def read_preparation(self, response: Response, now_ms: int) -> None:
        if response.status != 200:
            raise NotUnderstoodError(f"no token: status {response.status}")
        self.token = response.body.decode()

    def pay(self, instruction: Instruction) -> Request:
        paying = super().pay(instruction)
        return paying._replace(headers=(*paying.headers, ("x-token", self.token or "none")))


class MakesNoRequest(RinhaConnector):
    """It fails before anything is sent."""

    def pay(self, instruction: Instruction) -> Request:
        raise RuntimeError("hunter2")


class ReadsNothing(RinhaConnector):
    """It fails on each answer."""

    def read_payment(self, instruction: Instruction, response: Response) -> PayOutcome:
        raise ZeroDivisionError


class JudgesNobody(RinhaConnector):
    """It fails on the question which payments it takes."""

    def eligible(self, instruction: Instruction) -> bool:
        raise KeyError(f"no region in {instruction.metadata!r}")


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


def use(b: Bench, default: type[RinhaConnector], fallback: type[RinhaConnector]) -> None:
    names = (f"{__name__}:{each.__name__}" for each in (default, fallback))
    processors = (
        replace(each, connector=name)
        for each, name in zip(b.settings.processors, names, strict=True)
    )
    b.use(replace(b.settings, processors=tuple(processors)))


async def test_a_payment_goes_to_the_first_that_may_have_it(b: Bench) -> None:
    use(b, SmallOnly, EuropeOnly)
    small = await b.dispatch_until_done(await b.accept(cents=1000))
    european = await b.accept(cents=1001, metadata=b'{"region":"eu"}')
    assert small.processor == "default"
    assert (await b.dispatch_until_done(european)).processor == "fallback"


async def test_a_payment_that_nobody_may_have_is_a_dead_letter(b: Bench) -> None:
    use(b, SmallOnly, EuropeOnly)
    record = await b.dispatch_until_done(await b.accept(cents=1001))
    assert (record.state, record.why) == ("dead", "no processor takes such a payment")
    assert (b.default.posts, b.fallback.posts) == ([], [])


async def test_a_payment_that_a_connector_can_not_judge_goes_elsewhere_or_waits(
    b: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    use(b, JudgesNobody, EuropeOnly)
    european = await b.accept(metadata=b'{"region":"eu"}')
    assert (await b.dispatch_until_done(european)).processor == "fallback"
    other = await b.accept(metadata=b'{"card":"hunter2"}')
    await b.dispatcher.dispatch(await b.claim_when_due(other))
    record = await b.record(other)
    assert record.state == "queued"
    assert "can't tell whether it takes it: KeyError at test_connectors.py" in str(record.why)
    assert caplog.text.count("default: the connector can't tell") == 1
    assert "hunter2" not in caplog.text + str(record.why)
    use(b, RinhaConnector, EuropeOnly)
    assert (await b.dispatch_until_done(other)).state == "settled"


async def due_in_ms(b: Bench, payment: str) -> float:
    score = await b.redis.zscore("arq:queue", payment)
    assert score is not None
    return float(score) - time.time() * 1000


async def test_what_only_another_processor_takes_waits_longer_and_longer(b: Bench) -> None:
    """Claims go on for others, so at a steady 200 ms many such payments would fill every claim."""
    b.settings = replace(b.settings, retry_cap_ms=10_000)
    use(b, SmallOnly, RinhaConnector)
    payment = await b.accept(cents=2000)
    fallback = b.dispatcher.router.breakers["fallback"]
    fallback.state = BreakerState.OPEN
    fallback._probe_at = float("inf")
    await b.redis.set(f"arq:retry:{payment}", 19)
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await due_in_ms(b, payment) > 3000
    assert b.default.posts == b.fallback.posts == []
    fallback.state = BreakerState.CLOSED
    assert (await b.dispatch_until_done(payment)).processor == "fallback"


async def test_a_payment_stays_with_the_processor_of_its_open_try(b: Bench) -> None:
    """Whatever its connector says by now."""
    payment = await b.accept(cents=1001)
    b.default.script = [Reply(hang_up=True), PAID]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    use(b, SmallOnly, RinhaConnector)
    record = await b.dispatch_until_done(payment, times=500)
    assert (record.state, record.processor) == ("settled", "default")
    assert b.fallback.posts == []


async def test_a_token_is_asked_for_once_before_a_payment_is_routed(b: Bench) -> None:
    use(b, WithToken, RinhaConnector)
    b.default.finds = [Reply(200, b"hunter2")]
    for _ in range(2):
        await b.dispatch_until_done(await b.accept())
    assert len(b.default.posts) == 2
    assert b.default.finds == []


async def test_without_its_token_nothing_is_routed_there(b: Bench) -> None:
    use(b, WithToken, RinhaConnector)
    b.default.finds = [Reply(500)] * 10
    payment = await b.accept()
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    record = await b.record(payment)
    assert (record.tries, record.why) == (0, "default: preparation: no token: status 500")
    assert b.default.posts == []


async def test_a_connector_that_makes_no_request_has_sent_nothing(b: Bench) -> None:
    use(b, MakesNoRequest, RinhaConnector)
    payment = await b.accept()
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    record = await b.record(payment)
    assert record.open_tries == ()
    assert "the connector makes no request: RuntimeError" in str(record.why)
    assert b.default.posts == []


async def test_a_connector_that_reads_nothing_leaves_the_try_open(b: Bench) -> None:
    use(b, ReadsNothing, RinhaConnector)
    b.default.finds = [Reply(404)]
    payment = await b.accept()
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    record = await b.record(payment)
    assert [each.ended for each in record.open_tries] == [False]
    assert "the connector can't read status 200: ZeroDivisionError" in str(record.why)


async def test_payments_that_wait_for_a_token_hold_slots_of_their_processor(b: Bench) -> None:
    """Else a silent provider of tokens could hold every slot of a worker."""
    b.settings = replace(b.settings, processor_find_limit_ms=300)
    b.limits = BreakerLimits(failures=2)
    use(b, WithToken, RinhaConnector)
    b.default.finds = [NEVER]
    payments = [await b.accept() for _ in range(2)]
    running = [asyncio.create_task(b.dispatcher.dispatch(claim)) for claim in await b.claim()]
    breaker = b.dispatcher.router.breakers["default"]

    async def asked() -> bool:
        return b.default.questions == ["token"]

    await eventually(asked, what="a token is asked for")
    assert breaker.in_flight == 2
    await asyncio.gather(*running)
    assert (breaker.in_flight, breaker.state) == (0, BreakerState.OPEN)
    assert b.default.questions == ["token"]
    for payment in payments:
        last_error = (await b.record(payment)).last_error or ""
        assert last_error.startswith("default: preparation: no complete answer within")
        assert (await b.dispatch_until_done(payment)).processor == "fallback"

"""Payments that not every processor may get, and processors that must prepare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from payswitch.dispatch.routing import BreakerLimits, BreakerState
from payswitch.processors.connector import Instruction, Request
from payswitch.processors.rinha import RinhaConnector
from tests.integration.harness import Bench, bench
from tests.support import NEVER, eventually


class Small(RinhaConnector):
    """Takes payments up to 10.00, and can't tell for some."""

    def eligible(self, instruction: Instruction) -> bool:
        if instruction.cents == 13:
            raise KeyError(f"{instruction.metadata!r}")
        return instruction.cents <= 1000


class WithToken(RinhaConnector):
    """Asks for a token before every call."""

    def prepare(self, now_ms: int) -> Request | None:
        return Request("GET", "/token")


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        use(made, Small)
        yield made


def use(b: Bench, connector: type[RinhaConnector], limits: BreakerLimits | None = None) -> None:
    """Let the processor `default` speak with this connector, under usual pauses."""
    default, fallback = b.settings.processors
    processors = (replace(default, connector=f"{__name__}:{connector.__name__}"), fallback)
    b.use(replace(b.settings, processors=processors, retry_cap_ms=10_000), limits)


async def due_in_ms(b: Bench, payment: str) -> float:
    score = await b.redis.zscore("arq:queue", payment)
    assert score is not None
    return float(score) - time.time() * 1000


async def test_what_only_another_processor_takes_waits_longer_and_longer(b: Bench) -> None:
    """Claims go on for others, so at a steady 200 ms many such payments would fill every claim."""
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


async def test_a_payment_whose_rule_fails_waits_for_a_better_connector(
    b: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        payment = await b.accept(cents=13, metadata=b'{"card":"4111"}')
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
        record = await b.record(payment)
        assert record.state == "queued"
        assert "can't tell whether it takes it: KeyError at test_restricted" in str(record.why)
    assert caplog.text.count("payments wait, because the connector can't tell") == 1
    assert "4111" not in caplog.text + str(record.why)
    b.use(replace(b.settings, processors=(b.settings.processors[1],)))
    assert (await b.dispatch_until_done(payment)).state == "settled"


async def test_payments_that_wait_for_a_token_hold_slots_of_their_processor(b: Bench) -> None:
    """Else a silent provider of tokens could hold every slot of a worker."""
    b.settings = replace(b.settings, processor_find_limit_ms=300)
    use(b, WithToken, BreakerLimits(failures=2))
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

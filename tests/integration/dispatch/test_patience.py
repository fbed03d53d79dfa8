"""Payments that are held until a preferred processor works again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.clock import boottime_ms
from payswitch.money import Total
from payswitch.operations.overview import Overview, read_overview
from payswitch.payments.claims import Claims
from payswitch.selection.selector import Selection
from tests.integration.harness import FAST, Bench, bench, worker_process
from tests.support import PROCESSORS, RedisServer, eventually

PATIENCE_MS = 60_000
HELD = "payments:held:default"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis, replace(FAST, patience_ms=PATIENCE_MS)) as made:
        yield made


def down(b: Bench, *names: str) -> None:
    """The health check finds these down, and chooses the first of the others."""
    chosen = next(name for name in PROCESSORS if name not in names)
    selection = Selection(chosen, True, "", down=names)
    b.dispatcher.router.see(names, selection, boottime_ms())


async def hold(b: Bench, count: int = 1) -> list[str]:
    """Accept so many payments while `default` is down, and dispatch them."""
    down(b, "default")
    payments = [await b.accept(cents=1000) for _ in range(count)]
    for claim in await b.claim(limit=count):
        await b.dispatcher.dispatch(claim)
    return payments


async def bring_forward(b: Bench, most: int, *, back: str = "default") -> list[str]:
    """Claim as a worker does for which this processor works; returns the ids."""
    claims = Claims(b.redis, lease_ms=1500, deadline_ms=600_000, max_delay_ms=300)
    batch = await claims.take(100, back=[back], drain=most)
    for claimed in batch.taken:
        await b.dispatcher.dispatch(claimed.claim)
    return [claimed.claim.correlation_id for claimed in batch.taken]


async def overview(b: Bench) -> Overview:
    return await read_overview(b.redis, PROCESSORS)


async def test_a_payment_is_held_without_a_try_until_its_patience_is_over(b: Bench) -> None:
    [payment] = await hold(b)
    record = await b.record(payment)
    assert (record.state, record.tries) == ("queued", 0)
    due = await b.redis.zscore("arq:queue", payment)
    assert due is not None
    # The claim's age was counted some ms before Redis gave the payment back.
    assert 0 <= due - record.accepted_at - PATIENCE_MS < 5000
    assert (await overview(b)).held == {"default": 1, "fallback": 0}
    assert not b.fallback.posts


async def test_held_payments_go_on_at_their_pace_once_the_processor_works(b: Bench) -> None:
    payments = await hold(b, 5)
    down(b)
    assert set(await bring_forward(b, 2)) < set(payments)
    assert (await overview(b)).held["default"] == 3
    assert await bring_forward(b, 10, back="fallback") == []
    await bring_forward(b, 10)
    assert (await b.summary())["default"] == Total(5, 5000)
    found = await overview(b)
    assert found.held["default"] == 0
    assert found.held_and_paid == {("default", "fallback"): 5000}


async def test_a_payment_whose_patience_is_over_goes_elsewhere_and_saves_nothing(b: Bench) -> None:
    [payment] = await hold(b)
    b.use(replace(b.settings, patience_ms=1))
    down(b, "default")
    record = await b.dispatch_until_done(payment)
    assert record.processor == "fallback"
    assert (await overview(b)).held == {"default": 0, "fallback": 0}
    assert not (await overview(b)).held_and_paid


async def test_a_payment_that_comes_forward_too_early_is_held_again(b: Bench) -> None:
    [payment] = await hold(b)
    assert await bring_forward(b, 10) == [payment]
    assert (await overview(b)).held["default"] == 1
    assert (await b.record(payment)).tries == 0


async def test_a_purge_forgets_held_payments_and_what_was_saved(b: Bench) -> None:
    await hold(b, 2)
    down(b)
    await bring_forward(b, 1)
    await b.purge()
    assert not await b.redis.exists(HELD, "payments:saved")


async def test_something_else_under_their_keys_stops_no_payment(b: Bench) -> None:
    await b.redis.set(HELD, "not ours")
    await b.redis.set("payments:saved", "not ours")
    [payment] = await hold(b)
    down(b)
    assert (await b.dispatch_until_done(payment)).processor == "default"
    assert (await overview(b)).held["default"] == 0


async def test_a_worker_holds_payments_through_an_outage_and_pays_all_afterwards(
    b: Bench, redis_server: RedisServer
) -> None:
    outage = {"processor": "fallback", "healthy": True, "down": ["default"]}
    await b.redis.set("selected_payment_processor", orjson.dumps(outage))
    environment = {"PAYSWITCH_PATIENCE_MS": str(PATIENCE_MS)}
    async with worker_process(b, redis_server.url, **environment):
        payments = [await b.accept(cents=1000) for _ in range(30)]

        async def all_are_held() -> bool:
            return int(await b.redis.zcard(HELD)) == len(payments)

        async def all_are_paid() -> bool:
            return (await b.summary())["default"].count == len(payments)

        await eventually(all_are_held, what="all are held")
        assert not b.fallback.posts
        await b.redis.set("selected_payment_processor", b'{"processor":"default","healthy":true}')
        await eventually(all_are_paid, what="all are paid by the processor that is back")
    assert (await overview(b)).held_and_paid == {("default", "fallback"): 30_000}

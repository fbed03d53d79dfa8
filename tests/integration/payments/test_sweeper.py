"""The sweep on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis

from payswitch.payments.sweeper import Sweeper
from payswitch.store import scripts
from tests.integration.harness import Bench, bench
from tests.support import PROCESSORS, eventually


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


async def test_a_payment_that_fell_out_of_the_queue_is_paid_after_a_sweep(
    b: Bench, redis: ArqRedis
) -> None:
    payments = [await b.accept() for _ in range(3)]
    await redis.zrem("arq:queue", payments[1])
    await redis.delete(f"arq:job:{payments[1]}")
    assert await Sweeper(redis, PROCESSORS, every_ms=1000).sweep() == 1
    assert (await b.dispatch_until_done(payments[1])).state == "settled"


async def test_a_sweep_leaves_alone_what_is_queued_or_in_flight(b: Bench, redis: ArqRedis) -> None:
    await b.accept()
    await b.accept()
    await b.claim(limit=1)
    before = await redis.zrange("arq:queue", 0, -1, withscores=True)
    assert await Sweeper(redis, PROCESSORS, every_ms=1000).sweep() == 0
    assert await redis.zrange("arq:queue", 0, -1, withscores=True) == before


async def test_a_sweep_goes_through_more_than_a_page(b: Bench, redis: ArqRedis) -> None:
    for _ in range(1201):
        await b.accept()
    await redis.delete("arq:queue")
    assert await Sweeper(redis, PROCESSORS, every_ms=1000).sweep() == 1201
    assert await redis.zcard("arq:queue") == 1201


async def test_an_entry_of_an_unknown_payment_is_dropped_from_the_backlog(redis: ArqRedis) -> None:
    await redis.zadd("payments:open", {"ghost": 1})
    assert await Sweeper(redis, PROCESSORS, every_ms=1000).sweep() == 0
    assert await redis.zcard("payments:open") == 0


async def test_an_acknowledged_payment_whose_record_is_gone_is_an_error_in_the_log(
    b: Bench, redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    lost, overwritten, queued, paid = [await b.accept() for _ in range(4)]
    await redis.delete("arq:queue", f"payment:{lost}", f"payment:{overwritten}")
    await redis.set(f"payment:{overwritten}", "x")
    await redis.hset(f"payment:{paid}", "state", "settled")  # type: ignore[misc]
    assert await Sweeper(redis, PROCESSORS, every_ms=1000).sweep() == 1
    said = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert said == {
        ("ERROR", f"acknowledged payment {lost} has no record any more"),
        ("ERROR", f"acknowledged payment {overwritten} has no record any more"),
        ("WARNING", f"payment {queued} had left the queue unpaid"),
        ("WARNING", f"payment {paid} was still in the backlog, its state being settled"),
    }
    assert await redis.zrange("payments:open", 0, -1) == [queued.encode()]


async def test_what_a_purge_left_is_removed_by_the_sweep(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    await scripts.load(redis, "purge")(args=[10**15, "purge", "ana", ""])
    assert await redis.exists(f"payment:{payment}", f"arq:job:{payment}") == 2
    sweeping = asyncio.create_task(Sweeper(redis, PROCESSORS, every_ms=1).run())

    async def removed() -> bool:
        return not await redis.exists(f"payment:{payment}", "payments:leftovers")

    await eventually(removed, what="the leftovers are removed")
    sweeping.cancel()
    assert not await redis.exists(f"arq:job:{payment}")

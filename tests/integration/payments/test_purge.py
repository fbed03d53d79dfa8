"""Purging on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis

from payswitch.money import Total
from payswitch.payments.ledger import Settlement
from payswitch.payments.purge import Purge
from payswitch.payments.records import read_record
from payswitch.store import scripts
from tests.integration.harness import Bench, bench
from tests.support import ANA, NEVER, PROCESSORS, Reply

NOTHING = {"default": Total(), "fallback": Total()}


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


async def test_a_purge_forgets_what_is_queued_settled_and_dead(b: Bench, redis: ArqRedis) -> None:
    settled, dead, queued = [await b.accept() for _ in range(3)]
    await b.dispatch_until_done(settled)
    b.default.script = [Reply(422)]
    await b.dispatch_until_done(dead)
    await b.purge()
    assert await b.summary() == NOTHING
    for payment in (settled, dead, queued):
        assert await read_record(redis, payment) is None
    keys = {key.decode() for key in await redis.keys("*")}
    assert keys == {"payments:audit", "payments:generation"}


async def test_throttle_lock_and_selection_survive_a_purge(b: Bench, redis: ArqRedis) -> None:
    survivors = {"healthcheck:throttle", "healthcheck:lock", "selected_payment_processor"}
    for key in survivors:
        await redis.set(key, "x")
    await b.purge()
    assert await redis.exists(*survivors) == 3


async def test_a_purge_waits_for_calls_under_way(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    await redis.hset(f"payment:{payment}", "processor", "default")  # type: ignore[misc]
    purge = asyncio.create_task(b.purge())
    while not await redis.exists("payments:purging"):
        await asyncio.sleep(0)
    for _ in range(20):
        await redis.ping()
    assert await b.ledger.settle(claim, "default", 1) is Settlement.SETTLED
    await purge
    assert await b.summary() == NOTHING


async def test_a_payment_that_finishes_after_the_purge_does_not_come_back(b: Bench) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    b.default.script = [NEVER]
    call = asyncio.create_task(b.dispatcher.dispatch(claim))
    await b.purge()
    await asyncio.gather(call, return_exceptions=True)
    assert (await b.ledger.settle(claim, "default", 1)).value == "gone"
    assert await b.summary() == NOTHING


async def test_the_same_id_is_new_after_a_purge(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    await b.claim_when_due(payment)
    await redis.incr("payments:generation")
    await redis.delete("arq:queue", "payments:open")
    again = await b.accept(correlation_id=payment, cents=5)
    await b.dispatch_until_done(again)
    assert await b.summary() == {"default": Total(1, 5), "fallback": Total()}


async def test_payments_accepted_while_the_old_ones_are_removed_stay(
    b: Bench, redis: ArqRedis
) -> None:
    old = [await b.accept() for _ in range(50)]
    await redis.incr("payments:generation")
    new = [await b.accept() for _ in range(50)]
    await b.purge_leftovers()
    assert [await read_record(redis, payment) for payment in old] == [None] * 50
    assert all([await read_record(redis, payment) for payment in new])
    assert await redis.exists(*(f"arq:job:{payment}" for payment in new)) == 50


async def test_a_purge_of_much_answers_before_it_has_removed_all(b: Bench, redis: ArqRedis) -> None:
    for first in range(0, 60_000, 1000):
        async with redis.pipeline(transaction=False) as pipe:
            for number in range(first, first + 1000):
                pipe.hset(f"payment:{number}", mapping={"generation": 0, "state": "settled"})
            await pipe.execute()
    purge = Purge(redis, PROCESSORS)
    await purge.run(ANA)
    assert await b.summary() == NOTHING
    new = await b.accept()
    await purge.remove_leftovers()
    assert await redis.keys("payment:*") == [f"payment:{new}".encode()]
    await purge.close()


async def test_a_purge_that_redis_takes_too_late_does_nothing(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    assert await scripts.load(redis, "purge")(args=[1, "purge", "ana", ""]) == 0
    assert (await b.record(payment)).state == "queued"
    assert not await redis.exists("payments:generation")


async def test_other_keys_in_the_same_redis_are_left_alone(b: Bench, redis: ArqRedis) -> None:
    await redis.set("somebody:else", "1")
    await redis.enqueue_job("other", _job_id="other", _queue_name="other:queue")
    await b.purge()
    assert await redis.exists("somebody:else", "arq:job:other", "other:queue") == 3

"""Settled payments are forgotten after the retention; their sums in the ledger stay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from payswitch.money import Total
from payswitch.payments.accepting import Acceptance, AcceptQueue
from payswitch.payments.claims import Claim
from payswitch.payments.ledger import Ledger, Settlement
from payswitch.payments.payment import Payment
from payswitch.payments.records import read_record
from payswitch.payments.sweeper import Sweeper
from tests.integration.harness import FAST, Bench, bench
from tests.support import PROCESSORS, Reply, eventually

ONCE = {"default": Total(1, 1990), "fallback": Total()}


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis, replace(FAST, retention_ms=1000)) as made:
        yield made


async def settled_and_forgotten(b: Bench) -> str:
    """A payment whose record has expired."""
    payment = await b.accept()
    assert (await b.dispatch_until_done(payment)).state == "settled"

    async def forgotten() -> bool:
        return await read_record(b.redis, payment) is None

    await eventually(forgotten, what="the record has expired")
    return payment


async def test_a_settled_record_expires_and_the_summary_keeps_it(b: Bench, redis: ArqRedis) -> None:
    payment = await settled_and_forgotten(b)
    assert await b.summary() == ONCE
    assert [key async for key in redis.scan_iter(f"*{payment}*")] == []


async def test_until_then_a_duplicate_is_recognised(b: Bench, redis: ArqRedis) -> None:
    b.use(replace(b.settings, retention_ms=60_000))
    payment = await b.accept()
    await b.dispatch_until_done(payment)
    assert 0 < await redis.pttl(f"payment:{payment}") <= 60_000
    queue = AcceptQueue(redis, limit_ms=5000, max_backlog=10)
    assert await queue.accept(Payment(payment, 1990)) is Acceptance.SAME
    assert await b.claim() == []


@pytest.mark.parametrize("open_try", [False, True])
async def test_what_is_not_settled_does_not_expire(
    b: Bench, redis: ArqRedis, open_try: bool
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(502) if open_try else Reply(422)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert (await b.record(payment)).state == ("queued" if open_try else "dead")
    assert await redis.pttl(f"payment:{payment}") == -1


async def test_a_duplicate_after_the_retention_is_a_new_payment(b: Bench) -> None:
    """The limit that the setting's documentation states. The processor still has the first one, so
    it is not paid again, but it enters the ledger a second time."""
    payment = await settled_and_forgotten(b)
    first = b.default.books[payment]
    await b.accept(correlation_id=payment)
    assert (await b.dispatch_until_done(payment)).state == "settled"
    assert b.default.books == {payment: first}
    assert len(b.default.posts) == 2
    assert await b.summary() == {"default": Total(2, 2 * 1990), "fallback": Total()}


async def settle(redis: ArqRedis, ledger: Ledger, payment: str, at: int) -> None:
    """Settle a payment of one cent with this `requestedAt`."""
    record = {"generation": 0, "processor": "default", "cents": 1}
    await redis.hset(f"payment:{payment}", mapping=record)  # type: ignore[misc]
    assert (
        await ledger.settle(Claim(payment, 1, "1", "0", 0.0), "default", at) is Settlement.SETTLED
    )


async def fold_for_ever(ledger: Ledger) -> None:
    while True:
        await ledger.fold()


async def finest_nodes(redis: ArqRedis) -> list[bytes]:
    return [key async for key in redis.scan_iter("ledger:default:0:1:*")]


async def test_the_sweep_folds_what_is_older_than_the_retention(redis: ArqRedis) -> None:
    ledger = Ledger(redis, processors=["default"], retention_ms=600_000)
    old = time.time_ns() // 1_000_000 - 700_000
    for number, at in enumerate((old - 50_000, old, old + 700_000)):
        await settle(redis, ledger, str(number), at)
    sweeping = asyncio.create_task(Sweeper(redis, PROCESSORS, every_ms=50, fold=ledger.fold).run())

    async def folded() -> bool:
        return len(await finest_nodes(redis)) == 1

    await eventually(folded, what="the old milliseconds are folded")
    sweeping.cancel()
    assert (await ledger.window(None, None)).totals == {"default": Total(3, 3)}


async def test_settlements_beside_folds_lose_nothing(redis: ArqRedis) -> None:
    """All of them are old enough, and each is entered wherever the fold has come to by then."""
    ledger = Ledger(redis, processors=["default", "fallback"], retention_ms=600_000)
    now = time.time_ns() // 1_000_000
    at = [now - 700_000 - 1_000 * number for number in range(600)]
    folding = asyncio.create_task(fold_for_ever(ledger))
    for first in range(0, 600, 20):
        mine = range(first, first + 20)
        await asyncio.gather(*(settle(redis, ledger, str(each), at[each]) for each in mine))
    folding.cancel()
    while await ledger.fold():
        pass
    assert await finest_nodes(redis) == []
    for first in range(min(at), now, 10_000):
        found = await ledger.window(first, first + 9_999)
        assert found.first is not None
        assert found.last is not None
        inside = sum(found.first <= each <= found.last for each in at)
        assert found.totals["default"] == Total(inside, inside)

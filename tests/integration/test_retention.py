"""Settled payments are forgotten after the retention; what they added to the ledger stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from payswitch.ledger import Total
from payswitch.payment import Payment
from payswitch.queue import Acceptance, AcceptQueue
from payswitch.records import read_record
from tests.integration.harness import FAST, Bench, bench
from tests.support import Reply, eventually

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

"""Payments that wait for one processor: their due times, and the events that bring them forward."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.clock import boottime_ms
from payswitch.dispatch.routing import Verdict
from payswitch.money import Total
from payswitch.payments.claims import Claim
from payswitch.payments.sweeper import Sweeper
from payswitch.payments.tries import Findings, Tries
from tests.integration.harness import PATIENT, Bench, bench, worker_process
from tests.support import PROCESSORS, RedisServer, Reply, eventually

UNAVAILABLE = Reply(503, b"")
PACE_MS = 500
WAITING = "payments:waiting:default"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


async def pinned(b: Bench, processor: str = "default") -> str:
    """A payment with an open try of unknown outcome."""
    payment = await b.accept()
    tries = Tries(b.redis, max_delay_ms=60_000, lease_ms=b.settings.lease_ms, retention_ms=600_000)
    assert await tries.open(await b.claim_when_due(payment), processor, Findings())
    return payment


def book(payment: str, amount: float = 19.9) -> dict[str, object]:
    """The processor's record of it."""
    return {"correlationId": payment, "amount": amount, "requestedAt": "2026-01-02T03:04:05Z"}


async def waiting(b: Bench, count: int) -> list[str]:
    """So many that have asked `default` and got no answer, in the order in which they are due."""
    payments = [await pinned(b) for _ in range(count)]
    b.default.finds = [UNAVAILABLE] * count
    for payment in payments:
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    return payments


async def due(b: Bench) -> dict[str, int]:
    """When each entry of the queue is due, in ms from now on."""
    seconds, microseconds = await b.redis.time()
    now = seconds * 1000 + microseconds // 1000
    entries = await b.redis.zrange("arq:queue", 0, -1, withscores=True)
    return {payment.decode(): int(score) - now for payment, score in entries}


async def in_line(b: Bench) -> set[str]:
    return {each.decode() for each in await b.redis.zrange(WAITING, 0, -1)}


async def test_they_are_due_one_after_the_other(b: Bench) -> None:
    payments = await waiting(b, 6)
    at = await due(b)
    assert list(at) == payments
    assert all(after - before >= PACE_MS for before, after in pairwise(at.values()))
    assert at[payments[-1]] <= 6 * PACE_MS


async def test_who_waits_for_another_processor_is_not_behind_them(b: Bench) -> None:
    await waiting(b, 6)
    payment = await pinned(b, "fallback")
    b.fallback.finds = [UNAVAILABLE]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert (await due(b))[payment] <= PACE_MS


async def test_who_asks_again_in_vain_is_behind_all_others(b: Bench) -> None:
    first, *others = await waiting(b, 3)
    b.default.finds = [UNAVAILABLE]
    await b.dispatcher.dispatch(await b.claim_when_due(first))
    assert list(await due(b)) == [*others, first]


async def test_a_processor_that_asks_for_a_longer_pause_gets_it(b: Bench) -> None:
    payment = await pinned(b)
    b.use(replace(b.settings, retry_cap_ms=10_000))
    b.default.finds = [Reply(503, b"", (("retry-after", "8"),))]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert (await due(b))[payment] > 7000


async def test_a_claim_takes_it_out_of_the_line(b: Bench) -> None:
    first, *others = await waiting(b, 3)
    await b.claim_when_due(first)
    assert await in_line(b) == set(others)


@pytest.mark.parametrize("how", ["paid", "buried", "unpinned"])
async def test_the_first_that_gets_on_wakes_the_next_four(b: Bench, how: str) -> None:
    first, *others = await waiting(b, 7)
    if how != "paid":
        await b.redis.hset(f"payment:{first}", "open", "1e")  # type: ignore[misc]
        b.choose("fallback")
    if how != "unpinned":
        b.default.books[first] = book(first, 19.9 if how == "paid" else 1.0)
    await b.dispatcher.dispatch(await b.claim_when_due(first))
    at = await due(b)
    assert [payment for payment in others if at[payment] <= 0] == others[:4]
    assert await in_line(b) == set(others[4:])


@pytest.mark.parametrize("status", ["pending", "failed"])
async def test_one_that_is_pending_or_declined_wakes_the_next_four(b: Bench, status: str) -> None:
    first, *others = await waiting(b, 7)
    charges = replace(b.settings.processors[0], connector="charges", token="secret")
    b.use(replace(b.settings, processors=(charges, *b.settings.processors[1:])))
    b.choose("fallback")
    await b.redis.hset(f"payment:{first}", "open", "1e")  # type: ignore[misc]
    charge = {
        **{"id": "ch_1", "status": status, "amount": 1990, "currency": "BRL"},
        **{"reference": first, "requested_at": "2026-01-02T03:04:05Z"},
    }
    b.default.finds = [Reply(200, orjson.dumps({"data": [charge]}))]
    await b.dispatcher.dispatch(await b.claim_when_due(first))
    at = await due(b)
    assert [payment for payment in others if at[payment] <= 0] == others[:4]


async def test_where_none_is_due_before_long_the_first_in_line_is_brought_forward(
    b: Bench,
) -> None:
    """As after some were woken in vain: the rest of the line is due much later."""
    first, second, *others = await waiting(b, 9)
    b.default.books[first] = book(first)
    await b.dispatcher.dispatch(await b.claim_when_due(first))
    b.default.finds = [UNAVAILABLE]
    await b.dispatcher.dispatch(await b.claim_when_due(second))
    at = await due(b)
    *woken, scout = list(at)[:4]
    assert {*woken} == {*others[:3]}
    assert scout == others[3]
    assert at[scout] <= PACE_MS
    assert list(at)[-1] == second


async def test_who_is_claimed_leaves_one_that_is_due_before_long(b: Bench) -> None:
    """As if the worker that claimed it was killed before it could wake the next."""
    payments = await waiting(b, 7)
    later = 9_000_000_000_000
    for payment in payments[1:]:
        for key in (WAITING, "arq:queue"):
            await b.redis.zadd(key, {payment: later})
    await b.claim_when_due(payments[0])
    at = sorted((await due(b)).values())
    assert at[0] <= PACE_MS
    assert at[2] > 10**9


async def test_the_sweep_brings_one_forward_where_the_first_in_line_is_gone(b: Bench) -> None:
    first, second = await waiting(b, 2)
    for key in (WAITING, "arq:queue"):
        await b.redis.zadd(key, {second: 9_000_000_000_000})
    await b.redis.zrem("arq:queue", first)
    await b.redis.zrem("payments:open", first)
    await Sweeper(b.redis, PROCESSORS, every_ms=1000).sweep()
    assert (await due(b))[second] <= PACE_MS
    assert await in_line(b) == {second}


async def test_gone_entries_do_not_count_among_those_that_are_woken(b: Bench) -> None:
    first, *others = await waiting(b, 9)
    for other in others[1:3]:
        await b.redis.zrem("arq:queue", other)
    b.default.books[first] = book(first)
    await b.dispatcher.dispatch(await b.claim_when_due(first))
    at = await due(b)
    assert {other for other, ms in at.items() if ms <= 0} == {others[0], *others[3:6]}
    assert await in_line(b) == {*others[6:]}


async def test_something_else_under_one_key_stops_no_wake_up(b: Bench) -> None:
    await waiting(b, 3)
    await b.redis.set("payments:waiting:fallback", "not ours")
    tries = Tries(b.redis, max_delay_ms=60_000, lease_ms=b.settings.lease_ms, retention_ms=600_000)
    claim = Claim("4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3", 1, "1", "0", 0)
    names = ("fallback", "fallback", "default")
    await asyncio.gather(*(tries.wake(claim, name) for name in names))
    assert all(at <= 0 for at in (await due(b)).values())


async def test_what_came_to_be_due_at_another_time_is_left_alone(b: Bench) -> None:
    first, second, third = await waiting(b, 3)
    later = 9_000_000_000_000
    await b.redis.zadd("arq:queue", {second: later})
    await b.redis.zrem("arq:queue", third)
    b.default.books[first] = book(first)
    await b.dispatcher.dispatch(await b.claim_when_due(first))
    assert await b.redis.zrange("arq:queue", 0, -1, withscores=True) == [(second.encode(), later)]


async def test_a_clock_that_was_ahead_makes_no_payment_wait_long(b: Bench) -> None:
    await b.redis.zadd(WAITING, {"left by a clock that was ahead": 9_000_000_000_000})
    first, second = await waiting(b, 2)
    at = await due(b)
    assert at[first] <= PACE_MS
    assert at[second] <= 5 * PACE_MS
    assert await in_line(b) == {first, second}


async def test_something_else_under_the_key_stops_no_release(b: Bench) -> None:
    await b.redis.set(WAITING, "not ours")
    first, second = await waiting(b, 2)
    assert all(0 < at <= PACE_MS for at in (await due(b)).values())
    b.default.finds = []
    await b.dispatch_until_done(first)
    await b.dispatch_until_done(second)


async def test_a_purge_forgets_waiting_payments(b: Bench) -> None:
    await waiting(b, 2)
    await b.purge()
    assert not await b.redis.exists(WAITING)


@pytest.mark.parametrize("looks", [1, 2])
async def test_a_first_look_after_the_horizon_wakes_the_next(b: Bench, looks: int) -> None:
    """By Redis' clock nothing can come of its try any more. This worker can't know yet: it looks
    once at each, and once more later."""
    payment, *others = [await pinned(b), *await waiting(b, 3)]
    await b.redis.hset(f"payment:{payment}", "horizon", "1")  # type: ignore[misc]
    b.use(limits=replace(PATIENT, failures=1))
    breaker = b.dispatcher.router.breakers["default"]
    breaker.enter(boottime_ms())
    breaker.leave(Verdict.BAD, probe=False, now=boottime_ms())
    for _ in range(looks):
        for other in others:
            for key in (WAITING, "arq:queue"):
                await b.redis.zadd(key, {other: 9_000_000_000_000})
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    at = await due(b)
    assert [at[other] <= 0 for other in others] == [looks == 1] * 3, at
    assert payment in await in_line(b)


async def test_once_the_processor_is_back_all_are_paid_without_waiting_for_their_turns(
    b: Bench, redis_server: RedisServer
) -> None:
    b.default.finds = [UNAVAILABLE] * 10_000
    payments = [await pinned(b) for _ in range(200)]
    await b.redis.zadd("arq:queue", dict.fromkeys(payments, 0), xx=True)

    async def all_wait() -> bool:
        return int(await b.redis.zcard(WAITING)) > 190

    async def all_are_paid() -> bool:
        return (await b.summary())["default"] == Total(200, 200 * 1990)

    async with worker_process(b, redis_server.url):
        await eventually(all_wait, what="nearly all have asked in vain and wait")
        assert max((await due(b)).values()) > 80_000
        b.default.finds = []
        await eventually(all_are_paid, what="all are paid")
    assert b.fallback.posts == []

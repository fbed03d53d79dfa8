"""Running workers follow an operator's orders: real processes, a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from payswitch.money import Total
from payswitch.operations.controls import Controls
from payswitch.payments.claims import Batch, Claims
from payswitch.selection.selector import Selection, parse_standing
from payswitch.store import keys
from payswitch.store.client import connect
from tests.integration.command import Payswitch
from tests.integration.harness import FAST, Bench, bench, worker_process
from tests.support import ANA, PROCESSORS, RedisServer, Reply, eventually

WAKE = "payments:wake"
QUICK = {
    "PAYSWITCH_RETRY_BASE_MS": "1",
    "PAYSWITCH_RETRY_CAP_MS": "20",
}


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


@pytest.fixture
def payswitch(redis_server: RedisServer) -> Payswitch:
    return Payswitch(redis_server.url)


@contextlib.asynccontextmanager
async def two_workers(b: Bench, redis_server: RedisServer) -> AsyncIterator[None]:
    async with (
        worker_process(b, redis_server.url, **QUICK),
        worker_process(b, redis_server.url, **QUICK),
    ):
        yield


async def all_settled(b: Bench, count: int) -> None:
    async def done() -> bool:
        return sum(total.count for total in (await b.summary()).values()) == count

    await eventually(done, what=f"{count} payments settled")


async def scripts_called(redis: ArqRedis) -> int:
    """How many scripts this Redis has run since its statistics were reset."""
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def workers_have_looked(redis: ArqRedis, *, workers: int = 2) -> None:
    """Wait until each worker has claimed at least once more."""
    before = await scripts_called(redis)

    async def looked() -> bool:
        return await scripts_called(redis) >= before + 2 * workers

    await eventually(looked, what="the workers look for payments")


async def take(b: Bench) -> Batch:
    return await Claims(
        b.redis, lease_ms=b.settings.lease_ms, deadline_ms=10**9, max_delay_ms=300
    ).take(10)


# An override.


async def test_running_workers_send_new_tries_where_the_operator_says(
    b: Bench, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    async with two_workers(b, redis_server):
        await b.accept()
        await all_settled(b, 1)
        assert (await payswitch("select", "fallback")).code == 0
        for _ in range(20):
            await b.accept()
        await all_settled(b, 21)
        assert (await payswitch("select", "auto")).code == 0
        for _ in range(10):
            await b.accept()
        await all_settled(b, 31)
    assert await b.summary() == {
        "default": Total(11, 11 * 1990),
        "fallback": Total(20, 20 * 1990),
    }


async def test_an_override_ends_by_itself(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    assert (await payswitch("select", "fallback", "--for", "1s")).code == 0

    async def is_over() -> bool:
        return not await redis.exists(keys.OVERRIDE)

    await eventually(is_over, what="the override ends")
    async with two_workers(b, redis_server):
        await b.accept()
        await all_settled(b, 1)
    assert (await b.summary())["default"].count == 1


async def test_an_override_moves_no_payment_with_an_open_try(
    b: Bench, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.open_tries(payment) == ["open"]
    assert (await payswitch("select", "fallback")).code == 0
    async with two_workers(b, redis_server):
        await all_settled(b, 1)
    assert (await b.summary())["default"].count == 1
    assert b.fallback.posts == []


async def test_while_the_chosen_one_fails_payments_wait_and_it_is_probed(
    b: Bench, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    assert (await payswitch("select", "default")).code == 0
    b.default.script = [Reply(500)] * 12
    async with two_workers(b, redis_server):
        for _ in range(5):
            await b.accept()
        await all_settled(b, 5)
    assert b.default.script == []
    assert b.fallback.posts == []
    assert (await b.summary())["default"].count == 5


async def test_an_override_reaches_the_dispatcher_with_the_claim(b: Bench) -> None:
    await Controls(b.redis).select("fallback", life_ms=60_000, signature=ANA)
    batch = await take(b)
    assert parse_standing(batch.selection, PROCESSORS) == Selection(
        "fallback", True, "chosen by ana", overridden=True
    )


async def test_a_spoilt_override_is_ignored(b: Bench, redis: ArqRedis) -> None:
    await redis.hset(keys.OVERRIDE, "processor", "fallback")  # type: ignore[misc]
    assert not parse_standing((await take(b)).selection, PROCESSORS).overridden
    assert await Controls(redis).override(PROCESSORS) is None
    await redis.set(keys.OVERRIDE, "{")
    assert not parse_standing((await take(b)).selection, PROCESSORS).overridden
    assert await Controls(redis).override(PROCESSORS) is None
    assert await Controls(redis).select_automatically(ANA)


# A pause.


async def test_while_paused_payments_are_accepted_and_nothing_is_claimed(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    async with two_workers(b, redis_server):
        await b.accept()
        await all_settled(b, 1)
        assert (await payswitch("pause")).code == 0
        for _ in range(30):
            await b.accept()
        await workers_have_looked(redis)
        assert len(b.default.posts) + len(b.fallback.posts) == 1
        assert (await payswitch("resume")).code == 0
        await all_settled(b, 31)
    assert len(b.default.books) + len(b.fallback.books) == 31


async def test_a_pause_ends_by_itself(
    b: Bench, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    assert (await payswitch("pause", "--for", "2s")).code == 0
    await b.accept()
    async with two_workers(b, redis_server):
        await all_settled(b, 1)


async def test_what_is_in_flight_is_finished_and_what_comes_back_waits(b: Bench) -> None:
    paid, retried = await b.accept(), await b.accept()
    claims = {claim.correlation_id: claim for claim in await b.claim()}
    await Controls(b.redis).pause(life_ms=None, signature=ANA)
    await b.dispatcher.dispatch(claims[paid])
    b.default.script = [Reply(429)]
    await b.dispatcher.dispatch(claims[retried])
    assert (await b.record(paid)).state == "settled"
    assert (await b.record(retried)).state == "queued"
    await b.redis.zadd("arq:queue", {retried: 0}, xx=True)
    assert await b.claim() == []
    await Controls(b.redis).resume(ANA)
    assert [claim.correlation_id for claim in await b.claim()] == [retried]


async def test_no_worker_is_woken_while_paused_and_one_at_once_after(b: Bench) -> None:
    controls = Controls(b.redis)
    await controls.pause(life_ms=None, signature=ANA)
    for _ in range(3):
        await b.accept()
    batch = await take(b)
    assert (batch.taken, batch.next_due_ms) == ([], None)
    assert await b.redis.llen(WAKE) == 0  # type: ignore[misc]
    assert await controls.resume(ANA)
    assert await b.redis.llen(WAKE) == 1  # type: ignore[misc]
    assert len(await b.claim(limit=2)) == 2
    assert await b.redis.llen(WAKE) == 1  # type: ignore[misc]  # for who takes the third


async def test_a_worker_sleeps_until_the_pause_ends(b: Bench) -> None:
    await Controls(b.redis).pause(life_ms=60_000, signature=ANA)
    await b.accept()
    next_due_ms = (await take(b)).next_due_ms
    assert next_due_ms is not None
    assert 30_000 < next_due_ms <= 60_001


async def test_a_pause_outlives_redis_and_workers(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=10)
    async with bench(redis, replace(FAST, lease_ms=15_000)) as b:
        await Controls(redis).pause(life_ms=None, signature=ANA)
        async with worker_process(b, own_redis.url):
            await b.accept()
        own_redis.kill()
        own_redis.start()
        async with worker_process(b, own_redis.url):
            await workers_have_looked(redis, workers=1)
            assert b.default.posts == []
            await Controls(redis).resume(ANA)
            await all_settled(b, 1)
    await redis.aclose(close_connection_pool=True)


async def test_pausing_and_choosing_under_load_loses_nothing(
    b: Bench, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    b.default.script = [Reply(500), Reply(429), Reply(hang_up=True)] * 5
    accepted: list[str] = []
    is_over = asyncio.Event()

    async def load() -> None:
        while not is_over.is_set():
            accepted.append(await b.accept())

    async with two_workers(b, redis_server), worker_process(b, redis_server.url, **QUICK) as third:
        task = asyncio.create_task(load())
        for command in (
            ("pause",),
            ("resume",),
            ("select", "fallback"),
            ("pause", "--for", "1s"),
            ("select", "auto"),
            ("pause",),
        ):
            assert (await payswitch(*command)).code == 0
        third.kill()
        assert (await payswitch("resume")).code == 0
        is_over.set()
        await task
        await all_settled(b, len(accepted))
    assert {**b.default.books, **b.fallback.books}.keys() == set(accepted)
    assert len(b.default.books) + len(b.fallback.books) == len(accepted) > 20


# Both.


async def test_orders_survive_a_purge(b: Bench) -> None:
    controls = Controls(b.redis)
    await controls.pause(life_ms=None, signature=ANA)
    await controls.select("fallback", life_ms=60_000, signature=ANA)
    await b.purge()
    assert await controls.paused() is not None
    assert await controls.override(PROCESSORS) is not None


async def test_orders_are_taken_when_redis_has_no_memory_left(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await redis.set("filler", "x" * 100_000)
    await redis.config_set("maxmemory", 1)
    try:
        for command in (("select", "fallback"), ("pause",), ("resume",), ("select", "auto")):
            ended = await payswitch(*command)
            assert (ended.code, ended.err) == (0, ""), command
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_pause_that_somebody_wrote_by_hand_counts_and_ends(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    await redis.hset(keys.PAUSED, "x", "y")  # type: ignore[misc]
    await b.accept()
    assert await b.claim() == []
    assert (await payswitch("resume")).code == 0
    assert len(await b.claim()) == 1

"""The health check and its worker on a real Redis, with processors that answer over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from arq.connections import ArqRedis
from arq.cron import cron
from arq.typing import WorkerCoroutine
from arq.worker import JobExecutionFailed

from payswitch.dispatch.arq_worker import ResilientWorker
from payswitch.processors.processor import make_processors
from payswitch.selection.health_check import HealthCheck, Times, make_health_check
from payswitch.store import keys
from payswitch.store.client import connect
from tests.integration.harness import Bench, bench
from tests.support import RedisServer, Reply, eventually
from workers.health import WorkerSettings

SLOW_THROTTLE = Times(throttle_ms=60_000, lock_ms=20_000, limit_ms=1000)
NO_THROTTLE = Times(throttle_ms=501, lock_ms=500, limit_ms=300)


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


def checker(b: Bench, times: Times = SLOW_THROTTLE) -> HealthCheck:
    processors = list(make_processors(b.settings, b.transport).values())
    return make_health_check(b.settings, b.redis, processors, times)


def healthy(ms: int) -> Reply:
    return Reply(200, b'{"failing":false,"minResponseTime":%d}' % ms)


FAILING = Reply(200, b'{"failing":true,"minResponseTime":0}')


async def cached(redis: ArqRedis) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(await redis.get(keys.SELECTION) or b"null")
    return document


async def test_the_choice_is_cached_for_ten_seconds(b: Bench, redis: ArqRedis) -> None:
    await checker(b).check()
    selection = await cached(redis)
    assert (selection["processor"], selection["healthy"]) == ("default", True)
    assert 5000 < await redis.pttl(keys.SELECTION) <= 10_000


@pytest.mark.parametrize(
    "answer",
    [
        Reply(429, headers=(("retry-after", "5"),)),
        Reply(500),
        Reply(200, b"<html>"),
        Reply(200, b"[]"),
        Reply(200, b'{"failing":"no","minResponseTime":0}'),
        Reply(200, b'{"failing":false,"minResponseTime":"0"}'),
        Reply(200, b'{"failing":false,"minResponseTime":-1}'),
        Reply(200, b'{"failing":false}'),
        Reply(hang_up=True),
        Reply(silent=True),
    ],
)
async def test_what_is_no_report_counts_as_unknown(
    b: Bench, redis: ArqRedis, answer: Reply
) -> None:
    b.default.health = answer
    await checker(b).check()
    selection = await cached(redis)
    assert (selection["processor"], selection["healthy"]) == ("fallback", True)
    assert selection["reason"] == "default unknown"


async def test_nothing_healthy_is_marked(b: Bench, redis: ArqRedis) -> None:
    b.default.health = b.fallback.health = FAILING
    await checker(b).check()
    selection = await cached(redis)
    assert (selection["processor"], selection["healthy"]) == ("default", False)


async def test_the_processors_are_asked_at_the_same_time(b: Bench) -> None:
    b.default.health = b.fallback.health = Reply(silent=True)
    check = asyncio.create_task(checker(b).check())
    async with asyncio.timeout(30):
        while not (b.default.health_calls and b.fallback.health_calls):
            await asyncio.sleep(0)
    assert not check.done()
    await check


async def test_however_often_and_wherever_triggered_one_attempt_gets_through(b: Bench) -> None:
    checkers = [checker(b) for _ in range(5)]
    await asyncio.gather(*(each.check() for each in checkers * 10))
    assert await checker(b).check() is None
    assert (len(b.default.health_calls), len(b.fallback.health_calls)) == (1, 1)


async def test_while_another_node_holds_the_lock_nothing_is_asked(
    b: Bench, redis: ArqRedis
) -> None:
    await redis.set(keys.HEALTH_LOCK, "another")
    assert await checker(b).check() is None
    assert not b.default.health_calls
    assert await redis.get(keys.HEALTH_LOCK) == b"another"


async def test_a_node_that_lost_its_lock_neither_selects_nor_releases(
    b: Bench, redis: ArqRedis
) -> None:
    b.default.health = Reply(silent=True)
    check = asyncio.create_task(checker(b).check())
    async with asyncio.timeout(30):
        while not b.default.health_calls:
            await asyncio.sleep(0)
    await redis.set(keys.HEALTH_LOCK, "the next node")
    assert await check is None
    assert await redis.get(keys.SELECTION) is None
    assert await redis.get(keys.HEALTH_LOCK) == b"the next node"


async def test_the_lock_is_released_and_the_throttle_stays(b: Bench, redis: ArqRedis) -> None:
    await checker(b).check()
    assert not await redis.exists(keys.HEALTH_LOCK)
    assert await redis.exists(keys.HEALTH_THROTTLE)


@contextlib.asynccontextmanager
async def running_health_worker(b: Bench, url: str) -> AsyncIterator[ResilientWorker]:
    async def check_health(ctx: dict[Any, Any]) -> None:
        await checker(b, NO_THROTTLE).check()

    async with running_cron(url, check_health) as worker:
        yield worker


@contextlib.asynccontextmanager
async def running_cron(
    url: str, function: WorkerCoroutine, *, timeout: float | None = None
) -> AsyncIterator[ResilientWorker]:
    """A worker with this cron function, due every second."""
    worker = ResilientWorker(
        currency_code="BRL",
        cron_jobs=[
            cron(
                function,
                name="check_health",
                second=set(range(60)),
                microsecond=0,
                run_at_startup=True,
                unique=False,
                timeout=timeout,
                keep_result=0,
            )
        ],
        queue_name="arq:queue:health",
        redis_pool=connect(url, limit_s=5),
        handle_signals=False,
        keep_result=0,
        poll_delay=0.02,
        job_serializer=orjson.dumps,
        job_deserializer=orjson.loads,
    )
    task = asyncio.create_task(worker.async_run())
    try:
        yield worker
    finally:
        worker.handle_sig(signal.SIGUSR1)
        await asyncio.gather(task, return_exceptions=True)
        await worker.close()


async def selected(redis: ArqRedis, b: Bench, processor: str) -> None:
    async def is_selected() -> bool:
        raw = await redis.get(keys.SELECTION)
        return raw is not None and orjson.loads(raw)["processor"] == processor

    await eventually(is_selected, what=f"{processor} is selected")


async def test_the_worker_follows_the_processors_health(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    async with bench(redis) as b, running_health_worker(b, redis_server.url):
        await selected(redis, b, "default")
        b.default.health = FAILING
        await selected(redis, b, "fallback")
        b.default.health = healthy(0)
        await selected(redis, b, "default")


def test_a_job_that_expired_can_be_reported() -> None:
    """As arq does when its key is gone, after a step of Redis' clock for example."""
    assert b"job expired" in WorkerSettings.job_serializer({"r": JobExecutionFailed("job expired")})


async def test_the_worker_goes_on_after_redis_was_restarted(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=5)
    async with bench(redis) as b, running_health_worker(b, own_redis.url):
        await selected(redis, b, "default")
        own_redis.kill()
        own_redis.start()
        await redis.connection_pool.disconnect()
        b.default.health = FAILING
        await selected(redis, b, "fallback")
    await redis.aclose(close_connection_pool=True)


@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(hours=1)])
async def test_the_cron_goes_on_when_the_clock_is_set(
    redis: ArqRedis, redis_server: RedisServer, step: timedelta
) -> None:
    async with (
        bench(redis) as b,
        running_health_worker(b, redis_server.url) as worker,
    ):
        await selected(redis, b, "default")
        for job in worker.cron_jobs:
            # As after a step of the clock: the next run lies an hour away from now.
            job.next_run = datetime.now(worker.timezone) - step
        already = len(b.default.health_calls)

        async def goes_on() -> bool:
            # One check may have been on its way already.
            return len(b.default.health_calls) > already + 2

        await eventually(goes_on, what="more checks")


async def test_checking_leaves_no_keys_behind(redis: ArqRedis, redis_server: RedisServer) -> None:
    async with bench(redis) as b, running_health_worker(b, redis_server.url):

        async def asked_twice() -> bool:
            return len(b.default.health_calls) >= 2

        await eventually(asked_twice, what="two checks")
    assert not [key async for key in redis.scan_iter("arq:in-progress:*")]
    assert not [key async for key in redis.scan_iter("arq:result:*")]


# A full Redis takes no job, so the cron function runs without the queue.


@pytest.fixture
async def full(redis: ArqRedis) -> AsyncIterator[ArqRedis]:
    """A Redis that has no memory left."""
    await redis.config_set("maxmemory", 1)
    yield redis
    await redis.config_set("maxmemory", 0)


async def test_the_worker_follows_the_processors_health_while_redis_is_full(
    full: ArqRedis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(full) as b, running_health_worker(b, redis_server.url):
        await selected(full, b, "default")
        b.default.health = FAILING
        await selected(full, b, "fallback")
        assert await full.exists("arq:queue:health:health-check")
        await full.config_set("maxmemory", 0)
        b.default.health = healthy(0)
        await selected(full, b, "default")
    assert caplog.text.count("redis is full") == 1


async def has_grown(calls: Sequence[object], by: int) -> None:
    """Wait for so many more calls."""
    enough = len(calls) + by

    async def grown() -> bool:
        return len(calls) >= enough

    await eventually(grown, what=f"{by} more calls")


async def test_while_redis_is_full_each_due_time_calls_once(
    full: ArqRedis, redis_server: RedisServer
) -> None:
    next_runs: list[datetime] = []

    async def note(ctx: dict[Any, Any]) -> None:
        [job] = worker.cron_jobs
        assert job.next_run is not None
        next_runs.append(job.next_run)

    async with running_cron(redis_server.url, note) as worker:
        await has_grown(next_runs, 4)
    steps = {later - earlier for earlier, later in itertools.pairwise(next_runs)}
    assert steps == {timedelta(seconds=1)}


@pytest.mark.parametrize("failure", ["an exception", "a time-out"])
async def test_while_redis_is_full_a_failed_run_stops_nothing(
    full: ArqRedis, redis_server: RedisServer, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[None] = []

    async def fail(ctx: dict[Any, Any]) -> None:
        calls.append(None)
        if failure == "an exception":
            raise RuntimeError("a bug")
        await asyncio.Event().wait()

    async with running_cron(redis_server.url, fail, timeout=0.05):
        await has_grown(calls, 3)
    assert "cron job check_health failed" in caplog.text


async def test_while_redis_is_full_a_run_that_goes_on_is_not_begun_again(
    full: ArqRedis, redis_server: RedisServer
) -> None:
    calls: list[None] = []

    async def go_on(ctx: dict[Any, Any]) -> None:
        calls.append(None)
        await asyncio.Event().wait()

    async with running_cron(redis_server.url, go_on, timeout=60) as worker:
        await has_grown(calls, 1)
        [job] = worker.cron_jobs
        assert job.next_run is not None
        later = job.next_run + timedelta(seconds=2)

        async def were_due() -> bool:
            return job.next_run is not None and job.next_run >= later

        await eventually(were_due, what="two more runs were due")
        assert len(calls) == 1


@pytest.mark.long
async def test_two_health_workers_ask_each_processor_at_most_once_in_5_s(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    """As users start them, for a minute."""
    async with bench(redis) as b:
        environment = {
            **os.environ,
            "REDIS_URL": redis_server.url,
            "PAYMENT_PROCESSOR_URL_DEFAULT": b.default.url,
            "PAYMENT_PROCESSOR_URL_FALLBACK": b.fallback.url,
        }
        command = (sys.executable, "-m", "payswitch", "health")
        workers = [
            await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(2)
        ]
        await asyncio.sleep(60)  # the span that is looked at
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(worker.wait(), 30) == 0
        for processor in (b.default, b.fallback):
            calls = processor.health_calls
            assert 8 <= len(calls) <= 12
            assert min(later - call for call, later in itertools.pairwise(calls)) > 4.9

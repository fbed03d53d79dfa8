"""The payments worker as a whole, in this process and as a process of its own, on a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from arq.connections import ArqRedis
from arq.worker import Retry, func
from redis.exceptions import ConnectionError as RedisConnectionError

from payswitch.dispatch.assembly import make_dispatcher
from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.dispatch.payment_worker import PaymentWorker, claim_interval
from payswitch.money import Total
from payswitch.payments.accepting import JOB_FUNCTION
from payswitch.payments.claims import Batch, Claims
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.client import connect
from tests.integration.harness import FAST, PATIENT, Bench, bench, worker_process
from tests.support import LOST_REPLY, NEVER, PROCESSORS, RedisServer, Reply, eventually


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis, replace(FAST, sweep_ms=100), replace(PATIENT, probe_ms=50)) as made:
        yield made


@contextlib.asynccontextmanager
async def running_worker(
    b: Bench, url: str, *, job: Any = None, **options: Any
) -> AsyncIterator[PaymentWorker]:
    """A worker in this process while the context is open."""
    settings: Settings = b.settings

    async def pay(ctx: dict[Any, Any], correlation_id: str) -> None:
        dispatcher: Dispatcher = ctx["dispatcher"]
        await dispatcher.dispatch(ctx["claim"], probe=ctx["probe"])

    async def startup(ctx: dict[Any, Any]) -> None:
        ctx["dispatcher"] = make_dispatcher(settings, ctx["redis"], b.transport, limits=b.limits)

    worker = PaymentWorker(
        functions=[func(job or pay, name=JOB_FUNCTION)],
        redis_pool=connect(url, limit_s=5),
        on_startup=startup,
        handle_signals=False,
        currency_code=settings.currency_code,
        poll_delay=0,
        max_jobs=settings.worker_slots,
        job_deserializer=orjson.loads,
        health_check_interval=1,
        processors=PROCESSORS,
        claim_pause_ms=settings.claim_pause_ms,
        lease_ms=settings.lease_ms,
        deadline_ms=settings.payment_deadline_ms,
        max_delay_ms=settings.processor_max_delay_ms,
        probe_limit_ms=5000,
        sweep_ms=settings.sweep_ms,
        **options,
    )
    task = asyncio.create_task(worker.async_run())
    try:
        yield worker
    finally:
        worker.handle_sig(signal.SIGUSR1)
        await asyncio.gather(task, return_exceptions=True)
        await worker.close()


async def all_settled(b: Bench, count: int) -> None:
    async def done() -> bool:
        return sum(total.count for total in (await b.summary()).values()) == count

    await eventually(done, what=f"{count} payments settled")


async def test_it_pays_what_is_accepted_before_and_after_it_started(
    b: Bench, redis_server: RedisServer
) -> None:
    await b.accept()
    async with running_worker(b, redis_server.url):
        await all_settled(b, 1)
        for _ in range(20):
            await b.accept()
        await all_settled(b, 21)
    assert len(b.default.posts) == 21


async def test_claims_that_overlap_take_no_more_than_the_processor_may_have(
    b: Bench, redis_server: RedisServer
) -> None:
    """The second claim leaves before the first one's payments are begun."""
    b.settings = replace(
        b.settings, processor_slots=50, lease_ms=60_000, processor_max_delay_ms=30_000
    )
    b.default.script = [NEVER] * 200
    payments = [await b.accept() for _ in range(120)]

    async def slots_are_full() -> bool:
        return len(b.default.posts) >= 50

    async with running_worker(b, redis_server.url):
        await eventually(slots_are_full, what="50 calls are under way")
        assert await b.redis.zcard("payments:in-flight") == 50
        assert len(b.default.posts) == 50
        assert [event for each in payments for event in (await b.record(each)).history] == []


async def test_only_after_a_claim_that_leaves_some_the_next_one_counts_on_a_crowd(
    b: Bench, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[tuple[bool, bool]] = []
    take = Claims.take

    async def noted(self: Claims, limit: int, *, crowded: bool = False, **options: Any) -> Batch:
        batch = await take(self, limit, crowded=crowded, **options)
        leaves_some = len(batch.taken) == limit or (batch.taken and batch.next_due_ms == 0)
        claims.append((crowded, bool(leaves_some)))
        return batch

    monkeypatch.setattr(Claims, "take", noted)
    for _ in range(200):
        await b.accept()
    async with running_worker(b, redis_server.url):
        await all_settled(b, 200)
    crowded, leaves_some = zip(*claims, strict=True)
    assert leaves_some[0]
    assert crowded == (False, *leaves_some[:-1])


async def test_a_claim_that_fails_while_the_worker_stops_is_no_error_in_the_log(
    b: Bench, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with running_worker(b, redis_server.url) as worker:
        began, fails = asyncio.Event(), asyncio.Event()

        async def take(*args: Any, **options: Any) -> Batch:
            began.set()
            await fails.wait()
            raise RedisConnectionError("another node serves this partition")

        monkeypatch.setattr(worker.claims, "take", take)
        await b.accept()
        await began.wait()
        closing = asyncio.create_task(worker.close())
        await asyncio.sleep(0)
        fails.set()
        await closing
        gc.collect()
    assert reported == []


async def test_a_worker_folds_the_old_part_of_the_ledger(
    b: Bench, redis_server: RedisServer
) -> None:
    claim = await b.claim_when_due(await b.accept())
    await b.redis.hset(f"payment:{claim.correlation_id}", "processor", "default")  # type: ignore[misc]
    await b.ledger.settle(claim, "default", 1_767_225_600_123)

    async def folded() -> bool:
        return not await b.redis.exists("ledger:default:0:1:17672256001")

    async with running_worker(b, redis_server.url):
        await eventually(folded, what="its milliseconds are folded")
    assert (await b.summary())["default"] == Total(1, 1990)


async def test_a_worker_of_another_currency_takes_nothing(
    b: Bench, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await b.redis.set("payments:currency", "BRL")
    await b.accept()
    b.settings = replace(b.settings, currency_code="JPY")

    async def refuses() -> bool:
        return "it holds payments in BRL, and PAYSWITCH_CURRENCY is JPY" in caplog.text

    async with running_worker(b, redis_server.url):
        await eventually(refuses, what="the log names both currencies")
        assert await b.redis.zcard("payments:in-flight") == 0
        await b.redis.delete("payments:currency")  # as a purge does
        await all_settled(b, 1)


async def test_two_workers_share_the_queue_and_pay_each_once(
    b: Bench, redis_server: RedisServer
) -> None:
    async with running_worker(b, redis_server.url), running_worker(b, redis_server.url):
        for _ in range(100):
            await b.accept()
        await all_settled(b, 100)
    assert len(b.default.posts) == len(b.default.books) == 100


async def test_a_payment_that_is_due_later_is_paid_when_it_is_due(
    b: Bench, redis_server: RedisServer
) -> None:
    b.default.script = [Reply(429), Reply(500), LOST_REPLY]
    async with running_worker(b, redis_server.url):
        await b.accept()
        await all_settled(b, 1)
    assert len(b.default.books) == 1


async def test_who_has_taken_a_few_lets_others_arrive_first(
    b: Bench, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[float, float, float | None]] = []
    take = Claims.take
    now = asyncio.get_running_loop().time

    async def noted(claims: Claims, limit: int, **options: Any) -> Batch:
        began = now()
        batch = await take(claims, limit, **options)
        few_s = None
        if 0 < len(batch.taken) < limit:
            waited_ms = max(each.claim.claimed_at - each.score for each in batch.taken)
            few_s = claim_interval(b.settings.claim_pause_ms, waited_ms) / 1000
        calls.append((began, now(), few_s))
        return batch

    monkeypatch.setattr(Claims, "take", noted)
    async with running_worker(b, redis_server.url):
        for _ in range(60):
            await b.accept()
        await all_settled(b, 60)
    pauses = [
        (begins - ended, few_s)
        for (_, ended, few_s), (begins, *_) in pairwise(calls)
        if few_s is not None
    ]
    assert pauses
    assert min(pause_s - few_s for pause_s, few_s in pauses) >= -0.001


@pytest.mark.parametrize(
    ("failure", "error"), [(RuntimeError("a bug"), "an internal error"), (Retry(defer=60), None)]
)
async def test_an_exception_of_the_job_function_loses_no_payment(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, failure: Exception, error: str | None
) -> None:
    async def fails(ctx: dict[Any, Any], correlation_id: str) -> None:
        raise failure

    payment = await b.accept()
    async with running_worker(b, redis_server.url, job=fails):

        async def given_back() -> bool:
            # In this order, as it is queued before it is claimed as well.
            was_claimed = await redis.exists(f"arq:retry:{payment}") == 1
            return was_claimed and (await b.record(payment)).state == "queued"

        await eventually(given_back, what="the payment is given back")
    assert (await b.record(payment)).why == error
    async with running_worker(b, redis_server.url):
        await redis.zadd("arq:queue", {payment: 0}, xx=True)
        await redis.lpush("payments:wake", "1")  # type: ignore[misc]
        await all_settled(b, 1)


async def test_a_job_of_an_unknown_function_is_left_for_others(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    payment = await b.accept()
    job = orjson.loads(await redis.get(f"arq:job:{payment}") or b"")
    await redis.set(f"arq:job:{payment}", orjson.dumps(job | {"f": "pay_in_version_2"}))
    async with running_worker(b, redis_server.url) as worker:

        async def put_aside() -> bool:
            return worker.jobs_retried == 1 and (await b.record(payment)).state == "queued"

        await eventually(put_aside, what="the job is put aside")
    assert await redis.exists(f"arq:job:{payment}")
    assert not b.default.posts


@pytest.mark.parametrize(
    "spoilt",
    [{"et": 10**18}, {"et": -(10**15)}, {"et": "now"}, {"a": 7}, {"k": []}, {"f": None}],
    ids=orjson.dumps,
)
async def test_unreadable_job_bytes_do_not_stop_a_payment(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, spoilt: dict[str, Any]
) -> None:
    payment = await b.accept()
    job = orjson.loads(await redis.get(f"arq:job:{payment}") or b"")
    await redis.set(f"arq:job:{payment}", orjson.dumps(job | spoilt))
    async with running_worker(b, redis_server.url):
        await all_settled(b, 1)
    assert await b.field(payment, "tries") == "1"


async def test_a_time_that_can_not_be_written_does_not_stop_a_payment_without_a_job(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    payment = await b.accept()
    await redis.delete(f"arq:job:{payment}")
    await redis.hset(f"payment:{payment}", "accepted_at", str(10**15))  # type: ignore[misc]
    async with running_worker(b, redis_server.url):
        await all_settled(b, 1)


async def test_job_bytes_that_are_no_json_do_not_stop_a_payment(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    payment = await b.accept()
    await redis.set(f"arq:job:{payment}", b"\x00nonsense")
    async with running_worker(b, redis_server.url):
        await all_settled(b, 1)


async def test_stopping_gives_back_at_once_what_is_still_unanswered(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    b.default.script = [NEVER]
    payment = await b.accept()
    async with running_worker(b, redis_server.url):

        async def sent() -> bool:
            return len(b.default.posts) == 1

        await eventually(sent, what="the payment is sent")
    record = await b.record(payment)
    assert record.state == "queued"
    assert await b.open_tries(payment) == ["open"]
    assert await redis.zcard("payments:in-flight") == 0
    assert (await b.claim())[0].correlation_id == payment


async def test_it_goes_on_when_redis_was_killed_and_restarted(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=5)
    async with bench(redis, FAST) as b, running_worker(b, own_redis.url):
        await b.accept()
        await all_settled(b, 1)
        own_redis.kill()
        own_redis.start()
        await redis.connection_pool.disconnect()
        await b.accept()
        await all_settled(b, 2)
    await redis.aclose(close_connection_pool=True)


async def test_it_stops_while_redis_is_frozen(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=5)
    async with bench(redis, FAST) as b:
        b.default.script = [NEVER] * 20
        async with running_worker(b, own_redis.url):
            for _ in range(20):
                await b.accept()

            async def sent() -> bool:
                return len(b.default.posts) == 20

            await eventually(sent, what="the payments are sent")
            own_redis.signal(signal.SIGSTOP)
        own_redis.signal(signal.SIGCONT)
        await all_settled_by(b, own_redis, 20)
    await redis.aclose(close_connection_pool=True)


async def all_settled_by(b: Bench, server: RedisServer, count: int) -> None:
    """Another worker takes over and settles."""
    async with running_worker(b, server.url):
        await all_settled(b, count)


async def test_it_starts_while_redis_is_away_and_waits_for_it(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=5)
    own_redis.kill()
    async with bench(redis, FAST) as b, running_worker(b, own_redis.url):
        own_redis.start()
        await b.accept()
        await all_settled(b, 1)
    await redis.aclose(close_connection_pool=True)


async def test_the_hooks_and_ctx_are_those_of_arqs_documentation(
    b: Bench, redis_server: RedisServer
) -> None:
    seen: list[tuple[str, str, int]] = []

    async def note(ctx: dict[Any, Any]) -> None:
        seen.append((ctx["job_id"], type(ctx["enqueue_time"]).__name__, ctx["job_try"]))

    payment = await b.accept()
    hooks = {"on_job_start": note, "on_job_end": note, "after_job_end": note}
    async with running_worker(b, redis_server.url, **hooks):

        async def all_called() -> bool:
            return len(seen) == 3

        await eventually(all_called, what="three hooks were called")
    assert seen == [(payment, "datetime", 1)] * 3


async def test_closing_leaves_the_health_key_to_the_other_workers(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    async def alive() -> bool:
        return bool(await redis.exists("arq:queue:health-check"))

    async with running_worker(b, redis_server.url):
        await eventually(alive, what="the health key is written")
    assert await alive()


async def test_where_nothing_is_healthy_one_probe_at_a_time_goes_out(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    await redis.set(
        keys.SELECTION, orjson.dumps({"processor": "default", "healthy": False, "reason": ""})
    )
    b.default.script = [NEVER]
    b.fallback.script = [NEVER]
    for _ in range(20):
        await b.accept()
    async with running_worker(b, redis_server.url), running_worker(b, redis_server.url):

        async def probing() -> bool:
            return len(b.default.posts) + len(b.fallback.posts) > 0

        await eventually(probing, what="a probe goes out")
        assert len(b.default.posts) + len(b.fallback.posts) == 1
        await all_settled(b, 20)


async def test_a_stale_choice_of_a_dead_processor_is_overridden_by_the_breaker(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    limits = replace(PATIENT, failures=3, probe_ms=60_000)
    async with bench(redis, limits=limits) as b:
        b.default.script = [Reply(500)] * 1000
        await redis.set(
            keys.SELECTION, orjson.dumps({"processor": "default", "healthy": True, "reason": ""})
        )
        async with running_worker(b, redis_server.url):
            for _ in range(30):
                await b.accept()
            await all_settled(b, 30)
    assert (await b.summary())["fallback"] == Total(30, 30 * 1990)


FOR_AN_HOUR = (("retry-after", "3600"),)


@pytest.mark.parametrize("headers", [(), FOR_AN_HOUR], ids=["429", "429 with Retry-After"])
async def test_payments_behind_a_processor_that_limits_all_are_paid_by_the_other_one(
    redis: ArqRedis, redis_server: RedisServer, headers: tuple[tuple[str, str], ...]
) -> None:
    settings = replace(FAST, retry_cap_ms=3_600_000)
    limits = replace(PATIENT, failures=5, probe_ms=60_000)
    async with bench(redis, settings, limits) as b:
        b.default.script = [Reply(429, headers=headers)] * 1000
        payments = {await b.accept() for _ in range(100)}
        async with running_worker(b, redis_server.url):
            await all_settled(b, 100)
        assert (await b.summary())["fallback"] == Total(100, 100 * 1990)
        assert {post["correlationId"] for post in b.fallback.posts} == payments
        assert len(b.fallback.posts) == 100


async def test_while_a_processor_can_not_even_tell_only_what_it_was_sent_waits(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    settings = replace(FAST, processor_slots=1)
    limits = replace(PATIENT, probe_ms=60_000)
    async with bench(redis, settings, limits) as b:
        b.default.script = [Reply(429, headers=FOR_AN_HOUR)] * 1000
        b.default.finds = [Reply(429)] * 10**6
        for _ in range(100):
            await b.accept()
        async with running_worker(b, redis_server.url):

            async def others_are_paid() -> bool:
                return (await b.summary())["fallback"].count == 99

            await eventually(others_are_paid, what="the others are paid")
            assert len(b.default.posts) == 1
            b.default.finds.clear()
            await all_settled(b, 100)
        assert (await b.summary())["fallback"] == Total(100, 100 * 1990)


async def none_is_open(b: Bench) -> None:
    async def done() -> bool:
        return not await b.redis.exists("payments:open")

    await eventually(done, what="every payment is settled or dead")


async def test_a_processor_that_refuses_everything_makes_a_handful_of_dead_letters(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    limits = replace(PATIENT, refusals=5, probe_ms=60_000)
    async with bench(redis, limits=limits) as b:
        b.default.script = [Reply(400)] * 1000
        for _ in range(100):
            await b.accept()
        async with running_worker(b, redis_server.url):
            await none_is_open(b)
        dead = await redis.zcard("payments:dead")
        assert dead <= 4
        assert (await b.summary())["fallback"].count == 100 - dead


async def test_where_both_refuse_everything_payments_are_held_until_one_pays_again(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    limits = replace(PATIENT, refusals=5, probe_ms=50)
    async with bench(redis, limits=limits) as b:
        b.default.script, b.fallback.script = [Reply(422)] * 10**6, [Reply(422)] * 10**6
        for _ in range(50):
            await b.accept()

        async def were_probed() -> bool:
            return min(len(b.default.posts), len(b.fallback.posts)) > 20

        async with running_worker(b, redis_server.url):
            await eventually(were_probed, what="both are probed")
            b.fallback.script.clear()
            await none_is_open(b)
        dead = await redis.zcard("payments:dead")
        assert dead <= 8
        assert await b.summary() == {
            "default": Total(),
            "fallback": Total(50 - dead, (50 - dead) * 1990),
        }


async def test_payments_that_no_processor_takes_are_buried_and_hold_up_no_others(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    settings = replace(FAST, processor_slots=1)
    limits = replace(PATIENT, refusals=5, probe_ms=50)
    async with bench(redis, settings, limits) as b:
        bad = [await b.accept() for _ in range(10)]
        b.default.refuses = b.fallback.refuses = set(bad)
        async with running_worker(b, redis_server.url):

            async def is_held() -> bool:
                return min(len(b.default.posts), len(b.fallback.posts)) > 20

            await eventually(is_held, what="what is left of them is held")
            await b.accept()
            await all_settled(b, 1)
            await none_is_open(b)
        assert await redis.zcard("payments:dead") == 10


def command_environment(b: Bench, url: str) -> dict[str, str]:
    return {
        **os.environ,
        "REDIS_URL": url,
        "PAYMENT_PROCESSOR_URL_DEFAULT": b.default.url,
        "PAYMENT_PROCESSOR_URL_FALLBACK": b.fallback.url,
    }


async def run_command(b: Bench, url: str, *command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=command_environment(b, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def test_arqs_own_command_refuses_and_says_what_to_run(
    b: Bench, redis_server: RedisServer
) -> None:
    await b.accept()
    code, output = await run_command(
        b, redis_server.url, "-m", "arq", "workers.payments.WorkerSettings"
    )
    assert code != 0
    assert "payswitch worker" in output
    assert (await b.claim())[0].job_try == 1


async def test_arqs_check_tells_whether_a_worker_lives(b: Bench, redis_server: RedisServer) -> None:
    check = ("-m", "arq", "--check", "workers.payments.WorkerSettings")
    code, _ = await run_command(b, redis_server.url, *check)
    assert code == 1
    async with running_worker(b, redis_server.url):
        await eventually(
            lambda: _is_zero(run_command(b, redis_server.url, *check)), what="--check succeeds"
        )


async def _is_zero(run: Any) -> bool:
    code, _ = await run
    return bool(code == 0)


@pytest.mark.parametrize(("setting", "policy"), [("on", os.SCHED_IDLE), ("off", os.SCHED_OTHER)])
async def test_every_thread_of_a_worker_yields_the_cpu_if_set(
    b: Bench, redis_server: RedisServer, setting: str, policy: int
) -> None:
    await b.accept()
    async with worker_process(b, redis_server.url, PAYSWITCH_WORKERS_YIELD=setting) as process:
        await all_settled(b, 1)
        threads = [int(thread) for thread in os.listdir(f"/proc/{process.pid}/task")]
        assert {os.sched_getscheduler(thread) for thread in threads} == {policy}


async def test_sigterm_finishes_what_is_in_flight_and_exits_cleanly(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    b.default.script = [NEVER]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "from payswitch.cli.main import main; main()", "worker"),
        env=command_environment(b, redis_server.url) | {"PAYSWITCH_STOP_LIMIT_MS": "1000"},
    )
    payment = await b.accept()

    async def sent() -> bool:
        return len(b.default.posts) == 1

    await eventually(sent, what="the payment is sent")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert (await b.record(payment)).state == "queued"
    assert await redis.zcard("payments:in-flight") == 0

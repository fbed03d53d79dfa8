"""`python -m bench.queue`: the cost of a job in stock arq, SAQ, taskiq and here.

One worker process of each kind drains the same empty jobs from the same Redis. Our jobs need a
payment: the empty job is claimed by lease and settled into the ledger by the scripts of production,
without a call to a processor. `bench.idle` adds our worker's idle cost, its wake-up time, and the
cost of a claim before a long backlog.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import click
import redis
import saq
from arq.connections import RedisSettings, create_pool

from bench.common import ROUNDS, Measure, Result, Values, publish, take_turns
from bench.idle import ClaimCost, Wake, claim_costs, idle_percent, wake_latency
from bench.local import DURABLE, BenchError, read_answer, redis_cpu_s, running, running_redis
from bench.queue_workers import PROCESSOR, SLOTS, taskiq_broker
from payswitch.payments.accepting import job_bytes
from payswitch.store import keys, scripts

MEASURES = (
    Measure("jobs_per_s", "jobs/s", more_is_better=True),
    Measure("worker_us", "worker CPU (µs/job)", digits=1),
    Measure("redis_us", "Redis CPU (µs/job)", digits=1),
)
NOTES = (
    f"Redis: {DURABLE}; one worker process each; the queue is filled before the clock starts.",
    f"arq, SAQ, taskiq: defaults but for {SLOTS} slots, no poll pause and no log lines; arq-uvloop "
    "is arq on the loop that taskiq and payswitch use; taskiq with Redis streams, which lose no "
    "job with a worker.",
    "payswitch: claim by lease and settle into the ledger by the scripts of production, no call to "
    "a processor. payswitch-routed opens a try before, too, as every payment does.",
)
_AT_ONCE = 1000
_ENQUEUED_AT_ONCE = 100


def put_payments(client: redis.Redis, count: int, *, pinned: bool = False) -> None:
    """Accept this many payments by the script of production. `pinned` ones can be settled without
    an open try."""
    accept = client.register_script(scripts.source("accept"))
    for ids in _batches(count, _AT_ONCE):
        now = time.time_ns() // 1_000_000
        args: list[str | int | bytes] = [10**9]
        for each in ids:
            args += (each, 1990, now + 3_600_000, job_bytes(each, now), "")
        accept(keys=[keys.GENERATION], args=args)
        if pinned:
            with client.pipeline(transaction=False) as pipe:
                for each in ids:
                    pipe.hset(f"payment:{each}", "processor", PROCESSOR)
                pipe.execute()


def _batches(count: int, size: int) -> Iterator[list[str]]:
    for first in range(0, count, size):
        yield [str(uuid4()) for _ in range(min(size, count - first))]


async def _enqueue_all(enqueue: Callable[[], Awaitable[Any]], count: int) -> None:
    async def some(number: int) -> None:
        for _ in range(number):
            await enqueue()

    shares = [count // _ENQUEUED_AT_ONCE] * _ENQUEUED_AT_ONCE
    shares[0] += count % _ENQUEUED_AT_ONCE
    await asyncio.gather(*map(some, shares))


async def _put_arq(url: str, count: int) -> None:
    pool = await create_pool(RedisSettings.from_dsn(url))
    await _enqueue_all(lambda: pool.enqueue_job("empty"), count)
    await pool.aclose(close_connection_pool=True)


async def _put_saq(url: str, count: int) -> None:
    queue = saq.Queue.from_url(url)
    await _enqueue_all(lambda: queue.enqueue("empty"), count)
    await queue.disconnect()


async def _put_taskiq(url: str, count: int) -> None:
    broker, task = taskiq_broker(url)
    await broker.startup()
    await _enqueue_all(task.kiq, count)
    await broker.shutdown()


def drain(worker: str, url: str, client: redis.Redis, jobs: int) -> Values:
    """Fill the queue of one kind, let one worker process empty it, and return the figures."""
    client.flushall()
    match worker:
        case "payswitch" | "payswitch-routed":
            put_payments(client, jobs, pinned=worker == "payswitch")
        case "saq":
            asyncio.run(_put_saq(url, jobs))
        case "taskiq":
            asyncio.run(_put_taskiq(url, jobs))
        case _:
            asyncio.run(_put_arq(url, jobs))
    redis_before = redis_cpu_s(client)
    with running("-m", "bench.queue_workers", worker, url, str(jobs)) as process:
        took = read_answer(process)
    redis_used = redis_cpu_s(client) - redis_before
    if worker.startswith("payswitch"):
        _check_settled(client, jobs)
    return {
        "jobs_per_s": jobs / took["wall_s"],
        "worker_us": took["cpu_s"] / jobs * 1e6,
        "redis_us": redis_used / jobs * 1e6,
    }


def _check_settled(client: redis.Redis, jobs: int) -> None:
    settled = int(client.hget(f"ledger:{PROCESSOR}:0:total", "count") or 0)  # type: ignore[arg-type]
    if settled != jobs or client.zcard("payments:open") or client.zcard("arq:queue"):
        raise BenchError(f"{settled} of {jobs} payments are settled")


WORKERS = ("arq", "arq-uvloop", "saq", "taskiq", "payswitch-routed", "payswitch")


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1))
@click.option("--jobs", default=20_000, show_default=True, type=click.IntRange(100))
@click.option("--samples", default=200, show_default=True, help="Payments that wake a worker.")
@click.option("--idle-s", default=10.0, show_default=True, help="How long to watch an idle worker.")
@click.option("--backlog", default=1_000_000, show_default=True, help="In front of a claim.")
def main(rounds: int, jobs: int, samples: int, idle_s: float, backlog: int) -> None:
    """Jobs a second and CPU per job of arq, SAQ, taskiq and our worker; idle CPU, wake-up latency
    and claim cost of ours."""
    with running_redis() as (url, client):
        contenders = {name: partial(drain, name, url, client, jobs) for name in WORKERS}
        measured = take_turns(contenders, rounds=rounds, title="queue")
        client.flushall()
        idle = idle_percent(url, idle_s)
        wake = wake_latency(url, samples)
    costs = claim_costs(1000, backlog, rounds, put_payments)
    result = Result(
        "queue",
        f"One worker process, {jobs:,} empty jobs",
        MEASURES,
        measured,
        notes=[*NOTES, *_said(idle, wake, costs)],
        distributions=("arq", "saq", "taskiq", "taskiq-redis", "redis", "hiredis", "uvloop"),
        more={
            "idle": {"percentOfACore": idle, "seconds": idle_s},
            "wake": wake.as_document(),
            "claim": [cost.as_document() for cost in costs],
        },
    )
    publish(result, pictured=["jobs_per_s", "worker_us", "redis_us"])


def _said(idle: float, wake: Wake, costs: list[ClaimCost]) -> list[str]:
    return [
        f"Idle: payswitch uses {idle:.2f} % of a core.",
        f"Wake-up, from handing a payment to accept to its job's begin: median {wake.median_ms:.1f}"
        f" ms, p99 {wake.p99_ms:.1f} ms, of which until accepted {wake.accepted_ms:.1f} ms.",
        *(
            f"Claim of {cost.limit} before a backlog of {cost.backlog:,}: "
            f"{cost.redis_us.shown(1)} µs of Redis."
            for cost in costs
        ),
    ]


if __name__ == "__main__":
    main()

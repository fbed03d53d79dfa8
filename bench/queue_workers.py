"""The workers of `bench.queue`, each in a process of its own: `python -m bench.queue_workers NAME
URL JOBS` drains the queue and prints how long it took, and how much CPU time.

The frameworks' workers have their defaults but for three things, all in their favour: a hundred
slots, no pause between polls, and no log lines.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import arq
import click
import saq
import taskiq
import uvloop
from arq.connections import RedisSettings
from arq.worker import func
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from bench.local import answer
from payswitch.dispatch.arq_worker import run_worker
from payswitch.dispatch.assembly import make_dispatcher
from payswitch.dispatch.payment_worker import PaymentWorker
from payswitch.payments.accepting import JOB_FUNCTION
from payswitch.payments.ledger import Ledger
from payswitch.payments.tries import Findings, Tries
from payswitch.process import die_with_parent
from payswitch.processors.processor import make_transport
from payswitch.settings import Settings
from payswitch.store.client import connect

SLOTS = 100
"""Jobs that a framework's worker runs at a time. For arq, ten or a hundred made no difference
beyond the noise, as it starts its jobs one after another."""

PROCESSOR = "default"


class Drain:
    """Counts finished jobs in Redis, and prints the result after the last."""

    def __init__(self, jobs: int) -> None:
        self._left = jobs

    def begin(self) -> None:
        """The worker is about to take its first job."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def one_more(self) -> None:
        """A job is finished; after the last one this process ends."""
        self._left -= 1
        if self._left == 0:
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            answer({"wall_s": wall, "cpu_s": cpu})
            os._exit(0)


async def empty(ctx: dict[Any, Any]) -> None:
    """The job of arq and SAQ."""


def run_arq(url: str, drain: Drain) -> None:
    """arq's own worker, on asyncio's loop as the `arq` command runs it."""

    async def begin(ctx: dict[Any, Any]) -> None:
        drain.begin()

    async def finished(ctx: dict[Any, Any]) -> None:
        drain.one_more()

    arq.Worker(
        [empty],
        redis_settings=RedisSettings.from_dsn(url),
        on_startup=begin,
        after_job_end=finished,
        max_jobs=SLOTS,
        poll_delay=0,
    ).run()


def run_arq_uvloop(url: str, drain: Drain) -> None:
    """arq's own worker on uvloop, for which it has no option."""
    asyncio.set_event_loop(uvloop.new_event_loop())
    run_arq(url, drain)


def run_saq(url: str, drain: Drain) -> None:
    """SAQ's worker."""

    async def begin(ctx: Any) -> None:
        drain.begin()

    async def finished(ctx: Any) -> None:
        drain.one_more()

    async def main() -> None:
        worker: saq.Worker[Any] = saq.Worker(
            saq.Queue.from_url(url),
            [("empty", empty)],
            concurrency=SLOTS,
            startup=begin,
            after_process=finished,
        )
        await worker.start()

    asyncio.run(main())


def taskiq_broker(url: str) -> tuple[RedisStreamBroker, Any]:
    """taskiq's broker that loses no job if its worker dies, and the empty task."""
    broker = RedisStreamBroker(url)

    async def nothing() -> None:
        pass

    return broker, broker.register_task(nothing, task_name="empty")


def run_taskiq(url: str, drain: Drain) -> None:
    """taskiq's receiver, on uvloop as the `taskiq` command runs it where that is installed."""

    class Count(taskiq.TaskiqMiddleware):
        def post_save(self, message: Any, result: Any) -> None:
            drain.one_more()

    async def main() -> None:
        broker, _ = taskiq_broker(url)
        await broker.with_middlewares(Count()).startup()
        drain.begin()
        await run_receiver_task(broker, max_async_tasks=SLOTS)

    uvloop.run(main())


Job = Callable[[dict[Any, Any], str], Coroutine[Any, Any, None]]


def run_payments(url: str, job: Job, begin: Callable[[], None]) -> None:
    """`payswitch worker` with another job function."""
    os.environ["REDIS_URL"] = url
    from workers.payments import WorkerSettings  # noqa: PLC0415 - it reads the environment

    settings = Settings.from_environment()

    async def startup(ctx: dict[Any, Any]) -> None:
        redis = ctx["redis"]
        ctx["dispatcher"] = make_dispatcher(settings, redis, make_transport(settings))
        ctx["ledger"] = Ledger(redis, processors=[PROCESSOR], retention_ms=settings.retention_ms)
        ctx["tries"] = Tries(
            redis,
            max_delay_ms=settings.processor_max_delay_ms,
            lease_ms=settings.lease_ms,
            retention_ms=settings.retention_ms,
        )
        begin()

    own = {
        "functions": [func(cast(Any, job), name=JOB_FUNCTION)],
        "on_startup": startup,
        "on_shutdown": None,
    }
    worker_settings = type("WorkerSettings", (), {**vars(WorkerSettings), **own})
    run_worker(PaymentWorker, worker_settings, connect(url, limit_s=10))


def run_ours(url: str, drain: Drain) -> None:
    """Our worker with a job that settles a pinned payment: claim and finish."""

    async def job(ctx: dict[Any, Any], correlation_id: str) -> None:
        await ctx["ledger"].settle(ctx["claim"], PROCESSOR, time.time_ns() // 1_000_000)
        drain.one_more()

    run_payments(url, job, drain.begin)


def run_ours_routed(url: str, drain: Drain) -> None:
    """Our worker with all steps of a payment except the call to the processor: claim, route with an
    open try, and finish."""

    async def job(ctx: dict[Any, Any], correlation_id: str) -> None:
        claim = ctx["claim"]
        routed = await ctx["tries"].open(claim, PROCESSOR, Findings())
        await ctx["ledger"].settle(claim, PROCESSOR, routed.requested_at)
        drain.one_more()

    run_payments(url, job, drain.begin)


def run_ours_woken(url: str, jobs: int) -> None:
    """Our worker, idle between jobs; prints the start of each by the machine's monotonic clock."""
    began_ns: dict[str, int] = {}

    async def job(ctx: dict[Any, Any], correlation_id: str) -> None:
        began_ns[correlation_id] = time.monotonic_ns()
        await ctx["ledger"].settle(ctx["claim"], PROCESSOR, time.time_ns() // 1_000_000)
        if len(began_ns) == jobs:
            answer(began_ns)

    run_payments(url, job, lambda: None)


DRAINS: dict[str, Callable[[str, Drain], None]] = {
    "arq": run_arq,
    "arq-uvloop": run_arq_uvloop,
    "saq": run_saq,
    "taskiq": run_taskiq,
    "payswitch": run_ours,
    "payswitch-routed": run_ours_routed,
}


@click.command()
@click.argument("name", type=click.Choice([*DRAINS, "woken"]))
@click.argument("url")
@click.argument("jobs", type=int)
def main(name: str, url: str, jobs: int) -> None:
    """Drain a queue of this many jobs."""
    die_with_parent(os.getppid())
    if name == "woken":
        run_ours_woken(url, jobs)
    else:
        DRAINS[name](url, Drain(jobs))


if __name__ == "__main__":
    main()

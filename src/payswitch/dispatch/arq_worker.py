"""The base of both arq workers: it survives Redis' faults, a full Redis and jumps of the clock."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from datetime import datetime, timedelta
from typing import Any

import arq.worker
import uvloop
from arq.connections import ArqRedis, RedisSettings
from arq.constants import abort_jobs_ss
from arq.cron import CronJob
from arq.utils import poll
from redis.exceptions import RedisError, ResponseError

from payswitch.durability import Durability
from payswitch.process import collect_seldom
from payswitch.redis_url import cluster_nodes, is_cluster
from payswitch.store import keys, scripts
from payswitch.store.client import Client
from payswitch.store.errors import in_words, says_out_of_memory
from payswitch.store.watch import RedisWatch

logger = logging.getLogger(__name__)

_PAUSE_S = 0.2
_CLOCK_STEP = timedelta(seconds=5)


class ResilientWorker(arq.worker.Worker):
    """An `arq.Worker` whose main loop survives Redis' absence and whose cron survives a jump of the
    clock and a full Redis. When it closes, it leaves the health key to the other workers."""

    _redis_refuses = False
    _redis_is_full = False
    redis_failures = 0
    """Turns of the main loop that failed because Redis did not answer or refused."""

    def __init__(
        self,
        *args: Any,
        currency_code: str,
        redis_trust: str = "warn",
        durability: Durability = Durability.DISK,
        **kwargs: Any,
    ) -> None:
        redis: Client = kwargs["redis_pool"]
        common = redis.partitions.common
        kwargs["queue_name"] = common.key(kwargs.get("queue_name", keys.QUEUE))
        # arq's transactions name this key, too, so in a cluster it must be in the queue's slot.
        arq.worker.abort_jobs_ss = common.key(abort_jobs_ss)  # type: ignore[attr-defined]
        super().__init__(*args, **kwargs)
        self._watch = RedisWatch(
            redis,
            currency=currency_code,
            demand=redis_trust == "require",
            durability=durability,
        )

    async def main(self) -> None:
        """Run until cancelled. While Redis is away or unusable, it takes no jobs. Raises the errors
        of `on_startup`, and `UntrustworthyRedisError`."""
        collect_seldom()
        await self._watch.until_usable()
        self._watch.start()
        logger.info("taking jobs from %(queue)s", {"queue": self.queue_name})
        self.ctx["redis"] = self.pool
        if self.on_startup:
            await self.on_startup(self.ctx)
        async for _ in poll(self.poll_delay_s):
            await self._poll_iteration()

    async def _poll_iteration(self) -> None:
        if self._watch.unusable is not None:
            await asyncio.sleep(_PAUSE_S)
            return
        try:
            await super()._poll_iteration()
            self._redis_takes_it()
        except (RedisError, OSError) as error:
            await self._note_failure(error)
            await self._recover()

    async def _recover(self) -> None:
        """Reset the bookkeeping: arq does not free a slot if Redis fails meanwhile."""
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        self.job_counter = 0
        self.sem = asyncio.BoundedSemaphore(self.max_jobs + 1)

    async def run_cron(self, n: datetime, delay: float, num_windows: int = 2) -> None:
        """Run the jobs that are due, and those whose next run is far off because the clock jumped.

        If Redis is full and refuses to queue a job, the job runs here, without the queue.
        """
        for job in self.cron_jobs:
            if job.next_run is not None and abs(job.next_run - n) > _CLOCK_STEP:
                job.next_run = None
        planned = {job.name: n if job.run_at_startup else None for job in self.cron_jobs}
        planned |= {job.name: job.next_run for job in self.cron_jobs if job.next_run}
        is_full = False
        try:
            await super().run_cron(n, delay, num_windows)
        except ResponseError as error:
            if not says_out_of_memory(error):
                raise
            is_full = True
        # arq has set the next run of each job that was due.
        due = [job for job in self.cron_jobs if planned[job.name] not in (None, job.next_run)]
        if due:
            self._note_redis_full(is_full)
        if is_full:
            for job in due:
                self._run_unqueued(job)

    def _run_unqueued(self, job: CronJob) -> None:
        """Run a cron job's function, unless its last run here has not ended."""
        if job.name not in self.tasks:
            self.tasks[job.name] = self.loop.create_task(self._run_cron_function(job))

    async def _run_cron_function(self, job: CronJob) -> None:
        try:
            async with asyncio.timeout(job.timeout_s or self.job_timeout_s):
                await job.coroutine({**self.ctx, "job_id": job.name, "job_try": 1})
        except Exception:
            logger.exception("cron job %(job)s failed", {"job": job.name})

    async def record_health(self) -> None:
        """Write the health key; if Redis is full, with a shorter text that it still takes."""
        try:
            await super().record_health()
        except ResponseError as error:
            if not says_out_of_memory(error):
                raise
            life_ms = int((self.health_check_interval + 1) * 1000)
            await self.pool.delete(self.health_check_key)
            await scripts.load(self.pool, "take")(
                keys=[self.health_check_key], args=["alive, but redis is full", life_ms]
            )

    async def finish_job(
        self,
        job_id: str,
        finish: bool,
        result_data: bytes | None,
        result_timeout_s: float | None,
        keep_result_forever: bool,
        incr_score: int | None,
        keep_in_progress: float | None,
    ) -> None:
        """As arq's, but without the key that a cron job leaves for a minute: that key guards job
        ids made from the wall clock, which are not used here."""
        await super().finish_job(
            job_id,
            finish,
            result_data,
            result_timeout_s,
            keep_result_forever,
            incr_score,
            keep_in_progress=None,
        )

    async def close(self) -> None:
        """Finish the running jobs, call `on_shutdown`, close the connections."""
        self.allow_pick_jobs = False
        if self._pool is None:
            return
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)
        await self._watch.close()
        await self.pool.aclose(close_connection_pool=True)
        self._pool = None

    async def _note_failure(self, error: Exception) -> None:
        self.redis_failures += 1
        if not isinstance(error, ResponseError):
            self._watch.note_away(error)
        elif not self._redis_refuses:
            self._redis_refuses = True
            logger.warning("redis refuses: %(error)s", {"error": in_words(error)})
        await asyncio.sleep(_PAUSE_S)

    def _note_redis_full(self, is_full: bool) -> None:
        if is_full and not self._redis_is_full:
            logger.warning(
                "redis is full: cron jobs of %(queue)s run without it", {"queue": self.queue_name}
            )
        elif self._redis_is_full and not is_full:
            logger.info("redis has memory again")
        self._redis_is_full = is_full

    def _redis_takes_it(self) -> None:
        if self._redis_refuses:
            self._redis_refuses = False
            logger.info("redis no longer refuses")


def arq_redis_settings(url: str) -> RedisSettings:
    """Redis' address for `arq --check`, which knows no cluster: of one, the first node's."""
    return RedisSettings.from_dsn(cluster_nodes(url)[0] if is_cluster(url) else url)


def run_worker(worker_class: type[ResilientWorker], settings: type[Any], redis: ArqRedis) -> None:
    """Run a worker with the attributes of an arq `WorkerSettings` class until SIGTERM or SIGINT.

    arq's own handler of both takes no more jobs, waits `job_completion_wait` for those that run,
    cancels the others and calls `close`. Raises the errors of `on_startup`.
    """
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    known = {
        **inspect.signature(arq.worker.Worker).parameters,
        **inspect.signature(ResilientWorker.__init__).parameters,
        **inspect.signature(worker_class.__init__).parameters,
    }
    values = {name: value for name, value in vars(settings).items() if name in known}
    values["redis_settings"] = None
    # uvloop loses a signal that arrives before the loop runs, although its handler is installed.
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, stop_signals)
    worker_class(**values, redis_pool=redis).run()

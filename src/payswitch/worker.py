"""The payments worker: an `arq.Worker` that claims by lease and never deletes what isn't paid.

It keeps arq's keys, job bytes, hooks, health key and graceful stop. What stock arq would do to a
job (delete it after so many tries, on an exception, an unknown function, a lost key) would lose a
payment here, so taking, running and finishing jobs are its own: only `settle.lua` and `bury.lua`
take a payment off the queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import arq.worker
from arq.jobs import DeserializationError, deserialize_job_raw
from arq.utils import ms_to_datetime
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from payswitch import scripts
from payswitch.clock import boottime_ms
from payswitch.dispatcher import Dispatcher
from payswitch.lock import Lock
from payswitch.resilient_worker import ResilientWorker
from payswitch.selector import SELECTION_KEY, parse_selection
from payswitch.sweeper import Sweeper
from payswitch.tries import Claim, parse_open_tries

logger = logging.getLogger(__name__)

WAKE_KEY = "payments:wake"
PROBE_LOCK_KEY = "payments:probe"

_LONGEST_WAIT_S = 1.0
_HOLD_S = 0.2
_UNKNOWN_FUNCTION_MS = 60_000


@dataclass(frozen=True, slots=True)
class Pause:
    """What the main loop waits for before it takes again."""

    wake_within_s: float | None = None
    """The queue is drained: a payment to come, or the next one to be due after this time."""
    slot: bool = False
    """There is no room: a slot, or a change of health."""


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed entry of the queue: arq's view of it and the payment's."""

    claim: Claim
    function: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    job_try: int
    enqueue_time_ms: int
    score: int
    probe: str | None = None


class PaymentWorker(ResilientWorker):
    """Runs the payments queue. `ctx["dispatcher"]`, made by `on_startup`, decides what may be
    taken; each job finds its `Claim` in `ctx["claim"]`.

    `max_jobs` slots are kept busy with one claim call in flight at a time. Idle, it blocks on
    `payments:wake` until something is due.
    """

    def __init__(
        self,
        *args: Any,
        lease_ms: int,
        deadline_ms: int,
        probe_limit_ms: int,
        sweep_ms: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.allow_abort_jobs:
            raise ValueError("a payment can't be aborted: allow_abort_jobs must be off")
        self.lease_ms = lease_ms
        self._deadline_ms = deadline_ms
        self._probe_limit_ms = probe_limit_ms
        self._sweep_ms = sweep_ms
        self._slot_freed = asyncio.Event()
        self._taking: asyncio.Task[Pause] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.ctx["payments_worker"] = self

    @property
    def dispatcher(self) -> Dispatcher:
        """What `on_startup` made."""
        return cast(Dispatcher, self.ctx["dispatcher"])

    async def main(self) -> None:
        """Run until cancelled; Redis may come and go meanwhile."""
        self._claim_script: AsyncScript = scripts.load(self.pool, "claim")
        self._probe_lock = Lock(self.pool, PROBE_LOCK_KEY, life_ms=self._probe_limit_ms)
        self._sweeping = asyncio.create_task(
            Sweeper(self.pool, every_ms=self._sweep_ms).run(), name="sweeper"
        )
        await super().main()

    async def close(self) -> None:
        """Give back what was taken and not begun, and close."""
        self.allow_pick_jobs = False
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        if self._taking is not None:
            await asyncio.wait([self._taking])
        await super().close()

    async def _turn(self) -> None:
        """Take what there is room for, then wait for a reason to take again."""
        self._taking = asyncio.create_task(self._take(), name="claim")
        await self._wait(await asyncio.shield(self._taking))
        await self.heart_beat()

    async def _recover(self) -> None:
        """Nothing: slots are counted by the tasks that there are."""

    async def _take(self) -> Pause:
        """Claim as many payments as there is room for, and start them."""
        self._slot_freed.clear()
        room, probe, lock_token = await self._room()
        if room <= 0:
            return Pause(slot=True)
        before = boottime_ms()
        try:
            reply = await self._claim_script(args=[room, self.lease_ms])
            jobs = self._read(reply, before, probe)
        except BaseException:
            await self._end_probe(lock_token)
            raise
        for job in jobs:
            self._start(job, lock_token)
        if not jobs:
            await self._end_probe(lock_token)
        return Pause() if len(jobs) == room else Pause(wake_within_s=self._until_due(reply))

    async def _room(self) -> tuple[int, str | None, str | None]:
        """How many payments to claim now; and, where nothing is healthy and this worker may send
        the cluster's one probe, to whom, with the probe lock's token."""
        free = self.max_jobs - len(self.tasks)
        if not self.allow_pick_jobs or free <= 0:
            return 0, None, None
        router = self.dispatcher.router
        now = boottime_ms()
        name = router.choose(now)
        if name is not None:
            room = min(free, router.breakers[name].free(now))
            if room > 0:
                return room, None, None
        raw = await self.pool.get(SELECTION_KEY)
        router.see(raw, parse_selection(raw), boottime_ms())
        if name is not None:
            return 0, None, None
        probe = router.to_probe(now)
        token = await self._probe_lock.acquire() if probe is not None else None
        if probe is None or token is None:
            return 0, None, None
        router.probed(probe, now)
        return 1, probe, token

    async def _end_probe(self, lock_token: str | None) -> None:
        if lock_token is not None:
            await self._probe_lock.release(lock_token)

    def _read(self, reply: list[Any], before: float, probe: str | None) -> list[Job]:
        now, generation, raw, _next_due, token, strays = reply[:6]
        self.dispatcher.router.see(raw, parse_selection(raw), boottime_ms())
        for stray in strays:
            logger.warning("queue entry %s is no payment of ours; put aside", stray.decode())
        return [
            self._read_job(entry, int(now), generation.decode(), int(token), before, probe)
            for entry in reply[6:]
        ]

    def _read_job(
        self,
        entry: list[Any],
        now: int,
        generation: str,
        token: int,
        before: float,
        probe: str | None,
    ) -> Job:
        key, raw, score, job_try, cents, accepted, processor, requested, tries = entry[:9]
        horizon, number, quiet = entry[9:]
        correlation_id = key.decode()
        claim = Claim(
            correlation_id=correlation_id,
            cents=int(cents),
            token=token,
            generation=generation,
            expires_at=before + self.lease_ms,
            processor=processor.decode() if processor else None,
            requested_at=int(requested) if requested else None,
            open_tries=parse_open_tries(tries.decode()) if tries else (),
            tries=int(number or 0),
            horizon_passed=int(horizon or 0) <= now,
            quiet_ms=int(quiet or 0),
            job_try=int(job_try),
            overdue=now - int(accepted) > self._deadline_ms,
        )
        function, args, kwargs, enqueued = self._read_arq_job(correlation_id, raw, int(accepted))
        return Job(claim, function, args, kwargs, int(job_try), enqueued, int(float(score)), probe)

    def _read_arq_job(
        self, correlation_id: str, raw: bytes | None, accepted: int
    ) -> tuple[str, Sequence[Any], dict[str, Any], int]:
        """The job's bytes; the record alone is enough where they are gone or unreadable."""
        if raw is not None:
            try:
                function, args, kwargs, _try, enqueued = deserialize_job_raw(
                    raw, deserializer=self.job_deserializer
                )
                return function, args, kwargs, enqueued
            except DeserializationError:
                logger.warning("job of payment %s is unreadable", correlation_id)
        return next(iter(self.functions)), (correlation_id,), {}, accepted

    @staticmethod
    def _until_due(reply: list[Any]) -> float:
        """Seconds until the next entry is due."""
        if reply[3] is None:
            return _LONGEST_WAIT_S
        return min(_LONGEST_WAIT_S, max(0.0, (float(reply[3]) - int(reply[0])) / 1000))

    def _start(self, job: Job, lock_token: str | None) -> None:
        key = f"{job.claim.correlation_id}:{job.claim.token}"
        task = self.loop.create_task(self._run(job, lock_token))
        self.tasks[key] = task

        def done(task: asyncio.Task[None]) -> None:
            del self.tasks[key]
            self._slot_freed.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("payment %s: %r", job.claim.correlation_id, error)

        task.add_done_callback(done)

    async def _run(self, job: Job, lock_token: str | None) -> None:
        """Run one job function; whatever it raises, the payment stays on the queue."""
        try:
            await self._run_function(job)
            self.jobs_complete += 1
        except arq.worker.Retry as retry:
            self.jobs_retried += 1
            await self.dispatcher.give_back(job.claim, delay_ms=retry.defer_score or 0)
        except asyncio.CancelledError:
            self.jobs_retried += 1
            await self.dispatcher.give_back(job.claim, delay_ms=0, error="the worker stopped")
        except (RedisError, OSError):
            self.jobs_failed += 1
            await self._give_back_when_possible(job.claim)
        except Exception:
            self.jobs_failed += 1
            logger.exception("payment %s: the job failed", job.claim.correlation_id)
            await self.dispatcher.give_back(job.claim, delay_ms=1000, error="an internal error")
        finally:
            await self._end_probe(lock_token)

    async def _give_back_when_possible(self, claim: Claim) -> None:
        """Redis is away: wait for it, at most until the lease's end gives the payment back."""
        while boottime_ms() < claim.expires_at and self.allow_pick_jobs:
            await asyncio.sleep(_HOLD_S)
            try:
                await self.dispatcher.give_back(claim, delay_ms=0, error="redis was away")
                return
            except (RedisError, OSError):
                continue

    async def _run_function(self, job: Job) -> None:
        if not self.allow_pick_jobs:
            raise arq.worker.Retry
        function = self.functions.get(job.function)
        if function is None:
            logger.warning("job function %r is unknown here; left for others", job.function)
            raise arq.worker.Retry(defer=_UNKNOWN_FUNCTION_MS / 1000)
        ctx = {
            **self.ctx,
            "job_id": job.claim.correlation_id,
            "job_try": job.job_try,
            "enqueue_time": ms_to_datetime(job.enqueue_time_ms),
            "score": job.score,
            "claim": job.claim,
            "probe": job.probe,
        }
        if self.on_job_start:
            await self.on_job_start(ctx)
        try:
            await function.coroutine(ctx, *job.args, **job.kwargs)
        finally:
            if self.on_job_end:
                await self.on_job_end(ctx)
        if self.after_job_end:
            await self.after_job_end(ctx)

    async def _wait(self, pause: Pause) -> None:
        if pause.slot:
            try:
                async with asyncio.timeout(_HOLD_S):
                    await self._slot_freed.wait()
            except TimeoutError:
                return
        elif pause.wake_within_s:
            seconds = cast(int, max(pause.wake_within_s, 0.001))  # redis-py's types know no floats
            await cast(Awaitable[Any], self.pool.blpop([WAKE_KEY], timeout=seconds))

"""The payments worker: an `arq.Worker` that claims by lease and never deletes an unpaid payment.

It keeps arq's keys, job bytes, hooks, health key and graceful stop. Stock arq deletes a job after
some tries, an exception, an unknown function or a lost key, which would lose a payment here. So
this worker takes, runs and finishes jobs itself: only `settle.lua` and `bury.lua` take a payment
off the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import arq.worker
from arq.jobs import DeserializationError, deserialize_job_raw
from redis.exceptions import RedisError, ResponseError

from payswitch.clock import boottime_ms
from payswitch.dispatch.arq_worker import ResilientWorker
from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.instants import LATEST_MS
from payswitch.payments.claims import Batch, Claim, Claimed, Claims
from payswitch.payments.sweeper import Sweeper
from payswitch.reasons import reason
from payswitch.selection.selector import parse_standing
from payswitch.store import keys
from payswitch.store.client import partitions_of
from payswitch.store.lock import Lock

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 500
"""Redis serves no other client during a claim, and Lua takes a few thousand arguments at most."""
DRAIN_PER_MS = 0.5
"""The payments held for a processor that is back go on at this pace, so that the rest of the system
has time for new ones: 500 a second in each worker."""
_LONGEST_WAIT_S = 1.0
_HOLD_S = 0.2
_GIVE_BACK_S = 2.0
_UNKNOWN_FUNCTION_S = 60


@dataclass(frozen=True, slots=True)
class Pause:
    """The main loop's wait before its next claim."""

    wake_within_s: float | None = None
    """The queue is drained: wait for a new payment, or this time until the next one is due."""
    for_others_s: float | None = None
    """The last batch was small: wait this time, to take more payments together."""
    slot: bool = False
    """There is no room: wait for a free slot, or a change of health."""


@dataclass(frozen=True, slots=True)
class Permit:
    """The number of payments to claim. If no processor is healthy and this worker may send the
    cluster's one probe: the processor to probe, and the probe lock's token."""

    room: int
    probe: str | None = None
    lock_token: str | None = None


NO_ROOM = Permit(0)


def claim_interval(pause: float, waited: float) -> float:
    """The time until the next claim: `pause`, plus up to a quarter if the batch's oldest payment
    `waited` only briefly, because another worker claimed just before (all in one unit).

    Each worker claims about once a `pause`. If two claim in quick succession, the second finds
    little and the first finds a double batch, behind which other payments wait. So the second moves
    away, each time by half the way to the middle.
    """
    return pause + max(0.0, pause / 2 - waited) / 2


class PaymentWorker(ResilientWorker):
    """Runs the payments queue. `on_startup` must put a dispatcher into `ctx["dispatcher"]`; each
    job finds its `Claim` in `ctx["claim"]`.

    It keeps `max_jobs` slots busy, with one claim call at a time. When idle, it blocks on
    `payments:wake` until a payment is due, and takes it at once. After a small batch it waits for
    `claim_pause_ms` (`claim_interval`), as each claim costs time here and in Redis.
    """

    def __init__(
        self,
        *args: Any,
        processors: Sequence[str],
        claim_pause_ms: int,
        lease_ms: int,
        deadline_ms: int,
        max_delay_ms: int,
        probe_limit_ms: int,
        sweep_ms: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.allow_abort_jobs:
            raise ValueError("a payment can't be aborted: allow_abort_jobs must be off")
        self._claim_pause_ms = claim_pause_ms
        self.claims = Claims(
            self.pool, lease_ms=lease_ms, deadline_ms=deadline_ms, max_delay_ms=max_delay_ms
        )
        common = partitions_of(self.pool).common
        self._selections = [common.key(name) for name in keys.SELECTIONS]
        self._probe_lock = Lock(self.pool, keys.PROBE, life_ms=probe_limit_ms)
        self._sweeper = Sweeper(self.pool, processors, every_ms=sweep_ms, fold=self._fold)
        self._drained_at = 0.0
        self._slot_freed = asyncio.Event()
        self._taking: asyncio.Task[Pause] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.ctx["payments_worker"] = self

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher that `on_startup` made."""
        return cast(Dispatcher, self.ctx["dispatcher"])

    async def main(self) -> None:
        """Run until cancelled, also while Redis is away."""
        self._sweeping = asyncio.create_task(self._sweeper.run(), name="sweeper")
        await super().main()

    async def _fold(self) -> bool:
        return "dispatcher" in self.ctx and await self.dispatcher.ledger.fold()

    async def close(self) -> None:
        """Give back payments that were taken but not begun, and close."""
        self.allow_pick_jobs = False
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        if self._taking is not None:
            await asyncio.wait([self._taking], timeout=_GIVE_BACK_S)
            self._taking.cancel()
        await super().close()

    async def _turn(self) -> None:
        """Claim once, then wait for a reason to claim again."""
        self._taking = asyncio.create_task(self._take(), name="claim")
        await self._wait(await asyncio.shield(self._taking))
        with contextlib.suppress(ResponseError):  # if Redis is full, payments go on without it
            await self.heart_beat()

    async def _recover(self) -> None:
        """No-op: free slots follow from `self.tasks`."""

    async def _take(self) -> Pause:
        """Claim as many payments as there is room for, and start them."""
        self._slot_freed.clear()
        permit = await self._permit()
        if permit.room <= 0:
            return Pause(slot=True)
        try:
            batch = await self._claim(permit)
        except BaseException:
            await self._end_probe(permit)
            raise
        self._see(batch.selection or tuple(await self.pool.mget(self._selections)))
        for stray in batch.strays:
            logger.warning(
                "queue entry %(entry)s is no payment of ours; put aside", {"entry": stray}
            )
        for claimed in batch.taken:
            self._start(claimed, permit)
        if not batch.taken:
            await self._end_probe(permit)
        if len(batch.taken) == permit.room:
            return Pause()
        if batch.taken:
            waited_ms = max(each.claim.claimed_at - each.score for each in batch.taken)
            return Pause(for_others_s=claim_interval(self._claim_pause_ms, waited_ms) / 1000)
        if batch.next_due_ms is None:
            return Pause(wake_within_s=_LONGEST_WAIT_S)
        return Pause(min(_LONGEST_WAIT_S, batch.next_due_ms / 1000))

    async def _claim(self, permit: Permit) -> Batch:
        """Claim, and bring held payments forward at their pace, unless only a probe may go."""
        router = self.dispatcher.router
        if permit.probe is not None or not router.patience_ms:
            return await self.claims.take(permit.room)
        now = boottime_ms()
        self._drained_at = max(self._drained_at, now - 1000 * _LONGEST_WAIT_S)
        drain = int((now - self._drained_at) * DRAIN_PER_MS)
        self._drained_at += drain / DRAIN_PER_MS
        return await self.claims.take(permit.room, back=router.back(), drain=drain)

    async def _permit(self) -> Permit:
        free = min(self.max_jobs - len(self.tasks), _MOST_AT_ONCE)
        if not self.allow_pick_jobs or free <= 0:
            return NO_ROOM
        router = self.dispatcher.router
        now = boottime_ms()
        name = router.choose(now)
        if name is not None and (room := min(free, router.breakers[name].free(now))) > 0:
            return Permit(room)
        self._see(tuple(await self.pool.mget(self._selections)))
        probe = router.to_probe(now) if name is None else None
        token = await self._probe_lock.acquire() if probe is not None else None
        if probe is None or token is None:
            return NO_ROOM
        router.probed(probe, now)
        return Permit(1, probe, token)

    def _see(self, selection: tuple[bytes | None, ...]) -> None:
        router = self.dispatcher.router
        standing = parse_standing(selection, list(router.breakers))
        router.see(selection, standing, boottime_ms())

    async def _end_probe(self, permit: Permit) -> None:
        if permit.lock_token is not None:
            with contextlib.suppress(RedisError, OSError):  # then the lock expires
                await self._probe_lock.release(permit.lock_token)

    def _start(self, claimed: Claimed, permit: Permit) -> None:
        correlation_id = claimed.claim.correlation_id
        key = f"{correlation_id}:{claimed.claim.token}"
        task = self.loop.create_task(self._run(claimed, permit))
        self.tasks[key] = task

        def done(task: asyncio.Task[None]) -> None:
            del self.tasks[key]
            self._slot_freed.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error(
                    "payment %(payment)s: %(error)s",
                    {"payment": correlation_id, "error": reason(error)},
                    exc_info=error,
                )

        task.add_done_callback(done)

    async def _run(self, claimed: Claimed, permit: Permit) -> None:
        """Run one job function; on any error, the payment stays on the queue."""
        claim = claimed.claim
        try:
            if claim.open_tries and claim.processor != permit.probe:
                await self._end_probe(permit)  # it asks another processor first, which may be slow
            await self._run_function(claimed, permit.probe)
            self.jobs_complete += 1
        except arq.worker.Retry as retry:
            self.jobs_retried += 1
            await self._give_back(claim, delay_ms=retry.defer_score or 0)
        except asyncio.CancelledError:
            self.jobs_retried += 1
            await self._give_back(claim, delay_ms=0, error="the worker stopped")
        except (RedisError, OSError):
            self.jobs_failed += 1
            await self._give_back_when_possible(claim)
        except Exception:
            self.jobs_failed += 1
            logger.exception(
                "payment %(payment)s: the job failed", {"payment": claim.correlation_id}
            )
            await self._give_back(claim, delay_ms=1000, error="an internal error")
        finally:
            await self._end_probe(permit)

    async def _give_back(self, claim: Claim, *, delay_ms: int, error: str = "") -> None:
        """Give back now, or leave it to the end of the lease: a stop does not wait for Redis."""
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(_GIVE_BACK_S):
                await self.dispatcher.give_back(claim, delay_ms=delay_ms, error=error)

    async def _give_back_when_possible(self, claim: Claim) -> None:
        """Wait for Redis, until the end of the lease gives the payment back."""
        while boottime_ms() < claim.expires_at and self.allow_pick_jobs:
            await asyncio.sleep(_HOLD_S)
            try:
                await self.dispatcher.give_back(claim, delay_ms=0, error="redis was away")
                return
            except (RedisError, OSError):
                continue

    async def _run_function(self, claimed: Claimed, probe: str | None) -> None:
        if not self.allow_pick_jobs:
            raise arq.worker.Retry
        claim = claimed.claim
        name, args, kwargs, enqueued = self._read_job(claimed)
        function = self.functions.get(name)
        if function is None:
            logger.warning(
                "job function %(function)r is unknown here; left for others", {"function": name}
            )
            raise arq.worker.Retry(defer=_UNKNOWN_FUNCTION_S)
        ctx = {
            **self.ctx,
            "job_id": claim.correlation_id,
            "job_try": claim.job_try,
            "enqueue_time": enqueued,
            "score": claimed.score,
            "claim": claim,
            "probe": probe,
        }
        if self.on_job_start:
            await self.on_job_start(ctx)
        try:
            await function.coroutine(ctx, *args, **kwargs)
        finally:
            if self.on_job_end:
                await self.on_job_end(ctx)
        if self.after_job_end:
            await self.after_job_end(ctx)

    def _read_job(self, claimed: Claimed) -> tuple[str, Sequence[Any], dict[str, Any], datetime]:
        """The job's function, arguments and time; defaults if its bytes are gone or unreadable."""
        correlation_id = claimed.claim.correlation_id
        if claimed.job is not None:
            with contextlib.suppress(DeserializationError):
                function, args, kwargs, _, enqueued_at = deserialize_job_raw(
                    claimed.job, deserializer=self.job_deserializer
                )
                match function, args, kwargs, enqueued_at:
                    case str(), list(), dict(), int():
                        return function, args, kwargs, _instant(enqueued_at)
            logger.warning("job of payment %(payment)s is unreadable", {"payment": correlation_id})
        accepted = _instant(claimed.claim.accepted_at)
        return next(iter(self.functions)), (correlation_id,), {}, accepted

    async def _wait(self, pause: Pause) -> None:
        if pause.slot:
            try:
                async with asyncio.timeout(_HOLD_S):
                    await self._slot_freed.wait()
            except TimeoutError:
                return
        elif pause.for_others_s is not None:
            await asyncio.sleep(pause.for_others_s)
        elif pause.wake_within_s:
            seconds = cast(int, pause.wake_within_s)  # redis-py's types know no floats
            await cast(Awaitable[Any], self.pool.blpop([keys.WAKE], timeout=seconds))


def _instant(ms: int) -> datetime:
    """The nearest valid instant: Redis may hold any number."""
    return datetime.fromtimestamp(min(max(ms, 0), LATEST_MS) / 1000, UTC)

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
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import arq.worker
from arq.jobs import DeserializationError, deserialize_job_raw
from redis.exceptions import RedisError

from payswitch.clock import boottime_ms
from payswitch.dispatch.arq_worker import ResilientWorker
from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.instants import LATEST_MS
from payswitch.payments.claims import Batch, Claim, Claimed, Claims
from payswitch.payments.sweeper import Sweeper
from payswitch.reasons import reason
from payswitch.selection.selector import parse_standing
from payswitch.selection.standing import Standing, StandingWatch, read_standing
from payswitch.store import keys, scripts
from payswitch.store.client import Client, partitions_of
from payswitch.store.errors import UnconfirmedError, in_words
from payswitch.store.lock import Lock
from payswitch.store.partitions import Partition
from payswitch.store.together import shared

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 128
"""Redis serves no other client during a claim, and Lua takes a few thousand arguments at most."""
DRAIN_PER_MS = 0.5
"""The payments held for a processor that is back go on at this pace, so that the rest of the system
has time for new ones: 500 a second in each worker."""
_LONGEST_WAIT_S = 1.0
_LISTEN_S = 5.0
"""A blocking read of one of several partitions: each costs as much as a claim."""
_TEND_S = 0.5
"""From one sign of life, and one look for new nodes, to the next."""
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


_GO_ON = Pause()


@dataclass(frozen=True, slots=True)
class Permit:
    """The number of payments to claim. If no processor is healthy and this worker may send the
    cluster's one probe: the processor to probe, and the probe lock's token."""

    room: int
    probe: str | None = None
    lock_token: str | None = None


NO_ROOM = Permit(0)


@dataclass(eq=False, slots=True)
class _Claiming:
    """The claims from one node of Redis, named by `Partition.home`."""

    home: str
    task: asyncio.Task[None] | None = None
    slot_freed: asyncio.Event = field(default_factory=asyncio.Event)
    drained_at: float = 0.0
    crowded: bool = False
    """The last claim seems to have left due payments behind."""
    lacks_replicas: bool = False
    """Replicas did not confirm a try: nothing is claimed until they confirm again."""
    listening: dict[Partition, asyncio.Task[Any]] = field(default_factory=dict)
    """The blocking reads of `keys.WAKE`."""


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

    In a cluster it claims from each node on its own, and each node's payments get a share of the
    slots. So a node that is away or slow takes nothing from the others.
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
        self._partitions = partitions_of(self.pool)
        self._confirms = cast(Client, self.pool).deployment.replicas > 0
        """Whether replicas must have a try before it is sent: no claim opens one then."""
        self._in_hand: Counter[int] = Counter()
        """The payments of each partition."""
        self._unbegun = 0
        """The payments started whose tasks have not run yet: no breaker counts them so far."""
        self._seen: Standing | None = None
        """The selection's values that the router knows."""
        self._standing: StandingWatch | None = None
        if self._partitions.deployment:
            self._standing = StandingWatch(self.pool, self._see)
        probe_key = self._partitions.common.key(keys.PROBE)
        self._probe_lock = Lock(self.pool, probe_key, life_ms=probe_limit_ms)
        self._ping = scripts.load(self.pool, "ping")
        self._sweeper = Sweeper(self.pool, processors, every_ms=sweep_ms, fold=self._fold)
        self._claiming: dict[str, _Claiming] = {}
        self._takings: set[asyncio.Task[Pause]] = set()
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
        if self._standing is not None:
            await self._standing.close()
        ending = [each.task for each in self._claiming.values() if each.task is not None]
        ending += [] if self._sweeping is None else [self._sweeping]
        await _end(ending)
        if self._takings:
            await asyncio.wait(self._takings, timeout=_GIVE_BACK_S)
            await _end(list(self._takings))
        await super().close()

    async def _poll_iteration(self) -> None:
        """Claim from each node that has partitions, and write the sign of life."""
        if self._standing is not None and not self._claiming:
            self._standing.start()
            await self._standing.until_known()
        homes = {each.home for each in self._partitions}
        for home in homes - self._claiming.keys():
            claiming = self._claiming[home] = _Claiming(home)
            claiming.task = self.loop.create_task(self._keep_claiming(claiming), name="claims")
        for home in self._claiming.keys() - homes:
            await _end([cast(asyncio.Task[None], self._claiming.pop(home).task)])
        with contextlib.suppress(RedisError, OSError):  # the claims go on without it
            async with asyncio.timeout(_LONGEST_WAIT_S):
                await self.heart_beat()
        tasks = [cast(asyncio.Task[None], each.task) for each in self._claiming.values()]
        ended, _ = await asyncio.wait(tasks, timeout=_TEND_S, return_when=asyncio.FIRST_COMPLETED)
        for each in ended:
            each.result()  # raises what is no error of Redis

    async def _keep_claiming(self, claiming: _Claiming) -> None:
        """Claim from one node until cancelled, also while it is away."""
        try:
            while True:
                own = self._own(claiming)
                if not self._is_usable(own):
                    await asyncio.sleep(_HOLD_S)
                    continue
                try:
                    await self._turn(claiming, own)
                    self._redis_takes_it()
                except (RedisError, OSError) as error:
                    await self._note_failure(error)
        finally:
            await _end(list(claiming.listening.values()))

    def _own(self, claiming: _Claiming) -> list[Partition]:
        """The node's partitions."""
        return [each for each in self._partitions if each.home == claiming.home]

    def _is_usable(self, own: Sequence[Partition]) -> bool:
        return bool(own) and self._watch.at(own[0]).unusable is None

    async def _turn(self, claiming: _Claiming, own: Sequence[Partition]) -> None:
        """Claim, then wait for a reason to claim again."""
        taking = self.loop.create_task(self._take(claiming, own), name="claim")
        self._takings.add(taking)
        taking.add_done_callback(self._takings.discard)
        await self._wait(claiming, own, await shared(taking))

    async def _take(self, claiming: _Claiming, own: Sequence[Partition]) -> Pause:
        """Claim and start payments until there is a reason to wait. Without one, the next claim
        leaves before these payments are begun: their calls keep the loop busy, and Redis waits."""
        pause = await self._take_once(claiming, own)
        while pause == _GO_ON and self._is_usable(own) and own == self._own(claiming):
            pause = await self._take_once(claiming, own)
        return pause

    async def _take_once(self, claiming: _Claiming, own: Sequence[Partition]) -> Pause:
        """Claim as many payments as there is room for, and start them."""
        claiming.slot_freed.clear()
        if claiming.lacks_replicas and not await self._has_replicas(claiming, own[0]):
            return Pause(for_others_s=_HOLD_S)
        permit = await self._permit(own)
        if permit.room <= 0:
            return Pause(slot=True)
        try:
            batch = await self._claim(claiming, own, permit)
        except BaseException:
            await self._end_probe(permit)
            raise
        if batch.selection:
            self._see(batch.selection)
        for stray in batch.strays:
            logger.warning(
                "queue entry %(entry)s is no payment of ours; put aside", {"entry": stray}
            )
        for claimed in batch.taken:
            self._start(claimed, permit, claiming)
        if not batch.taken:
            await self._end_probe(permit)
        if batch.errors:
            raise batch.errors[0]
        pause = self._pause(batch, permit)
        claiming.crowded = pause == _GO_ON
        return pause

    def _pause(self, batch: Batch, permit: Permit) -> Pause:
        if len(batch.taken) == permit.room or (batch.taken and batch.next_due_ms == 0):
            return _GO_ON
        if batch.taken:
            waited_ms = max(each.claim.claimed_at - each.score for each in batch.taken)
            return Pause(for_others_s=claim_interval(self._claim_pause_ms, waited_ms) / 1000)
        if batch.next_due_ms is None:
            return Pause(wake_within_s=_LONGEST_WAIT_S)
        return Pause(min(_LONGEST_WAIT_S, batch.next_due_ms / 1000))

    async def _has_replicas(self, claiming: _Claiming, at: Partition) -> bool:
        """Whether the node's replicas confirm what it says. Raises `RedisError`."""
        try:
            await self._ping(at=at, confirm=True)
        except UnconfirmedError:
            return False
        claiming.lacks_replicas = False
        logger.info("redis has its replicas again: payments are claimed there")
        return True

    async def _claim(self, claiming: _Claiming, own: Sequence[Partition], permit: Permit) -> Batch:
        """Claim, and bring held payments forward at their pace, unless only a probe may go."""
        router = self.dispatcher.router
        if permit.probe is not None:
            return await self.claims.take(permit.room, partitions=own)
        take = partial(self.claims.take, permit.room, partitions=own, crowded=claiming.crowded)
        if self._seen is not None and not self._confirms:
            take = partial(take, first=self.dispatcher.first_tries(self._seen))
        if not router.patience_ms:
            return await take()
        now = boottime_ms()
        pace = DRAIN_PER_MS * len(own) / len(self._partitions)
        claiming.drained_at = max(claiming.drained_at, now - 1000 * _LONGEST_WAIT_S)
        drain = int((now - claiming.drained_at) * pace)
        claiming.drained_at += drain / pace
        back = router.back()
        return await take(back=back, drain=drain)

    def _share(self, slots: int, own: Sequence[Partition]) -> int:
        """The slots of so many that are free for a node's partitions."""
        share = -(-slots * len(own) // len(self._partitions))
        return share - sum(self._in_hand[each.number] for each in own)

    async def _permit(self, own: Sequence[Partition]) -> Permit:
        free = min(self._share(self.max_jobs, own), _MOST_AT_ONCE)
        if not self.allow_pick_jobs or free <= 0:
            return NO_ROOM
        router = self.dispatcher.router
        now = boottime_ms()
        name = router.choose(now)
        if name is not None:
            room = min(free, router.breakers[name].free(now) - self._unbegun)
            if len(own) < len(self._partitions):
                room = min(room, self._share(router.breakers[name].slots, own))
            if room > 0:
                return Permit(room)
        if self._standing is None:
            self._see(await read_standing(self.pool))
        probe = router.to_probe(now) if name is None else None
        if probe is None:
            return NO_ROOM
        is_mine, token = await self._acquire_probe()
        if not is_mine:
            return NO_ROOM
        router.probed(probe, now)
        return Permit(1, probe, token)

    async def _acquire_probe(self) -> tuple[bool, str | None]:
        """Whether this worker may probe, and the lock's token. While the lock's node is away, each
        worker may: the other nodes' payments must go on."""
        try:
            async with asyncio.timeout(_GIVE_BACK_S):
                token = await self._probe_lock.acquire()
        except (RedisError, OSError):
            if self._standing is None:
                raise
            return True, None
        return token is not None, token

    def _see(self, selection: Standing) -> None:
        self._seen = selection
        router = self.dispatcher.router
        standing = parse_standing(selection, list(router.breakers))
        router.see(selection, standing, boottime_ms())

    async def _end_probe(self, permit: Permit) -> None:
        if permit.lock_token is not None:
            with contextlib.suppress(RedisError, OSError):  # then the lock expires
                await self._probe_lock.release(permit.lock_token)

    def _start(self, claimed: Claimed, permit: Permit, claiming: _Claiming) -> None:
        correlation_id = claimed.claim.correlation_id
        key = f"{correlation_id}:{claimed.claim.token}"
        task = self.loop.create_task(self._run(claimed, permit, claiming))
        self.tasks[key] = task
        self._unbegun += 1
        self._in_hand[claimed.claim.partition] += 1

        def done(task: asyncio.Task[None]) -> None:
            del self.tasks[key]
            self._in_hand[claimed.claim.partition] -= 1
            claiming.slot_freed.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error(
                    "payment %(payment)s: %(error)s",
                    {"payment": correlation_id, "error": reason(error)},
                    exc_info=error,
                )

        task.add_done_callback(done)

    async def _run(self, claimed: Claimed, permit: Permit, claiming: _Claiming) -> None:
        """Run one job function; on any error, the payment stays on the queue."""
        self._unbegun -= 1
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
        except (RedisError, OSError) as error:
            self.jobs_failed += 1
            if isinstance(error, UnconfirmedError):
                self._note_lack(claiming, error)
            await self._give_back_when_possible(claim)
        except Exception:
            self.jobs_failed += 1
            logger.exception(
                "payment %(payment)s: the job failed", {"payment": claim.correlation_id}
            )
            await self._give_back(claim, delay_ms=1000, error="an internal error")
        finally:
            await self._end_probe(permit)

    def _note_lack(self, claiming: _Claiming, error: UnconfirmedError) -> None:
        if not claiming.lacks_replicas:
            claiming.lacks_replicas = True
            logger.warning(
                "redis lacks replicas, so no payment is claimed there: %(error)s",
                {"error": f"{claiming.home}: {in_words(error)}"},
            )

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

    async def _wait(self, claiming: _Claiming, own: Sequence[Partition], pause: Pause) -> None:
        if pause.slot:
            await self._pass_wakes_on(claiming)
            try:
                async with asyncio.timeout(_HOLD_S):
                    await claiming.slot_freed.wait()
            except TimeoutError:
                return
        elif pause.for_others_s is not None:
            await asyncio.sleep(pause.for_others_s)
        elif pause.wake_within_s:
            await self._listen(claiming, own, pause.wake_within_s)

    async def _listen(self, claiming: _Claiming, own: Sequence[Partition], seconds: float) -> None:
        """Wait until one of these partitions wakes a worker, for so long at most. One command can
        not wait for several, as they are in several slots. Raises `RedisError`."""
        ends_at = self.loop.time() + seconds
        listening = claiming.listening
        timeout = cast(int, seconds if len(own) == 1 else _LISTEN_S)  # redis-py knows no floats
        while True:
            for each in own:
                if each not in listening:
                    pop = each.redis.blpop([each.key(keys.WAKE)], timeout=timeout)
                    listening[each] = asyncio.ensure_future(cast(Awaitable[Any], pop))
            # The only one ends by itself in time.
            limit = None if len(own) == 1 else max(0.0, ends_at - self.loop.time())
            await asyncio.wait(
                listening.values(), timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            ended = [listening.pop(each) for each in list(listening) if listening[each].done()]
            errors = [error for task in ended if (error := task.exception()) is not None]
            if errors:
                raise errors[0]
            if any(task.result() is not None for task in ended):
                return
            if len(own) == 1 or self.loop.time() >= ends_at:
                return

    async def _pass_wakes_on(self, claiming: _Claiming) -> None:
        """Hand on the wakes for which this worker has no room: another one may be idle."""
        listening = claiming.listening
        for each in [each for each, task in listening.items() if task.done()]:
            with contextlib.suppress(RedisError, OSError):
                if listening.pop(each).result() is not None:
                    wake = each.redis.lpush(each.key(keys.WAKE), "1")
                    await cast(Awaitable[int], wake)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _instant(ms: int) -> datetime:
    """The nearest valid instant: Redis may hold any number."""
    return datetime.fromtimestamp(min(max(ms, 0), LATEST_MS) / 1000, UTC)

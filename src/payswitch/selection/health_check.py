"""The health check: throttled, locked, all processors at once.

Throttle and lock live in Redis. So any process may trigger it at any time: a processor sees at most
one call per throttle time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from payswitch.processors.outcomes import HealthReport
from payswitch.processors.processor import Processor
from payswitch.selection.selector import Limits, Selection, Selector
from payswitch.settings import Settings
from payswitch.store import keys, scripts
from payswitch.store.lock import Lock
from payswitch.store.notes import write_note

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Times:
    """Times of the health check, in ms. Each must be longer than the next."""

    throttle_ms: int = 5100
    """At most one check in this time, in the whole cluster. Processors allow one per 5 s."""
    lock_ms: int = 4000
    """The life of the lock."""
    limit_ms: int = 2500
    """The time limit of one call of `service-health`."""


class HealthCheck:
    """Asks all processors for health reports and hands them to the Selector."""

    def __init__(
        self, redis: Redis, processors: Sequence[Processor], selector: Selector, times: Times
    ) -> None:
        self._redis = redis
        self._take = scripts.load(redis, "take")
        common = self._take.partitions.common
        self._throttle = common.key(keys.HEALTH_THROTTLE)
        self._processors = processors
        self._selector = selector
        self._times = times
        self._lock = Lock(redis, common.key(keys.HEALTH_LOCK), life_ms=times.lock_ms)
        self._last: Selection | None = None

    async def check(self) -> Selection | None:
        """Check now; None if another check runs or ran within the throttle time. Raises
        `RedisError`."""
        if not await self._take(keys=[self._throttle], args=["1", self._times.throttle_ms]):
            return None
        token = await self._lock.acquire()
        if token is None:
            return None
        try:
            return await self._check_locked(token)
        finally:
            await self._lock.release(token)

    async def _check_locked(self, token: str) -> Selection | None:
        answers = await asyncio.gather(
            *(processor.health(self._times.limit_ms) for processor in self._processors)
        )
        at_ms = time.time_ns() // 1_000_000
        reports = {
            processor.name: report
            for processor, report in zip(self._processors, answers, strict=True)
        }
        selection = await self._selector.select(
            reports, lock_key=self._lock.key, token=token, at_ms=at_ms
        )
        if selection is None:
            logger.warning("the health check took longer than its lock; its result is dropped")
            return None
        await self._note(reports, at_ms)
        if selection != self._last:
            self._last = selection
            _log_selection(selection)
        return selection

    async def _note(self, reports: Mapping[str, HealthReport | None], at_ms: int) -> None:
        """Leave the reports for operators to read."""
        said = {
            name: report and {"failing": report.failing, "minResponseTime": report.min_response_ms}
            for name, report in reports.items()
        }
        await write_note(self._redis, keys.REPORTS, {"at": at_ms, "reports": said})


def _log_selection(selection: Selection) -> None:
    if selection.healthy:
        logger.info(
            "selected %(processor)s: %(reason)s",
            {"processor": selection.processor, "reason": selection.reason},
        )
    else:
        logger.warning(
            "selected %(processor)s (nothing is healthy): %(reason)s",
            {"processor": selection.processor, "reason": selection.reason},
        )


def make_health_check(
    settings: Settings, redis: Redis, processors: Sequence[Processor], times: Times = Times()
) -> HealthCheck:
    """The health check of a health worker."""
    return HealthCheck(
        redis,
        processors,
        Selector(redis, Limits(settings.fast_enough_ms, settings.fallback_advantage_ms)),
        times,
    )

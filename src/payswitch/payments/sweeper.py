"""The sweep: it queues open payments without a queue entry, finishes interrupted purges and folds
old entries of the ledger.

No code path relies on it. It repairs unforeseen faults and logs each repair.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.payments.purge import Purge
from payswitch.store import keys, scripts
from payswitch.store.partitions import Partition
from payswitch.text import printable

logger = logging.getLogger(__name__)

_PAGE = 500
_FOLD_PAUSE_S = 0.01
"""Between two steps of a fold; each takes Redis half a millisecond."""


class Sweeper:
    """Sweeps once in `every_ms` in the whole cluster. `fold` folds one step of the ledger and
    returns whether there is more."""

    def __init__(
        self,
        redis: Redis,
        processors: Sequence[str],
        *,
        every_ms: int,
        fold: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._processors = processors
        self._take = scripts.load(redis, "take")
        self._every_ms = every_ms
        self._sweep = scripts.load(redis, "sweep")
        self._partitions = self._sweep.partitions
        self._key = self._partitions.common.key(keys.SWEEP)
        self._purge = Purge(redis, processors)
        self._fold = fold

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(self._every_ms / 1000)
            try:
                if await self._take(keys=[self._key], args=["1", self._every_ms]):
                    await self._take_turn()
            except (RedisError, OSError):
                logger.debug("no sweep: redis is away")

    async def _take_turn(self) -> None:
        """Do all that can be done while some partitions are away."""
        for work in (self.sweep, self._purge.remove_leftovers, self._fold_until_next_turn):
            try:
                await work()
            except (RedisError, OSError):
                logger.debug("no sweep: redis is away")

    async def _fold_until_next_turn(self) -> None:
        """Fold for one turn at most; the next sweep, in any process, continues."""
        ends_at = time.monotonic() + self._every_ms / 1000
        while self._fold is not None and await self._fold() and time.monotonic() < ends_at:
            await asyncio.sleep(_FOLD_PAUSE_S)

    async def sweep(self) -> int:
        """Check every open payment, page by page; returns how many were queued again. Raises
        `RedisError` if a partition can't be swept; the others are."""
        found = await asyncio.gather(
            *map(self._sweep_partition, self._partitions), return_exceptions=True
        )
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return sum(each for each in found if isinstance(each, int))

    async def _sweep_partition(self, partition: Partition) -> int:
        first = 0
        repaired = 0
        while True:
            seen, requeued, dropped, states = await self._sweep(
                args=[first, _PAGE, *self._processors], at=partition
            )
            for job_id in requeued:
                logger.warning(
                    "payment %(payment)s had left the queue unpaid",
                    {"payment": _shown(partition, job_id)},
                )
            for job_id, state in zip(dropped, states, strict=True):
                if state:
                    logger.warning(
                        "payment %(payment)s was still in the backlog, its state being %(state)s",
                        {"payment": _shown(partition, job_id), "state": _shown(partition, state)},
                    )
                else:
                    logger.error(
                        "acknowledged payment %(payment)s has no record any more",
                        {"payment": _shown(partition, job_id)},
                    )
            repaired += len(requeued)
            first += int(seen) - len(dropped)
            if seen < _PAGE:
                return repaired


def _shown(partition: Partition, value: bytes) -> str:
    return printable(partition.correlation_id(value))

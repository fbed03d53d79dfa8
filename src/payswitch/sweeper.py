"""The sweep: every open payment without a queue entry is queued again, and what a purge could not
finish removing is removed.

No code path relies on it; it repairs what none foresaw, and says so.
"""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch import scripts
from payswitch.printable import printable
from payswitch.purge import Purge

logger = logging.getLogger(__name__)

THROTTLE_KEY = "payments:sweep"
_PAGE = 500


class Sweeper:
    """Sweeps once in `every_ms` in the whole cluster, whoever's turn it is."""

    def __init__(self, redis: Redis, *, every_ms: int) -> None:
        self._take = scripts.load(redis, "take")
        self._every_ms = every_ms
        self._sweep = scripts.load(redis, "sweep")
        self._purge = Purge(redis)

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(self._every_ms / 1000)
            try:
                if await self._take(keys=[THROTTLE_KEY], args=["1", self._every_ms]):
                    await self.sweep()
                    await self._purge.remove_leftovers()
            except (RedisError, OSError):
                logger.debug("no sweep: redis is away")

    async def sweep(self) -> int:
        """Look at every open payment, a page at a time; returns how many were queued again."""
        first = 0
        repaired = 0
        while True:
            seen, requeued, dropped, states = await self._sweep(args=[first, _PAGE])
            for correlation_id in requeued:
                logger.warning(
                    "payment %(payment)s had left the queue unpaid",
                    {"payment": _shown(correlation_id)},
                )
            for correlation_id, state in zip(dropped, states, strict=True):
                if state:
                    logger.warning(
                        "payment %(payment)s was still in the backlog, its state being %(state)s",
                        {"payment": _shown(correlation_id), "state": _shown(state)},
                    )
                else:
                    logger.error(
                        "acknowledged payment %(payment)s has no record any more",
                        {"payment": _shown(correlation_id)},
                    )
            repaired += len(requeued)
            first += int(seen) - len(dropped)
            if seen < _PAGE:
                return repaired


def _shown(value: bytes) -> str:
    return printable(value.decode(errors="backslashreplace"))

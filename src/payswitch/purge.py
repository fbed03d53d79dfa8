"""The purge: everything accepted, queued and recorded is forgotten, in flight too."""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis

from payswitch import scripts

logger = logging.getLogger(__name__)

PURGING_KEY = "payments:purging"
IN_FLIGHT_KEY = "payments:in-flight"

_CALLS_MAY_TAKE_S = 1.0
_PAGE = 2000


class Purge:
    """Begins a new generation and removes what the old ones left."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._purge = scripts.load(redis, "purge")
        self._forget = scripts.load(redis, "forget")

    async def run(self) -> int:
        """Purge: workers stop claiming, calls under way get up to 1 s to end, then the generation
        changes and the old one is removed page by page. Returns the new generation.

        A payment that finishes after that belongs to no generation and is not recorded. Raises
        `RedisError`.
        """
        await self._redis.set(PURGING_KEY, "1", px=int(_CALLS_MAY_TAKE_S * 1000) + 4000)
        try:
            async with asyncio.timeout(_CALLS_MAY_TAKE_S):
                while await self._calls_under_way():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logger.warning("purge: calls under way did not end in time and will not be recorded")
        generation = int(await self._purge())
        await self.forget()
        return generation

    async def forget(self) -> int:
        """Remove every key of earlier generations; returns how many."""
        cursor, removed = b"0", 0
        while True:
            cursor, count = await self._forget(args=[cursor, _PAGE])
            removed += int(count)
            if cursor == b"0":
                return removed

    async def _calls_under_way(self) -> int:
        seconds, microseconds = await self._redis.time()
        now = seconds * 1000 + microseconds // 1000
        return int(await self._redis.zcount(IN_FLIGHT_KEY, now, "+inf"))

"""The purge: forgets every payment, including those in flight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.payments.audit import Signature
from payswitch.store import keys, scripts
from payswitch.store.redis_clock import redis_now_ms

logger = logging.getLogger(__name__)

_CALLS_MAY_TAKE_S = 1.0
_HOLD_MS = 5000
"""If a purge dies while it waits, the workers continue after this time."""
_REMOVAL_IS_AWAITED_S = 0.2
_PAGE = 1000


class Purge:
    """Begins a new generation and removes the keys of the old ones. `limit_ms` bounds each step
    that waits for Redis."""

    def __init__(self, redis: Redis, processors: Sequence[str], *, limit_ms: int = 1200) -> None:
        self._redis = redis
        self._processors = processors
        # Below the time limit of a call: Redis never executes an abandoned call.
        self._latest_ms = limit_ms * 2 // 3
        self._limit_s = limit_ms / 1000
        self._stop_claims = scripts.load(redis, "stop_claims")
        self._purge = scripts.load(redis, "purge")
        self._forget = scripts.load(redis, "forget")
        self._delete_if = scripts.load(redis, "delete_if")
        self._removal: asyncio.Task[None] | None = None

    async def run(self, signature: Signature) -> int:
        """Begin a new generation and return its number; the audit trail gets the act. Workers
        stop claiming before, and calls under way get up to 1 s to end.

        From then on the old generation counts nowhere. Its keys are removed page by page: a small
        purge has removed them when this returns, a large one continues in the background, and the
        workers' sweep finishes after a crash. Raises `RedisError` or `TimeoutError`.
        """
        async with asyncio.timeout(self._limit_s):
            await self._stop_claims(
                args=[await redis_now_ms(self._redis) + self._latest_ms, _HOLD_MS]
            )
        try:
            async with asyncio.timeout(_CALLS_MAY_TAKE_S):
                while await self._calls_under_way():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logger.warning("purge: calls under way did not end in time and will not be recorded")
        async with asyncio.timeout(self._limit_s):
            latest = await redis_now_ms(self._redis) + self._latest_ms
            args: list[str | int] = [latest, *signature.arguments(), *self._processors]
            generation = int(await self._purge(args=args))
        if generation == 0:
            raise RedisTimeoutError("Redis took the purge too late, so nothing was purged")
        self._removal = asyncio.create_task(self._remove_in_background())
        await asyncio.wait([self._removal], timeout=_REMOVAL_IS_AWAITED_S)
        return generation

    async def remove_leftovers(self) -> int:
        """Remove every key of earlier generations; returns their number. Raises `RedisError`."""
        generation = await self._redis.get(keys.LEFTOVERS)
        if generation is None:
            return 0
        cursor, removed = b"0", 0
        while True:
            cursor, count = await self._forget(args=[cursor, _PAGE])
            removed += int(count)
            if cursor == b"0":
                break
        await self._delete_if(keys=[keys.LEFTOVERS], args=[generation])
        return removed

    async def close(self) -> None:
        """Stop the removal; the workers' sweep finishes it."""
        if self._removal is not None:
            self._removal.cancel()
            await asyncio.wait([self._removal])

    async def _remove_in_background(self) -> None:
        try:
            removed = await self.remove_leftovers()
            logger.info("purged: %(keys)d keys removed", {"keys": removed})
        except (RedisError, OSError):
            logger.warning("redis is away: the workers will remove what the purge left")

    async def _calls_under_way(self) -> int:
        return int(
            await self._redis.zcount(keys.IN_FLIGHT, await redis_now_ms(self._redis), "+inf")
        )

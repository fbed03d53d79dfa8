"""The distributed lock: one holder at a time, released only by its holder."""

from __future__ import annotations

import secrets

from redis.asyncio import Redis

from payswitch.store import scripts


class Lock:
    """`SET NX PX` (`take.lua`) with a random token, released by compare-and-delete.

    It is advisory: a holder that is frozen for longer than the lock's life has lost it, and learns
    so when it writes under its token.
    """

    def __init__(self, redis: Redis, key: str, *, life_ms: int) -> None:
        self.key = key
        self._take = scripts.load(redis, "take")
        self._life_ms = life_ms
        self._delete_if = scripts.load(redis, "delete_if")

    async def acquire(self) -> str | None:
        """Take the lock; returns its token, or None if another holder has it."""
        token = secrets.token_hex(16)
        taken = await self._take(keys=[self.key], args=[token, self._life_ms])
        return token if taken else None

    async def release(self, token: str) -> bool:
        """Release the lock; False, without effect, if the token no longer holds it."""
        return bool(await self._delete_if(keys=[self.key], args=[token]))

"""Redis' clock, the source of due times, lease ends and `requestedAt`."""

from __future__ import annotations

from redis.asyncio import Redis


async def redis_now_ms(redis: Redis) -> int:
    """Redis' time (ms since the epoch). Raises `RedisError`."""
    seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000

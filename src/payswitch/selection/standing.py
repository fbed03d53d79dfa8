"""The standing selection, as a worker follows it in a cluster: there claims can't read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.asyncio import Redis

from payswitch.store import keys
from payswitch.store.client import partitions_of
from payswitch.store.periodic import Periodic

_EVERY_S = 0.5

Standing = tuple[bytes | None, ...]
"""The values of `keys.SELECTIONS`."""


async def read_standing(redis: Redis) -> Standing:
    """Raises `RedisError` or `OSError`."""
    common = partitions_of(redis).common
    return tuple(await redis.mget([common.key(name) for name in keys.SELECTIONS]))


class StandingWatch(Periodic):
    """Hands the standing selection to `see` twice a second. While it can't be read, the last
    one stands."""

    def __init__(self, redis: Redis, see: Callable[[Standing], None]) -> None:
        super().__init__("the standing selection", _EVERY_S)
        self._redis = redis
        self._see = see
        self._is_known = asyncio.Event()

    async def turn(self) -> None:
        """Read once. Raises `RedisError` or `OSError`."""
        self._see(await read_standing(self._redis))
        self._is_known.set()

    async def until_known(self) -> None:
        """Wait until it has been read once."""
        await self._is_known.wait()

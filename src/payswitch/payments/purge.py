"""The purge: forgets every payment, including those in flight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.payments.audit import Signature
from payswitch.store import keys, scripts
from payswitch.store.errors import in_words
from payswitch.store.partitions import Argument, Partition
from payswitch.store.redis_clock import redis_now_ms
from payswitch.store.scripts import Script

logger = logging.getLogger(__name__)

_CALLS_MAY_TAKE_S = 1.0
_HOLD_MS = 5000
"""If a purge dies while it waits, the workers continue after this time."""
_REMOVAL_IS_AWAITED_S = 0.2
_PAGE = 1000


class PurgeError(RedisConnectionError):
    """Some partitions did not confirm the purge: they may hold payments of before. It may be
    repeated, which purges the others again."""

    def __init__(self, partitions: Sequence[int], reason: BaseException) -> None:
        names = ", ".join(map(str, partitions))
        super().__init__(f"partitions {names} did not confirm the purge: {in_words(reason)}")


class Purge:
    """Begins a new generation and removes the keys of the old ones. `limit_ms` bounds each step
    that waits for Redis."""

    def __init__(self, redis: Redis, processors: Sequence[str], *, limit_ms: int = 1200) -> None:
        self._processors = processors
        # Below the time limit of a call: Redis never executes an abandoned call.
        self._latest_ms = limit_ms * 2 // 3
        self._limit_s = limit_ms / 1000
        self._stop_claims = scripts.load(redis, "stop_claims")
        self._purge = scripts.load(redis, "purge")
        self._forget = scripts.load(redis, "forget")
        self._delete_if = scripts.load(redis, "delete_if")
        self._partitions = self._purge.partitions
        self._removal: asyncio.Task[None] | None = None

    async def run(self, signature: Signature) -> int:
        """Begin a new generation and return its number; the audit trail gets the act. Workers
        stop claiming before, and calls under way get up to 1 s to end.

        From then on the old generation counts nowhere. Its keys are removed page by page: a small
        purge has removed them when this returns, a large one continues in the background, and the
        workers' sweep finishes after a crash. Raises `RedisError` or `TimeoutError`.
        """
        await self._each(self._stop_claims, lambda _: [_HOLD_MS])
        try:
            async with asyncio.timeout(_CALLS_MAY_TAKE_S):
                while await self._calls_under_way():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logger.warning("purge: calls under way did not end in time and will not be recorded")
        generations = await self._each(self._purge, partial(self._arguments, signature))
        self._removal = asyncio.create_task(self._remove_in_background())
        await asyncio.wait([self._removal], timeout=_REMOVAL_IS_AWAITED_S)
        return max(generations)

    def _arguments(self, signature: Signature, partition: Partition) -> list[Argument]:
        """Of `purge.lua`; the trail of one partition has the act of all."""
        act = "purge" if partition is self._partitions[0] else ""
        return [act, *signature.arguments(), *self._processors]

    async def _each(
        self, script: Script, arguments: Callable[[Partition], Sequence[Argument]]
    ) -> list[int]:
        """The script's answer for every partition. Each node judges by its own clock whether it is
        too late. Raises `PurgeError`, or with one partition its own error."""

        async def call(partition: Partition) -> int:
            async with asyncio.timeout(self._limit_s):
                latest = await redis_now_ms(partition.redis) + self._latest_ms
                args = [latest, *arguments(partition)]
                answer = int(await script(args, at=partition, confirm=True))
            if answer == 0:
                raise RedisTimeoutError("Redis took the purge too late, so nothing was purged")
            return answer

        found = await asyncio.gather(*map(call, self._partitions), return_exceptions=True)
        failed = {
            each.number: error
            for each, error in zip(self._partitions, found, strict=True)
            if isinstance(error, BaseException)
        }
        if failed:
            first = next(iter(failed.values()))
            if len(self._partitions) == 1 or not isinstance(first, RedisError | OSError):
                raise first
            raise PurgeError(tuple(failed), first)
        return [answer for answer in found if isinstance(answer, int)]

    async def remove_leftovers(self) -> int:
        """Remove every key of earlier generations; returns their number. Raises `RedisError`."""
        found = await asyncio.gather(
            *map(self._remove_leftovers, self._partitions), return_exceptions=True
        )
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return sum(each for each in found if isinstance(each, int))

    async def _remove_leftovers(self, partition: Partition) -> int:
        leftovers = partition.key(keys.LEFTOVERS)
        generation = await partition.redis.get(leftovers)
        if generation is None:
            return 0
        cursor, removed = b"0", 0
        while True:
            cursor, count = await self._forget(args=[cursor, _PAGE], at=partition)
            removed += int(count)
            if cursor == b"0":
                break
        await self._delete_if(keys=[leftovers], args=[generation], at=partition)
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
        async def count(partition: Partition) -> int:
            now = await redis_now_ms(partition.redis)
            return int(await partition.redis.zcount(partition.key(keys.IN_FLIGHT), now, "+inf"))

        return sum(await asyncio.gather(*map(count, self._partitions)))

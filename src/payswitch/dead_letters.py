"""Dead letters: payments that could not be paid, for operators to list, look into and put back."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncIterator, Sequence

from redis.asyncio import Redis

from payswitch import scripts
from payswitch.full_records import FullRecord, read_records
from payswitch.queue import job_bytes

DEAD_KEY = "payments:dead"

_PAGE = 500
"""Payments in one call: Redis serves others in between, and it bounds what Lua unpacks."""


class Replay(enum.Enum):
    """What became of an attempt to replay a payment; all but the first have changed nothing."""

    REPLAYED = "replayed"
    QUEUED = "queued"
    PROCESSING = "processing"
    SETTLED = "settled"
    UNKNOWN = "unknown"
    """There is no such payment, or it was purged."""
    BROKEN = "broken"
    """Redis holds something else under the payment's key."""


class DeadLetters:
    """The dead letters of one Redis. Every method raises `RedisError` or `OSError` where Redis
    can't be asked."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._replay = scripts.load(redis, "replay")

    async def count(self) -> int:
        """How many there are."""
        return int(await self._redis.zcard(DEAD_KEY))

    async def newest(self, limit: int) -> list[FullRecord]:
        """Up to `limit` dead letters, the one that died last first."""
        found: list[FullRecord] = []
        for first in range(0, limit, _PAGE):
            last = min(first + _PAGE, limit) - 1
            ids = [key.decode() for key in await self._redis.zrevrange(DEAD_KEY, first, last)]
            if not ids:
                break
            records = await read_records(self._redis, ids)
            found += [record for record in records if record is not None]
        return found

    async def find(self, correlation_id: str) -> FullRecord | None:
        """What is known of a payment, whatever its state; None where it is unknown."""
        [record] = await read_records(self._redis, [correlation_id])
        return record

    async def replay(self, correlation_ids: Sequence[str]) -> AsyncIterator[dict[str, Replay]]:
        """Put dead letters back into the backlog, due at once; yields what became of each id, page
        by page.

        Their processors are asked first, so what was paid after all is settled and not sent again.
        Raises `OutOfMemoryError` where Redis has no memory left: then that page has changed
        nothing.
        """
        unique = list(dict.fromkeys(correlation_ids))
        for first in range(0, len(unique), _PAGE):
            yield await self._replay_page(unique[first : first + _PAGE])

    async def replay_all(self) -> AsyncIterator[dict[str, Replay]]:
        """Replay what is dead now, the oldest first; yields after each page.

        One that dies again meanwhile is the last of all, and not replayed again.
        """
        to_see = await self.count()
        left = 0  # what can't be replayed stays, before all others
        while to_see > 0:
            last = left + min(_PAGE, to_see) - 1
            page = await self._redis.zrange(DEAD_KEY, left, last)
            if not page:
                return
            verdicts = await self._replay_page([key.decode() for key in page])
            left += sum(verdict is not Replay.REPLAYED for verdict in verdicts.values())
            to_see -= len(page)
            yield verdicts

    async def _replay_page(self, ids: Sequence[str]) -> dict[str, Replay]:
        enqueued_at = time.time_ns() // 1_000_000
        args: list[str | bytes] = []
        for correlation_id in ids:
            args += (correlation_id, job_bytes(correlation_id, enqueued_at))
        verdicts = [Replay(verdict.decode()) for verdict in await self._replay(args=args)]
        return dict(zip(ids, verdicts, strict=True))

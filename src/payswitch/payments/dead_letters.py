"""Dead letters: payments that could not be paid, for operators to list, inspect and replay."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncIterator, Sequence

from redis.asyncio import Redis

from payswitch.payments.accepting import job_bytes
from payswitch.payments.records import Record, Unreadable, read_record, read_records
from payswitch.store import keys, scripts

_PAGE = 500
"""Payments in one call: Redis serves other clients in between, and Lua can unpack so many."""


class Replay(enum.Enum):
    """The verdict on a replayed id; only `REPLAYED` changes anything."""

    REPLAYED = "replayed"
    QUEUED = "queued"
    PROCESSING = "processing"
    SETTLED = "settled"
    DECLINED = "declined"
    UNKNOWN = "unknown"
    """There is no such payment, or it was purged."""
    BROKEN = "broken"
    """Redis holds something else under the payment's key."""


class DeadLetters:
    """The dead letters of one Redis. Every method raises `RedisError` or `OSError` if Redis fails
    or can't be reached."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._replay = scripts.load(redis, "replay")

    async def count(self) -> int:
        """The number of dead letters."""
        return int(await self._redis.zcard(keys.DEAD))

    async def newest(self, limit: int) -> list[Record | Unreadable]:
        """Up to `limit` dead letters, the newest first."""
        return [letter async for page in self.pages(limit) for letter in page]

    async def pages(self, limit: int) -> AsyncIterator[list[Record | Unreadable]]:
        """The same, page by page; each page is read when the caller asks for it."""
        for first in range(0, limit, _PAGE):
            last = min(first + _PAGE, limit) - 1
            ids = await self._redis.zrevrange(keys.DEAD, first, last)
            if not ids:
                return
            records = await read_records(self._redis, ids)
            yield [record or _without_record(key) for key, record in zip(ids, records, strict=True)]

    async def find(self, correlation_id: str) -> Record | Unreadable | None:
        """The record of a payment in any state; None if there is none."""
        record = await read_record(self._redis, correlation_id)
        if record is None and await self._redis.zscore(keys.DEAD, correlation_id) is not None:
            return _without_record(correlation_id.encode())
        return record

    async def replay(self, correlation_ids: Sequence[str]) -> AsyncIterator[dict[str, Replay]]:
        """Put dead letters back into the backlog, due at once; yields the verdict on each id, page
        by page.

        A worker asks their processors first, so a payment that was paid after all is settled and
        not sent again. Raises `OutOfMemoryError` if Redis is full: then that page changed nothing.
        """
        unique = list(dict.fromkeys(correlation_ids))
        for first in range(0, len(unique), _PAGE):
            yield await self._replay_page(unique[first : first + _PAGE])

    async def replay_all(self) -> AsyncIterator[dict[str, Replay]]:
        """Replay all current dead letters, the oldest first; yields after each page.

        A payment that dies again meanwhile moves to the end and is not replayed again.
        """
        to_see = await self.count()
        stayed: list[tuple[bytes, float]] = []  # not replayable, so still before all others
        while to_see > 0:
            page = await self._after(stayed, min(_PAGE, to_see))
            if not page:
                return
            verdicts = await self._replay_page([_text(key) for key, _ in page])
            stayed += [entry for entry in page if verdicts[_text(entry[0])] is not Replay.REPLAYED]
            to_see -= len(page)
            yield verdicts

    async def _after(
        self, stayed: list[tuple[bytes, float]], limit: int
    ) -> list[tuple[bytes, float]]:
        """Up to `limit` dead letters, with their instants, after those that stayed. Any of these
        may leave meanwhile; the last one that is still there marks the place to continue."""
        while stayed:
            rank = await self._redis.zrank(keys.DEAD, stayed[-1][0])
            if rank is None:
                stayed.pop()
                continue
            page = await self._page(rank, limit + 1)
            if page and page[0] == stayed[-1]:
                return page[1:]
            if page and page[0][0] == stayed[-1][0]:  # it died again, at another instant
                stayed.pop()
        return await self._page(0, limit)

    async def _page(self, first: int, limit: int) -> list[tuple[bytes, float]]:
        return list(await self._redis.zrange(keys.DEAD, first, first + limit - 1, withscores=True))

    async def _replay_page(self, ids: Sequence[str]) -> dict[str, Replay]:
        enqueued_at = time.time_ns() // 1_000_000
        args: list[str | bytes] = []
        for correlation_id in ids:
            args += (correlation_id, job_bytes(correlation_id, enqueued_at))
        verdicts = [Replay(verdict.decode()) for verdict in await self._replay(args=args)]
        return dict(zip(ids, verdicts, strict=True))


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _without_record(key: bytes) -> Unreadable:
    return Unreadable(_text(key), "it has no record")

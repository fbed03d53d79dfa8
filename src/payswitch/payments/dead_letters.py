"""Dead letters: payments that could not be paid, for operators to list, look into and put back."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncIterator, Sequence

from redis.asyncio import Redis

from payswitch.payments.accepting import job_bytes
from payswitch.payments.records import Record, Unreadable, read_record, read_records
from payswitch.store import keys, scripts

_PAGE = 500
"""Payments in one call: Redis serves others in between, and it bounds what Lua unpacks."""


class Replay(enum.Enum):
    """What a replay has done; only the first changes something."""

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
        return int(await self._redis.zcard(keys.DEAD))

    async def newest(self, limit: int) -> list[Record | Unreadable]:
        """Up to `limit` dead letters, the one that died last first."""
        return [letter async for page in self.pages(limit) for letter in page]

    async def pages(self, limit: int) -> AsyncIterator[list[Record | Unreadable]]:
        """The same, page by page: each is read when it is asked for."""
        for first in range(0, limit, _PAGE):
            last = min(first + _PAGE, limit) - 1
            ids = await self._redis.zrevrange(keys.DEAD, first, last)
            if not ids:
                return
            records = await read_records(self._redis, ids)
            yield [record or _without_record(key) for key, record in zip(ids, records, strict=True)]

    async def find(self, correlation_id: str) -> Record | Unreadable | None:
        """What is known of a payment, whatever its state; None where it is unknown."""
        record = await read_record(self._redis, correlation_id)
        if record is None and await self._redis.zscore(keys.DEAD, correlation_id) is not None:
            return _without_record(correlation_id.encode())
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
        stayed: list[tuple[bytes, float]] = []  # what can't be replayed stays, before all others
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
        """Up to `limit` dead letters, with their instants, after those that were seen and stayed.
        Any of these may leave meanwhile; the last one that is still there tells where to go on."""
        while stayed:
            rank = await self._redis.zrank(keys.DEAD, stayed[-1][0])
            if rank is None:
                stayed.pop()
                continue
            page = await self._page(rank, limit + 1)
            if page and page[0] == stayed[-1]:
                return page[1:]
            if page and page[0][0] == stayed[-1][0]:  # it has died anew
                stayed.pop()
        return await self._page(0, limit)

    async def _page(self, first: int, limit: int) -> list[tuple[bytes, float]]:
        return [
            (key, score)
            for key, score in await self._redis.zrange(
                keys.DEAD, first, first + limit - 1, withscores=True
            )
        ]

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

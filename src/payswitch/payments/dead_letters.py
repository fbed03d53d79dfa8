"""Dead letters: payments that could not be paid, for operators to list, replay and resolve."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from payswitch.payments.accepting import job_bytes
from payswitch.payments.audit import Signature
from payswitch.payments.ids import random_id
from payswitch.payments.records import Record, Unreadable, read_record, read_records
from payswitch.store import keys, scripts
from payswitch.store.redis_clock import redis_now_ms

_PAGE = 500
"""Payments in one call: Redis serves other clients in between, and Lua can unpack so many."""

_Entry = tuple[bytes, float]
"""A dead letter's id and the instant of its death (ms)."""

Letter = Record | Unreadable


class Handling(enum.Enum):
    """The verdict on a dead letter that was to be replayed or resolved; only `DONE` changes
    anything."""

    DONE = "done"
    QUEUED = "queued"
    PROCESSING = "processing"
    SETTLED = "settled"
    DECLINED = "declined"
    RESOLVED = "resolved"
    """An operator resolved it before."""
    UNKNOWN = "unknown"
    """There is no such payment, or it was purged."""
    BROKEN = "broken"
    """Redis holds something else under the payment's key."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; None is no condition."""

    reason: str | None = None
    """A part of the reason, in any case."""
    processor: str | None = None
    """The pin; `none` for payments that were never sent."""
    older_than_ms: int | None = None
    younger_than_ms: int | None = None

    @property
    def needs_records(self) -> bool:
        """Whether more than the instant of death decides."""
        return self.reason is not None or self.processor is not None

    def takes(self, letter: Letter) -> bool:
        """Whether reason and processor fit. An unreadable record has neither."""
        if not self.needs_records:
            return True
        if isinstance(letter, Unreadable):
            return False
        reason, processor = letter.reason or "", letter.processor or "none"
        return (self.reason or "").casefold() in reason.casefold() and (
            self.processor in (None, processor)
        )

    def deaths(self, now_ms: int) -> tuple[float, float]:
        """The first and the last instant of death (ms) that fit at this time."""
        young, old = self.younger_than_ms, self.older_than_ms
        return (
            float("-inf") if young is None else now_ms - young,
            float("inf") if old is None else now_ms - old,
        )


ALL = Filter()


class DeadLetters:
    """The dead letters of one Redis. Every method raises `RedisError` or `OSError` if Redis fails
    or can't be reached."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._replay = scripts.load(redis, "replay")
        self._resolve = scripts.load(redis, "resolve")

    async def count(self) -> int:
        """The number of dead letters that nobody has resolved."""
        return int(await self._redis.zcard(keys.DEAD))

    async def newest(self, limit: int, wanted: Filter = ALL) -> list[Letter]:
        """Up to `limit` dead letters, the newest first."""
        return [letter async for page in self.pages(limit, wanted) for letter in page]

    async def pages(self, limit: int, wanted: Filter = ALL) -> AsyncIterator[list[Letter]]:
        """The same, page by page; each page is read when the caller asks for it."""
        first_death, last_death = wanted.deaths(await redis_now_ms(self._redis))
        async for page in self._in_pages(keys.DEAD, first_death, last_death, limit, wanted):
            yield page

    async def resolved(self, limit: int, retention_ms: int) -> list[Letter]:
        """Up to `limit` dead letters that were resolved within the retention, the last first."""
        since = await redis_now_ms(self._redis) - retention_ms
        pages = self._in_pages(keys.RESOLVED, since, float("inf"), limit, ALL)
        return [letter async for page in pages for letter in page]

    async def _in_pages(
        self, key: str, first: float, last: float, limit: int, wanted: Filter
    ) -> AsyncIterator[list[Letter]]:
        """Up to `limit` members with scores from `first` to `last`, the highest first."""
        start, left = 0, limit
        while left > 0:
            count = _PAGE if wanted.needs_records else min(_PAGE, left)
            ids = await self._redis.zrevrangebyscore(key, last, first, start, count)
            if not ids:
                return
            records = await read_records(self._redis, ids)
            letters = [
                record or _without_record(each) for each, record in zip(ids, records, strict=True)
            ]
            found = [letter for letter in letters if wanted.takes(letter)][:left]
            if found:
                yield found
            start += len(ids)
            left -= len(found)

    async def find(self, correlation_id: str) -> Letter | None:
        """The record of a payment in any state; None if there is none."""
        record = await read_record(self._redis, correlation_id)
        if record is None and await self._redis.zscore(keys.DEAD, correlation_id) is not None:
            return _without_record(correlation_id.encode())
        return record

    async def resolve(
        self, correlation_ids: Sequence[str], signature: Signature, *, retention_ms: int
    ) -> dict[str, Handling]:
        """Note that an operator has settled these matters outside. Each payment stays dead and its
        record expires after `retention_ms`."""
        verdicts: dict[str, Handling] = {}
        unique = list(dict.fromkeys(correlation_ids))
        for first in range(0, len(unique), _PAGE):
            ids = unique[first : first + _PAGE]
            verdicts |= _verdicts(
                ids, await self._resolve(args=[retention_ms, *signature.arguments(), *ids])
            )
        return verdicts

    async def replay(
        self, correlation_ids: Sequence[str], signature: Signature, *, even_resolved: bool = False
    ) -> AsyncIterator[dict[str, Handling]]:
        """Put dead letters back into the backlog, due at once; yields the verdict on each id, page
        by page. `even_resolved` takes resolved ones as well: they may be paid twice.

        A worker asks their processors first, so a payment that was paid after all is settled and
        not sent again. Raises `OutOfMemoryError` if Redis is full: then that page changed nothing.
        """
        unique = list(dict.fromkeys(correlation_ids))
        for first in range(0, len(unique), _PAGE):
            page = unique[first : first + _PAGE]
            yield await self._replay_page(page, signature, even_resolved=even_resolved)

    async def replay_all(
        self, signature: Signature, wanted: Filter = ALL
    ) -> AsyncIterator[dict[str, Handling]]:
        """Replay all current dead letters that `wanted` takes, the oldest first; yields after each
        page.

        A payment that dies again meanwhile moves to the end and is not replayed again.
        """
        deaths = wanted.deaths(await redis_now_ms(self._redis))
        to_see = await self.count()
        stayed: list[_Entry] = []  # not replayed, so still before all others
        while to_see > 0:
            page = await self._after(stayed, min(_PAGE, to_see))
            if not page:
                return
            ids = await self._wanted(page, deaths, wanted)
            verdicts = await self._replay_page(ids, signature) if ids else {}
            stayed += [
                entry for entry in page if verdicts.get(_text(entry[0])) is not Handling.DONE
            ]
            to_see -= len(page)
            yield verdicts

    async def _wanted(
        self, page: Sequence[_Entry], deaths: tuple[float, float], wanted: Filter
    ) -> list[str]:
        """The ids of the entries that the filter takes."""
        ids = [key for key, died_at in page if deaths[0] <= died_at <= deaths[1]]
        if not wanted.needs_records:
            return [_text(key) for key in ids]
        records = await read_records(self._redis, ids)
        return [
            _text(key)
            for key, record in zip(ids, records, strict=True)
            if record is not None and wanted.takes(record)
        ]

    async def _after(self, stayed: list[_Entry], limit: int) -> list[_Entry]:
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

    async def _page(self, first: int, limit: int) -> list[_Entry]:
        return list(await self._redis.zrange(keys.DEAD, first, first + limit - 1, withscores=True))

    async def _replay_page(
        self, ids: Sequence[str], signature: Signature, *, even_resolved: bool = False
    ) -> dict[str, Handling]:
        enqueued_at = time.time_ns() // 1_000_000
        args: list[str | bytes | int] = [*signature.arguments(), int(even_resolved)]
        for correlation_id in ids:
            args += (correlation_id, job_bytes(correlation_id, enqueued_at), random_id())
        return _verdicts(ids, await self._replay(args=args))


def _verdicts(ids: Sequence[str], answer: Sequence[Any]) -> dict[str, Handling]:
    return dict(zip(ids, (Handling(verdict.decode()) for verdict in answer), strict=True))


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _without_record(key: bytes) -> Unreadable:
    return Unreadable(_text(key), "it has no record")

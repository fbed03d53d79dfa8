"""Dead letters: payments that could not be paid, for operators to list, replay and resolve."""

from __future__ import annotations

import asyncio
import enum
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from payswitch.payments.accepting import job_bytes
from payswitch.payments.audit import Signature
from payswitch.payments.ids import random_id
from payswitch.payments.records import Record, Unreadable, read_record, read_records
from payswitch.store import keys, scripts
from payswitch.store.partitions import Argument, Partition
from payswitch.store.redis_clock import redis_now_ms
from payswitch.store.scripts import Script

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
    """The dead letters of all partitions; what is told of them is confirmed. Every method raises
    `RedisError` or `OSError` if Redis fails or can't be reached."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._replay = scripts.load(redis, "replay")
        self._resolve = scripts.load(redis, "resolve")
        self._partitions = self._replay.partitions

    async def count(self) -> int:
        """The number of dead letters that nobody has resolved."""
        counts = await asyncio.gather(
            *(each.redis.zcard(each.key(keys.DEAD)) for each in self._partitions)
        )
        return sum(map(int, counts))

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
        starts, left = Counter[Partition](), limit
        while left > 0:
            count = _PAGE if wanted.needs_records else min(_PAGE, left)
            taken = await self._highest(key, (first, last), starts, count)
            if not taken:
                return
            ids = [partition.correlation_id(job_id) for partition, (job_id, _) in taken]
            records = await read_records(self._redis, ids, confirm=True)
            letters = [
                record or _without_record(each) for each, record in zip(ids, records, strict=True)
            ]
            found = [letter for letter in letters if wanted.takes(letter)][:left]
            if found:
                yield found
            starts.update(partition for partition, _ in taken)
            left -= len(found)

    async def _highest(
        self, key: str, scores: tuple[float, float], starts: Counter[Partition], count: int
    ) -> list[tuple[Partition, _Entry]]:
        """The next `count` entries of all partitions, of which `starts` were seen."""
        first, last = scores
        found = await asyncio.gather(
            *(
                each.redis.zrevrangebyscore(
                    each.key(key), last, first, starts[each], count, withscores=True
                )
                for each in self._partitions
            )
        )
        pairs = zip(self._partitions, found, strict=True)
        entries = [(partition, entry) for partition, own in pairs for entry in own]
        entries.sort(key=lambda each: each[1][1], reverse=True)
        return entries[:count]

    async def find(self, correlation_id: str) -> Letter | None:
        """The record of a payment in any state; None if there is none."""
        record = await read_record(self._redis, correlation_id, confirm=True)
        partition = self._partitions.of(correlation_id)
        job_id = partition.job_id(correlation_id)
        if record is None:
            died_at = await partition.redis.zscore(partition.key(keys.DEAD), job_id)
            return None if died_at is None else _without_record(correlation_id)
        return record

    async def resolve(
        self, correlation_ids: Sequence[str], signature: Signature, *, retention_ms: int
    ) -> dict[str, Handling]:
        """Note that an operator has settled these matters outside. Each payment stays dead and its
        record expires after `retention_ms`."""

        def arguments(partition: Partition, ids: list[str]) -> list[str | int]:
            return [retention_ms, *signature.arguments(), *map(partition.job_id, ids)]

        verdicts: dict[str, Handling] = {}
        unique = list(dict.fromkeys(correlation_ids))
        for first in range(0, len(unique), _PAGE):
            ids = unique[first : first + _PAGE]
            verdicts |= await self._handle(self._resolve, ids, arguments)
        return verdicts

    async def replay(
        self, correlation_ids: Sequence[str], signature: Signature, *, even_resolved: bool = False
    ) -> AsyncIterator[dict[str, Handling]]:
        """Put dead letters back into the backlog, due at once; yields the verdict on each id, page
        by page. `even_resolved` takes resolved ones as well: they may be paid twice.

        A worker asks their processors first, so a payment that was paid after all is settled and
        not sent again. Raises `OutOfMemoryError` if Redis is full: then that page changed nothing
        there.
        """
        unique = list(dict.fromkeys(correlation_ids))
        for first in range(0, len(unique), _PAGE):
            page = unique[first : first + _PAGE]
            yield await self._replay_page(page, signature, even_resolved=even_resolved)

    async def replay_all(
        self, signature: Signature, wanted: Filter = ALL
    ) -> AsyncIterator[dict[str, Handling]]:
        """Replay all current dead letters that `wanted` takes, the oldest of a partition first;
        yields after each page.

        A payment that dies again meanwhile moves to the end and is not replayed again.
        """
        deaths = wanted.deaths(await redis_now_ms(self._redis))
        for partition in self._partitions:
            async for verdicts in self._replay_partition(partition, signature, deaths, wanted):
                yield verdicts

    async def _replay_partition(
        self,
        partition: Partition,
        signature: Signature,
        deaths: tuple[float, float],
        wanted: Filter,
    ) -> AsyncIterator[dict[str, Handling]]:
        to_see = int(await partition.redis.zcard(partition.key(keys.DEAD)))
        stayed: list[_Entry] = []  # not replayed, so still before all others
        while to_see > 0:
            page = await _after(partition, stayed, min(_PAGE, to_see))
            if not page:
                return
            ids = await self._wanted(partition, page, deaths, wanted)
            verdicts = await self._replay_page(ids, signature) if ids else {}
            stayed += [
                entry
                for entry in page
                if verdicts.get(partition.correlation_id(entry[0])) is not Handling.DONE
            ]
            to_see -= len(page)
            yield verdicts

    async def _wanted(
        self,
        partition: Partition,
        page: Sequence[_Entry],
        deaths: tuple[float, float],
        wanted: Filter,
    ) -> list[str]:
        """The ids of the entries that the filter takes."""
        ids = [
            partition.correlation_id(job_id)
            for job_id, died_at in page
            if deaths[0] <= died_at <= deaths[1]
        ]
        if not wanted.needs_records:
            return ids
        records = await read_records(self._redis, ids)
        return [
            each
            for each, record in zip(ids, records, strict=True)
            if record is not None and wanted.takes(record)
        ]

    async def _replay_page(
        self, ids: Sequence[str], signature: Signature, *, even_resolved: bool = False
    ) -> dict[str, Handling]:
        enqueued_at = time.time_ns() // 1_000_000

        def arguments(partition: Partition, own: list[str]) -> list[Argument]:
            args: list[Argument] = [*signature.arguments(), int(even_resolved)]
            for correlation_id in own:
                job = job_bytes(correlation_id, enqueued_at)
                args += (partition.job_id(correlation_id), job, random_id())
            return args

        return await self._handle(self._replay, ids, arguments)

    async def _handle(
        self,
        script: Script,
        ids: Sequence[str],
        arguments: Callable[[Partition, list[str]], Sequence[Argument]],
    ) -> dict[str, Handling]:
        items = [(self._partitions.of(each), each) for each in ids]
        found = await scripts.call_grouped(script, items, arguments, _handlings, confirm=True)
        return dict(zip(ids, scripts.require_all(found), strict=True))


async def _after(partition: Partition, stayed: list[_Entry], limit: int) -> list[_Entry]:
    """Up to `limit` dead letters, with their instants, after those that stayed. Any of these may
    leave meanwhile; the last one that is still there marks the place to continue."""
    while stayed:
        rank = await partition.redis.zrank(partition.key(keys.DEAD), stayed[-1][0])
        if rank is None:
            stayed.pop()
            continue
        page = await _page(partition, rank, limit + 1)
        if page and page[0] == stayed[-1]:
            return page[1:]
        if page and page[0][0] == stayed[-1][0]:  # it died again, at another instant
            stayed.pop()
    return await _page(partition, 0, limit)


async def _page(partition: Partition, first: int, limit: int) -> list[_Entry]:
    key = partition.key(keys.DEAD)
    return list(await partition.redis.zrange(key, first, first + limit - 1, withscores=True))


def _handlings(_: list[str], answer: Any) -> list[Handling]:
    return [Handling(verdict.decode()) for verdict in answer]


def _without_record(correlation_id: str) -> Unreadable:
    return Unreadable(correlation_id, "it has no record")

"""Reconciliation: compares our ledger with the processors' books, total by total, and payment by
payment where totals differ.

A running system changes meanwhile. So the compared window ends when the comparison begins, and a
difference counts only if it is still there after a pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from payswitch.instants import EARLIEST_MS, LATEST_MS
from payswitch.money import Total
from payswitch.operations.comparison import (
    Difference,
    Differing,
    Unexplained,
    Window,
    compared_windows,
    judge,
    may_differ,
    unexplained,
)
from payswitch.payments.incidents import Incident, read_incidents
from payswitch.payments.ledger import Ledger
from payswitch.payments.records import Record, Unreadable, read_records
from payswitch.processors.connector import Instruction
from payswitch.processors.outcomes import Found, Unclear
from payswitch.processors.processor import CannotAskError, Processor
from payswitch.store import keys
from payswitch.store.client import partitions_of
from payswitch.store.partitions import Partition
from payswitch.store.redis_clock import redis_now_ms
from payswitch.store.scanning import pages
from payswitch.store.together import together

_Entry = tuple[Partition, bytes]
"""A payment's partition and its id there."""
_UNPAID = {keys.OPEN: "in the backlog", keys.DEAD: "among the dead letters"}
_PAGE = 1000
_FIND_AT_ONCE = 50
_SUMMARIES_AT_ONCE = 8
_FIND_TRIES = 4
_FIND_PAUSE_S = 0.25
_MOST_WINDOWS = 64
"""If more windows differ than this, they are narrowed down no further."""
_LOOKS = 5
"""The number of comparisons of totals that change meanwhile."""
_LATER_MS = 60_000
"""So long after now none of our payments can have been requested, even in a long comparison."""


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """The result of a comparison."""

    windows: Sequence[Window]
    ours: Mapping[str, Total]
    theirs: Mapping[str, Total]
    without_totals: Sequence[str]
    """Processors whose connector can't ask for totals: only their payments are compared."""
    payments: Sequence[Differing]
    unexplained: Sequence[Unexplained]
    incidents: Sequence[Incident]
    unreadable: Sequence[Unreadable]
    """Of all time: their instants are unknown."""

    @property
    def equal(self) -> bool:
        """Whether everything agrees."""
        return self.ours == self.theirs and not (
            self.payments or self.unexplained or self.incidents or self.unreadable
        )


class Reconciliation:
    """Compares one ledger with its processors' books. The payments of a processor that can't tell
    totals are looked up with those that differ elsewhere, or all of them if thorough."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        processors: Mapping[str, Processor],
        *,
        pause_s: float = 1.5,
        on_looked_up: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._redis = redis
        self._partitions = partitions_of(redis)
        self._ledger = ledger
        self._processors = processors
        self._with_totals = [name for name, each in processors.items() if each.tells_totals]
        self._pause_s = pause_s
        self._on_looked_up = on_looked_up
        self._summaries = asyncio.Semaphore(_SUMMARIES_AT_ONCE)
        self._finds = asyncio.Semaphore(_FIND_AT_ONCE)

    async def run(
        self, first_ms: int | None, last_ms: int | None, *, thorough: bool = False
    ) -> ReconcileReport:
        """Compare everything requested from `first_ms` to `last_ms`, both inclusive; None is no
        bound. If the ledger was folded there, bounds move outwards to whole entries; the report has
        the windows that were compared. With `thorough`, look up every payment, even if totals
        agree: errors may cancel out.

        Raises `CannotAskError`, `RedisError` or `OSError`.
        """
        now = await redis_now_ms(self._redis)
        asked = compared_windows(
            first_ms, last_ms, now, ends=Window(EARLIEST_MS, LATEST_MS), gap_ms=_LATER_MS
        )
        windows = [(await self._sum_here(each))[0] for each in asked]
        totals, differences = await self._compare_totals(windows)
        payments, unreadable = await self._compare_payments(
            windows, windows if thorough else [each.window for each in differences]
        )
        return ReconcileReport(
            windows=windows,
            ours={
                name: sum((each.ours for each in totals if each.processor == name), Total())
                for name in self._with_totals
            },
            theirs={
                name: sum((each.theirs for each in totals if each.processor == name), Total())
                for name in self._with_totals
            },
            without_totals=[name for name in self._processors if name not in self._with_totals],
            payments=payments,
            unexplained=unexplained(totals, differences, payments),
            incidents=[
                incident
                for incident in await read_incidents(self._redis)
                if incident.requested_at is None
                or any(window.holds(incident.requested_at) for window in windows)
            ],
            unreadable=unreadable,
        )

    async def _compare_totals(
        self, windows: Sequence[Window]
    ) -> tuple[list[Difference], list[Difference]]:
        """The totals of every processor and window, and the narrow windows that differ."""
        whole = [(name, window) for name in self._with_totals for window in windows]
        totals = await self._measure(whole)
        for _ in range(_LOOKS):
            if not (wide := _differing(totals)):
                return totals, []
            narrow = await self._narrow(wide)
            await asyncio.sleep(self._pause_s)
            totals = await self._measure(whole)
            narrow = _differing(
                await self._measure([(each.processor, each.window) for each in narrow])
            )
            if _missing_here(totals) == _missing_here(narrow):
                return totals, narrow
        return totals, _differing(totals)

    async def _narrow(self, wide: Iterable[Difference]) -> list[Difference]:
        """Bisect the windows that differ, down to the ledger's entries (a millisecond, or more if
        folded), but to about `_MOST_WINDOWS` at most."""
        found: list[Difference] = []
        level = list(wide)
        while level and len(found) + len(level) <= _MOST_WINDOWS:
            halves: list[tuple[str, Window]] = []
            for each in level:
                middle = each.window.middle
                entry, _ = await self._sum_here(Window(middle, middle))
                cut = each.window.cut(entry)
                halves += [(each.processor, half) for half in cut]
                found += [] if cut else [each]
            level = _differing(await self._measure(halves))
        return found + level

    async def _sum_here(self, window: Window) -> tuple[Window, dict[str, Total]]:
        """The window, moved outwards to whole entries of the ledger, and our totals in it."""
        found = await self._ledger.window(window.first, window.last)
        assert found.first is not None
        assert found.last is not None
        return Window(found.first, found.last), found.totals

    async def _measure(self, asked: Sequence[tuple[str, Window]]) -> list[Difference]:
        return await together(self._measure_one(*each) for each in asked)

    async def _measure_one(self, name: str, window: Window) -> Difference:
        async with self._summaries:
            summed, ours = await self._sum_here(window)
            theirs = await self._processors[name].total(summed.first, summed.last)
        return Difference(name, summed, ours[name], theirs)

    async def _compare_payments(
        self, windows: Sequence[Window], differing: Sequence[Window]
    ) -> tuple[list[Differing], list[Unreadable]]:
        """The payments that differ, and those whose record is gone or spoilt, both now and after a
        pause."""
        suspects = list(await self._suspects(windows, differing))
        if not suspects:
            return [], []
        await asyncio.sleep(self._pause_s)
        payments: list[Differing] = []
        unreadable: list[Unreadable] = []
        for first in range(0, len(suspects), _PAGE):
            entries = suspects[first : first + _PAGE]
            records = await self._read(entries)
            payments += await self._look_up(
                record for record in records if isinstance(record, Record)
            )
            unreadable += [record for record in records if isinstance(record, Unreadable)]
            unreadable += await self._without_record(
                [each for each, record in zip(entries, records, strict=True) if record is None]
            )
        return [each for each in payments if each.lies_in(windows)], unreadable

    async def _suspects(
        self, windows: Sequence[Window], differing: Sequence[Window]
    ) -> dict[_Entry, None]:
        """The payments that seem to differ, each once: a scan may return a key twice."""
        found: dict[_Entry, None] = {}
        async for entries, are_unpaid in self._pages(everything=bool(differing)):
            records = await self._read(entries)
            differ = await self._look_up(
                record
                for record in records
                if isinstance(record, Record)
                and not (differing and are_unpaid)  # they come again, among all records
                and may_differ(record, differing, windows)
            )
            differing_ids = {each.record.correlation_id for each in differ}
            found |= dict.fromkeys(
                each
                for each, record in zip(entries, records, strict=True)
                if isinstance(record, Unreadable)
                or (are_unpaid and record is None)
                or (record is not None and record.correlation_id in differing_ids)
            )
            self._on_looked_up(len(entries))
        return found

    async def _read(self, entries: Sequence[_Entry]) -> list[Record | Unreadable | None]:
        ids = [partition.correlation_id(job_id) for partition, job_id in entries]
        return await read_records(self._redis, ids)

    async def _without_record(self, entries: Sequence[_Entry]) -> list[Unreadable]:
        """Those that are nevertheless in the backlog or among the dead letters."""
        return [
            Unreadable(partition.correlation_id(job_id), f"no record, though {place}")
            for key, place in _UNPAID.items()
            for partition, job_id in entries
            if await partition.redis.zscore(partition.key(key), job_id) is not None
        ]

    async def _look_up(self, records: Iterable[Record]) -> list[Differing]:
        found = await together(self._look_at(record) for record in records)
        return [each for each in found if each is not None]

    async def _look_at(self, record: Record) -> Differing | None:
        theirs = {name: await self._find(name, record) for name in self._processors}
        kind = judge(record, theirs)
        return None if kind is None else Differing(kind, record, theirs)

    async def _find(self, name: str, record: Record) -> Found | None:
        """A processor's record of a payment; asks again if the answer is unclear."""
        requested_at = record.requested_at or record.accepted_at
        instruction = Instruction(
            record.correlation_id, record.cents, requested_at, record.metadata
        )
        async with self._finds:
            for tried in range(_FIND_TRIES):
                await asyncio.sleep(tried * _FIND_PAUSE_S)
                finding = await self._processors[name].find(instruction)
                if not isinstance(finding, Unclear):
                    return finding if isinstance(finding, Found) else None
                reason = finding.reason
        raise CannotAskError(f"{name}: asked for payment {record.correlation_id}: {reason}")

    async def _pages(self, *, everything: bool) -> AsyncIterator[tuple[list[_Entry], bool]]:
        """Pages of ids, each with whether its payments are unpaid; those come first."""
        for key in _UNPAID:
            for partition in self._partitions:
                scan = partial(partition.redis.zscan, partition.key(key), count=_PAGE)
                async for entries in pages(scan):
                    yield [(partition, member) for member, _ in entries], True
        if everything:
            for partition in self._partitions:
                prefix = keys.RECORD_PREFIX.encode()
                match = f"{partition.record('')}*"
                scan = partial(partition.redis.scan, match=match, count=_PAGE, _type="hash")
                async for found in pages(scan):
                    yield [(partition, key.removeprefix(prefix)) for key in found], False


def _differing(measured: Iterable[Difference]) -> list[Difference]:
    return [each for each in measured if each.ours != each.theirs]


def _missing_here(measured: Iterable[Difference]) -> dict[str, Total]:
    names = {each.processor for each in _differing(measured)}
    return {
        name: sum((each.missing_here for each in measured if each.processor == name), Total())
        for name in names
    }

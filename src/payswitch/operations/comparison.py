"""Compares our payments with the processors' payments: values only, no I/O."""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from payswitch.money import Total
from payswitch.payments.records import Record
from payswitch.processors.outcomes import Found


@dataclass(frozen=True, slots=True)
class Window:
    """A span of instants, ms since the epoch, both bounds inclusive."""

    first: int
    last: int

    @property
    def middle(self) -> int:
        """The first instant of its second half."""
        return (self.first + self.last + 1) // 2

    def cut(self, entry: Window) -> tuple[Window, ...]:
        """This window in two, cut at a bound of `entry`, which holds its middle; empty if the
        window lies within `entry`."""
        for start in (entry.first, entry.last + 1):
            if self.first < start <= self.last:
                return Window(self.first, start - 1), Window(start, self.last)
        return ()

    def holds(self, instant: int | None) -> bool:
        """Whether an instant lies in the window."""
        return instant is not None and self.first <= instant <= self.last

    def overlaps(self, first: int, last: int | None) -> bool:
        """Whether the window overlaps another span; None is no end."""
        return first <= self.last and (last is None or last >= self.first)


@dataclass(frozen=True, slots=True)
class Difference:
    """Our total and a processor's total in one window."""

    processor: str
    window: Window
    ours: Total
    theirs: Total

    @property
    def missing_here(self) -> Total:
        """Their surplus: negative if we have more."""
        return self.theirs - self.ours


class DifferenceKind(enum.Enum):
    """The ways in which a payment can differ."""

    UNKNOWN_THERE = "settled here, unknown there"
    OTHER_DETAILS = "settled here with another amount or instant"
    ELSEWHERE = "settled here, recorded at another processor"
    NOT_SETTLED = "recorded there, not settled here"
    PAID_TWICE = "recorded at more than one processor"


@dataclass(frozen=True, slots=True)
class Differing:
    """A payment that differs: our record, and each processor's finding (None: not there)."""

    kind: DifferenceKind
    record: Record
    theirs: Mapping[str, Found | None]

    def lies_in(self, windows: Iterable[Window]) -> bool:
        """Whether our settlement or a processor's record lies in one of the windows."""
        return any(window.holds(instant) for window in windows for _, instant, _ in self.entries())

    def entries(self) -> list[tuple[str, int, Total]]:
        """Its shares in the differences, by processor and instant: a record there counts as plus, a
        settlement here as minus."""
        made = [
            (name, found.requested_at, Total(1, found.cents))
            for name, found in self.theirs.items()
            if found is not None
        ]
        record = self.record
        if record.state == "settled" and record.processor and record.requested_at is not None:
            made.append((record.processor, record.requested_at, Total(-1, -record.cents)))
        return made


@dataclass(frozen=True, slots=True)
class Unexplained:
    """A processor's surplus in a window (negative: ours) from payments of which we have no record:
    expired, purged, or never ours."""

    processor: str
    window: Window
    missing_here: Total


def compared_windows(
    first: int | None, last: int | None, now: int, *, ends: Window, gap_ms: int
) -> list[Window]:
    """The windows to compare for optional bounds: up to now, and from `gap_ms` after now, where no
    payment may be. The gap belongs to payments that arrive during the comparison."""
    asked = Window(
        ends.first if first is None else max(first, ends.first),
        ends.last if last is None else min(last, ends.last),
    )
    if asked.last <= now or asked.first > now:
        return [asked]
    windows = [Window(asked.first, now)]
    if asked.last > now + gap_ms:
        windows.append(Window(now + gap_ms + 1, asked.last))
    return windows


def may_differ(record: Record, differing: Sequence[Window], asked: Sequence[Window]) -> bool:
    """Whether to look a payment up: it may have been recorded in a window that differs, or it is
    unpaid and was sent to a processor."""
    if record.state == "settled":
        # All its tries were requested between its acceptance and its settlement.
        return any(
            window.holds(record.requested_at)
            or window.overlaps(record.accepted_at, record.settled_at)
            for window in differing
        )
    if record.processor is None:
        return False
    return any(
        window.holds(record.requested_at) or window.overlaps(record.accepted_at, None)
        for window in asked
    )


def judge(record: Record, theirs: Mapping[str, Found | None]) -> DifferenceKind | None:
    """How our record differs from the processors' findings; None if it doesn't."""
    holders = [name for name, found in theirs.items() if found is not None]
    if len(holders) > 1:
        return DifferenceKind.PAID_TWICE
    if record.state != "settled":
        return DifferenceKind.NOT_SETTLED if holders else None
    if not holders:
        return DifferenceKind.UNKNOWN_THERE
    found = theirs.get(record.processor or "")
    if found is None:
        return DifferenceKind.ELSEWHERE
    if (found.cents, found.requested_at) != (record.cents, record.requested_at):
        return DifferenceKind.OTHER_DETAILS
    return None


def unexplained(
    totals: Sequence[Difference], narrow: Sequence[Difference], payments: Sequence[Differing]
) -> list[Unexplained]:
    """The part of the totals' differences that the differing payments don't explain: by narrow
    window, and by whole window for differences outside, which cancelled out there.

    The whole windows of one processor must not overlap, nor the narrow ones.
    """
    found = _left(narrow, payments)
    elsewhere: list[Unexplained] = []
    for whole in _left(totals, payments):
        rest = whole.missing_here
        for each in found:
            if each.processor == whole.processor and whole.window.holds(each.window.first):
                rest -= each.missing_here
        elsewhere.append(Unexplained(whole.processor, whole.window, rest))
    return [each for each in (*found, *elsewhere) if each.missing_here != Total()]


def _left(differences: Iterable[Difference], payments: Iterable[Differing]) -> list[Unexplained]:
    """Each difference minus the payments' shares in it."""
    ordered = sorted(differences, key=lambda each: (each.processor, each.window.first))
    places = [(each.processor, each.window.first) for each in ordered]
    left = [each.missing_here for each in ordered]
    for payment in payments:
        for processor, instant, entry in payment.entries():
            place = bisect_right(places, (processor, instant)) - 1
            if place < 0 or ordered[place].processor != processor:
                continue
            if ordered[place].window.holds(instant):
                left[place] -= entry
    return [
        Unexplained(each.processor, each.window, rest)
        for each, rest in zip(ordered, left, strict=True)
    ]

"""Counts of durations in buckets whose bounds grow by a constant factor, so that the relative error
of a quantile is the same for milliseconds as for hours."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

_PER_DOUBLING = 4
_DOUBLINGS = 27  # up to 2**27 ms, a day and a half
BOUNDS: Sequence[int] = sorted(
    {math.ceil(2 ** (step / _PER_DOUBLING)) for step in range(_DOUBLINGS * _PER_DOUBLING + 1)}
)
"""Upper bounds in ms, inclusive; what is longer counts in one more bucket."""
LARGEST = 2**53
"""No count of ours comes near it; every program that reads JSON can hold it."""


class Histogram:
    """A count for each bucket; a bucket is at most a fifth wider than the one below."""

    __slots__ = ("counts",)

    def __init__(self, counts: Iterable[int] = ()) -> None:
        self.counts = list(counts) or [0] * (len(BOUNDS) + 1)

    @classmethod
    def parse(cls, text: str) -> Histogram:
        """Read what `text` writes. Raises `ValueError`."""
        histogram = cls()
        for pair in text.split():
            index, _, count = pair.partition(":")
            if not 0 <= int(index) <= len(BOUNDS) or not 0 <= int(count) <= LARGEST:
                raise ValueError(f"no bucket: {pair[:32]!r}")
            histogram.counts[int(index)] = int(count)
        return histogram

    @property
    def text(self) -> str:
        """The buckets that aren't empty, as `index:count`."""
        return " ".join(f"{index}:{count}" for index, count in enumerate(self.counts) if count)

    @property
    def total(self) -> int:
        """How many durations it counts."""
        return sum(self.counts)

    def add(self, duration_ms: float) -> None:
        """Count one duration; a negative one, which clocks that disagree make, is none."""
        self.counts[bisect_left(BOUNDS, duration_ms)] += 1

    def since(self, earlier: Histogram) -> Histogram:
        """What was counted since an earlier reading of the same histogram."""
        pairs = zip(self.counts, earlier.counts, strict=True)
        return Histogram(max(0, now - then) for now, then in pairs)

    def quantile(self, share: float) -> float | None:
        """The duration (ms) that this share of all does not exceed, taken to lie evenly within its
        bucket; None where nothing is counted."""
        rank = share * self.total
        below = 0
        for index, count in enumerate(self.counts):
            if count and below + count >= rank:
                low = BOUNDS[index - 1] if index else 0
                high = BOUNDS[min(index, len(BOUNDS) - 1)]
                return low + (high - low) * max(0.0, rank - below) / count
            below += count
        return None


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """The sum of several."""
    counts = [each.counts for each in histograms]
    return Histogram(map(sum, zip(*counts, strict=True))) if counts else Histogram()

"""Counts of durations, at the cost of an addition each. The Prometheus library's own
`Histogram.observe` takes six times as long.

A scrape shows the few buckets of `BOUNDS_S`. A heartbeat carries those of `BOUNDS`, which grow by a
constant factor, so a quantile's relative error is the same for milliseconds and hours.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

_PER_DOUBLING = 4
_DOUBLINGS = 27  # up to 2**27 ms, a day and a half
BOUNDS: Sequence[int] = sorted(
    {math.ceil(2 ** (step / _PER_DOUBLING)) for step in range(_DOUBLINGS * _PER_DOUBLING + 1)}
)
"""Upper bounds in ms, inclusive; one more bucket counts longer durations. A bucket is at most a
fifth wider than the one below."""
BOUNDS_S: Sequence[float] = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.011, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds in seconds, inclusive: from a round trip to Redis up to a payment's wait for a
processor to recover. The Rinha de Backend 2025 scores by 5 and 11 ms."""
LARGEST = 2**53
"""The largest number that every JSON reader can hold; no count comes near it."""

_EDGES: Sequence[float] = sorted({*BOUNDS, *(bound * 1000 for bound in BOUNDS_S)})
"""Every upper bound in ms, so a duration is counted once for both readers."""
_BUCKETS: Sequence[int] = [bisect_left(BOUNDS, edge) for edge in (*_EDGES, math.inf)]
"""The bucket of `BOUNDS` that each edge lies in."""


class Histogram:
    """The count of each bucket, and the sum."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self, counts: Iterable[int] = ()) -> None:
        self.counts = list(counts) or [0] * len(_BUCKETS)
        self.sum_ms = 0.0
        """Only known if the durations were counted by `add`."""

    @classmethod
    def parse(cls, text: str) -> Histogram:
        """Read the form of `text`. Raises `ValueError`."""
        histogram = cls()
        for pair in text.split():
            index, _, count = pair.partition(":")
            if not 0 <= int(index) <= len(BOUNDS) or not 0 <= int(count) <= LARGEST:
                raise ValueError(f"not a bucket: {pair[:32]!r}")
            histogram.counts[_BUCKETS.index(int(index))] = int(count)
        return histogram

    @property
    def text(self) -> str:
        """The buckets of `BOUNDS` with a count, as `index:count`."""
        return " ".join(f"{index}:{count}" for index, count in enumerate(self.buckets) if count)

    @property
    def buckets(self) -> list[int]:
        """The count of each bucket of `BOUNDS`."""
        buckets = [0] * (len(BOUNDS) + 1)
        for bucket, count in zip(_BUCKETS, self.counts, strict=True):
            buckets[bucket] += count
        return buckets

    @property
    def total(self) -> int:
        """The number of durations."""
        return sum(self.counts)

    def add(self, duration_ms: float) -> None:
        """Count one duration; a negative one, from clocks that disagree, counts as 0."""
        duration_ms = max(duration_ms, 0.0)
        self.counts[bisect_left(_EDGES, duration_ms)] += 1
        self.sum_ms += duration_ms

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound of `BOUNDS_S`, infinity last, with the number of durations up to it."""
        for bound in (*BOUNDS_S, math.inf):
            yield bound, sum(self.counts[: bisect_left(_EDGES, bound * 1000) + 1])

    def since(self, earlier: Histogram) -> Histogram:
        """The durations counted since an earlier reading of the same histogram."""
        pairs = zip(self.counts, earlier.counts, strict=True)
        return Histogram(max(0, now - then) for now, then in pairs)

    def quantile(self, share: float) -> float | None:
        """The duration (ms) that this share of all does not exceed, interpolated within its bucket
        of `BOUNDS`; None if nothing is counted."""
        rank = share * self.total
        below = 0
        for index, count in enumerate(self.buckets):
            if count and below + count >= rank:
                low = BOUNDS[index - 1] if index else 0
                high = BOUNDS[min(index, len(BOUNDS) - 1)]
                return low + (high - low) * max(0.0, rank - below) / count
            below += count
        return None


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """The sum of several histograms."""
    counts = [each.counts for each in histograms]
    return Histogram(map(sum, zip(*counts, strict=True))) if counts else Histogram()

"""Histograms of durations: nothing is lost, quantiles are off by no more than a bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.telemetry.histogram import BOUNDS, Histogram, merged

DURATIONS = st.lists(st.floats(-10, BOUNDS[-1], allow_nan=False), max_size=50)


def of(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


@given(DURATIONS)
def test_what_was_written_is_read_again(durations: list[float]) -> None:
    histogram = of(durations)
    assert Histogram.parse(histogram.text).counts == histogram.counts


@given(DURATIONS, DURATIONS)
def test_what_came_since_is_what_was_added(earlier: list[float], later: list[float]) -> None:
    assert of(earlier + later).since(of(earlier)).counts == of(later).counts
    assert merged([of(earlier), of(later)]).counts == of(earlier + later).counts


@given(DURATIONS.filter(bool), st.floats(0, 1))
def test_a_quantile_is_at_most_a_bucket_off(durations: list[float], share: float) -> None:
    found = of(durations).quantile(share)
    ordered = sorted(max(0, each) for each in durations)
    rank = max(0, -(-share * len(ordered) // 1) - 1)
    exact = ordered[int(rank)]
    assert found is not None
    assert exact / 1.3 - 1 <= found <= exact * 1.3 + 1


def test_nothing_has_no_quantile_and_what_is_too_long_counts() -> None:
    assert Histogram().quantile(0.5) is None
    assert of([BOUNDS[-1] * 10]).quantile(0.5) == BOUNDS[-1]
    assert merged([]).total == 0


@pytest.mark.parametrize("text", ["x", "1:x", "-1:1", "1:-1", f"{len(BOUNDS) + 1}:1", "1"])
def test_what_is_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bucket|int"):
        Histogram.parse(text)

"""Histograms of durations: nothing is lost, quantiles are off by no more than a bucket, and a
scrape sees its own buckets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.telemetry.histogram import BOUNDS, BOUNDS_S, Histogram, merged

DURATIONS = st.lists(st.floats(-10, BOUNDS[-1], allow_nan=False), max_size=50)


def of(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


@given(DURATIONS)
def test_what_was_written_is_read_again(durations: list[float]) -> None:
    histogram = of(durations)
    assert Histogram.parse(histogram.text).buckets == histogram.buckets


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


def test_a_bound_belongs_to_its_bucket() -> None:
    fine, scraped = of([*BOUNDS]), of([bound * 1000 for bound in BOUNDS_S])
    assert fine.buckets == [*[1] * len(BOUNDS), 0]
    assert [count for _, count in scraped.cumulative()] == [
        *range(1, len(BOUNDS_S) + 1),
        len(BOUNDS_S),
    ]


def test_what_is_longer_than_every_bound_counts_as_infinite() -> None:
    found = of([BOUNDS_S[-1] * 1000 + 1])
    assert list(found.cumulative())[-2:] == [(BOUNDS_S[-1], 0), (math.inf, 1)]


def test_a_negative_duration_counts_as_none() -> None:
    found = of([-5])
    assert (found.buckets[0], found.sum_ms) == (1, 0)


def test_counts_add_up_from_bound_to_bound() -> None:
    histogram = of([0.1, 4, 5, 100_000])
    found = dict(histogram.cumulative())
    assert (found[0.0005], found[0.003], found[0.005], found[60.0]) == (1, 1, 3, 3)
    assert found[math.inf] == histogram.total == 4
    assert histogram.sum_ms == pytest.approx(100_009.1)


@pytest.mark.parametrize("bound", [0.005, 0.011])
def test_the_bounds_that_the_challenge_scores_by_are_among_them(bound: float) -> None:
    assert bound in BOUNDS_S

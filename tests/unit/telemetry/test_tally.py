"""Counting durations for Prometheus."""

from __future__ import annotations

import math

import pytest

from payswitch.telemetry.tally import BOUNDS_S, Tally


def test_a_bound_belongs_to_its_bucket() -> None:
    tally = Tally()
    for bound in BOUNDS_S:
        tally.add(bound)
    assert tally.counts == [*[1] * len(BOUNDS_S), 0]


def test_what_is_longer_than_every_bound_counts_as_infinite() -> None:
    tally = Tally()
    tally.add(BOUNDS_S[-1] + 1)
    assert list(tally.cumulative())[-2:] == [(BOUNDS_S[-1], 0), (math.inf, 1)]


def test_a_negative_duration_is_none() -> None:
    tally = Tally()
    tally.add(-5)
    assert (tally.counts[0], tally.sum_s) == (1, 0)


def test_counts_add_up_from_bound_to_bound() -> None:
    tally = Tally()
    for seconds in (0.0001, 0.004, 0.005, 100):
        tally.add(seconds)
    found = dict(tally.cumulative())
    assert (found[0.0005], found[0.003], found[0.005], found[60.0]) == (1, 1, 3, 3)
    assert found[math.inf] == tally.total == 4
    assert tally.sum_s == pytest.approx(100.0091)


@pytest.mark.parametrize("bound", [0.005, 0.011])
def test_the_bounds_that_the_challenge_scores_by_are_among_them(bound: float) -> None:
    assert bound in BOUNDS_S

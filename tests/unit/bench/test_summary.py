"""What the summary bench computes by itself."""

from __future__ import annotations

from bench.summary import Case, Weight, percentile


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3
    assert percentile([7.0], 0.5) == 7


def test_what_is_not_the_ledgers_is_the_records() -> None:
    weight = Weight(Case(1_000, 300), total=330.0, ledger=20.0, bare=180.0)
    assert weight.as_document()["record"] == 310.0
    assert weight.case.title == "1,000 payments at 300 a second"

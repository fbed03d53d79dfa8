"""What a run is worth, by the challenge's rules."""

from __future__ import annotations

from decimal import Decimal
from statistics import quantiles
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rinha.scenario import load_scenario
from bench.rinha.score import (
    NOTHING,
    Audit,
    Score,
    bonus,
    count_inconsistencies,
    count_strictly,
    half_up,
    judge,
    percentile,
)
from payswitch.money import Total

PREVIEW, FINAL = load_scenario("preview"), load_scenario("final")

counts = st.integers(0, 100_000)
times_ms = st.one_of(
    st.floats(0, 2000, allow_nan=False),
    # Halves of hundredths are where roundings differ.
    st.integers(0, 4400).map(lambda quarter: quarter / 400),
    st.integers(0, 11_000).map(lambda thousandth: thousandth / 1000),
)


def books(default: int, fallback: int, cents: int = 2005) -> dict[str, Total]:
    return {
        "default": Total(default, default * cents),
        "fallback": Total(fallback, fallback * cents),
    }


def of_the_final(default: int, fallback: int, **given: Any) -> Score:
    facts: dict[str, Any] = {"accepted": default + fallback, "inconsistencies": 0, "p99_ms": 20.0}
    return judge(FINAL, processed=books(default, fallback), **facts | given)


def audit(ours: dict[str, Total], theirs: dict[str, Total]) -> Audit:
    return Audit(0, ours, theirs)


def test_net_is_what_was_processed_without_fees() -> None:
    score = of_the_final(1000, 100)
    assert score.amount == Decimal("22055.00")
    assert score.fees == {"default": Decimal("1403.50"), "fallback": Decimal("200.50")}
    assert score.net == score.value == Decimal("20451.00")


def test_the_best_final_there_could_be_has_the_challenges_score() -> None:
    best = of_the_final(90_600, 0, p99_ms=1.0)
    assert best.bonus == Decimal("0.20")
    assert float(best.value) == pytest.approx(2_027_000, rel=0.001)


@pytest.mark.parametrize(
    ("p99_ms", "earned"),
    [
        (0.0, "0.22"),
        (1.0, "0.20"),
        (2.55, "0.17"),
        (6.1, "0.10"),
        (9.7, "0.03"),
        (10.5, "0.01"),
        (10.75, "0.01"),
        (10.76, "0.00"),
        (11.0, "0.00"),
        (923.0, "0.00"),
    ],
)
def test_each_half_millisecond_below_11_earns_a_hundredth(p99_ms: float, earned: str) -> None:
    assert bonus(p99_ms) == Decimal(earned)


def test_p99_is_rounded_before_the_bonus_is() -> None:
    # 10.754 is 10.75, which still earns one hundredth; unrounded it would earn none.
    assert of_the_final(1, 0, p99_ms=10.754).bonus == Decimal("0.01")
    assert of_the_final(1, 0, p99_ms=10.755).bonus == Decimal("0.00")


def test_a_single_inconsistency_costs_35_percent_of_net() -> None:
    score = of_the_final(100, 0, inconsistencies=1, p99_ms=1.0)
    assert score.value == score.net * Decimal("0.85")


def test_what_was_accepted_and_not_processed_is_lag_and_earns_nothing() -> None:
    score = of_the_final(100, 0, accepted=130)
    assert (score.lag, score.is_disqualified) == (30, False)
    assert score.value == of_the_final(100, 0).value


def test_more_processed_than_accepted_disqualifies() -> None:
    score = of_the_final(100, 0, accepted=99)
    assert (score.lag, score.is_disqualified) == (-1, True)
    assert score.value == 0


def test_opposite_differences_cancel_in_the_preview_only() -> None:
    audits = [audit(books(10, 5), books(8, 7))]
    assert count_inconsistencies(PREVIEW, audits) == 0
    assert count_inconsistencies(FINAL, audits) == 4
    assert count_strictly(audits) == Total(4, 4 * 2005)


def test_amounts_count_only_strictly() -> None:
    audits = [audit(books(10, 5, cents=2006), books(10, 5))]
    assert count_inconsistencies(FINAL, audits) == 0
    assert count_strictly(audits) == Total(0, 15)


def test_a_summary_that_failed_counts_as_zeros() -> None:
    missing = Audit(0, NOTHING, books(7, 2), failed=("backend",))
    assert count_inconsistencies(PREVIEW, [missing]) == 9
    assert count_inconsistencies(FINAL, [missing]) == 9


@given(st.lists(counts, min_size=4, max_size=4))
def test_no_count_is_stricter_than_the_strict_one(numbers: list[int]) -> None:
    audits = [audit(books(*numbers[:2]), books(*numbers[2:]))]
    preview, final = (count_inconsistencies(each, audits) for each in (PREVIEW, FINAL))
    assert preview <= final <= count_strictly(audits).count


@given(counts, counts, times_ms, times_ms)
def test_to_answer_faster_is_never_worth_less(
    default: int, fallback: int, one_ms: float, other_ms: float
) -> None:
    fast, slow = (
        of_the_final(default, fallback, p99_ms=p99_ms) for p99_ms in sorted((one_ms, other_ms))
    )
    assert fast.value >= slow.value


@given(counts, counts)
def test_the_cheaper_processor_is_never_worth_less(payments: int, moved: int) -> None:
    moved = min(payments, moved)
    assert of_the_final(payments, 0).value >= of_the_final(payments - moved, moved).value


@given(st.lists(st.floats(0, 5000), min_size=2, max_size=300))
def test_percentiles_are_interpolated_linearly(values: list[float]) -> None:
    cuts = quantiles(values, n=100, method="inclusive")
    assert percentile(values, 0.99) == pytest.approx(cuts[98])
    assert percentile(values, 0.5) == pytest.approx(cuts[49])


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 0.99) == 0


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.005, "0.01"), (1.005, "1.01"), (2.675, "2.68"), (0.0049, "0.00"), (1e-9, "0.00")],
)
def test_halves_of_the_shortest_notation_are_rounded_up(value: float, rounded: str) -> None:
    assert half_up(value) == Decimal(rounded)

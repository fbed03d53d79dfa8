"""The policies' game in simulated time, and the optimum that it is measured by."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.rinha.scenario import Scenario, Setting, Stage
from bench.routing.__main__ import POLICIES
from bench.routing.optimum import Optimum, optimum
from bench.routing.scenarios import arrivals, seeded
from bench.routing.simulation import SLOTS, WORKERS, Policy, Simulation, Tally
from payswitch.selection.selector import Limits

WELL = Setting(10, False)
DOWN = Setting(0, True)
LATE = Setting(2000, False)
PATIENT = Policy("patient", Limits(1500, 1500), 30_000)
TODAY = Policy("today", Limits(1500, 1500))


def scenario(*stages: tuple[float, Setting, Setting], seconds: float = 60) -> Scenario:
    """About 20 users at the end, with fees of 5 and 15 %."""
    return Scenario(
        name="test",
        seconds=seconds,
        users=20,
        cents=1000,
        fee_percent={"default": 5, "fallback": 15},
        margin_ms=2000,
        totals_from_backend=False,
        differences_cancel=False,
        stages=tuple(
            Stage(at_s, {"default": default, "fallback": fallback})
            for at_s, default, fallback in stages
        ),
    )


OUTAGE = scenario((1, WELL, WELL), (20, DOWN, WELL), (35, WELL, WELL))


def play(game: Scenario, policy: Policy, *, phase_ms: int = 0) -> Tally:
    random.seed(1)
    return Simulation(game, policy, phase_ms=phase_ms).run()


def best(game: Scenario, patience_ms: int) -> Optimum:
    return optimum(game, patience_ms=patience_ms, slots=WORKERS * SLOTS)


def accepted_between(game: Scenario, first_s: float, last_s: float) -> int:
    return sum(count for at, count in arrivals(game) if first_s * 1000 <= at < last_s * 1000)


def test_a_seed_is_a_scenario_that_ends_with_the_trap() -> None:
    assert seeded(3) == seeded(3) != seeded(4)
    trap = seeded(3).stages[-1]
    assert trap.settings["default"] == Setting(seeded(3).margin_ms, False)
    assert not trap.at_s % 10
    assert trap.at_s < seeded(3).seconds


def test_with_time_to_wait_the_optimum_pays_all_through_the_cheaper_one() -> None:
    found = best(OUTAGE, 15_000)
    assert (found.default, found.fallback) == (found.accepted, 0)
    assert found.net == pytest.approx(found.accepted * 950)


def test_without_patience_the_optimum_pays_an_outage_through_the_dearer_one() -> None:
    assert best(OUTAGE, 0).fallback == pytest.approx(accepted_between(OUTAGE, 20, 35), abs=2)


def test_with_some_patience_the_optimum_loses_only_the_first_part_of_an_outage() -> None:
    assert best(OUTAGE, 5000).fallback == pytest.approx(accepted_between(OUTAGE, 20, 30), abs=2)


def test_the_optimum_counts_no_payment_that_is_not_booked_at_the_end() -> None:
    game = scenario((1, WELL, WELL), (50, DOWN, DOWN))
    found = best(game, 60_000)
    assert found.default + found.fallback == accepted_between(game, 0, 50)


def test_the_optimum_keeps_to_the_calls_that_may_be_under_way() -> None:
    game = scenario((0, Setting(1000, False), DOWN))
    assert optimum(game, patience_ms=60_000, slots=1).default == pytest.approx(61, abs=1)


def test_the_optimum_pays_nothing_through_a_trap_that_a_report_shows() -> None:
    game = scenario((1, WELL, WELL), (20, DOWN, WELL), (40, LATE, WELL))
    assert best(game, 60_000).default == pytest.approx(accepted_between(game, 0, 20), abs=2)


def test_without_patience_an_outage_is_paid_by_the_dearer_one() -> None:
    tally = play(OUTAGE, TODAY)
    assert tally.longest_waiting == tally.lag == 0
    assert tally.booked["fallback"] > accepted_between(OUTAGE, 26, 35)


def test_payments_wait_through_an_outage_and_are_paid_by_the_cheaper_one() -> None:
    tally = play(OUTAGE, PATIENT)
    assert tally.booked == {"default": tally.accepted}
    assert tally.longest_waiting > accepted_between(OUTAGE, 26, 35) / 2


def test_what_has_waited_long_enough_is_paid_by_the_dearer_one() -> None:
    game = scenario((1, WELL, WELL), (20, DOWN, WELL))
    tally = play(game, Policy("patient", Limits(1500, 1500), 10_000))
    assert tally.booked["fallback"] == pytest.approx(accepted_between(game, 20, 50), rel=0.1)
    assert tally.lag == pytest.approx(accepted_between(game, 51, 60), rel=0.2)


def test_payments_stop_waiting_for_one_that_comes_back_too_slow() -> None:
    game = scenario((1, WELL, WELL), (20, DOWN, WELL), (40, LATE, WELL))
    tally = play(game, Policy("patient", Limits(1500, 1500), 60_000))
    assert tally.lag == tally.audits_with_differences == 0
    assert tally.booked["fallback"] > accepted_between(game, 20, 60) * 0.9


def test_an_audit_sees_payments_that_are_booked_at_its_margin() -> None:
    game = scenario((1, LATE, WELL))
    assert play(game, Policy("never too slow", Limits(9000, 9000))).audits_with_differences
    assert not play(game, TODAY).audits_with_differences


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 10_000), st.sampled_from(POLICIES), st.integers(0, 5999))
def test_each_payment_is_booked_once_or_left_over(seed: int, policy: Policy, phase: int) -> None:
    game = replace(seeded(seed), users=30)
    tally = play(game, policy, phase_ms=phase)
    assert tally.lag >= 0
    assert tally.accepted == sum(count for _, count in arrivals(game))
    assert play(game, policy, phase_ms=phase) == tally

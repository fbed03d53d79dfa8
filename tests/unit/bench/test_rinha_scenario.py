"""The two scored runs are the challenge's: who pays when, and what the processors are set to."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.rinha.processes import SETTINGS
from bench.rinha.scenario import PAUSE_S, Scenario, Setting, load_scenario
from tests.documented import REPOSITORY

SCENARIOS = ("preview", "final")


def rows(scenario: Scenario) -> list[tuple[float, str, str]]:
    return [
        (stage.at_s, str(stage.settings["default"]), str(stage.settings["fallback"]))
        for stage in scenario.stages
    ]


def payments(scenario: Scenario) -> int:
    """How many are made where every answer comes at once."""
    paying_s = (scenario.seconds - scenario.starts_at_s(user) for user in range(scenario.users))
    return sum(-int(-seconds // PAUSE_S) for seconds in paying_s)


def test_the_preview_is_the_challenges() -> None:
    preview = load_scenario("preview")
    assert (preview.seconds, preview.users, preview.cents) == (60, 550, 1990)
    assert preview.fee_percent == {"default": 5, "fallback": 15}
    assert preview.totals_from_backend
    assert preview.differences_cancel
    assert rows(preview) == [
        (1, "0 ms", "0 ms"),
        (10, "100 ms", "0 ms"),
        (20, "100 ms, failing", "0 ms"),
        (30, "2000 ms, failing", "1000 ms, failing"),
        (40, "20 ms", "20 ms"),
        (50, "0 ms", "5000 ms"),
    ]


def test_the_final_is_the_challenges() -> None:
    final = load_scenario("final")
    assert (final.seconds, final.users, final.cents) == (300, 603, 2005)
    assert final.fee_percent == {"default": 7, "fallback": 10}
    assert not final.totals_from_backend
    assert not final.differences_cancel
    assert rows(final) == [
        (1, "0 ms", "0 ms"),
        (30, "1000 ms", "0 ms"),
        (60, "500 ms", "0 ms"),
        (90, "2000 ms, failing", "1000 ms"),
        (120, "5000 ms, failing", "5 ms"),
        (150, "0 ms", "5 ms, failing"),
        (180, "100 ms", "5 ms"),
        (210, "50 ms", "0 ms"),
        (240, "103 ms", "10 ms"),
        (270, "2000 ms", "0 ms"),
    ]


@pytest.mark.parametrize(("name", "about"), [("preview", 16_700), ("final", 90_600)])
def test_the_users_make_as_many_payments_as_the_challenges(name: str, about: int) -> None:
    assert payments(load_scenario(name)) == pytest.approx(about, rel=0.01)


@given(st.sampled_from(SCENARIOS), st.data())
def test_users_ramp_linearly_from_one(name: str, data: st.DataObject) -> None:
    scenario = load_scenario(name)
    at_s = data.draw(st.floats(0, scenario.seconds))
    linear = 1 + (scenario.users - 1) * at_s / scenario.seconds
    assert linear - 1 <= scenario.users_at(at_s) <= linear
    assert scenario.users_at(-0.001) == 0
    assert scenario.users_at(scenario.seconds) == scenario.users


@given(st.sampled_from(SCENARIOS), st.data())
def test_a_user_is_counted_from_its_start_on(name: str, data: st.DataObject) -> None:
    scenario = load_scenario(name)
    user = data.draw(st.integers(0, scenario.users - 1))
    starts_s = scenario.starts_at_s(user)
    assert scenario.users_at(starts_s + 1e-6) > user
    assert scenario.users_at(starts_s - 1e-6) <= user


@pytest.mark.parametrize(("name", "margin_ms"), [("preview", 1500), ("final", 2000)])
def test_an_audit_looks_at_the_last_15_s_up_to_the_margin(name: str, margin_ms: int) -> None:
    assert load_scenario(name).window_ms(100_000) == (85_000, 100_000 - margin_ms)


def test_a_stage_lasts_until_the_next() -> None:
    preview = load_scenario("preview")
    assert preview.stage_at(0.9) is None
    for at_s in (20.0, 29.9):
        stage = preview.stage_at(at_s)
        assert stage is not None
        assert stage.settings["default"] == Setting(100, failing=True)


def test_a_shortened_run_keeps_users_and_delays() -> None:
    final = load_scenario("final")
    short = final.shortened(0.1)
    assert (short.seconds, short.users, short.audit_every_s) == (30, 603, 1)
    assert [stage.at_s for stage in short.stages][:3] == pytest.approx([0.1, 3, 6])
    assert [stage.settings for stage in short.stages] == [each.settings for each in final.stages]


def test_processes_have_the_containers_settings() -> None:
    compose = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    environment = compose["services"]["worker-1"]["environment"]
    assert {name: environment[name] for name in SETTINGS} == SETTINGS

"""The simulator's faults without I/O: the admin call and the seeded choice."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.processors.connector import ConnectorSettings, Response
from payswitch.processors.rinha import RinhaConnector
from payswitch.simulator.book import Standing
from payswitch.simulator.faults import (
    WRONG_REPORTS,
    Decision,
    Deliberation,
    Faults,
    HealthFault,
    HealthLots,
    PaymentFault,
    PaymentLots,
    deliberate,
    parse_faults,
)

SEEDS = st.integers(-(2**63), 2**63 - 1)
DRAWS = 5000


def parts_of(
    modes: type[PaymentFault] | type[Decision] | type[HealthFault],
) -> st.SearchStrategy[dict[str, float]]:
    """Probabilities of some modes that come to 1 at most, in any order of the modes."""
    share = st.integers(0, 1000 // len(modes)).map(lambda thousandths: thousandths / 1000)
    return (
        st.dictionaries(st.sampled_from(sorted(modes)), share)
        .flatmap(lambda parts: st.permutations(list(parts.items())))
        .map(dict)
    )


CALLS = st.fixed_dictionaries(
    {},
    optional={
        "seed": SEEDS,
        "payments": parts_of(PaymentFault),
        "decisions": parts_of(Decision),
        "health": parts_of(HealthFault),
        "lateMs": st.integers(0, 10**6),
        "laterMs": st.lists(st.integers(0, 10**6), min_size=2, max_size=2).map(sorted),
        "decideMs": st.lists(st.integers(0, 10**6), min_size=2, max_size=2).map(sorted),
        "journal": st.booleans(),
        "silent": st.booleans(),
    },
)

RINHA = RinhaConnector(ConnectorSettings("default"))


def faults_of(**call: object) -> Faults:
    return parse_faults(json.dumps(call).encode())[0]


# The admin call.


def test_a_call_without_fields_is_all_faults_off() -> None:
    assert parse_faults(b"{}") == (Faults(), None)
    assert Faults().document() == {
        "seed": 0,
        "payments": {},
        "decisions": {},
        "health": {},
        "lateMs": 11_000,
        "laterMs": (200, 8000),
        "decideMs": (200, 2000),
        "journal": False,
        "silent": False,
    }


@given(CALLS)
def test_what_a_setting_is_shown_as_sets_it_again(call: dict[str, Any]) -> None:
    faults, gone_ms = parse_faults(json.dumps(call).encode())
    assert parse_faults(orjson.dumps(faults.document())) == (faults, gone_ms)


@given(CALLS)
def test_a_call_is_taken_as_it_is_and_modes_without_a_chance_are_left_out(
    call: dict[str, Any],
) -> None:
    shown = orjson.loads(orjson.dumps(faults_of(**call).document()))
    for name, given_value in call.items():
        if isinstance(given_value, dict):
            given_value = {mode: part for mode, part in given_value.items() if part}
        assert shown[name] == given_value


def test_being_gone_is_no_part_of_the_setting() -> None:
    assert parse_faults(b'{"goneMs":0}') == (Faults(), 0)
    assert parse_faults(b'{"goneMs":3000}') == (Faults(), 3000)


def test_probabilities_may_come_to_one_in_spite_of_binary_fractions() -> None:
    parts = dict.fromkeys(sorted(PaymentFault)[:10], 0.1)
    lots = PaymentLots(faults_of(payments=parts))
    assert all(lots.draw() is not None for _ in range(DRAWS))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "JSON|input|empty"),
        (b"[]", "object"),
        (b'{"sed":1}', "unknown field: sed"),
        (b'{"seed":true}', "seed"),
        (b'{"seed":1.5}', "seed"),
        (b'{"seed":"1"}', "seed"),
        (b'{"seed":null}', "seed"),
        (b'{"payments":[]}', "payments is not an object"),
        (b'{"payments":{"lie":0.5}}', "payments: unknown mode: lie"),
        (b'{"health":{"close":0.5}}', "health: unknown mode: close"),
        (b'{"payments":{"close":true}}', "probability of close"),
        (b'{"payments":{"close":"0.5"}}', "probability of close"),
        (b'{"payments":{"close":null}}', "probability of close"),
        (b'{"payments":{"close":-0.1}}', "probability of close"),
        (b'{"payments":{"close":1.1}}', "probability of close"),
        (b'{"payments":{"close":0.6,"500":0.5}}', "payments: .* more than 1"),
        (b'{"health":{"lie":1,"hang":0.01}}', "health: .* more than 1"),
        (b'{"lateMs":-1}', "lateMs"),
        (b'{"lateMs":true}', "lateMs"),
        (b'{"lateMs":0.5}', "lateMs"),
        (b'{"lateMs":2147483648}', "lateMs"),
        (b'{"laterMs":5}', "laterMs"),
        (b'{"laterMs":[5]}', "laterMs"),
        (b'{"laterMs":[1,2,3]}', "laterMs"),
        (b'{"laterMs":[2,1]}', "laterMs begins after its end"),
        (b'{"laterMs":[-1,1]}', "laterMs"),
        (b'{"laterMs":[false,1]}', "laterMs"),
        (b'{"decisions":{"close":0.5}}', "decisions: unknown mode: close"),
        (b'{"decisions":{"decline":0.6,"pending":0.5}}', "decisions: .* more than 1"),
        (b'{"decideMs":[2,1]}', "decideMs begins after its end"),
        (b'{"goneMs":-1}', "goneMs"),
        (b'{"goneMs":null}', "goneMs"),
        (b'{"journal":1}', "journal"),
        (b'{"silent":1}', "silent"),
    ],
)
def test_a_malformed_call_is_refused_with_what_is_wrong(body: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_faults(body)


# The choice.


@given(CALLS, st.integers(0, 200))
def test_the_same_seed_brings_the_same_faults(call: dict[str, Any], count: int) -> None:
    def sequence() -> list[object]:
        faults = faults_of(**call)
        payments, health = PaymentLots(faults), HealthLots(faults)
        return [(payments.draw(), health.draw(), health.slowness_ms()) for _ in range(count)]

    assert sequence() == sequence()


@given(CALLS, st.integers(0, 200))
def test_calls_for_health_do_not_change_what_payments_meet(
    call: dict[str, Any], count: int
) -> None:
    faults = faults_of(**call)
    alone = PaymentLots(faults)
    beside, health = PaymentLots(faults), HealthLots(faults)
    for _ in range(count):
        health.draw()
        health.wrong_report()
        assert beside.draw() == alone.draw()


def test_the_order_of_the_modes_in_the_call_changes_nothing() -> None:
    one = PaymentLots(faults_of(payments={"close": 0.3, "drip": 0.4}))
    other = PaymentLots(faults_of(payments={"drip": 0.4, "close": 0.3}))
    assert [one.draw() for _ in range(100)] == [other.draw() for _ in range(100)]


def test_other_seeds_bring_other_faults() -> None:
    payments, health = set(), set()
    for seed in range(20):
        faults = faults_of(seed=seed, payments={"500": 0.5}, health={"lie": 0.5})
        lots, reports = PaymentLots(faults), HealthLots(faults)
        payments.add(tuple(lots.draw() is None for _ in range(64)))
        health.add(tuple(reports.draw() is None for _ in range(64)))
    assert len(payments) == len(health) == len(payments | health) // 2 == 20


@given(CALLS)
def test_only_what_is_set_happens(call: dict[str, Any]) -> None:
    faults = faults_of(**call)
    payments, health = PaymentLots(faults), HealthLots(faults)
    for _ in range(100):
        lot = payments.draw()
        assert lot is None or lot.mode in faults.payments
        report = health.draw()
        assert report is None or report in faults.health


@given(SEEDS)
def test_every_mode_comes_as_often_as_it_should(seed: int) -> None:
    parts = {"commit-close": 0.5, "429": 0.2, "not-json": 0.1, "drip": 0.05}
    lots = PaymentLots(faults_of(seed=seed, payments=parts))
    counts = Counter(lot and lot.mode for lot in (lots.draw() for _ in range(2000)))
    for mode, part in (*parts.items(), (None, 0.15)):
        deviation = (2000 * part * (1 - part)) ** 0.5
        assert abs(counts[mode] - 2000 * part) < 7 * deviation  # type: ignore[index]


@pytest.mark.parametrize("mode", PaymentFault)
def test_whether_a_payment_is_committed_is_the_modes_or_a_fair_coins_choice(
    mode: PaymentFault,
) -> None:
    lots = PaymentLots(faults_of(payments={mode: 1}))
    share = sum(lot.commits for _ in range(DRAWS) if (lot := lots.draw())) / DRAWS
    if mode in ("commit-close", "commit-500", "commit-late", "gateway-commit", "commit-429"):
        assert share == 1
    elif mode in ("not-json", "truncated", "huge", "half-header", "drip", "gateway-late"):
        assert abs(share - 0.5) < 0.03
    else:
        assert share == 0


@given(SEEDS, st.lists(st.integers(0, 10**6), min_size=2, max_size=2).map(sorted))
def test_a_late_commit_keeps_to_its_range(seed: int, later_ms: list[int]) -> None:
    lots = PaymentLots(faults_of(seed=seed, payments={"close-commit": 1}, laterMs=later_ms))
    times = [lot.later_ms for _ in range(50) if (lot := lots.draw())]
    assert later_ms[0] <= min(times) <= max(times) <= later_ms[1]
    assert len(set(times)) > 1 or later_ms[1] - later_ms[0] == 0


@pytest.mark.parametrize("mode", ["gateway-early", "gateway-late", "gateway-commit"])
def test_a_gateway_answers_any_of_its_statuses(mode: str) -> None:
    lots = PaymentLots(faults_of(payments={mode: 1}))
    assert {lot.status for _ in range(200) if (lot := lots.draw())} == {408, 429, 502, 503, 504}


def test_what_a_gateway_has_refused_early_is_recorded_later_by_a_coin_but_never_after_a_429() -> (
    None
):
    lots = PaymentLots(faults_of(payments={"gateway-early": 1}))
    drawn = [(lot.status, lot.commits_later) for _ in range(400) if (lot := lots.draw())]
    assert {status for status, later in drawn if later} == {408, 502, 503, 504}
    assert {status for status, later in drawn if not later} == {408, 429, 502, 503, 504}


def test_lies_about_the_delay_range_up_to_three_seconds() -> None:
    lots = HealthLots(faults_of(health={"lie": 1}))
    times = [lots.slowness_ms() for _ in range(DRAWS)]
    assert min(times) < 100
    assert 2900 < max(times) <= 3000


def test_no_wrong_report_can_be_taken_for_one() -> None:
    lots = HealthLots(faults_of(health={"wrong-types": 1}))
    assert {lots.wrong_report() for _ in range(DRAWS)} == set(WRONG_REPORTS)
    for body in WRONG_REPORTS:
        orjson.loads(body)
        assert RINHA.read_health(Response(200, body)) is None


# Decisions.


@given(SEEDS, st.uuids().map(str))
def test_a_payment_meets_the_same_decision_every_time(seed: int, correlation_id: str) -> None:
    faults = faults_of(seed=seed, decisions={"decline": 0.3, "pending": 0.4})
    assert deliberate(faults, correlation_id) == deliberate(faults, correlation_id)


def test_decisions_come_as_often_as_they_are_set() -> None:
    faults = faults_of(decisions={"decline": 0.2, "pending": 0.3}, decideMs=[10, 20])
    thoughts = [deliberate(faults, str(number)) for number in range(DRAWS)]
    counts = Counter((each.first, each.last) for each in thoughts)
    assert abs(counts[Standing.FAILED, Standing.FAILED] / DRAWS - 0.2) < 0.03
    for last in (Standing.SUCCEEDED, Standing.FAILED):
        assert abs(counts[Standing.PENDING, last] / DRAWS - 0.15) < 0.03
    assert all(10 <= each.after_ms <= 20 for each in thoughts if each.first is Standing.PENDING)


def test_without_decisions_every_payment_succeeds_at_once() -> None:
    assert deliberate(Faults(), "any") == Deliberation(Standing.SUCCEEDED, Standing.SUCCEEDED)

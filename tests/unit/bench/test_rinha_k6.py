"""k6 plays the same scenarios and scores them alike: its JavaScript, run by Node."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import bench.rinha
from bench.rinha.scenario import PROCESSORS, load_scenario
from bench.rinha.score import Audit, count_inconsistencies, judge
from payswitch.money import Total

BENCH = Path(bench.rinha.__file__).parent
SCORE = "given.map(([scenario, run]) => score(scenario, run))"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node here")

# Without shrinking: each try starts Node.
PHASES = (Phase.explicit, Phase.generate)

counts = st.integers(0, 100_000)
times_ms = st.one_of(
    st.floats(0, 2000, allow_nan=False),
    st.integers(0, 11_000).map(lambda thousandth: thousandth / 1000),
)

runs = st.fixed_dictionaries(
    {
        "scenario": st.sampled_from(["preview", "final"]),
        "default": counts,
        "fallback": counts,
        "lag": st.integers(-3, 2000),
        "inconsistencies": st.integers(0, 2),
        "p99": times_ms,
    }
)
numbers = st.tuples(counts, counts, counts, counts, st.booleans())


def books(default: int, fallback: int, cents: int) -> dict[str, Total]:
    return {
        "default": Total(default, default * cents),
        "fallback": Total(fallback, fallback * cents),
    }


def node(program: str, given: Any) -> Any:
    """What a program makes of `given` with the functions of score.js at hand."""
    source = f"{(BENCH / 'score.js').read_text()}\nconst given = {orjson.dumps(given).decode()};\n"
    done = subprocess.run(
        ["node", "--input-type=module"],
        input=f"{source}console.log(JSON.stringify({program}));",
        capture_output=True,
        text=True,
        check=True,
    )
    return orjson.loads(done.stdout)


def in_python(run: dict[str, Any]) -> dict[str, Any]:
    scenario = load_scenario(run["scenario"])
    score = judge(
        scenario,
        processed=books(run["default"], run["fallback"], scenario.cents),
        accepted=max(0, run["default"] + run["fallback"] + run["lag"]),
        inconsistencies=run["inconsistencies"],
        p99_ms=run["p99"],
    )
    return {
        "amount": float(score.amount),
        "fees": {name: float(score.fees[name]) for name in PROCESSORS},
        "net": float(score.net),
        "p99": score.p99_ms,
        "bonus": float(score.bonus),
        "fine": float(score.fine),
        "lag": score.lag,
        "disqualified": score.is_disqualified,
        "score": float(score.value),
    }


def for_javascript(run: dict[str, Any]) -> list[Any]:
    scenario = load_scenario(run["scenario"])
    processed = {
        name: {"totalRequests": run[name], "totalAmount": run[name] * scenario.cents / 100}
        for name in PROCESSORS
    }
    accepted = max(0, run["default"] + run["fallback"] + run["lag"])
    return [
        {"feePercent": scenario.fee_percent},
        {
            "processed": processed,
            "accepted": accepted,
            "inconsistencies": run["inconsistencies"],
            "p99": run["p99"],
        },
    ]


@settings(max_examples=5, phases=PHASES, suppress_health_check=[HealthCheck.data_too_large])
@given(st.lists(runs, min_size=50, max_size=150))
def test_k6_computes_the_same_score_from_the_same_numbers(cases: list[dict[str, Any]]) -> None:
    found = node(
        "given.map(([scenario, run]) => score(scenario, run))", [*map(for_javascript, cases)]
    )
    assert found == [in_python(case) for case in cases]


def test_k6_rounds_every_p99_around_the_bonus_alike() -> None:
    times = [hundredth / 400 for hundredth in range(4480)]
    cases = [
        {
            "scenario": "final",
            "default": 3,
            "fallback": 1,
            "lag": 0,
            "inconsistencies": 0,
            "p99": each,
        }
        for each in times
    ]
    found = node(
        "given.map(([scenario, run]) => score(scenario, run))", [*map(for_javascript, cases)]
    )
    assert found == [in_python(case) for case in cases]


@settings(max_examples=3, phases=PHASES)
@given(st.lists(numbers, min_size=20, max_size=100))
def test_k6_counts_the_same_inconsistencies(
    cases: list[tuple[int, int, int, int, bool]],
) -> None:
    def summary(default: int, fallback: int) -> dict[str, dict[str, int]]:
        return {"default": {"totalRequests": default}, "fallback": {"totalRequests": fallback}}

    given = [[summary(*case[:2]), summary(*case[2:4]), case[4]] for case in cases]
    expected = [
        count_inconsistencies(
            replace(load_scenario("final"), differences_cancel=case[4]),
            [Audit(0, books(*case[:2], 1), books(*case[2:4], 1))],
        )
        for case in cases
    ]
    assert node("given.map((each) => inconsistencies(...each))", given) == expected

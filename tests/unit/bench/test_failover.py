"""What the failover bench makes of its answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.failover import Round, State
from bench.local import BenchError
from bench.steady import Answer

LOST_AT = 1000.0


def answer(after_s: float, status: int = 202, ms: float = 2.0, why: str = "") -> Answer:
    return Answer("4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3", LOST_AT + after_s, status, ms, why)


def state(after_s: float, primary: str, *, in_step: bool = True) -> State:
    return State(LOST_AT + after_s, primary, in_step)


FOUND = Round(
    shard=0,
    seconds=10,
    lost_at=LOST_AT,
    own=[
        answer(-11, 503),  # before both spans
        answer(-5),
        answer(1, 503, why='{"detail":"it is away"}'),
        answer(2),
        answer(3, 503, 500, '{"detail":"it is away"}'),
        answer(4, ms=300),
    ],
    others=[
        *(answer(-10 + number / 100, ms=number) for number in range(1, 101)),
        answer(-1, ms=900),  # longer after the span's beginning than the shard was refused
        *(answer(number / 100, ms=2 * number) for number in range(1, 101)),
        answer(5, 503, why="broken"),
    ],
    states=[
        state(-1, "7001"),
        state(1, "", in_step=False),
        state(2.6, "7004", in_step=False),
        state(3.4, "7004"),
    ],
    settled_s=4.5,
)


def test_the_spans_of_an_outage_count_from_the_loss() -> None:
    assert FOUND.refused_s == pytest.approx(3.5)  # its last refusal came half a second later
    assert FOUND.promoted_s == pytest.approx(2.6)
    assert FOUND.in_step_s == pytest.approx(3.4)


def test_the_others_are_compared_for_as_long_as_the_shard_was_refused() -> None:
    whole, lost = FOUND.whole(), FOUND.lost()
    assert (whole["others_p50"], whole["others_p99"], whole["others_worst"]) == (50, 99, 100)
    assert (lost["others_p50"], lost["others_p99"], lost["others_worst"]) == (100, 198, 200)
    assert (whole["refused"], lost["refused"]) == (0, 2)
    assert (whole["others_refused"], lost["others_refused"]) == (0, 1)


def test_a_shard_that_never_comes_back_has_no_new_primary() -> None:
    found = replace(FOUND, states=FOUND.states[:2])
    assert found.promoted_s is None
    assert found.in_step_s is None
    assert "promoted_s" not in found.lost()


def test_a_round_tells_the_reasons_of_the_refusals() -> None:
    document = FOUND.as_document()
    assert document["reasons"] == {"503: it is away": 2, "503: ": 1}
    assert document["reasonsOfOthers"] == {"503: broken": 1}


def test_a_round_without_other_payments_is_no_result() -> None:
    with pytest.raises(BenchError, match="no payment"):
        replace(FOUND, others=[]).lost()

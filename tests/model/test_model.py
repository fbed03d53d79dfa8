"""The promise under hypothesis: whatever happens in whatever order, every acknowledged payment is
paid once and the books agree; and the model notices when the protocol is broken."""

from __future__ import annotations

import os
from collections import Counter

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import PaymentsMachine
from tests.model.promise import BrokenPromiseError
from tests.model.stepped import Store
from tests.model.test_schedules import SCHEDULES
from tests.model.variants import VARIANTS, Protocol

pytestmark = pytest.mark.timeout(600)

SETTINGS = hypothesis.settings(
    max_examples=50,
    stateful_step_count=60,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
LONG = hypothesis.settings(
    SETTINGS,
    max_examples=800,
    stateful_step_count=100,
    phases=[Phase.generate, Phase.shrink],
)
SOME = hypothesis.settings(SETTINGS, max_examples=25)
HUNT = hypothesis.settings(SETTINGS, max_examples=600)
"""It ends with the first violation, mostly among the first hundred."""

WRITTEN_OUT = {schedule.guards for schedule in SCHEDULES}
"""Broken variants that `make test` need not hunt, as it plays what breaks them."""

DEPTHS = (
    *("outcome: Paid", "outcome: Refused", "outcome: NotPaid", "outcome: Ended"),
    *("outcome: Unknown", "outcome: NotSentInTime", "find: found", "find: missing"),
    *("settle: settled", "settle: known", "settle: gone", "release: noted", "release: gone"),
    *("bury: buried", "bury: lost", "replay: done", "route: fenced"),
    *("resolve: done", "replay: resolved"),
    *("accept: same", "accept: other", "purge", "a worker dies", "a worker stops"),
    *("several tries open", "an ended try open", "pinned anew", "pinned to the other one"),
    *("taken over from one that lives", "done for the dead", "the processor knew it already"),
    "recorded after the sender had given up",
    *("Redis' clock steps forward", "Redis' clock steps back"),
    *("claim: an operator has chosen", "claim: paused"),
    "opened by its claim",
    *("the processors become slower", "sent again without a question"),
    *("a breaker open", "refusals are held", "held"),
    *("outcome: Declined", "outcome: Pending", "find: declined", "find: pending", "find: denied"),
    *("decided: paid", "decided: declined", "a pending try open", "a decline kept for later"),
    *("bury declined: buried", "bury declined: open", "bury declined: lost", "replay: declined"),
    *("a failover", "a failover undoes writes", "not confirmed", "switched with claims in hand"),
    *("accept at the former primary", "route at the former primary"),
)
"""What runs of normal length must have come across."""


MOVING = ("accept", "claim", "route", "settle", "release", "replay", "sweep")
"""Scripts that such runs must have come across while the slot moved."""


RESTARTING = Protocol(temper={"failovers": True, "restarts": True})
RESTARTS = (
    *("the primary comes back", "the primary comes back older", "stopped"),
    "the primary comes back without what nobody was told",
    *("the loss is accepted", "the right files are brought"),
)
"""What such runs must have come across while the primary restarted."""


def run(store: Store, protocol: Protocol, settings: hypothesis.settings, seed: int) -> Counter[str]:
    """Run the model; returns what it came across. Raises `BrokenPromiseError`."""
    counts: Counter[str] = Counter()

    @hypothesis.seed(seed)
    def machine() -> PaymentsMachine:
        return PaymentsMachine(store, protocol, counts)

    run_state_machine_as_test(machine, settings=settings)  # type: ignore[arg-type]
    return counts


def test_the_promise_holds_in_every_run(store: Store) -> None:
    """As often as it takes to come across everything: a seed alone may miss a rare thing."""
    counts: Counter[str] = Counter()
    for seed in range(9, 14):
        counts += run(store, Protocol(), SETTINGS, seed)
        if all(counts[name] for name in DEPTHS):
            break
    print("\n".join(f"{counts[name]:6} {name}" for name in sorted(counts)))
    assert [name for name in DEPTHS if counts[name] == 0] == []


def test_the_promise_holds_while_a_slot_moves(store: Store) -> None:
    moving = Protocol(temper={"failovers": True, "moves": True})
    counts: Counter[str] = Counter()
    for seed in range(1, 5):
        counts += run(store, moving, SOME, seed)
        if all(counts[f"{name} in a moving slot"] for name in MOVING):
            break
    assert [name for name in MOVING if counts[f"{name} in a moving slot"] == 0] == []


def test_the_promise_holds_while_the_primary_restarts(store: Store) -> None:
    counts: Counter[str] = Counter()
    for seed in range(1, 5):
        counts += run(store, RESTARTING, SOME, seed)
        if all(counts[name] for name in RESTARTS):
            break
    print("\n".join(f"{counts[name]:6} {name}" for name in RESTARTS))
    assert [name for name in RESTARTS if counts[name] == 0] == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("protocol", [Protocol(), RESTARTING], ids=["all", "restarts"])
def test_the_promise_holds_over_a_long_random_run(store: Store, protocol: Protocol) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    run(store, protocol, LONG, seed)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(
            variant, id=variant.name, marks=[pytest.mark.long] * (variant.name in WRITTEN_OUT)
        )
        for variant in VARIANTS
        if not variant.rare
    ],
)
def test_the_model_catches(store: Store, variant: Protocol) -> None:
    with pytest.raises(BrokenPromiseError) as caught:
        run(store, variant, HUNT, seed=1)
    assert "failed inside" not in str(caught.value)

"""The state machine that hypothesis drives through the model's world."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.actions import Action, accept, possible
from tests.model.promise import Snapshot, check, count_depth, heal, read
from tests.model.stepped import Store
from tests.model.temper import Temper
from tests.model.variants import Protocol
from tests.model.world import World

_DAY_MS = 24 * 3_600_000
TEMPERS = st.builds(
    Temper,
    workers=st.sampled_from([2, 2, 3]),
    payments=st.sampled_from([1, 1, 2, 3]),
    breaker_failures=st.sampled_from([1000, 1000, 3]),
    breaker_refusals=st.sampled_from([1000, 2, 1]),
    deadline_ms=st.sampled_from([_DAY_MS, _DAY_MS, 40_000]),
    redis_faults=st.booleans(),
    crashes=st.booleans(),
    clock_steps=st.booleans(),
    purges=st.sampled_from([False, False, True]),
    hasty=st.booleans(),
    sluggish=st.booleans(),
    unwilling=st.booleans(),
    strict=st.booleans(),
    slow_claims=st.sampled_from([False, False, True]),
    orders=st.sampled_from([False, False, True]),
    patient=st.sampled_from([False, False, True]),
    slower=st.sampled_from([False, False, True]),
    deliberate=st.sampled_from([False, False, True]),
    failovers=st.sampled_from([False, False, True]),
    first_tries=st.booleans(),
)


class PaymentsMachine(RuleBasedStateMachine):
    """Accept, claim, route, pay, settle, with everything between them that can go wrong.

    There is one rule: do one of the things that are possible now, by their weights. So no step is
    wasted on a rule that doesn't apply, and hypothesis' swarm testing, which turns rules off, is
    left to the temper, which turns faults off.
    """

    def __init__(self, store: Store, protocol: Protocol, counts: Counter[str]) -> None:
        super().__init__()
        self._store = store
        self._protocol = protocol
        self._counts = counts
        self._world: World | None = None
        self._seen: Snapshot | None = None
        self._failed = False

    @initialize(temper=TEMPERS)
    def begin(self, temper: Temper) -> None:
        """A new world with a payment in it."""
        given = cast(dict[str, Any], self._protocol.temper)
        temper = replace(temper, **given)
        if temper.failovers:
            temper = replace(temper, first_tries=False)
        self._world = World(self._store, self._protocol, temper)
        accept(self._world, self._world.ingresses[0], "pay-1", 1000)
        self._look()

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One thing happens."""
        assert self._world is not None
        assert self._seen is not None
        choices = [
            action
            for action in possible(self._world, self._seen)
            for _ in range(self._weight(action))
        ]
        try:
            data.draw(st.sampled_from(choices)).happen()
            self._world.settle_down()
            self._look()
        except BaseException:
            self._failed = True
            raise

    def _weight(self, action: Action) -> int:
        factors = (factor for text, factor in self._protocol.steer.items() if text in action.label)
        return math.ceil(action.weight * math.prod(factors))

    def _look(self) -> None:
        assert self._world is not None
        if self._world.changed or self._seen is None:
            self._seen = read(self._world)
            count_depth(self._world, self._seen)
            self._world.changed = False
        check(self._world, self._seen)

    def teardown(self) -> None:
        """All faults end: what was accepted must be paid."""
        world = self._world
        if world is None:
            return
        try:
            if not self._failed:
                self._counts.update(world.counts)
                heal(world)
        finally:
            world.close()

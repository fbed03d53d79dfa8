"""Circuit breakers and the router over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from payswitch.dispatch.routing import Breaker, BreakerLimits, BreakerState, Router, Verdict
from payswitch.selection.selector import Selection, unselected
from payswitch.telemetry.heartbeat import REFUSES
from tests.support import PROCESSORS

SLOTS = 4
FAILURES = 3
REFUSALS = 2
PROBE_MS = 1000

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
GOOD, BAD, REFUSED, NEUTRAL = Verdict.GOOD, Verdict.BAD, Verdict.REFUSED, Verdict.NEUTRAL


def breaker_of(*, slots: int = SLOTS, refusals: int = REFUSALS) -> Breaker:
    return Breaker(slots=slots, limits=BreakerLimits(FAILURES, refusals, PROBE_MS))


def call(
    breaker: Breaker, verdict: Verdict, now: float = 0, *, asked_ms: int = 0, reason: str = ""
) -> None:
    """A call that starts and is over at once."""
    probe = breaker.enter(now)
    breaker.leave(verdict, probe=probe, now=now, asked_ms=asked_ms, reason=reason)


def opened(now: float = 0) -> Breaker:
    """A breaker that opened at this instant."""
    breaker = breaker_of()
    for _ in range(FAILURES):
        call(breaker, BAD, now)
    return breaker


def refusing(now: float = 0) -> Breaker:
    """A breaker that opened at this instant because of refusals."""
    breaker = breaker_of()
    for _ in range(REFUSALS):
        call(breaker, REFUSED, now, reason="refused with status 422")
    return breaker


# The breaker.


@pytest.mark.parametrize(
    ("verdicts", "state"),
    [
        ([], CLOSED),
        ([BAD] * (FAILURES - 1), CLOSED),
        ([BAD] * FAILURES, OPEN),
        ([BAD, BAD, GOOD, BAD, BAD], CLOSED),
        ([BAD, BAD, GOOD, BAD, BAD, BAD], OPEN),
        ([BAD, NEUTRAL, BAD, NEUTRAL, BAD], OPEN),
        ([BAD, BAD, NEUTRAL], CLOSED),
        ([NEUTRAL] * 100, CLOSED),
        ([GOOD] * 100, CLOSED),
        ([BAD, GOOD] * 100, CLOSED),
        ([BAD, BAD, REFUSED, BAD, BAD], CLOSED),
    ],
)
def test_a_breaker_opens_after_consecutive_failures(
    verdicts: list[Verdict], state: BreakerState
) -> None:
    breaker = breaker_of()
    for verdict in verdicts:
        call(breaker, verdict)
    assert breaker.state is state


@pytest.mark.parametrize(
    ("now", "free"), [(5000, 0), (5000 + PROBE_MS - 1, 0), (5000 + PROBE_MS, 1), (10**9, 1)]
)
def test_an_open_breaker_lets_one_call_in_once_its_probe_is_due(now: float, free: int) -> None:
    assert opened(5000).free(now) == free


@pytest.mark.parametrize(
    ("now", "ms"), [(5000, PROBE_MS), (5400, PROBE_MS - 400), (5000 + PROBE_MS, 0), (10**9, 0)]
)
def test_an_open_breaker_tells_when_its_probe_is_due(now: float, ms: float) -> None:
    assert opened(5000).reopens_in(now) == ms


def test_a_closed_breaker_has_no_probe_due() -> None:
    assert not breaker_of().probe_due(10**9)


def test_a_call_that_starts_while_closed_is_no_probe() -> None:
    assert breaker_of().enter(0) is False


def test_the_first_call_of_an_open_breaker_is_the_probe() -> None:
    assert opened().enter(0) is True


@pytest.mark.parametrize(("later_ms", "room"), [(0, 0), (PROBE_MS - 1, 0), (PROBE_MS, 1)])
def test_a_probe_that_is_not_answered_gives_way_to_the_next(later_ms: int, room: int) -> None:
    breaker = opened()
    breaker.enter(PROBE_MS)
    now = PROBE_MS + later_ms
    assert (breaker.state, breaker.free(now), breaker.probe_due(now)) == (HALF_OPEN, room, room)


def test_a_probe_that_fails_late_puts_the_next_off() -> None:
    breaker = opened()
    breaker.enter(PROBE_MS)
    breaker.enter(2 * PROBE_MS)
    breaker.leave(BAD, probe=True, now=2 * PROBE_MS + 1)
    assert (breaker.state, breaker.reopens_in(2 * PROBE_MS + 1)) == (OPEN, PROBE_MS)


@pytest.mark.parametrize("verdict", [BAD, REFUSED, NEUTRAL])
def test_a_probe_that_does_not_succeed_reopens_the_breaker(verdict: Verdict) -> None:
    breaker = opened()
    call(breaker, verdict, PROBE_MS)
    assert breaker.state is OPEN


@pytest.mark.parametrize("verdict", [BAD, REFUSED, NEUTRAL])
def test_after_a_probe_that_did_not_succeed_the_next_one_waits_as_long(verdict: Verdict) -> None:
    breaker = opened()
    call(breaker, verdict, PROBE_MS + 300)
    assert breaker.reopens_in(PROBE_MS + 300) == PROBE_MS


def test_a_good_probe_closes_the_breaker() -> None:
    breaker = opened()
    call(breaker, GOOD, PROBE_MS)
    assert (breaker.state, breaker.free(PROBE_MS)) == (CLOSED, SLOTS)


def test_after_a_good_probe_failures_are_counted_from_none() -> None:
    breaker = opened()
    call(breaker, GOOD, PROBE_MS)
    for _ in range(FAILURES - 1):
        call(breaker, BAD, PROBE_MS)
    assert breaker.state is CLOSED


@pytest.mark.parametrize("verdict", [BAD, REFUSED, NEUTRAL])
def test_a_straggler_that_does_not_succeed_leaves_an_open_breaker_as_it_is(
    verdict: Verdict,
) -> None:
    breaker = breaker_of()
    breaker.enter(0)
    for _ in range(FAILURES):
        call(breaker, BAD, 0)
    breaker.leave(verdict, probe=False, now=PROBE_MS - 1)
    assert (breaker.state, breaker.reopens_in(0)) == (OPEN, PROBE_MS)


def test_a_good_straggler_closes_an_open_breaker() -> None:
    breaker = breaker_of()
    breaker.enter(0)
    for _ in range(FAILURES):
        call(breaker, BAD)
    breaker.leave(GOOD, probe=False, now=1)
    assert breaker.state is CLOSED


def test_a_probe_that_tells_nothing_leaves_a_closed_breaker_closed() -> None:
    breaker = breaker_of()
    breaker.enter(0)
    for _ in range(FAILURES):
        call(breaker, BAD)
    probe = breaker.enter(0)
    breaker.leave(GOOD, probe=False, now=PROBE_MS)
    breaker.leave(NEUTRAL, probe=probe, now=PROBE_MS)
    assert breaker.state is CLOSED


@pytest.mark.parametrize(
    ("verdict", "at"), [(GOOD, 700.0), (BAD, -1.0), (REFUSED, -1.0), (NEUTRAL, -1.0)]
)
def test_only_a_good_call_is_a_success(verdict: Verdict, at: float) -> None:
    breaker = breaker_of()
    breaker.last_success = -1.0
    call(breaker, verdict, 700.0)
    assert breaker.last_success == at


def test_an_open_breaker_says_why_and_a_closed_one_nothing() -> None:
    breaker = breaker_of()
    for number in range(FAILURES):
        call(breaker, BAD, reason=f"status {500 + number}")
    assert breaker.why == "status 502"
    call(breaker, GOOD, PROBE_MS)
    assert breaker.why == ""


def test_a_probe_that_was_never_sent_leaves_the_reason_as_it_is() -> None:
    breaker = breaker_of()
    for _ in range(FAILURES):
        call(breaker, BAD, reason="status 500")
    call(breaker, NEUTRAL, PROBE_MS)
    assert breaker.why == "status 500"


def test_a_probe_that_redis_stopped_does_not_count() -> None:
    breaker = breaker_of()
    for _ in range(FAILURES):
        call(breaker, BAD, reason="status 500")
    breaker.withdraw(probe=breaker.enter(PROBE_MS))
    assert (breaker.state, breaker.why, breaker.in_flight) == (OPEN, "status 500", 0)
    assert breaker.probe_due(PROBE_MS)
    call(breaker, GOOD, PROBE_MS)
    breaker.withdraw(probe=breaker.enter(PROBE_MS))
    assert breaker.state is CLOSED


# A processor that asks for a pause.


def test_one_answer_that_asks_for_a_pause_opens_it() -> None:
    breaker = breaker_of()
    call(breaker, BAD, 100, asked_ms=1)
    assert breaker.state is OPEN


@pytest.mark.parametrize(
    ("asked_ms", "ms"), [(1, PROBE_MS), (PROBE_MS, PROBE_MS), (5 * PROBE_MS, 5 * PROBE_MS)]
)
def test_the_next_probe_waits_for_as_long_as_was_asked_for(asked_ms: int, ms: int) -> None:
    breaker = breaker_of()
    call(breaker, BAD, 100, asked_ms=asked_ms)
    assert breaker.reopens_in(100) == ms
    assert (breaker.probe_due(100 + ms - 1), breaker.probe_due(100 + ms)) == (False, True)


def test_a_probe_that_is_asked_for_a_pause_waits_for_as_long() -> None:
    breaker = opened()
    call(breaker, BAD, PROBE_MS, asked_ms=5 * PROBE_MS)
    assert breaker.reopens_in(PROBE_MS) == 5 * PROBE_MS


def test_a_straggler_that_is_asked_for_a_pause_puts_the_probe_off() -> None:
    breaker = breaker_of()
    breaker.enter(0)
    for _ in range(FAILURES):
        call(breaker, BAD)
    breaker.leave(BAD, probe=False, now=1, asked_ms=5 * PROBE_MS)
    assert breaker.reopens_in(1) == 5 * PROBE_MS


def test_a_good_straggler_does_not_end_the_pause_that_was_asked_for() -> None:
    breaker = breaker_of()
    breaker.enter(0)
    call(breaker, BAD, asked_ms=5 * PROBE_MS)
    breaker.leave(GOOD, probe=False, now=5 * PROBE_MS - 1)
    assert breaker.state is OPEN


def test_after_the_pause_a_good_straggler_closes_it() -> None:
    breaker = breaker_of()
    breaker.enter(0)
    call(breaker, BAD, asked_ms=5 * PROBE_MS)
    breaker.leave(GOOD, probe=False, now=5 * PROBE_MS)
    assert breaker.state is CLOSED


def test_after_a_good_probe_an_earlier_pause_is_forgotten() -> None:
    breaker = opened()
    probe = breaker.enter(0)
    breaker.enter(0)
    breaker.leave(BAD, probe=False, now=PROBE_MS, asked_ms=50 * PROBE_MS)
    breaker.leave(GOOD, probe=probe, now=PROBE_MS)
    for _ in range(FAILURES):
        call(breaker, BAD, PROBE_MS)
    assert breaker.reopens_in(PROBE_MS) == PROBE_MS


# A processor that refuses what it is sent.


@pytest.mark.parametrize(
    ("verdicts", "is_refusing"),
    [
        ([REFUSED] * 4, False),
        ([REFUSED] * 5, True),
        ([GOOD, GOOD, GOOD, GOOD, GOOD, *[REFUSED] * 5], True),
        ([REFUSED, GOOD] * 4, False),
        ([*[REFUSED, GOOD] * 4, REFUSED], True),
        ([REFUSED, GOOD, GOOD] * 100, False),
        ([REFUSED, BAD, NEUTRAL] * 4, False),
        ([REFUSED, BAD, NEUTRAL] * 5, True),
    ],
)
def test_it_opens_when_half_of_the_last_payments_were_refused(
    verdicts: list[Verdict], is_refusing: bool
) -> None:
    breaker = breaker_of(refusals=5)
    for verdict in verdicts:
        call(breaker, verdict)
    assert (breaker.state is OPEN, breaker.refusing) == (is_refusing, is_refusing)


def test_a_breaker_that_opened_for_failures_is_not_refusing() -> None:
    assert not opened().refusing


def test_probes_that_are_refused_make_it_refusing() -> None:
    breaker = opened()
    for number in range(REFUSALS):
        assert not breaker.refusing
        call(breaker, REFUSED, (1 + number) * PROBE_MS)
    assert breaker.refusing


def test_refusals_of_calls_under_way_when_it_opened_count() -> None:
    breaker = breaker_of()
    for _ in range(REFUSALS):
        breaker.enter(0)
    for _ in range(FAILURES):
        call(breaker, BAD, reason="status 500")
    for _ in range(REFUSALS):
        assert not breaker.refusing
        breaker.leave(REFUSED, probe=False, now=1, reason="refused with status 422")
    assert breaker.refusing
    assert breaker.why == "refuses payments: refused with status 422"


def test_a_good_straggler_does_not_close_it_while_refusing() -> None:
    breaker = breaker_of()
    breaker.enter(0)
    for _ in range(REFUSALS):
        call(breaker, REFUSED)
    breaker.leave(GOOD, probe=False, now=10**6)
    assert (breaker.state, breaker.refusing) == (OPEN, True)


def test_a_good_probe_ends_it_and_refusals_are_counted_from_none() -> None:
    breaker = refusing()
    call(breaker, GOOD, PROBE_MS)
    assert (breaker.state, breaker.refusing) == (CLOSED, False)
    for _ in range(REFUSALS - 1):
        call(breaker, REFUSED, PROBE_MS)
    assert breaker.state is CLOSED


def test_a_probe_that_fails_otherwise_leaves_it_refusing() -> None:
    breaker = refusing()
    call(breaker, BAD, PROBE_MS, reason="connection refused")
    assert breaker.refusing


def test_it_says_that_it_refuses() -> None:
    assert refusing().why == f"{REFUSES}: refused with status 422"


# Slots.


def test_a_call_under_way_takes_a_slot() -> None:
    breaker = breaker_of()
    breaker.enter(0)
    assert breaker.free(0) == SLOTS - 1


@pytest.mark.parametrize("verdict", Verdict)
def test_a_call_that_is_over_gives_its_slot_back(verdict: Verdict) -> None:
    breaker = breaker_of()
    call(breaker, verdict)
    assert breaker.free(0) == SLOTS


def test_there_is_no_room_when_every_slot_is_taken() -> None:
    breaker = breaker_of(slots=2)
    breaker.enter(0)
    breaker.enter(0)
    assert breaker.free(0) == 0


def test_room_is_never_negative() -> None:
    breaker = breaker_of(slots=1)
    breaker.enter(0)
    breaker.enter(0)
    assert breaker.free(0) == 0


class BreakerMachine(RuleBasedStateMachine):
    """Calls start where there is room, end in any order and way, and time goes on."""

    calls: Bundle[int] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = breaker_of()
        self.now = 0.0
        self.under_way: dict[int, bool] = {}
        self.failures = 0
        self.refused: list[bool] = []
        self.refusing = False
        self.state = CLOSED
        self.due_at = 0.0
        self.left_alone_until = 0.0

    @rule(ms=st.sampled_from([1, PROBE_MS - 1, PROBE_MS]))
    def time_goes_on(self, ms: int) -> None:
        """A while passes."""
        self.now += ms

    @precondition(lambda self: self.breaker.free(self.now) > 0)
    @rule(target=calls, number=st.integers())
    def a_call_starts(self, number: int) -> int:
        """There is room, so a call starts; it is a probe exactly if the breaker isn't closed."""
        assume(number not in self.under_way)
        self.under_way[number] = is_probe = self.breaker.enter(self.now)
        assert is_probe == (self.state is not CLOSED)
        if is_probe:
            self.state, self.due_at = HALF_OPEN, self.now + PROBE_MS
        return number

    @rule(
        number=consumes(calls),
        verdict=st.sampled_from(Verdict),
        asked_ms=st.sampled_from([0, 0, 1, 3 * PROBE_MS]),
    )
    def a_call_ends(self, number: int, verdict: Verdict, asked_ms: int) -> None:
        """A call ends; what that does to the breaker follows from the model alone."""
        is_probe = self.under_way.pop(number)
        if verdict is not BAD:
            asked_ms = 0
        self.breaker.leave(verdict, probe=is_probe, now=self.now, asked_ms=asked_ms)
        if verdict is GOOD:
            self.it_succeeds(is_probe=is_probe)
            return
        self.left_alone_until = max(self.left_alone_until, self.now + asked_ms)
        if verdict is REFUSED:
            self.failures = 0
            self.refused = [*self.refused, True][-2 * REFUSALS :]
            self.refusing = self.refusing or self.refused.count(True) >= REFUSALS
        if self.state is CLOSED and verdict is BAD and not is_probe:
            self.failures += 1
        too_many = self.failures >= FAILURES or self.refused.count(True) >= REFUSALS
        fails = is_probe and self.state is HALF_OPEN
        if fails or (self.state is CLOSED and (asked_ms or too_many)):
            self.state, self.due_at = OPEN, self.now + PROBE_MS

    def it_succeeds(self, *, is_probe: bool) -> None:
        """A success closes it, unless something stands against it that only a probe refutes."""
        self.failures = 0
        assert self.breaker.last_success == self.now
        if self.state is CLOSED:
            self.refused = [*self.refused, False][-2 * REFUSALS :]
        elif is_probe or not (self.refusing or self.now < self.left_alone_until):
            self.state, self.refused, self.refusing = CLOSED, [], False
            self.left_alone_until = self.now

    @invariant()
    def the_state_is_the_models(self) -> None:
        """Half open while probing, open after a failure, else closed."""
        assert self.breaker.state is self.state

    @invariant()
    def it_is_refusing_as_the_model_says(self) -> None:
        """Never while closed."""
        assert self.breaker.refusing == self.refusing
        assert not (self.refusing and self.breaker.state is CLOSED)

    @invariant()
    def the_calls_under_way_are_counted(self) -> None:
        """Each that started and isn't over."""
        assert self.breaker.in_flight == len(self.under_way)

    @invariant()
    def there_is_room_as_the_state_says(self) -> None:
        """Slots while closed, one where a probe is due, else none."""
        if self.state is CLOSED:
            room = max(0, SLOTS - len(self.under_way))
        else:
            room = int(self.now >= max(self.due_at, self.left_alone_until))
        assert self.breaker.free(self.now) == room


def test_any_sequence_of_calls_leaves_the_breaker_as_its_model_says() -> None:
    run_state_machine_as_test(BreakerMachine, settings=settings(stateful_step_count=40))


# The router.


def router_of(**breakers: Breaker) -> Router:
    """A router over these breakers; those that aren't given are closed."""
    return Router(
        {name: breakers.get(name, breaker_of()) for name in ("default", "fallback")},
        probe_ms=PROBE_MS,
    )


def selecting(router: Router, processor: str, *, healthy: bool = True, now: float = 0) -> Router:
    """The router once it has seen this selection."""
    raw = f"{processor} {healthy} {now}".encode()
    router.see(raw, Selection(processor, healthy, ""), now)
    return router


@pytest.mark.parametrize("processor", ["default", "fallback"])
def test_the_selected_processor_comes_first(processor: str) -> None:
    assert selecting(router_of(), processor).choose(1) == processor


def test_without_any_selection_default_is_chosen() -> None:
    router = router_of()
    assert (router.selection, router.choose(0)) == (unselected(PROCESSORS), "default")


@pytest.mark.parametrize(("selected", "other"), [("default", "fallback"), ("fallback", "default")])
def test_the_other_one_steps_in_while_the_selected_ones_breaker_is_open(
    selected: str, other: str
) -> None:
    router = selecting(router_of(**{selected: opened(0)}), selected)
    assert router.choose(PROBE_MS - 1) == other


def test_the_other_one_steps_in_while_the_selected_one_refuses_payments() -> None:
    assert selecting(router_of(default=refusing()), "default").choose(1) == "fallback"


def test_nothing_is_chosen_while_both_refuse_payments() -> None:
    router = selecting(router_of(default=refusing(), fallback=refusing()), "default")
    assert router.choose(1) is None


def test_the_other_one_steps_in_while_the_selected_one_is_being_probed() -> None:
    breaker = opened(0)
    breaker.enter(PROBE_MS)
    assert selecting(router_of(default=breaker), "default").choose(PROBE_MS + 1) == "fallback"


def test_the_selected_processor_comes_first_again_when_it_is_due_to_be_probed() -> None:
    router = selecting(router_of(default=opened(0)), "default")
    assert router.choose(PROBE_MS) == "default"


def test_a_processor_that_is_not_selected_is_not_probed_beside_a_healthy_one() -> None:
    router = selecting(router_of(fallback=opened(0)), "default")
    assert router.choose(10**9) == "default"


@pytest.mark.parametrize("now", [1, PROBE_MS, 10**9])
def test_nothing_is_chosen_while_no_breaker_is_closed(now: float) -> None:
    router = selecting(router_of(default=opened(0), fallback=opened(0)), "default")
    assert router.choose(now) is None


def test_a_full_processor_is_chosen_all_the_same() -> None:
    breaker = breaker_of(slots=1)
    breaker.enter(0)
    assert selecting(router_of(default=breaker), "default").choose(1) == "default"


def test_nothing_is_chosen_when_the_check_found_nothing_healthy() -> None:
    assert selecting(router_of(), "default", healthy=False).choose(1) is None


@pytest.mark.parametrize("succeeding", ["default", "fallback"])
def test_a_success_since_then_speaks_for_a_processor_that_the_check_found_unhealthy(
    succeeding: str,
) -> None:
    router = selecting(router_of(), "default", healthy=False, now=100)
    call(router.breakers[succeeding], GOOD, 101)
    assert router.choose(102) == succeeding


@pytest.mark.parametrize("at", [99.0, 100.0])
def test_a_success_before_the_check_found_nothing_healthy_does_not_count(at: float) -> None:
    router = router_of()
    call(router.breakers["default"], GOOD, at)
    assert selecting(router, "default", healthy=False, now=100).choose(102) is None


def test_seeing_the_same_selection_again_does_not_make_it_newer() -> None:
    router = router_of()
    for now in (100, 200):
        router.see(b"same", Selection("default", False, ""), now)
        call(router.breakers["default"], GOOD, 150)
    assert router.choose(201) == "default"


def test_seeing_a_newer_selection_asks_for_a_newer_success() -> None:
    router = selecting(router_of(), "default", healthy=False, now=100)
    call(router.breakers["default"], GOOD, 150)
    assert selecting(router, "default", healthy=False, now=200).choose(201) is None


def test_a_selection_that_has_expired_is_forgotten() -> None:
    router = selecting(router_of(), "fallback", healthy=False)
    router.see(None, unselected(PROCESSORS), 1)
    assert router.choose(2) == "default"


# Probing where nothing is healthy.


def unhealthy_router() -> Router:
    return selecting(router_of(), "default", healthy=False)


def test_probes_take_turns() -> None:
    router = unhealthy_router()
    probes = []
    for now in range(5 * PROBE_MS, 9 * PROBE_MS, PROBE_MS):
        name = router.to_probe(now)
        assert name is not None
        router.probed(name, now)
        probes.append(name)
    assert probes == ["default", "fallback", "default", "fallback"]


@pytest.mark.parametrize(("breaker", "verdict"), [(opened, BAD), (refusing, REFUSED)])
def test_probes_take_turns_while_both_breakers_are_open(
    breaker: Callable[[], Breaker], verdict: Verdict
) -> None:
    router = router_of(default=breaker(), fallback=breaker())
    probes = []
    for now in range(5 * PROBE_MS, 9 * PROBE_MS, PROBE_MS):
        name = router.to_probe(now)
        assert name is not None
        router.probed(name, now)
        call(router.breakers[name], verdict, now)
        probes.append(name)
    assert probes == ["default", "fallback", "default", "fallback"]


def test_a_processor_that_was_just_probed_is_not_probed_again() -> None:
    router = unhealthy_router()
    for name in ("default", "fallback"):
        router.probed(name, 5000)
    assert router.to_probe(5000 + PROBE_MS - 1) is None


def test_a_processor_is_probed_again_after_a_while() -> None:
    router = unhealthy_router()
    router.probed("default", 5001)
    router.probed("fallback", 5000)
    assert router.to_probe(5000 + PROBE_MS) == "fallback"


@pytest.mark.parametrize(("now", "name"), [(PROBE_MS - 1, None), (PROBE_MS, "default")])
def test_an_open_breaker_is_probed_when_its_own_probe_is_due(now: float, name: str | None) -> None:
    router = router_of(default=opened(0), fallback=opened(10**6))
    assert router.to_probe(now) == name


def test_a_processor_whose_probe_is_under_way_is_not_probed() -> None:
    breaker = opened(0)
    breaker.enter(10**6)
    assert router_of(default=breaker).to_probe(10**6) == "fallback"


# What an operator has chosen.


def overriding(router: Router, processor: str) -> Router:
    selection = Selection(processor, True, "", overridden=True)
    router.see(b"an operator's", selection, 0)
    return router


@pytest.mark.parametrize("processor", ["default", "fallback"])
def test_an_operators_choice_is_taken(processor: str) -> None:
    assert overriding(router_of(), processor).choose(0) == processor


@pytest.mark.parametrize("now", [0, PROBE_MS, 10**6])
def test_the_other_one_never_steps_in_for_an_operators_choice(now: float) -> None:
    router = overriding(router_of(default=opened(0)), "default")
    assert router.choose(now) is None


@pytest.mark.parametrize(("now", "name"), [(PROBE_MS - 1, None), (PROBE_MS, "default")])
def test_an_operators_choice_is_probed_on_while_its_breaker_is_open(
    now: float, name: str | None
) -> None:
    router = overriding(router_of(default=opened(0), fallback=opened(-(10**6))), "default")
    assert router.to_probe(now) == name


def test_an_operators_choice_whose_probe_succeeds_is_taken_again() -> None:
    router = overriding(router_of(default=opened(0)), "default")
    call(router.breakers["default"], GOOD, PROBE_MS)
    assert router.choose(PROBE_MS) == "default"


def test_after_an_operators_choice_the_other_one_steps_in_again() -> None:
    router = overriding(router_of(default=opened(0)), "default")
    assert selecting(router, "default").choose(0) == "fallback"


# Patience.

PATIENCE_MS = 5000


def patient(**breakers: Breaker) -> Router:
    """A router over these breakers whose payments wait."""
    return Router(router_of(**breakers).breakers, probe_ms=PROBE_MS, patience_ms=PATIENCE_MS)


def with_down(router: Router, processor: str, *down: str) -> Router:
    """The router once the health check has found these down, and chosen this one."""
    healthy = processor not in down
    router.see((processor, *down), Selection(processor, healthy, "", down=down), 0)
    return router


@pytest.mark.parametrize(
    ("age_ms", "awaited"), [(0, "default"), (PATIENCE_MS - 1, "default"), (PATIENCE_MS, None)]
)
def test_a_payment_waits_for_a_preferred_processor_that_is_down(
    age_ms: int, awaited: str | None
) -> None:
    router = with_down(patient(), "fallback", "default")
    assert router.awaited("fallback", age_ms) == awaited
    assert router.back() == ["fallback"]


def test_a_payment_waits_while_the_selected_processors_breaker_is_not_closed() -> None:
    router = with_down(patient(default=opened(0)), "default")
    assert router.choose(0) == "fallback"
    assert router.awaited("fallback", 0) == "default"
    call(router.breakers["default"], GOOD, PROBE_MS)
    assert router.back() == ["default", "fallback"]


def test_no_payment_waits_for_a_processor_that_is_only_slow() -> None:
    router = with_down(patient(default=opened(0)), "fallback")
    assert router.awaited("fallback", 0) is None
    assert router.back() == ["default", "fallback"]


def test_no_payment_waits_for_a_processor_that_may_not_get_it() -> None:
    router = with_down(patient(), "fallback", "default")
    assert router.awaited("fallback", 0, ["fallback"]) is None


def test_no_payment_that_the_preferred_processor_would_take_waits_for_another() -> None:
    router = with_down(patient(), "default", "fallback")
    assert router.awaited("default", 0) is None


def test_no_payment_waits_where_an_operator_has_chosen() -> None:
    router = patient()
    router.see(b"1", Selection("fallback", True, "", overridden=True, down=("default",)), 0)
    assert router.awaited("fallback", 0) is None
    assert router.back() == ["default", "fallback"]


def test_without_patience_no_payment_waits() -> None:
    router = with_down(router_of(default=opened(0)), "fallback", "default")
    assert router.awaited("fallback", 0) is None

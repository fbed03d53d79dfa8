"""Plays a policy on a scenario in simulated time: arrivals, claims, calls, health checks, audits.

Selection, routers, breakers and pauses are the system's own. Payments of one tick are a cohort;
nothing but the pauses between tries is random, and those are seeded by the caller.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from bench.rinha.scenario import AUDIT_EVERY_S, AUDIT_WINDOW_MS, Scenario
from bench.routing.scenarios import arrivals, courses, end_ms
from payswitch.dispatch.dispatcher import Pauses
from payswitch.dispatch.payment_worker import DRAIN_PER_MS
from payswitch.dispatch.routing import Breaker, BreakerLimits, Router, Verdict
from payswitch.processors.outcomes import HealthReport
from payswitch.selection.selector import Limits, decide
from payswitch.settings import Settings

WORKERS = 2
CLAIM_MS = 100
"""The workers' claim pause in `compose.yaml`."""
HEALTH_MS = 6000
"""The cron fires each second, and the throttle lets one check through in 5.1 s."""
CALL_MS = 3
"""A call's time beside the processor's delay; a question about a payment takes as long."""
SETTLE_MS = 100
"""A payment enters our book at most so long after the processor's: a claim's pause of a worker."""

_HELD_MS = 220
_MOST_AT_ONCE = 500
SLOTS = Settings.processor_slots
"""The most calls of one worker to one processor."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule for the choice of a processor."""

    name: str
    limits: Limits
    patience_ms: int = 0
    """How long a payment waits for the cheaper processor while that one is down."""
    slow_is_down: bool = False
    """Whether it also waits while the cheaper one is too slow to be selected."""


@dataclass(slots=True)
class Cohort:
    """Payments that were accepted in the same tick and have fared alike."""

    accepted: int
    count: int
    tries: int = 0
    waits: bool = False

    def split(self, count: int) -> Cohort:
        """Take so many payments out of it."""
        self.count -= count
        return replace(self, count=count)


@dataclass(slots=True)
class Tally:
    """The result of one run."""

    accepted: int
    booked: dict[str, int]
    net: float
    """In cents, without a fine."""
    audits_with_differences: int
    longest_waiting: int
    """The most payments that waited for the cheaper processor at once."""
    longest_drain_ms: int
    """From the first payment that is brought forward until none waits."""

    @property
    def lag(self) -> int:
        """Accepted, but in no book at the end."""
        return self.accepted - sum(self.booked.values())


class _Worker:
    def __init__(self, patience_ms: int) -> None:
        limits = BreakerLimits()
        self.breakers = {
            name: Breaker(slots=SLOTS, limits=limits) for name in ("default", "fallback")
        }
        self.router = Router(self.breakers, probe_ms=limits.probe_ms, patience_ms=patience_ms)
        self.in_flight = 0


class Simulation:
    """One run of a policy on a scenario."""

    def __init__(self, scenario: Scenario, policy: Policy, *, phase_ms: int = 0) -> None:
        """The first health check is `phase_ms` after the first payment."""
        self._scenario = scenario
        self._policy = policy
        self._courses = courses(scenario)
        self._preferred = next(iter(self._courses))
        self._end = end_ms(scenario)
        self._workers = [_Worker(policy.patience_ms) for _ in range(WORKERS)]
        self._pauses = Pauses(Settings.retry_base_ms, Settings.retry_cap_ms)
        self._order = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._due: list[tuple[float, int, Cohort]] = []
        self._line: deque[Cohort] = deque()
        self._waiting = 0
        self._probing = False
        self._booked: Counter[str] = Counter()
        self._seen: list[tuple[float, float, int]] = []
        self._drain_began: float | None = None
        self._most_waiting = self._longest_drain = 0
        self._accepted = 0
        for at, number in arrivals(scenario):
            self._accepted += number
            self._push(at, Cohort(at, number))
        for number, worker in enumerate(self._workers):
            self._later(1 + number * CLAIM_MS / WORKERS, partial(self._turn, worker))
        self._later(phase_ms, self._check_health)

    def run(self) -> Tally:
        """Play it to its end."""
        while self._events and self._events[0][0] <= self._end:
            now, _, event = heapq.heappop(self._events)
            event(now)
        kept = {name: 1 - fee / 100 for name, fee in self._scenario.fee_percent.items()}
        return Tally(
            accepted=self._accepted,
            booked=dict(self._booked),
            net=self._scenario.cents * sum(kept[name] * n for name, n in self._booked.items()),
            audits_with_differences=self._audits_with_differences(),
            longest_waiting=self._most_waiting,
            longest_drain_ms=self._longest_drain,
        )

    def _later(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), event))

    def _push(self, due: float, cohort: Cohort) -> None:
        heapq.heappush(self._due, (due, next(self._order), cohort))

    def _check_health(self, now: float) -> None:
        settings = {name: course.at(now) for name, course in self._courses.items()}
        reports = {
            name: HealthReport(failing=each.failing, min_response_ms=each.delay_ms)
            for name, each in settings.items()
        }
        selection = decide(reports, self._policy.limits)
        if self._policy.slow_is_down and selection.processor != self._preferred:
            selection = replace(selection, down=(self._preferred,))
        for worker in self._workers:
            worker.router.see(now, selection, now)
        self._later(now + HEALTH_MS, self._check_health)

    # Claims

    def _turn(self, worker: _Worker, now: float) -> None:
        self._later(now + CLAIM_MS, partial(self._turn, worker))
        self._drain(worker, now)
        free = min(Settings.worker_slots - worker.in_flight, _MOST_AT_ONCE)
        name = worker.router.choose(now)
        room = min(free, worker.breakers[name].free(now)) if name is not None else 0
        if room > 0:
            for cohort in self._take(room, now):
                self._dispatch(worker, cohort, now)
        elif name is None and not self._probing and free > 0:
            self._probe(worker, now)

    def _probe(self, worker: _Worker, now: float) -> None:
        probe = worker.router.to_probe(now)
        if probe is None:
            return
        for cohort in self._take(1, now):
            worker.router.probed(probe, now)
            self._probing = True
            self._send(worker, cohort, probe, now, alone=True)

    def _take(self, room: int, now: float) -> list[Cohort]:
        taken = []
        while room > 0 and self._due and self._due[0][0] <= now:
            due, _, cohort = heapq.heappop(self._due)
            if cohort.count > room:
                self._push(due, cohort)
                cohort = cohort.split(room)
            room -= cohort.count
            taken.append(cohort)
        return taken

    def _dispatch(self, worker: _Worker, cohort: Cohort, now: float) -> None:
        while cohort.count:
            processor = worker.router.choose(now)
            if processor is not None:
                awaited = worker.router.awaited(processor, now - cohort.accepted)
                if awaited is not None:
                    self._wait(cohort)
                    return
            free = worker.breakers[processor].free(now) if processor is not None else 0
            if processor is None or not free:
                self._push(now + _HELD_MS, cohort)
                return
            self._send(worker, cohort.split(min(free, cohort.count)), processor, now)

    # Waiting

    def _wait(self, cohort: Cohort) -> None:
        cohort.waits = True
        self._line.append(cohort)
        self._waiting += cohort.count
        self._most_waiting = max(self._most_waiting, self._waiting)
        due = cohort.accepted + self._policy.patience_ms
        self._later(due, partial(self._bring_forward, cohort))

    def _bring_forward(self, cohort: Cohort, now: float) -> None:
        if cohort.waits:
            cohort.waits = False
            self._waiting -= cohort.count
            self._push(now, cohort)

    def _drain(self, worker: _Worker, now: float) -> None:
        """Once the cheaper processor is back, bring waiting payments forward at each claim."""
        router = worker.router
        if self._preferred not in router.back() or router.choose(now) is None:
            return
        left = int(DRAIN_PER_MS * CLAIM_MS)
        while left > 0 and self._line:
            cohort = self._line.popleft()
            if cohort.waits:
                left -= cohort.count
                self._bring_forward(cohort, now)
        if self._waiting and self._drain_began is None:
            self._drain_began = now
        if not self._waiting and self._drain_began is not None:
            self._longest_drain = max(self._longest_drain, int(now - self._drain_began))
            self._drain_began = None

    # Calls

    def _send(
        self, worker: _Worker, cohort: Cohort, processor: str, now: float, *, alone: bool = False
    ) -> None:
        course, breaker = self._courses[processor], worker.breakers[processor]
        probes = sum([breaker.enter(now) for _ in range(cohort.count)])
        worker.in_flight += cohort.count
        is_paid, at = course.pays(now), now + course.at(now).delay_ms
        if is_paid:
            self._later(at, lambda _: self._booked.update({processor: cohort.count}))
            self._seen.append((now, at, cohort.count))

        def end(now: float) -> None:
            worker.in_flight -= cohort.count
            verdict = Verdict.GOOD if is_paid else Verdict.BAD
            for number in range(cohort.count):
                breaker.leave(verdict, probe=number < probes, now=now)
            if alone:
                self._probing = False
            if not is_paid:
                cohort.tries += 1
                self._push(now + CALL_MS + self._pauses.after(cohort.tries), cohort)

        self._later(at + CALL_MS, end)

    def _audits_with_differences(self) -> int:
        """Audits at which a payment of the window was in the processor's book, but not in ours."""
        every, margin = int(AUDIT_EVERY_S * 1000), self._scenario.margin_ms
        audits = range(every, int(self._scenario.seconds * 1000), every)
        return sum(
            any(
                audit - AUDIT_WINDOW_MS <= sent <= audit - margin
                and booked <= audit < booked + SETTLE_MS
                for sent, booked, _ in self._seen
            )
            for audit in audits
        )

"""The best net that anybody could reach who knows the future. Pure.

A payment's net depends on its processor alone, so the best plan pays as many payments as it can
through the cheaper processor and, of all, as many as can be paid at all. Both numbers are those of
a queue that never idles, as both are matchings of payments with places at processors: the places
that can be matched form a matroid, on which taking the dearest places first is optimal. The number
of calls under way is counted generously, by a bucket of tokens that each stage fills, so the
result is a bound from above.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from bench.rinha.scenario import Scenario, Setting
from bench.routing.scenarios import TICK_MS, Course, arrivals, courses, end_ms

TRAP_MS = 500
"""A processor whose delay comes so near to the auditor's margin is a trap: some payments are in one
book and not yet in the other when the auditor looks, which costs a third of everything."""
UNSEEN_MS = 6000
"""Nobody who asks for health as often as processors allow sees the trap earlier. So the optimum may
use the processor for so long, unless it failed before: the first report of its recovery shows the
trap as well."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """The numbers of payments behind the best net."""

    accepted: int
    default: int
    fallback: int
    net: float
    """In cents."""


class _Places:
    """The calls that may begin at one processor."""

    def __init__(self, course: Course, slots: int, longest_ms: float, end: int) -> None:
        self._trap_from = 0
        self._course = course
        self._slots = slots
        self._longest_ms = longest_ms
        self._end = end
        self._tokens = float(slots)
        self._seen: Setting | None = None

    def at(self, now: int) -> float:
        """How many may begin in this tick."""
        setting = self._course.at(now)
        if setting is not self._seen:
            failed = self._seen is not None and self._seen.failing
            self._trap_from = now + (0 if failed else UNSEEN_MS)
            self._seen, self._tokens = setting, float(self._slots)
        else:
            refill = self._slots * TICK_MS / max(setting.delay_ms, 1)
            self._tokens = min(max(float(self._slots), refill), self._tokens + refill)
        return self._tokens if self.pays(now) else 0

    def pays(self, now: int) -> bool:
        """Whether a call that begins now is in the books in time."""
        delay_ms = self._course.at(now).delay_ms
        is_trap = delay_ms > self._longest_ms and now >= self._trap_from
        return not is_trap and now + delay_ms <= self._end and self._course.pays(now)

    def works(self, now: int) -> bool:
        """The same, and a health report says so."""
        return not self._course.at(now).failing and self.pays(now)

    def take(self, count: float) -> None:
        """Use some of them up."""
        self._tokens -= count


def optimum(
    scenario: Scenario, *, patience_ms: int, slots: int, trap_ms: float = TRAP_MS
) -> Optimum:
    """The best net if each payment may wait `patience_ms` for the cheaper processor while only the
    dearer one works. `slots` is the most calls under way to one processor."""
    accepted = sum(count for _, count in arrivals(scenario))
    default = _paid(scenario, patience_ms, slots, trap_ms, alone=True)
    paid = max(default, _paid(scenario, patience_ms, slots, trap_ms, alone=False))
    kept = {name: 1 - fee / 100 for name, fee in scenario.fee_percent.items()}
    net = scenario.cents * (default * kept["default"] + (paid - default) * kept["fallback"])
    return Optimum(accepted, default, paid - default, net)


def _paid(scenario: Scenario, patience_ms: int, slots: int, trap_ms: float, *, alone: bool) -> int:
    """The most payments that the cheaper processor can pay within the patience or, unless `alone`,
    both together at any time."""
    end = end_ms(scenario)
    longest_ms = scenario.margin_ms - trap_ms
    first, second = (_Places(each, slots, longest_ms, end) for each in courses(scenario).values())
    waiting: deque[tuple[int, int]] = deque()
    coming = deque(arrivals(scenario))
    paid = 0
    for now in range(0, end, TICK_MS):
        while coming and coming[0][0] <= now:
            waiting.append(coming.popleft())
        paid += _serve(waiting, first, now)
        if not alone:
            paid += _serve(waiting, second, now)
        elif second.works(now) and not first.pays(now):
            while waiting and waiting[0][0] + patience_ms < now:
                waiting.popleft()
    return paid


def _serve(waiting: deque[tuple[int, int]], places: _Places, now: int) -> int:
    room = int(places.at(now))
    served = 0
    while waiting and served < room:
        since, count = waiting.popleft()
        took = min(count, room - served)
        served += took
        if took < count:
            waiting.appendleft((since, count - took))
    places.take(served)
    return served

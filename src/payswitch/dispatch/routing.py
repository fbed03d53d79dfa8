"""Routing in one worker: its circuit breakers over the cluster's selection.

The selection is up to 10 s old; a worker's own results are fresher. A breaker per processor opens
after consecutive failures, when the processor asks for a pause, or when it refuses so many payments
that the fault must be its own. It lets one payment through after a while to probe, and closes on
success. It also caps the calls under way to that processor, so that one that stalls can't hold
every slot.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from payswitch.selection.selector import UNSELECTED, Selection
from payswitch.telemetry.heartbeat import REFUSES


class Verdict(enum.Enum):
    """What a call says about its processor."""

    GOOD = "good"
    BAD = "bad"
    REFUSED = "refused"
    """It works, and doesn't want this payment."""
    NEUTRAL = "neutral"
    """Nothing, because nothing was sent."""


class BreakerState(enum.Enum):
    """The classic three states of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    """A probe is under way."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a circuit breaker opens, and when it lets a payment through."""

    failures: int = 5
    """So many in a row open it."""
    refusals: int = 5
    """So many among the last twice as many payments open it, too; what is refused is held until a
    payment succeeds."""
    probe_ms: int = 1000
    """An open one lets one payment through after this long, to probe."""


class Breaker:
    """The circuit breaker and the slots of one processor in one worker. Times are boot time, ms.

    Of a few payments that are refused the payments are at fault, of most the processor is:
    at `limits.refusals` among the last twice as many it opens and is `refusing` until a success.
    """

    def __init__(self, *, slots: int, limits: BreakerLimits) -> None:
        self.state = BreakerState.CLOSED
        self.refusing = False
        """The processor refuses payments for a fault of its own."""
        self.reason = ""
        """Why it opened, or why its last probe failed."""
        self.in_flight = 0
        self.last_success = float("-inf")
        self._slots = slots
        self._limits = limits
        self._consecutive = 0
        self._were_refused: deque[bool] = deque(maxlen=2 * limits.refusals)
        self._probe_at = 0.0
        self._asked_until = float("-inf")

    @property
    def why(self) -> str:
        """Why it isn't closed, for people; empty while it is."""
        if self.state is BreakerState.CLOSED:
            return ""
        return f"{REFUSES}: {self.reason}" if self.refusing else self.reason

    def free(self, now: float) -> int:
        """How many calls may start: one where a probe is due, none while open."""
        if self.state is BreakerState.CLOSED:
            return max(0, self._slots - self.in_flight)
        return 1 if self.probe_due(now) else 0

    def probe_due(self, now: float) -> bool:
        """Whether it is open, and the last probe, answered or not, long enough ago."""
        return self.state is not BreakerState.CLOSED and now >= self._due_at

    def reopens_in(self, now: float) -> float:
        """Ms until a probe is due."""
        return max(0.0, self._due_at - now)

    @property
    def _due_at(self) -> float:
        return max(self._probe_at, self._asked_until)

    def enter(self, now: float) -> bool:
        """A call starts; True if it is a probe."""
        self.in_flight += 1
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.HALF_OPEN
        self._probe_at = now + self._limits.probe_ms
        return True

    def leave(
        self, verdict: Verdict, *, probe: bool, now: float, asked_ms: float = 0, reason: str = ""
    ) -> None:
        """A call that `enter` let in is over, for the `reason` if it did not succeed; `asked_ms` is
        for how long the processor asked to be left alone."""
        self.in_flight -= 1
        if verdict is Verdict.GOOD:
            self._succeed(now, probe=probe)
            return
        self._asked_until = max(self._asked_until, now + asked_ms)
        if verdict is Verdict.REFUSED:
            self._consecutive = 0
            self._were_refused.append(True)
            if not self.refusing and self._refuses_most:
                self.refusing, self.reason = True, reason or self.reason
        if probe and self.state is BreakerState.HALF_OPEN:
            self._open(now, reason)
        elif self.state is BreakerState.CLOSED:
            # A probe that a success has overtaken says nothing of what is now.
            self._consecutive += verdict is Verdict.BAD and not probe
            if asked_ms > 0 or self._consecutive >= self._limits.failures or self._refuses_most:
                self._open(now, reason)

    def _succeed(self, now: float, *, probe: bool) -> None:
        """A success closes it; where the processor has asked for a pause or is refusing, only one
        that was sent since then."""
        self._consecutive = 0
        self.last_success = now
        if self.state is BreakerState.CLOSED:
            self._were_refused.append(False)
        elif probe or (not self.refusing and now >= self._asked_until):
            self.state = BreakerState.CLOSED
            self.refusing = False
            self._were_refused.clear()
            self._asked_until = now

    @property
    def _refuses_most(self) -> bool:
        return sum(self._were_refused) >= self._limits.refusals

    def _open(self, now: float, reason: str) -> None:
        self.state = BreakerState.OPEN
        self.reason = reason or self.reason
        self._probe_at = now + self._limits.probe_ms


class Router:
    """Which processor a payment without open tries goes to."""

    def __init__(self, breakers: dict[str, Breaker], *, probe_ms: int) -> None:
        self.breakers = breakers
        self._probe_ms = probe_ms
        self._probed: dict[str, float] = {}
        self.selection: Selection = UNSELECTED
        self._raw: object = None
        self._seen_at = float("-inf")

    def see(self, raw: object, selection: Selection, now: float) -> None:
        """Take note of the selection that stands, as it was just read; `raw` is what was read."""
        if raw != self._raw:
            self._raw, self.selection, self._seen_at = raw, selection, now

    def choose(self, now: float) -> str | None:
        """The processor to use, or None when nothing is healthy.

        The selected one comes first, also when it is due to be probed; the other one steps in
        while its breaker is open, unless an operator has chosen. Where the check found nothing
        healthy, only a success since then speaks for a processor.
        """
        first = self.selection.processor
        if self.selection.healthy and self.breakers[first].state is BreakerState.CLOSED:
            return first
        usable = [name for name in self._order() if self._trusted(name)]
        if all(self.breakers[name].state is not BreakerState.CLOSED for name in usable):
            return None
        for name in usable:
            breaker = self.breakers[name]
            if breaker.state is BreakerState.CLOSED or breaker.probe_due(now):
                return name
        return None

    def to_probe(self, now: float) -> str | None:
        """Where nothing is healthy: the processor that a single probe should go to, or None while
        it is too early. They take turns, so that a dead one can't hide the other's recovery."""
        allowed = self._order()
        candidates = [
            name
            for name, breaker in self.breakers.items()
            if name in allowed
            and (
                breaker.probe_due(now)
                or (
                    breaker.state is BreakerState.CLOSED
                    and now - self._probed.get(name, float("-inf")) >= self._probe_ms
                )
            )
        ]
        return min(candidates, key=lambda name: self._probed.get(name, 0.0), default=None)

    def probed(self, name: str, now: float) -> None:
        """A single probe goes to this processor now."""
        self._probed[name] = now

    def _trusted(self, name: str) -> bool:
        return self.selection.healthy or self.breakers[name].last_success > self._seen_at

    def _order(self) -> list[str]:
        first = self.selection.processor
        if self.selection.overridden:
            return [first]
        return [first, *(name for name in self.breakers if name != first)]

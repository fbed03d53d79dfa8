"""Routing in one worker: its circuit breakers over the cluster's selection.

The selection is up to 10 s old; a worker's own results are fresher. Each processor has a breaker,
which opens after consecutive failures, when the processor asks for a pause, or when it refuses so
many payments that the fault must be its own. After a while it lets one payment through as a probe,
and closes on success. It also caps the calls under way, so that a processor that stalls can't hold
every slot.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from payswitch.selection.selector import Selection, unselected
from payswitch.telemetry.heartbeat import REFUSES


class Verdict(enum.Enum):
    """The verdict of a call on its processor."""

    GOOD = "good"
    BAD = "bad"
    REFUSED = "refused"
    """It works, but rejected this payment."""
    NEUTRAL = "neutral"
    """No verdict, because nothing was sent."""


class BreakerState(enum.Enum):
    """The classic three states of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    """A probe is under way."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """The limits of a circuit breaker."""

    failures: int = 5
    """Failures in a row that open it."""
    refusals: int = 5
    """Refusals that open it, out of the last `2 * refusals` payments."""
    probe_ms: int = 1000
    """The time after which an open breaker lets one payment through as a probe."""


class Breaker:
    """The circuit breaker and the slots of one processor in one worker. Times are boot time, ms.

    If a processor refuses a few payments, the payments are at fault; if it refuses most, the
    processor is: then the breaker opens, and is `refusing` until a success.
    """

    def __init__(self, *, slots: int, limits: BreakerLimits) -> None:
        self.state = BreakerState.CLOSED
        self.refusing = False
        """Whether the processor refuses payments because of a fault of its own."""
        self.reason = ""
        """The reason why it opened, or why its last probe failed."""
        self.in_flight = 0
        self.last_success = float("-inf")
        self.slots = slots
        """The most calls under way."""
        self._limits = limits
        self._consecutive = 0
        self._were_refused: deque[bool] = deque(maxlen=2 * limits.refusals)
        self._probe_at = 0.0
        self._asked_until = float("-inf")

    @property
    def why(self) -> str:
        """The reason why it isn't closed, for people; empty if it is closed."""
        if self.state is BreakerState.CLOSED:
            return ""
        return f"{REFUSES}: {self.reason}" if self.refusing else self.reason

    def free(self, now: float) -> int:
        """The number of calls that may start: one if a probe is due, none while open."""
        if self.state is BreakerState.CLOSED:
            return max(0, self.slots - self.in_flight)
        return 1 if self.probe_due(now) else 0

    def probe_due(self, now: float) -> bool:
        """Whether it isn't closed and the last probe, answered or not, is long enough ago."""
        return self.state is not BreakerState.CLOSED and now >= self._due_at

    def reopens_in(self, now: float) -> float:
        """Ms until a probe is due."""
        return max(0.0, self._due_at - now)

    @property
    def _due_at(self) -> float:
        return max(self._probe_at, self._asked_until)

    def enter(self, now: float) -> bool:
        """Count a call that starts; True if it is a probe."""
        self.in_flight += 1
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.HALF_OPEN
        self._probe_at = now + self._limits.probe_ms
        return True

    def leave(
        self, verdict: Verdict, *, probe: bool, now: float, asked_ms: float = 0, reason: str = ""
    ) -> None:
        """Count the end of a call that began with `enter`, with the `reason` if it failed;
        `asked_ms` is the pause for which the processor asked."""
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
            # A late probe, overtaken by a success, counts no failure.
            self._consecutive += verdict is Verdict.BAD and not probe
            if asked_ms > 0 or self._consecutive >= self._limits.failures or self._refuses_most:
                self._open(now, reason)

    def withdraw(self, *, probe: bool) -> None:
        """Count a call out that began with `enter` but was never made, for no fault of the
        processor: if it was the probe, the next call may be it."""
        self.in_flight -= 1
        if probe and self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN
            self._probe_at = float("-inf")

    def _succeed(self, now: float, *, probe: bool) -> None:
        """Close after a success. While the processor is refusing, or in a pause that it asked for,
        only a probe's success counts."""
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
    """Chooses the processor of payments without open tries. `breakers` are in order of preference;
    a payment waits up to `patience_ms` for a preferred processor that is down."""

    def __init__(
        self, breakers: dict[str, Breaker], *, probe_ms: int, patience_ms: int = 0
    ) -> None:
        self.breakers = breakers
        self.patience_ms = patience_ms
        self._probe_ms = probe_ms
        self._probed: dict[str, float] = {}
        self.selection: Selection = unselected(list(breakers))
        self._raw: object = None
        self._seen_at = float("-inf")

    def see(self, raw: object, selection: Selection, now: float) -> None:
        """Take the current selection, just read from Redis as `raw`."""
        if raw != self._raw:
            self._raw, self.selection, self._seen_at = raw, selection, now

    def choose(self, now: float, eligible: Collection[str] | None = None) -> str | None:
        """The processor to use, or None if none is healthy; only of the `eligible` ones, if given.

        The selected processor comes first, also when its probe is due. While its breaker is open,
        the next one in order of preference steps in, unless an operator has chosen. If the health
        check found none healthy, only a processor with a success since then is used.
        """
        first = self.selection.processor
        if (
            self.selection.healthy
            and self.breakers[first].state is BreakerState.CLOSED
            and (eligible is None or first in eligible)
        ):
            return first
        usable = [
            name
            for name in self._order()
            if self._trusted(name) and (eligible is None or name in eligible)
        ]
        if all(self.breakers[name].state is not BreakerState.CLOSED for name in usable):
            return None
        for name in usable:
            breaker = self.breakers[name]
            if breaker.state is BreakerState.CLOSED or breaker.probe_due(now):
                return name
        return None

    def awaited(
        self, chosen: str, age_ms: float, eligible: Collection[str] | None = None
    ) -> str | None:
        """The processor that a payment of this age (ms) waits for, although the `chosen` one would
        take it: the first that is preferred to it and down. None once the patience is over, or if
        an operator has chosen."""
        if age_ms >= self.patience_ms or self.selection.overridden:
            return None
        for name in self.breakers:
            if name == chosen:
                return None
            if self._is_down(name) and (eligible is None or name in eligible):
                return name
        return None

    def back(self) -> list[str]:
        """The processors that no payment waits for now. What has waited for one may go on, also
        elsewhere if it came back too slow to be chosen."""
        return [
            name for name in self.breakers if self.selection.overridden or not self._is_down(name)
        ]

    def _is_down(self, name: str) -> bool:
        """By its health or, while it is selected, by this worker's own results."""
        if name == self.selection.processor and self.selection.healthy:
            return self.breakers[name].state is not BreakerState.CLOSED
        return name in self.selection.down

    def to_probe(self, now: float) -> str | None:
        """The processor that gets the next single probe while none is healthy, or None if it is too
        early. They take turns, so that a dead processor can't hide the other's recovery."""
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
        """Note that a single probe goes to this processor now."""
        self._probed[name] = now

    def _trusted(self, name: str) -> bool:
        return self.selection.healthy or self.breakers[name].last_success > self._seen_at

    def _order(self) -> list[str]:
        first = self.selection.processor
        if self.selection.overridden:
            return [first]
        return [first, *(name for name in self.breakers if name != first)]

"""What is measured: where its parts are, and what they use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

_Number = TypeVar("_Number", int, float)
Selection = Callable[[], Awaitable[str | None]]


class SiteError(RuntimeError):
    """What should be measured can't be; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one part has used since it started; None where this machine doesn't say.

    A quota's period is 100 ms; it is throttled if the quota was spent before its end.
    """

    cpu_s: float | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_s: float | None = None
    restarts: int = 0
    """Since the container was made, or within the run for a process."""
    process: int | None = None

    def since(self, before: Usage | None) -> Usage:
        """What was used after `before`; memory is as it is now. A part that was started anew in
        between counts from there."""
        if before is None:
            return self
        if before.process != self.process:
            return replace(self, restarts=max(1, self.restarts - before.restarts))
        return replace(
            self,
            cpu_s=_minus(self.cpu_s, before.cpu_s),
            periods=_minus(self.periods, before.periods),
            throttled_periods=_minus(self.throttled_periods, before.throttled_periods),
            throttled_s=_minus(self.throttled_s, before.throttled_s),
            restarts=self.restarts - before.restarts,
        )


def _minus(now: _Number | None, before: _Number | None) -> _Number | None:
    return None if now is None or before is None else now - before


Usages = Mapping[str, Usage]


@dataclass(frozen=True, slots=True)
class Site:
    """A running system with its processors."""

    kind: str
    """`containers` or `processes`."""
    endpoint: str
    processors: Mapping[str, str]
    token: str
    """What the processors' admin calls want."""
    usages: Callable[[], Awaitable[Usages]]
    """By part."""
    selection: Selection
    """Which processor is selected now; None where that can't be known."""
    check: Callable[[], None]
    """Raises what ended the system before the run did."""

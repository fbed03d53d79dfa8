"""Counts the payments that one worker settles."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from payswitch.clock import boottime_ms
from payswitch.payments.ledger import Settlement, Settling
from payswitch.telemetry.histogram import Histogram


class SettleCounts:
    """Settled payments of one worker by processor, and their times since acceptance."""

    def __init__(self) -> None:
        self.by_processor: Counter[str] = Counter()
        self.times: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.redis_ahead_ms: Callable[[], float | None] = lambda: None

    def add(self, items: Sequence[Settling], verdicts: Sequence[Settlement]) -> None:
        """Count one batch that Redis has just settled. Acceptance was timed by Redis' clock, so
        times are recorded only once that clock's offset is known."""
        ahead = self.redis_ahead_ms()
        now = None if ahead is None else boottime_ms() + ahead
        for (claim, processor, *_), verdict in zip(items, verdicts, strict=True):
            if verdict is Settlement.SETTLED:
                self.by_processor[processor] += 1
                if now is not None:
                    self.times[processor].add(now - claim.accepted_at)

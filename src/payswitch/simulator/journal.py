"""The journal of a simulated processor: every event of every payment, for the audit of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import orjson

from payswitch.simulator.book import BookEntry

JournalStep = Literal[
    "arrived", "committed", "pending", "declined", "known", "failed", "hung-up", "answered"
]


class Journal:
    """The events of all payments in the order in which they happened, in memory, while it is on.

    Switched off, it keeps its events. It has no bound: `clear` it between long runs.

    Args:
        clock: wall clock, nanoseconds since 1970.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self.on = False
        self._clock = clock
        self._events: list[tuple[str, bytes]] = []  # a payment's id, and the event's line

    def note(
        self,
        event: JournalStep,
        entry: BookEntry,
        fault: str | None = None,
        status: int | None = None,
    ) -> None:
        """Add an event that happens now, if the journal is on; instants are in µs since 1970,
        `fault` and `status` null where they don't apply."""
        if self.on:
            fields = {
                "atUs": self._clock() // 1000,
                "correlationId": entry.correlation_id,
                "event": event,
                "fault": fault,
                "status": status,
                "requestedAtUs": entry.requested_at_us,
            }
            line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
            self._events.append((entry.correlation_id, line))

    def clear(self) -> None:
        """Forget every event."""
        self._events.clear()

    def lines(self, correlation_id: str | None = None) -> bytes:
        """The events of one payment, its id in any case, or of all: one JSON object a line."""
        wanted = correlation_id and correlation_id.lower()
        return b"".join(line for of, line in self._events if wanted is None or of == wanted)

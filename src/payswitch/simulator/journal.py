"""The journal of a simulated processor: every event of every payment, for the audit of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import orjson

from payswitch.simulator.book import BookEntry

JournalStep = Literal[
    "arrived", "committed", "pending", "declined", "known", "failed", "hung-up", "answered"
]


class JournalEvent(NamedTuple):
    """One step of one request; instants in µs since 1970, `fault` and `status` where they apply."""

    at_us: int
    correlation_id: str
    event: JournalStep
    fault: str | None
    status: int | None
    requested_at_us: int


class Journal:
    """The events of all payments in the order in which they happened, in memory, while it is on.

    Switched off, it keeps its events. It has no bound: `clear` it between long runs.

    Args:
        clock: wall clock, nanoseconds since 1970.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self.on = False
        self._clock = clock
        self._events: list[JournalEvent] = []

    def note(
        self,
        event: JournalStep,
        entry: BookEntry,
        fault: str | None = None,
        status: int | None = None,
    ) -> None:
        """Add an event that happens now, if the journal is on."""
        if self.on:
            at_us = self._clock() // 1000
            found = JournalEvent(
                at_us, entry.correlation_id, event, fault, status, entry.requested_at_us
            )
            self._events.append(found)

    def clear(self) -> None:
        """Forget every event."""
        self._events.clear()

    def lines(self, correlation_id: str | None = None) -> bytes:
        """The events of one payment, its id in any case, or of all: one JSON object a line."""
        events: Iterable[JournalEvent] = self._events
        if correlation_id is not None:
            wanted = correlation_id.lower()
            events = (event for event in events if event.correlation_id == wanted)
        return b"".join(map(_line, events))


def _line(event: JournalEvent) -> bytes:
    fields = {
        "atUs": event.at_us,
        "correlationId": event.correlation_id,
        "event": event.event,
        "fault": event.fault,
        "status": event.status,
        "requestedAtUs": event.requested_at_us,
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)

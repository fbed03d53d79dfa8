"""A payment's history: the outcome of each try that did not pay, and each act of an operator.

The scripts write it into the record (`remember` in `common.lua`): the newest 64 entries, so it
survives a replay and goes with its record. Successive tries that end the same way share an entry.
The record's other fields say when the payment was accepted, settled or died.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from payswitch.instants import EARLIEST_MS, LATEST_MS, format_instant

_FIELD = "history:"


class Fate(enum.Enum):
    """What became of a try that did not pay, when its call was over."""

    UNSENT = "unsent"
    """Closed: nothing of it was sent."""
    MISSING = "missing"
    """Closed: the processor doesn't have the payment."""
    DECLINED = "declined"
    """Closed: the provider has decided against the payment."""
    PENDING = "pending"
    """The provider has the payment and will decide."""
    ENDED = "ended"
    """The processor has answered; it may have recorded the payment before."""
    OPEN = "open"
    """It may still be recorded."""


_FATES = {
    Fate.UNSENT: "closed, as nothing was sent",
    Fate.MISSING: "closed, as {processor} doesn't have the payment",
    Fate.DECLINED: "closed, as {processor} will not take the payment",
    Fate.PENDING: "open: {processor} will decide",
    Fate.ENDED: "open: it may have been recorded",
    Fate.OPEN: "open: it may still be recorded",
}


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a payment: its instant (ms since the epoch by Redis' clock), and its words."""

    at: int
    what: str


def parse_history(fields: Mapping[str, str]) -> tuple[Event, ...]:
    """The entries of a record's fields, the oldest first. Entries that can't be read are left out:
    they hide nothing else of the payment."""
    numbers = sorted(
        int(name.removeprefix(_FIELD))
        for name in fields
        if name.startswith(_FIELD) and name.removeprefix(_FIELD).isdecimal()
    )
    events = (_read(fields[f"{_FIELD}{number}"]) for number in numbers)
    return tuple(event for event in events if event is not None)


def _read(text: str) -> Event | None:
    try:
        at, *rest = orjson.loads(text)
        what = _in_words(rest)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    if what is None or type(at) is not int or not EARLIEST_MS <= at <= LATEST_MS:
        return None
    return Event(at, what)


def _in_words(entry: list[Any]) -> str | None:
    match entry:
        case ["tried", str(processor), str(outcome), str(fate), int(first), *others]:
            became = _FATES[Fate(fate)].format(processor=processor)
            tries, until = f"try {first}", ""
            if others:
                last, at = others
                tries, until = f"tries {first} to {last}", f", the last at {format_instant(at)}"
            return f"{tries} at {processor}: {outcome}; {became}{until}"
        case ["closed", str(processor), int(count), str(why)]:
            became = _FATES[Fate(why)].format(processor=processor)
            return f"{_earlier(count)}: {became}"
        case ["closed", str(processor), list(numbers), str(why)]:  # of a version that listed them
            return _in_words(["closed", processor, len(numbers), why])
        case ["dead", str(reason)]:
            return f"dead letter: {reason}"
        case ["resolved", str(by), str(reason)]:
            return f"resolved by {by}: {reason}"
        case ["replayed", str(by), str(reason)]:
            return f"put back by {by}{f': {reason}' if reason else ''}"
    return None


def _earlier(count: int) -> str:
    return "an earlier try" if count == 1 else f"{count} earlier tries"

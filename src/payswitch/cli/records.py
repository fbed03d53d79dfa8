"""Puts a payment's record into words for a terminal."""

from __future__ import annotations

from collections import Counter

from payswitch.instants import format_instant
from payswitch.money import Currency
from payswitch.payments.claims import OpenTry
from payswitch.payments.records import Record


def _instant(ms: int | None) -> str:
    return "never" if ms is None else format_instant(ms)


def _state(open_try: OpenTry) -> str:
    if open_try.pending:
        return "the provider has yet to decide"
    return "ended, maybe recorded" if open_try.ended else "may still be recorded"


def in_words(record: Record, currency: Currency) -> dict[str, str | None]:
    """The record's values by their names; None for a value that doesn't apply."""
    states = Counter(map(_state, record.open_tries))
    tries = ", ".join(f"{count} ({state})" for state, count in states.items())
    how = record.resolution
    return {
        "payment": record.correlation_id,
        "state": record.state,
        "reason": record.reason,
        "declined": record.declined,
        "reference": record.reference,
        "resolved": None if how is None else f"{_instant(how.at)} {how}",
        "last error": record.last_error,
        "amount": f"{currency.format_cents(record.cents)} {currency.code}",
        "metadata": None if record.metadata is None else record.metadata.decode(),
        "processor": record.processor or "none: it was never sent",
        "requestedAt": _instant(record.requested_at),
        "tries": str(record.tries),
        "open tries": tries or "none",
        "horizon": None
        if record.horizon is None
        else f"{_instant(record.horizon)} (no open try is recorded later)",
        "quiet time": None if record.quiet_ms is None else f"{record.quiet_ms} ms",
        "lease until": None if record.lease_until is None else _instant(record.lease_until),
        "accepted at": _instant(record.accepted_at),
        "died at": None if record.dead_at is None else _instant(record.dead_at),
        "replayed at": _instant(record.replayed_at),
        "settled at": _instant(record.settled_at),
        "declined at": None if record.declined_at is None else _instant(record.declined_at),
    }

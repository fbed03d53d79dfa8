"""Instants: integer milliseconds since the epoch inside, ISO-8601 in UTC at the edges."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LONG_FRACTION = re.compile(r"(\.\d{6})\d+")


def parse_instant_us(text: str) -> int:
    """Microseconds since the epoch of an ISO-8601 date and time; without an offset it is UTC.

    Raises `ValueError`.
    """
    if "T" not in text.upper():
        raise ValueError(f"not a date and time: {text[:64]!r}")
    instant = datetime.fromisoformat(_LONG_FRACTION.sub(r"\1", text))
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return (instant - _EPOCH) // _MICROSECOND


def parse_instant_ms(text: str) -> int:
    """Like `parse_instant_us`, cut to whole milliseconds."""
    return parse_instant_us(text) // 1000


def format_instant(ms: int) -> str:
    """`2026-11-22T16:05:00.123Z` for milliseconds since the epoch."""
    seconds, rest = divmod(ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"

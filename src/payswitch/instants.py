"""Instants: integer milliseconds since the epoch inside, ISO-8601 in UTC at the edges."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

EARLIEST_MS = -62_135_596_800_000
"""The first instant that ISO-8601 can write here: the start of the year 1."""
LATEST_MS = 253_402_300_799_999
"""The last one: the end of the year 9999."""

LEDGER_ENDS_MS = 10**13
"""The year 2286: the ledger's windows begin in 1970 and end there."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DATE_AND_TIME = re.compile(
    r"\d{4}-?\d\d-?\d\dT\d\d:?\d\d(:?\d\d([.,]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)
_LONG_FRACTION = re.compile(r"([.,]\d{6})\d+")


def parse_instant_us(text: str) -> int:
    """Microseconds since the epoch of an ISO-8601 date and time; without an offset it is UTC.

    Raises `ValueError`.
    """
    if not _DATE_AND_TIME.fullmatch(text):
        raise ValueError(f"not a date and time: {text[:64]!r}")
    instant = datetime.fromisoformat(_LONG_FRACTION.sub(r"\1", text.upper()))
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return (instant - _EPOCH) // _MICROSECOND


def parse_instant_ms(text: str) -> int:
    """Like `parse_instant_us`, cut to whole milliseconds."""
    return parse_instant_us(text) // 1000


def format_instant(ms: int) -> str:
    """`2026-11-22T16:05:00.123Z` for milliseconds since the epoch."""
    seconds, rest = divmod(ms, 1000)
    return f"{_format_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=16)
def _format_second(seconds: int) -> str:
    # Cached because payments that are sent together share the second.
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()

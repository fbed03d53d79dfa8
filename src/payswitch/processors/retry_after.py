"""`Retry-After` of RFC 9110: seconds, or an instant in one of three formats."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

_SECONDS = re.compile(r"\d{1,9}", re.ASCII)
_ASKS_FOR_PATIENCE = frozenset({429, 503})


def asked_pause_ms(response: httpx.Response) -> int | None:
    """The pause (ms) that an answer with status 429 or 503 asks for; None if it asks for none.

    An instant counts from the answer's own `Date`, or from this machine's clock if it has none.
    """
    if response.status_code not in _ASKS_FOR_PATIENCE:
        return None
    value = response.headers.get("retry-after")
    if value is None:
        return None
    if _SECONDS.fullmatch(value):
        return int(value) * 1000
    until = _parse_http_date(value)
    if until is None:
        return None
    now = _parse_http_date(response.headers.get("date", ""))
    seconds = until - (time.time() if now is None else now)
    return max(0, int(seconds * 1000))


def _parse_http_date(text: str) -> float | None:
    """Seconds since the epoch; None if the text is no date."""
    try:
        instant = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if instant.tzinfo is None:  # asctime's format has no zone, and HTTP's is always UTC
        instant = instant.replace(tzinfo=UTC)
    return instant.timestamp()

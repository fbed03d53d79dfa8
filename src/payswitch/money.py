"""Money: integer cents everywhere inside, JSON numbers only at the edges."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException
from typing import Any

MAX_CENTS = 10**12
"""The largest amount taken, in cents: a double still tells every cent up to there, and so do the
sums that the Lua scripts make of a batch (2^53)."""

_EXACT = Context(prec=70_000)
"""Holds every digit that a body may have."""

_LONGEST_AMOUNT = 400
"""Any double fits, also written out in full; what is longer or larger could cost minutes."""

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

_FRACTION = re.compile(r"-?\d+\.\d+", re.ASCII)

_TRACE_OF_A_CENT = Decimal("0.0001")


def exact_cents(text: str) -> int | None:
    """The cents of a decimal number in text, or None where it is not a whole number of cents."""
    if len(text) > _LONGEST_AMOUNT:
        return None
    try:
        amount = Decimal(text)
    except DecimalException:
        return None
    if not amount.is_finite() or abs(amount.adjusted()) > _LONGEST_AMOUNT:
        return None
    cents = _EXACT.scaleb(amount, Decimal(2))
    return int(cents) if cents == cents.to_integral_value() else None


def nearest_cents(value: Any) -> int | None:
    """The cents of an amount as a processor's answer has it: a number, or one in text.

    Sums and binary fractions leave traces, so what is no more than 0.000001 beside a whole number
    of cents is taken as that. None for anything else.
    """
    if type(value) not in (int, float, Decimal, str):
        return None
    text = str(value)
    if len(text) > _LONGEST_AMOUNT:
        return None
    exact = exact_cents(text) if _NUMBER.fullmatch(text) else None
    if exact is not None or not _FRACTION.fullmatch(text):
        return exact
    cents = _EXACT.scaleb(Decimal(text), Decimal(2))
    nearest = cents.to_integral_value()
    return int(nearest) if nearest and abs(cents - nearest) <= _TRACE_OF_A_CENT else None


def format_cents(cents: int) -> str:
    """Cents as a JSON number with exactly two decimals: 1990 is `19.90`."""
    sign = "-" if cents < 0 else ""
    whole, rest = divmod(abs(cents), 100)
    return f"{sign}{whole}.{rest:02d}"


@dataclass(frozen=True, slots=True)
class Total:
    """What one processor was paid in a window."""

    count: int = 0
    cents: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.count + other.count, self.cents + other.cents)

    def __sub__(self, other: Total) -> Total:
        return Total(self.count - other.count, self.cents - other.cents)

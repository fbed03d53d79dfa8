"""Money: integer cents inside, JSON numbers at the edges."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException
from typing import Any

MAX_CENTS = 10**12
"""The largest accepted amount, in cents. A double holds every cent up to it, and every sum of a
batch in the Lua scripts (2^53)."""

_EXACT = Context(prec=70_000)
"""Enough digits for any body."""

_LONGEST_AMOUNT = 400
"""Characters; enough for any double written out in full. Longer or larger numbers could take
minutes."""

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

_FRACTION = re.compile(r"-?\d+\.\d+", re.ASCII)

_TRACE_OF_A_CENT = Decimal("0.0001")


def exact_cents(text: str) -> int | None:
    """The cents of a decimal number in text; None unless it is a whole number of cents."""
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
    """The cents of an amount in a processor's answer: a number, or one in text; None for anything
    else.

    Sums and binary fractions leave traces, so an amount within 0.000001 of a whole number of cents
    counts as that number.
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
    """The payments through one processor in a window."""

    count: int = 0
    cents: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.count + other.count, self.cents + other.cents)

    def __sub__(self, other: Total) -> Total:
        return Total(self.count - other.count, self.cents - other.cents)

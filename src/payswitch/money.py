"""Money: whole cents inside, JSON numbers at the edges.

All amounts of a deployment are in one currency. A *cent* is the smallest unit that ISO 4217 gives
it: a hundredth of a real, a whole yen, a thousandth of a Bahraini dinar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Context, Decimal, DecimalException
from typing import Any

MAX_CENTS = 10**12
"""The largest accepted amount, in cents. A double holds every cent up to it, and every sum of a
batch in the Lua scripts (2^53)."""

EXACT = Context(prec=70_000)
"""Enough digits for any body."""

_LONGEST_AMOUNT = 400
"""Characters; enough for any double written out in full. Longer or larger numbers could take
minutes."""

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

_FRACTION = re.compile(r"-?\d+\.\d+", re.ASCII)

_TRACE_OF_A_CENT = Decimal("0.0001")

_CODES = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD "
    "CAD CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL "
    "GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR "
    "LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD "
    "PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC "
    "SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR "
    "ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
"""Codes by their number of decimals: list one of ISO 4217, published by SIX on 2026-01-01, without
those that have no decimals, such as gold."""

_DECIMALS = {code: decimals for decimals, codes in _CODES.items() for code in codes.split()}


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency by its code in ISO 4217, such as `BRL`. Raises `ValueError` for any other."""

    code: str
    decimals: int = field(init=False)
    scale: int = field(init=False)
    """The cents in an amount of 1."""

    def __post_init__(self) -> None:
        if self.code not in _DECIMALS:
            raise ValueError(self.code)
        object.__setattr__(self, "decimals", _DECIMALS[self.code])
        object.__setattr__(self, "scale", 10**self.decimals)

    def exact_cents(self, text: str) -> int | None:
        """The cents of a decimal number in text; None unless it is a whole number of cents."""
        if len(text) > _LONGEST_AMOUNT:
            return None
        try:
            amount = Decimal(text)
        except DecimalException:
            return None
        if not amount.is_finite() or abs(amount.adjusted()) > _LONGEST_AMOUNT:
            return None
        cents = EXACT.scaleb(amount, Decimal(self.decimals))
        return int(cents) if cents == cents.to_integral_value() else None

    def nearest_cents(self, value: Any) -> int | None:
        """The cents of an amount in a processor's answer: a number, or one in text; None for
        anything else.

        Sums and binary fractions leave traces, so an amount within a ten-thousandth of a cent of a
        whole number of cents counts as that number.
        """
        if type(value) not in (int, float, Decimal, str):
            return None
        text = str(value)
        if len(text) > _LONGEST_AMOUNT:
            return None
        exact = self.exact_cents(text) if _NUMBER.fullmatch(text) else None
        if exact is not None or not _FRACTION.fullmatch(text):
            return exact
        cents = EXACT.scaleb(Decimal(text), Decimal(self.decimals))
        nearest = cents.to_integral_value()
        return int(nearest) if nearest and abs(cents - nearest) <= _TRACE_OF_A_CENT else None

    def format_cents(self, cents: int) -> str:
        """Cents as a JSON number with all decimals: 1990 is `19.90` in BRL, `1990` in JPY."""
        if not self.decimals:
            return str(cents)
        sign = "-" if cents < 0 else ""
        whole, rest = divmod(abs(cents), self.scale)
        return f"{sign}{whole}.{rest:0{self.decimals}d}"


BRL = Currency("BRL")
"""The real: the currency of a deployment that names no other."""


@dataclass(frozen=True, slots=True)
class Total:
    """The payments through one processor in a window."""

    count: int = 0
    cents: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.count + other.count, self.cents + other.cents)

    def __sub__(self, other: Total) -> Total:
        return Total(self.count - other.count, self.cents - other.cents)

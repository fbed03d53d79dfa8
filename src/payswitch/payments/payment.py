"""Parses and validates payments; amounts are exact integer cents."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from typing import Any

import orjson

from payswitch.money import _EXACT, MAX_CENTS, format_cents
from payswitch.payments.mistakes import why_missing, why_no_id, why_no_json, why_no_object

_CANONICAL_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII
)
_ANY_ID = re.compile(
    r"(?:urn:uuid:)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    re.ASCII | re.IGNORECASE,
)
_MANY_DIGITS = re.compile(rb"[0-9.]{17}")
"""More digits than a double holds: the body is then read with exact decimals."""


class MalformedPaymentError(ValueError):
    """The body is not JSON."""


class InvalidPaymentError(ValueError):
    """The body is JSON, but not a payment; the message names the field and its fault."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A client's order: the normalised correlation id and the amount in cents."""

    correlation_id: str
    cents: int


def parse_payment(body: bytes) -> Payment:
    """Read a payment from a request's body.

    Raises `MalformedPaymentError` if it is not JSON and `InvalidPaymentError` if the JSON is not a
    payment. Other fields than `correlationId` and `amount` are ignored.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if _holds_no_number(body):
            raise InvalidPaymentError("amount must be a finite number") from None
        cause = why_no_json(body, error)
        raise MalformedPaymentError(f"the body is not valid JSON: {cause}") from None
    # Two names and an id take six quotes: a repeated name would take two more.
    if _MANY_DIGITS.search(body) or (body.count(b'"') != 6 and _may_repeat(body)):
        document = _read_exactly(body)
    if type(document) is not dict:
        kind = f"{_kind(document)}{why_no_object(document)}"
        raise InvalidPaymentError(f"the body must be a JSON object, not {kind}")
    correlation_id, amount = document.get("correlationId"), document.get("amount")
    if correlation_id is None or amount is None:
        name = "correlationId" if correlation_id is None else "amount"
        raise InvalidPaymentError(why_missing(document, name))
    return Payment(parse_correlation_id(correlation_id), parse_amount(amount))


def parse_correlation_id(value: Any) -> str:
    """Normalise a UUID to its lower-case form with hyphens.

    It takes any spelling of RFC 9562: the 36 characters in either case, also as `urn:uuid:…`.
    Raises `InvalidPaymentError`.
    """
    if type(value) is not str:
        raise InvalidPaymentError(f"correlationId must be a string, not {_kind(value)}")
    if _CANONICAL_ID.fullmatch(value):
        return value
    if _ANY_ID.fullmatch(value):
        return value[-36:].lower()
    raise InvalidPaymentError(
        f"correlationId must be a UUID{why_no_id(value)}, "
        "such as 4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
    )


def parse_amount(value: Any) -> int:
    """Convert a JSON number to exact cents.

    `value` is a double, which is exact for up to 15 digits, or a `Decimal` if the number has more.
    Raises `InvalidPaymentError` for anything but a positive number of at most two decimals.
    """
    if type(value) is float:
        if 0 < value <= MAX_CENTS // 100:
            cents = round(value * 100)
            # The common case needs no Decimal: `value` is the double nearest to cents / 100.
            if cents / 100 == value:
                return cents
    elif type(value) is int:
        if 0 < value <= MAX_CENTS // 100:
            return value * 100
    elif type(value) is Decimal:
        exact = _EXACT.scaleb(value, Decimal(2))
        if 0 < exact <= MAX_CENTS and exact == exact.to_integral_value():
            return int(exact)
    else:
        advice = ": leave out the quotes" if type(value) is str else ""
        raise InvalidPaymentError(f"amount must be a number, not {_kind(value)}{advice}")
    if value <= 0:
        raise InvalidPaymentError("amount must be more than 0")
    if value > MAX_CENTS // 100:
        raise InvalidPaymentError(f"amount must be at most {format_cents(MAX_CENTS)}")
    raise InvalidPaymentError("amount must have at most 2 decimals")


def _may_repeat(body: bytes) -> bool:
    """Whether a known field may occur twice, even with its name escaped."""
    return b"\\" in body or body.count(b'"amount"') > 1 or body.count(b'"correlationId"') > 1


class _Members(dict[str, Any]):
    """A JSON object that counts its repeated names."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: Counter[str] = Counter()
        if len(self) < len(pairs):
            self.repeated = Counter(name for name, _ in pairs)


def _read_exactly(body: bytes) -> Any:
    """Read every digit of every number; raises `InvalidPaymentError` if a field occurs twice."""
    try:
        document = json.loads(body, parse_float=Decimal, object_pairs_hook=_Members)
    except (DecimalException, RecursionError, ValueError):
        raise InvalidPaymentError("the body holds a number or a depth beyond all bounds") from None
    if isinstance(document, _Members):
        for name in ("correlationId", "amount"):
            if document.repeated[name] > 1:
                times = document.repeated[name]
                raise InvalidPaymentError(f"{name} must be given once, not {times} times")
        return dict(document)
    return document


def _holds_no_number(body: bytes) -> bool:
    """Whether a body is invalid JSON only because of NaN or infinity, which many encoders write."""
    strangers: list[str] = []

    def read_number(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            strangers.append(text)
        return value

    try:
        json.loads(
            body,
            parse_constant=strangers.append,
            parse_float=read_number,
            parse_int=read_number,
        )
    except (ValueError, RecursionError):
        return False
    return bool(strangers)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")

"""Parses and validates payments; amounts are exact integer cents, metadata keeps every digit."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from typing import Any, NamedTuple

import orjson

from payswitch.money import BRL, EXACT, MAX_CENTS, Currency
from payswitch.payments.mistakes import (
    why_missing,
    why_no_id,
    why_no_json,
    why_no_object,
    why_unknown,
)

MEMBERS = ("correlationId", "amount", "currency", "metadata")
"""The members of a payment."""
_QUOTED_MEMBERS = tuple(f'"{name}"'.encode() for name in MEMBERS)
MAX_METADATA_BYTES = 1024
"""The largest metadata, as JSON in UTF-8 without spaces."""
MAX_METADATA_DEPTH = 16
"""The most objects and arrays inside each other in metadata, itself included."""

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


class Payment(NamedTuple):
    """A client's order: the normalised correlation id, the amount in cents, and the client's own
    JSON object. A tuple costs the ingress 0.2 µs less than a frozen dataclass."""

    correlation_id: str
    cents: int
    metadata: bytes | None = None
    """JSON in its canonical form: sorted names, no spaces, numbers with all their digits."""

    def __repr__(self) -> str:
        """Leave out the metadata: logs never show it."""
        return f"Payment({self.correlation_id!r}, {self.cents})"


@dataclass(frozen=True, slots=True)
class PaymentRules:
    """A deployment's rules for payments."""

    currency: Currency = BRL
    ignores_unknown: bool = False
    """Whether members other than `MEMBERS` are allowed."""


DEFAULT_RULES = PaymentRules()


def parse_payment(body: bytes, rules: PaymentRules = DEFAULT_RULES) -> Payment:
    """Read a payment from a request's body.

    Raises `MalformedPaymentError` if it is not JSON and `InvalidPaymentError` if the JSON is not a
    payment.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if _holds_no_number(body):
            raise InvalidPaymentError(
                "amount must be a finite number, and so must each in metadata"
            ) from None
        cause = why_no_json(body, error)
        raise MalformedPaymentError(f"the body is not valid JSON: {cause}") from None
    # Two names and an id take six quotes: a repeated name would take two more.
    if _MANY_DIGITS.search(body) or (body.count(b'"') != 6 and _needs_exactness(body)):
        document = _read_exactly(body)
    if type(document) is not dict:
        kind = f"{_kind(document)}{why_no_object(document)}"
        raise InvalidPaymentError(f"the body must be a JSON object, not {kind}")
    correlation_id, amount = document.get("correlationId"), document.get("amount")
    if correlation_id is None or amount is None:
        name = "correlationId" if correlation_id is None else "amount"
        raise InvalidPaymentError(why_missing(document, name))
    payment_id, cents = parse_correlation_id(correlation_id), parse_amount(amount, rules.currency)
    if len(document) == 2:
        return Payment(payment_id, cents)
    return Payment(payment_id, cents, _parse_others(document, rules))


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


def parse_amount(value: Any, currency: Currency) -> int:
    """Convert a JSON number to exact cents.

    `value` is a double, which is exact for up to 15 digits, or a `Decimal` if the number has more.
    Raises `InvalidPaymentError` for anything but a positive number of at most the currency's
    decimals.
    """
    scale = currency.scale
    if type(value) is float:
        if 0 < value <= MAX_CENTS // scale:
            cents = round(value * scale)
            # The common case needs no Decimal: `value` is the double nearest to cents / scale.
            if cents / scale == value:
                return cents
    elif type(value) is int:
        if 0 < value <= MAX_CENTS // scale:
            return value * scale
    elif type(value) is Decimal:
        exact = EXACT.scaleb(value, Decimal(currency.decimals))
        if 0 < exact <= MAX_CENTS and exact == exact.to_integral_value():
            return int(exact)
    else:
        advice = ": leave out the quotes" if type(value) is str else ""
        raise InvalidPaymentError(f"amount must be a number, not {_kind(value)}{advice}")
    if value <= 0:
        raise InvalidPaymentError("amount must be more than 0")
    if value > MAX_CENTS // scale:
        raise InvalidPaymentError(f"amount must be at most {currency.format_cents(MAX_CENTS)}")
    few = f"at most {currency.decimals}" if currency.decimals else "no"
    raise InvalidPaymentError(f"amount must have {few} decimals")


def _parse_others(document: dict[str, Any], rules: PaymentRules) -> bytes | None:
    """Check the members beside id and amount, and return the metadata. Raises
    `InvalidPaymentError`."""
    if not rules.ignores_unknown:
        for name in document:
            if name not in MEMBERS:
                raise InvalidPaymentError(why_unknown(name, MEMBERS))
    if "currency" in document:
        _require_currency(document["currency"], rules.currency.code)
    return _parse_metadata(document["metadata"]) if "metadata" in document else None


def _require_currency(value: Any, code: str) -> None:
    if type(value) is not str:
        raise InvalidPaymentError(f"currency must be a string, not {_kind(value)}")
    if value != code:
        raise InvalidPaymentError(f"currency must be {code}, the only one here, not {value[:64]!r}")


def _parse_metadata(value: Any) -> bytes:
    """The canonical form of metadata that was read exactly. Raises `InvalidPaymentError`."""
    if not isinstance(value, _Members):
        raise InvalidPaymentError(f"metadata must be an object, not {_kind(value)}")
    _require_sound(value, MAX_METADATA_DEPTH)
    text = orjson.dumps(value, default=_all_digits, option=orjson.OPT_SORT_KEYS)
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidPaymentError(
            f"metadata must be at most {MAX_METADATA_BYTES} bytes as JSON without spaces, "
            f"not {len(text)}"
        )
    return text


def _require_sound(value: Any, levels: int) -> None:
    """Raises `InvalidPaymentError` if a value of metadata has more levels, or repeats a name."""
    if isinstance(value, _Members):
        value.require_once(" in metadata", *value.repeated)
        inner = list(value.values())
    elif isinstance(value, list):
        inner = value
    else:
        return
    if levels == 0:
        raise InvalidPaymentError(f"metadata must have at most {MAX_METADATA_DEPTH} levels")
    for each in inner:
        _require_sound(each, levels - 1)


def _all_digits(number: Any) -> orjson.Fragment:
    """A number as it was written, for orjson."""
    if not isinstance(number, Decimal):
        raise TypeError
    return orjson.Fragment(str(number))


def _needs_exactness(body: bytes) -> bool:
    """Whether a body has metadata, or a member that may occur twice, even with its name escaped."""
    return (
        b"\\" in body
        or b'"metadata"' in body
        or any(body.count(name) > 1 for name in _QUOTED_MEMBERS)
    )


class _Members(dict[str, Any]):
    """A JSON object that counts its repeated names."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: Counter[str] = Counter()
        if len(self) < len(pairs):
            self.repeated = Counter(name for name, _ in pairs)

    def require_once(self, place: str, *names: str) -> None:
        """Raises `InvalidPaymentError` if one of these names is repeated."""
        for name in names:
            if self.repeated[name] > 1:
                times = self.repeated[name]
                raise InvalidPaymentError(
                    f"{name[:64]}{place} must be given once, not {times} times"
                )


def _read_exactly(body: bytes) -> Any:
    """Read every digit of every number; raises `InvalidPaymentError` if a member occurs twice."""
    try:
        document = json.loads(
            body, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_Members
        )
    except (DecimalException, RecursionError, ValueError):
        raise InvalidPaymentError("the body holds a number or a depth beyond all bounds") from None
    if isinstance(document, _Members):
        document.require_once("", *MEMBERS)
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

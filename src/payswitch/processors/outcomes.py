"""The meaning of every possible answer of a processor.

The meanings are the design's table of outcomes (docs/design.md). An outcome answers one question:
has this try been recorded, and can it still be?
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import orjson

from payswitch.http.transport import NotSent, bytes_left
from payswitch.instants import parse_instant_ms
from payswitch.money import Currency
from payswitch.reasons import reason


@dataclass(frozen=True, slots=True)
class Paid:
    """The payment is recorded, with the `requestedAt` that was sent."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The processor knows the id or rejects the payment; this try recorded nothing."""

    status: int
    finding: FindOutcome | None = None
    """Its answer to the question which of the two; None before that."""


@dataclass(frozen=True, slots=True)
class NotPaid:
    """The try is certainly not recorded, now or later: no byte of it was sent."""

    reason: str
    healthy: bool = True
    """False if the processor is at fault."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The try is over, recorded or not. The payment may go to the same processor again, which would
    know the id; before it goes elsewhere, its processor must be asked."""

    status: int
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The try may be recorded, now or later."""

    reason: str
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class NotSentInTime:
    """Nothing was written, because the lease had run out."""


Outcome = Paid | Refused | NotPaid | Ended | Unknown | NotSentInTime


@dataclass(frozen=True, slots=True)
class Found:
    """The processor has the payment."""

    cents: int
    requested_at: int


@dataclass(frozen=True, slots=True)
class Missing:
    """The processor does not have the payment now."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """The answer tells nothing."""

    reason: str
    retry_after_ms: int | None = None


FindOutcome = Found | Missing | Unclear


@dataclass(frozen=True, slots=True)
class HealthReport:
    """A processor's report on its health."""

    failing: bool
    min_response_ms: int


_GAVE_UP_WAITING = frozenset({408, 499})
"""Statuses below 500 with which a gateway abandons a request that it has passed on."""

_LEDGER_ENDS_MS = 10**13
"""The year 2286: the ledger's windows end there."""


def classify(status: int, retry_after_ms: int | None, content: bytes) -> Outcome:
    """The meaning of a complete answer to a payment; `retry_after_ms` is the pause it asks for."""
    if 200 <= status < 300:
        if content and not _is_json(content):
            return Unknown(f"status {status} with a body that is not JSON")
        return Paid()
    if status in (400, 422):
        return Refused(status)
    if status > 500 or status in _GAVE_UP_WAITING:
        return Unknown(f"status {status}", retry_after_ms)
    return Ended(status, retry_after_ms)


def classify_error(error: httpx.RequestError) -> Outcome:
    """The meaning of a payment without a complete answer."""
    if isinstance(error, NotSent):
        return NotSentInTime()
    if not isinstance(error, httpx.TransportError) or bytes_left(error):
        return Unknown(reason(error))
    return NotPaid(reason(error), healthy=isinstance(error, httpx.PoolTimeout))


def classify_finding(
    status: int,
    content: bytes,
    correlation_id: str,
    currency: Currency,
    retry_after_ms: int | None = None,
) -> FindOutcome:
    """The meaning of a complete answer to `GET /payments/{id}`; `retry_after_ms` as in
    `classify`."""
    if status == 404:
        return Missing()
    if status != 200:
        return Unclear(f"status {status}", retry_after_ms)
    try:
        document = orjson.loads(content)
        found_id, amount = document["correlationId"], document["amount"]
        requested_at = parse_instant_ms(document["requestedAt"])
    except (ValueError, KeyError, TypeError):
        return Unclear("a body that is no payment")
    cents = currency.nearest_cents(amount)
    if cents is None or type(found_id) is not str or found_id.lower() != correlation_id:
        return Unclear("a body that is another payment")
    if not 0 <= requested_at < _LEDGER_ENDS_MS:
        return Unclear("an absurd instant")
    return Found(cents, requested_at)


def classify_health(status: int, content: bytes) -> HealthReport | None:
    """The report; None, which is unknown health, if the answer is anything else."""
    if status != 200:
        return None
    try:
        document = orjson.loads(content)
        failing, slowness = document["failing"], document["minResponseTime"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(failing) is not bool or type(slowness) is not int or slowness < 0:
        return None
    return HealthReport(failing, slowness)


def _is_json(content: bytes) -> bool:
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return True

"""The connector `charges`: a worked example in the style of the big card processors.

`POST /v1/charges` with a bearer token and an `Idempotency-Key`, amounts in minor units, 402 for a
decline, and a lookup by reference.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import orjson

from payswitch.instants import format_instant, parse_instant_ms
from payswitch.money import Total
from payswitch.processors.connector import (
    Connector,
    ConnectorSettings,
    Instruction,
    NotUnderstoodError,
    Request,
    Response,
)
from payswitch.processors.outcomes import (
    Declined,
    Ended,
    FindOutcome,
    Found,
    HealthReport,
    Missing,
    Paid,
    PayOutcome,
    Pending,
    Refused,
    Unclear,
    Unknown,
)

_ABOUT_US = frozenset({401, 403, 404, 405, 425, 429, 500})
"""The call has ended, and its status is no verdict on the payment."""
_ABOUT_THE_PAYMENT = frozenset({400, 422})
_SHARE = re.compile(r"0(\.[0-9]{1,9})?|1(\.0{1,9})?", re.ASCII)
_LONGEST_TEXT = 255


class ChargesConnector(Connector):
    """The token is sent as `Authorization: Bearer`."""

    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__(settings)
        self._headers = (("authorization", f"Bearer {settings.token}"),)
        self._json = (*self._headers, ("content-type", "application/json"))

    def pay(self, instruction: Instruction) -> Request:
        """The id is both idempotency key and reference, so that a charge can be looked up by it."""
        charge = {
            "amount": instruction.cents,
            "currency": self.settings.currency.code,
            "reference": instruction.correlation_id,
            "requested_at": format_instant(instruction.requested_at),
            "metadata": orjson.Fragment(instruction.metadata or b"{}"),
        }
        headers = (*self._json, ("idempotency-key", instruction.correlation_id))
        return Request("POST", "/v1/charges", headers, orjson.dumps(charge))

    def read_payment(self, instruction: Instruction, response: Response) -> PayOutcome:
        """409 means that another call with this key is still under way: its outcome is unknown."""
        status, document = response.status, _json(response.body)
        if status in (200, 201, 202):
            outcome = self._read_charge(instruction, document)
            return _as_answer(instruction, outcome)
        if status == 402:
            return Declined(_code(document))
        if status in _ABOUT_THE_PAYMENT:
            return Refused(status)
        if status in _ABOUT_US:
            return Ended(status, response.retry_after_ms)
        return Unknown(f"status {status}", response.retry_after_ms)

    def find(self, instruction: Instruction) -> Request:
        """By reference."""
        return Request("GET", f"/v1/charges?reference={instruction.correlation_id}", self._headers)

    def read_finding(self, instruction: Instruction, response: Response) -> FindOutcome:
        """A list of charges, empty or with one."""
        if response.status != 200:
            return Unclear(f"status {response.status}", response.retry_after_ms)
        document = _json(response.body)
        charges = document.get("data") if isinstance(document, dict) else None
        if not isinstance(charges, list):
            return Unclear("a body that is no list of charges")
        if len(charges) > 1:
            return Unclear(f"{len(charges)} charges for one reference")
        return self._read_charge(instruction, charges[0]) if charges else Missing()

    def health(self) -> Request:
        """`{"status":"up","latency_ms":12}`."""
        return Request("GET", "/v1/health", self._headers)

    def read_health(self, response: Response) -> HealthReport | None:
        """Anything but `up` is failing."""
        document = _json(response.body)
        if response.status != 200 or not isinstance(document, dict):
            return None
        status, latency = document.get("status"), document.get("latency_ms")
        if type(status) is not str or type(latency) is not int or latency < 0:
            return None
        return HealthReport(status != "up", latency)

    def total(self, first_ms: int, last_ms: int) -> Request:
        """Count and amount of what succeeded, by `requested_at`."""
        window = f"from={format_instant(first_ms)}&to={format_instant(last_ms)}"
        return Request("GET", f"/v1/totals?{window}", self._headers)

    def read_total(self, response: Response) -> Total:
        """`{"count":1,"amount":1990}`."""
        document = _json(response.body)
        if not isinstance(document, dict):
            raise NotUnderstoodError("the answer is no total")
        count, amount = document.get("count"), document.get("amount")
        if type(count) is not int or type(amount) is not int or count < 0:
            raise NotUnderstoodError("the answer is no total")
        return Total(count, amount)

    def fee(self) -> Request:
        """`{"fee":"0.029"}`."""
        return Request("GET", "/v1/account", self._headers)

    def read_fee(self, response: Response) -> Decimal:
        """A share in text, so that nothing rounds it."""
        document = _json(response.body)
        text = document.get("fee") if isinstance(document, dict) else None
        if not isinstance(text, str) or not _SHARE.fullmatch(text):
            raise NotUnderstoodError("an account without a fee")
        return Decimal(text)

    def _read_charge(self, instruction: Instruction, charge: Any) -> FindOutcome:
        try:
            reference, status = charge["reference"], charge["status"]
            cents, charge_id, currency = charge["amount"], charge["id"], charge["currency"]
            requested_at = parse_instant_ms(charge["requested_at"])
        except (KeyError, TypeError, ValueError):
            return Unclear("a body that is no charge")
        if reference != instruction.correlation_id or type(cents) is not int:
            return Unclear("a charge for another reference")
        if currency != self.settings.currency.code:
            return Unclear("a charge in another currency")
        if not _is_short_text(charge_id):
            return Unclear("a charge with an absurd id")
        if status == "succeeded":
            return Found(cents, requested_at, charge_id)
        if status == "pending":
            return Pending(charge_id)
        if status == "failed":
            return Declined(_code(charge))
        return Unclear("a charge in an unknown state")


def _as_answer(instruction: Instruction, found: FindOutcome) -> PayOutcome:
    """The outcome of a payment that was answered with this charge."""
    match found:
        case Declined() | Pending():
            return found
        case Found(cents=cents) if cents == instruction.cents:
            return Paid(found.reference)
        case Unclear():
            return Unknown(found.reason)
    return Unknown("a charge with another amount")


def _code(document: Any) -> str:
    """The code in `{"error":{"code":"card_declined"}}`."""
    try:
        code = document["error"]["code"]
    except (KeyError, TypeError):
        return "unknown"
    return code if _is_short_text(code) else "unknown"


def _is_short_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST_TEXT


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None

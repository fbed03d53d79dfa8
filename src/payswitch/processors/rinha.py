"""The connector `rinha`: the processors of the challenge *Rinha de Backend 2025*."""

from __future__ import annotations

import json
from decimal import Decimal

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
    Ended,
    FindOutcome,
    Found,
    HealthReport,
    Missing,
    Paid,
    PayOutcome,
    Refused,
    Unclear,
    Unknown,
)

_JSON = (("content-type", "application/json"),)
_GAVE_UP_WAITING = frozenset({408, 499})
"""Statuses below 500 with which a gateway abandons a request that it has passed on."""
_ABOUT_US = frozenset({401, 403, 404, 405, 425, 429})
"""Statuses below 500 that are about our credentials, path or pace, and not about a payment."""
_MOST_PAYMENTS = 10**15


class RinhaConnector(Connector):
    """`POST /payments`, `GET /payments/{id}`, `GET /payments/service-health` and the admin summary,
    for which the token is sent as `X-Rinha-Token`."""

    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__(settings)
        self._admin_headers = (("x-rinha-token", settings.token),)

    def pay(self, instruction: Instruction) -> Request:
        """Id, amount and instant; the processor refuses an id that it has."""
        amount = self.settings.currency.format_cents(instruction.cents)
        body = (
            f'{{"correlationId":"{instruction.correlation_id}","amount":{amount},'
            f'"requestedAt":"{format_instant(instruction.requested_at)}"}}'
        )
        return Request("POST", "/payments", _JSON, body.encode())

    def read_payment(self, instruction: Instruction, response: Response) -> PayOutcome:
        """The design's table of outcomes (docs/design.md)."""
        status = response.status
        if 200 <= status < 300:
            if response.body and not _is_json(response.body):
                return Unknown(f"status {status} with a body that is not JSON")
            return Paid()
        if status > 500 or status in _GAVE_UP_WAITING:
            return Unknown(f"status {status}", response.retry_after_ms)
        if 400 <= status < 500 and status not in _ABOUT_US:
            return Refused(status)
        return Ended(status, response.retry_after_ms)

    def find(self, instruction: Instruction) -> Request:
        """By id."""
        return Request("GET", f"/payments/{instruction.correlation_id}")

    def read_finding(self, instruction: Instruction, response: Response) -> FindOutcome:
        """The payment with its amount and instant, or 404."""
        if response.status == 404:
            return Missing()
        if response.status != 200:
            return Unclear(f"status {response.status}", response.retry_after_ms)
        try:
            document = orjson.loads(response.body)
            found_id, amount = document["correlationId"], document["amount"]
            requested_at = parse_instant_ms(document["requestedAt"])
        except (ValueError, KeyError, TypeError):
            return Unclear("a body that is no payment")
        cents = self.settings.currency.nearest_cents(amount)
        if (
            cents is None
            or type(found_id) is not str
            or found_id.lower() != instruction.correlation_id
        ):
            return Unclear("a body that is another payment")
        return Found(cents, requested_at)

    def health(self) -> Request:
        """At most once in 5 s."""
        return Request("GET", "/payments/service-health")

    def read_health(self, response: Response) -> HealthReport | None:
        """`failing` and `minResponseTime`."""
        if response.status != 200:
            return None
        try:
            document = orjson.loads(response.body)
            failing, slowness = document["failing"], document["minResponseTime"]
        except (ValueError, KeyError, TypeError):
            return None
        if type(failing) is not bool or type(slowness) is not int or slowness < 0:
            return None
        return HealthReport(failing, slowness)

    def total(self, first_ms: int, last_ms: int) -> Request:
        """Always with both bounds: if one is missing, the processor ignores the other. A processor
        may keep microseconds; the ledger doesn't."""
        last = format_instant(last_ms).replace("Z", "999Z")
        window = f"from={format_instant(first_ms)}&to={last}"
        return Request("GET", f"/admin/payments-summary?{window}", self._admin_headers)

    def read_total(self, response: Response) -> Total:
        """The summary's count and amount, to the cent."""
        try:
            document = json.loads(response.body, parse_float=Decimal)
            count, amount = document["totalRequests"], document["totalAmount"]
            cents = self.settings.currency.nearest_cents(amount)
        except (ValueError, KeyError, TypeError, RecursionError, ArithmeticError):
            raise NotUnderstoodError("the answer is not a summary") from None
        if type(count) is not int or not 0 <= count <= _MOST_PAYMENTS or cents is None:
            raise NotUnderstoodError("the answer is not a summary")
        return Total(count, cents)

    def fee(self) -> Request:
        """The summary of a window in which nothing was requested."""
        return self.total(0, 0)

    def read_fee(self, response: Response) -> Decimal:
        """The summary's `feePerTransaction`."""
        try:
            document = json.loads(response.body, parse_float=Decimal, parse_int=Decimal)
            fee = document["feePerTransaction"]
        except (ValueError, KeyError, TypeError, RecursionError, ArithmeticError):
            fee = None
        if not isinstance(fee, Decimal) or not 0 <= fee <= 1:
            raise NotUnderstoodError("a summary without a fee")
        return fee


def _is_json(content: bytes) -> bool:
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return True

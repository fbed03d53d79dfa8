"""The built-in connectors pass the tests that every connector must pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import orjson
import pytest

from payswitch.instants import format_instant
from payswitch.money import BRL, Total
from payswitch.processors.charges import ChargesConnector
from payswitch.processors.connector import Connector, Instruction, Request, Response
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
from payswitch.processors.rinha import RinhaConnector
from payswitch.processors.testing import EXAMPLE, ConnectorTests

_DONE = [
    (Response(status, b'{"message":"payment processed successfully"}'), Paid())
    for status in range(200, 300)
]


class TestRinha(ConnectorTests):
    connector = RinhaConnector

    def payments(self, instruction: Instruction) -> Sequence[tuple[Response, PayOutcome]]:
        return [
            *_DONE,
            (Response(204), Paid()),
            (Response(422), Refused(422)),
            (Response(400), Refused(400)),
            (Response(429, retry_after_ms=1000), Ended(429, 1000)),
            (Response(500), Ended(500)),
            (Response(502), Unknown("status 502")),
        ]

    def findings(self, instruction: Instruction) -> Sequence[tuple[Response, FindOutcome]]:
        found = (
            f'{{"correlationId":"{instruction.correlation_id}",'
            f'"amount":{BRL.format_cents(instruction.cents)},'
            f'"requestedAt":"{format_instant(instruction.requested_at)}"}}'
        )
        return [
            (Response(200, found.encode()), Found(instruction.cents, instruction.requested_at)),
            (Response(404), Missing()),
            (Response(500), Unclear("status 500")),
        ]

    def reports(self) -> Sequence[tuple[Response, HealthReport | None]]:
        return [
            (Response(200, b'{"failing":false,"minResponseTime":5}'), HealthReport(False, 5)),
            (Response(429), None),
        ]

    def totals(self) -> Sequence[tuple[Response, Total]]:
        body = b'{"totalRequests":2,"totalAmount":19.9,"feePerTransaction":0.05}'
        return [(Response(200, body), Total(2, 1990))]

    def fees(self) -> Sequence[tuple[Response, Decimal]]:
        body = b'{"totalRequests":2,"totalAmount":19.9,"feePerTransaction":0.05}'
        return [(Response(200, body), Decimal("0.05"))]


_ANSWERED = (200, 201, 202, 402)


class TestCharges(ConnectorTests):
    connector = ChargesConnector

    def payments(self, instruction: Instruction) -> Sequence[tuple[Response, PayOutcome]]:
        return [
            (self.charge(201, instruction), Paid("ch_1")),
            (self.charge(200, instruction), Paid("ch_1")),
            (self.charge(202, instruction), Paid("ch_1")),
            (self.charge(202, instruction, status="pending"), Pending("ch_1")),
            *((self.failed(status, instruction), Declined("stolen")) for status in _ANSWERED),
            (Response(409), Unknown("status 409")),
            (Response(422), Refused(422)),
            (Response(401), Ended(401)),
            (Response(429, retry_after_ms=1000), Ended(429, 1000)),
            (Response(503), Unknown("status 503")),
        ]

    def findings(self, instruction: Instruction) -> Sequence[tuple[Response, FindOutcome]]:
        charge = self.charge(200, instruction).body
        return [
            (
                Response(200, b'{"data":[%b]}' % charge),
                Found(instruction.cents, instruction.requested_at, "ch_1"),
            ),
            (Response(200, b'{"data":[]}'), Missing()),
            (
                Response(200, b'{"data":[%b,%b]}' % (charge, charge)),
                Unclear("2 charges for one reference"),
            ),
        ]

    def reports(self) -> Sequence[tuple[Response, HealthReport | None]]:
        return [
            (Response(200, b'{"status":"up","latency_ms":5}'), HealthReport(False, 5)),
            (Response(200, b'{"status":"down","latency_ms":5}'), HealthReport(True, 5)),
        ]

    def totals(self) -> Sequence[tuple[Response, Total]]:
        return [(Response(200, b'{"count":2,"amount":1990}'), Total(2, 1990))]

    def fees(self) -> Sequence[tuple[Response, Decimal]]:
        return [(Response(200, b'{"currency":"BRL","fee":"0.029"}'), Decimal("0.029"))]

    def failed(self, code: int, instruction: Instruction) -> Response:
        return self.charge(code, instruction, status="failed", error={"code": "stolen"})

    def charge(self, code: int, instruction: Instruction, **fields: object) -> Response:
        charge = {
            "id": "ch_1",
            "status": "succeeded",
            "amount": instruction.cents,
            "currency": "BRL",
            "reference": instruction.correlation_id,
            "requested_at": format_instant(instruction.requested_at),
        }
        return Response(code, orjson.dumps(charge | fields))


# Connectors that the tests must catch.


class PaidByAnyStatus(ChargesConnector):
    def read_payment(self, instruction: Instruction, response: Response) -> PayOutcome:
        return super().read_payment(instruction, response._replace(status=200))


class MissingIfAnythingFails(ChargesConnector):
    def read_finding(self, instruction: Instruction, response: Response) -> FindOutcome:
        return Missing() if response.status != 200 else super().read_finding(instruction, response)


class LooksAtNoReference(ChargesConnector):
    def read_finding(self, instruction: Instruction, response: Response) -> FindOutcome:
        reference = instruction.correlation_id.encode()
        body = re.sub(rb'"reference":"[^"]*"', b'"reference":"%b"' % reference, response.body)
        return super().read_finding(instruction, response._replace(body=body))


class LooksAtNoAmount(ChargesConnector):
    def read_payment(self, instruction: Instruction, response: Response) -> PayOutcome:
        body = re.sub(rb'"amount":\d+', b'"amount":%d' % instruction.cents, response.body)
        return super().read_payment(instruction, response._replace(body=body))


class TrustsTheBody(ChargesConnector):
    def read_health(self, response: Response) -> HealthReport | None:
        return HealthReport(False, orjson.loads(response.body)["latency_ms"])


class NewKeyForEachTry(ChargesConnector):
    def pay(self, instruction: Instruction) -> Request:
        request = super().pay(instruction)
        return request._replace(headers=(*request.headers[:-1], ("idempotency-key", str(uuid4()))))


class MetadataInAHeader(ChargesConnector):
    def pay(self, instruction: Instruction) -> Request:
        request, metadata = super().pay(instruction), (instruction.metadata or b"").decode()
        return request._replace(headers=(*request.headers, ("x-metadata", metadata)))


class SendsNoAmount(ChargesConnector):
    def pay(self, instruction: Instruction) -> Request:
        return super().pay(replace(instruction, cents=1))


class EligibleByTheHour(ChargesConnector):
    def eligible(self, instruction: Instruction) -> bool:
        return instruction.requested_at % 2 == 0


OTHER_ID = str(uuid4())


@pytest.mark.parametrize(
    ("broken", "test", "given"),
    [
        (PaidByAnyStatus, "a_body_with_another_status_decides_nothing", ()),
        (MissingIfAnythingFails, "a_body_with_another_status_decides_nothing", ()),
        (LooksAtNoReference, "another_payments_answer_means_nothing", (EXAMPLE, OTHER_ID)),
        (LooksAtNoAmount, "another_amount_is_not_taken_for_this_one", (EXAMPLE,)),
        (TrustsTheBody, "a_response_with_one_strange_value_is_read_without_an_error", ()),
        (NewKeyForEachTry, "the_same_payment_makes_the_same_request", (EXAMPLE,)),
        (MetadataInAHeader, "every_request_is_well_formed", (EXAMPLE, 0)),
        (SendsNoAmount, "another_amount_makes_another_request", (EXAMPLE,)),
        (EligibleByTheHour, "eligible_depends_on_the_payment_alone", (EXAMPLE,)),
    ],
)
def test_a_connector_that_breaks_the_contract_fails(
    broken: type[Connector], test: str, given: tuple[object, ...]
) -> None:
    tests = type("Broken", (TestCharges,), {"connector": broken})()
    function = getattr(type(tests), f"test_{test}")
    if given:  # not through hypothesis, which would look for the smallest example
        function = function.hypothesis.inner_test
    with pytest.raises((AssertionError, KeyError, TypeError)):
        function(tests, *given)

"""A provider that speaks `charges` and keeps every rule, and some that break one each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import orjson

from payswitch.http.server import Exchange, Listener, reply
from payswitch.processors.charges import ChargesConnector
from payswitch.processors.connector import Instruction, Response
from payswitch.processors.outcomes import FindOutcome, Found, Paid, PayOutcome

TOKEN = "secret"
LATENCY_S = 0.03
DECLINED = 4002
MAX_DELAY_MS = 500

Charge = dict[str, Any]


class WithoutTotals(ChargesConnector):
    """It can't count."""

    def total(self, first_ms: int, last_ms: int) -> None:  # type: ignore[override]
        return None


class WithoutTotalsAndReferences(WithoutTotals):
    """It tells no provider's id either."""

    def read_payment(self, instruction: Instruction, response: Response) -> PayOutcome:
        outcome = super().read_payment(instruction, response)
        return Paid() if isinstance(outcome, Paid) else outcome

    def read_finding(self, instruction: Instruction, response: Response) -> FindOutcome:
        finding = super().read_finding(instruction, response)
        return replace(finding, reference="") if isinstance(finding, Found) else finding


class Provider:
    """Keeps every rule. A payment takes `LATENCY_S`, and is recorded even if its client is gone."""

    def __init__(self) -> None:
        self.charges: list[Charge] = []
        self.under_way: set[str] = set()
        self.url = ""

    # What the broken ones change.

    def is_allowed(self, exchange: Exchange) -> bool:
        return exchange.headers.get(b"authorization") == f"Bearer {TOKEN}".encode()

    def takes(self, charge: Charge) -> bool:
        return bool(charge["amount"] > 0)

    def known(self, reference: str) -> Charge | None:
        return next((each for each in self.charges if each["reference"] == reference), None)

    def is_busy(self, reference: str) -> bool:
        return reference in self.under_way

    def declines(self, charge: Charge) -> bool:
        return bool(charge["amount"] == DECLINED)

    def record(self, exchange: Exchange, charge: Charge) -> None:
        self.charges.append(charge)

    def found(self, reference: str) -> list[Charge]:
        return [each for each in self.charges if each["reference"] == reference]

    def counted(self) -> list[Charge]:
        return self.charges

    def report(self) -> tuple[int, Any]:
        return 200, {"status": "up", "latency_ms": 30}

    # HTTP.

    def handle(self, exchange: Exchange) -> None:
        path = exchange.path
        query = {name: each[0] for name, each in parse_qs(exchange.query.decode()).items()}
        if path == b"/v1/health":
            answer(exchange, *self.report())
        elif not self.is_allowed(exchange):
            answer(exchange, 401, {})
        elif path == b"/v1/totals":
            inside = [
                each["amount"]
                for each in self.counted()
                if query["from"] <= each["requested_at"] <= query["to"]
            ]
            answer(exchange, 200, {"count": len(inside), "amount": sum(inside)})
        elif exchange.method == b"GET":
            answer(exchange, 200, {"data": self.found(query["reference"])})
        else:
            self.pay(exchange)

    def pay(self, exchange: Exchange) -> None:
        charge = orjson.loads(exchange.body)
        reference = charge["reference"]
        charge |= {"status": "succeeded", "id": f"ch_{reference}"}
        if not self.takes(charge):
            answer(exchange, 400, {})
        elif self.declines(charge):
            answer(exchange, 402, {"error": {"code": "card_declined"}})
        elif self.is_busy(reference):
            answer(exchange, 409, {})
        elif known := self.known(reference):
            answer(exchange, 200, known)
        else:
            self.under_way.add(reference)
            later(LATENCY_S, self.end, exchange, charge)

    def end(self, exchange: Exchange, charge: Charge) -> None:
        self.under_way.discard(charge["reference"])
        self.record(exchange, charge)
        answer(exchange, 201, charge)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Provider]:
        listener = Listener(self.handle)
        self.url = f"http://127.0.0.1:{await listener.start('127.0.0.1', 0)}"
        try:
            yield self
        finally:
            await listener.close()


def answer(exchange: Exchange, status: int, document: Any) -> None:
    exchange.answer(reply(HTTPStatus(status), orjson.dumps(document)))


def later(after_s: float, act: Any, *arguments: Any) -> None:
    asyncio.get_running_loop().call_later(after_s, act, *arguments)


class RecordsARepeat(Provider):
    """The same id twice is recorded twice."""

    def known(self, reference: str) -> Charge | None:
        return None


class DecidesLater(Provider):
    """Keeps every rule: a payment is pending at first."""

    def record(self, exchange: Exchange, charge: Charge) -> None:
        charge["status"] = "pending"
        later(0.05, charge.update, {"status": "succeeded"})
        super().record(exchange, charge)

    def counted(self) -> list[Charge]:
        return [each for each in self.charges if each["status"] == "succeeded"]


class LosesWhatIsPending(DecidesLater):
    """The look-up denies a pending payment."""

    def found(self, reference: str) -> list[Charge]:
        return [each for each in super().found(reference) if each["status"] == "succeeded"]


class NewIdForARepeat(Provider):
    """The same id twice is recorded twice, and the look-up knows only the first."""

    def known(self, reference: str) -> Charge | None:
        return None

    def record(self, exchange: Exchange, charge: Charge) -> None:
        charge["id"] = f"ch_{len(self.charges)}"
        super().record(exchange, charge)

    def found(self, reference: str) -> list[Charge]:
        return super().found(reference)[:1]


class RecordsAtTheSameTime(Provider):
    """Looks for the id when the call comes, and records it when it ends."""

    def is_busy(self, reference: str) -> bool:
        return False


class ForgetsKeysOfAHangUp(Provider):
    """A call whose client is gone is recorded without its key."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: set[str] = set()

    def known(self, reference: str) -> Charge | None:
        return None if reference in self.forgotten else super().known(reference)

    def record(self, exchange: Exchange, charge: Charge) -> None:
        if exchange.abandoned:
            self.forgotten.add(charge["reference"])
        else:
            self.forgotten.discard(charge["reference"])
        super().record(exchange, charge)


class DeniesWhatItHas(Provider):
    """The look-up finds nothing."""

    def found(self, reference: str) -> list[Charge]:
        return []


class FindsLate(Provider):
    """The look-up reads a replica that is behind by 0.2 s."""

    def __init__(self) -> None:
        super().__init__()
        self.replica: list[Charge] = []

    def record(self, exchange: Exchange, charge: Charge) -> None:
        super().record(exchange, charge)
        later(0.2, self.replica.append, charge)

    def found(self, reference: str) -> list[Charge]:
        return [each for each in self.replica if each["reference"] == reference]


class FindsAnything(Provider):
    """The look-up makes up what it doesn't have."""

    def found(self, reference: str) -> list[Charge]:
        made_up = {
            "id": "ch",
            "status": "succeeded",
            "amount": 1,
            "currency": "BRL",
            "reference": reference,
            "requested_at": "2026-01-01T00:00:00.000Z",
        }
        return super().found(reference) or [made_up]


class RecordsAfterItsDelay(Provider):
    """A call whose client is gone is recorded much later."""

    def record(self, exchange: Exchange, charge: Charge) -> None:
        if exchange.abandoned and not self.known(charge["reference"]):
            later(1.2 * MAX_DELAY_MS / 1000, self.record_once, charge)
        else:
            super().record(exchange, charge)

    def record_once(self, charge: Charge) -> None:
        if not self.known(charge["reference"]):
            self.charges.append(charge)


class AddsACent(Provider):
    """It records a cent more than it was sent."""

    def record(self, exchange: Exchange, charge: Charge) -> None:
        self.charges.append(charge | {"amount": charge["amount"] + 1})


class MovesTheInstant(Provider):
    """It records its own instant."""

    def found(self, reference: str) -> list[Charge]:
        moved = "2026-01-01T00:00:00.000Z"
        return [each | {"requested_at": moved} for each in super().found(reference)]


class ThanksForAnything(Provider):
    """An invalid payment is answered with 201, and not recorded."""

    def takes(self, charge: Charge) -> bool:
        return True

    def record(self, exchange: Exchange, charge: Charge) -> None:
        if charge["amount"] > 0:
            super().record(exchange, charge)


class HasNoHealth(Provider):
    """The health report is a 500."""

    def report(self) -> tuple[int, Any]:
        return 500, {}


class SaysThatItFails(Provider):
    """The health report is a lie."""

    def report(self) -> tuple[int, Any]:
        return 200, {"status": "down", "latency_ms": 30}


class LimitsHealthTooHard(Provider):
    """It tells its health once."""

    asked = False

    def report(self) -> tuple[int, Any]:
        asked, self.asked = self.asked, True
        return (429, {}) if asked else super().report()


class PaysWhatItDeclined(Provider):
    """A declined payment that comes again is paid."""

    def __init__(self) -> None:
        super().__init__()
        self.declined: set[str] = set()

    def declines(self, charge: Charge) -> bool:
        reference = charge["reference"]
        declines = super().declines(charge) and reference not in self.declined
        self.declined.add(reference)
        return declines


class TakesAnyToken(Provider):
    """It checks no token."""

    def is_allowed(self, exchange: Exchange) -> bool:
        return True


class CountsTwice(Provider):
    """Its totals hold a payment of 19.99 twice, some time later."""

    def counted(self) -> list[Charge]:
        return [*self.charges, *self.twice]

    def __init__(self) -> None:
        super().__init__()
        self.twice: list[Charge] = []

    def record(self, exchange: Exchange, charge: Charge) -> None:
        super().record(exchange, charge)
        if charge["amount"] == 1999:
            later(0.3, self.twice.append, charge)


class DeclinesAll(Provider):
    """It pays nothing."""

    def declines(self, charge: Charge) -> bool:
        return True

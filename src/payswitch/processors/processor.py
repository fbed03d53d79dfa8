"""The processor client: pay, find, health; and what every possible answer means.

The meanings are the design's table of outcomes (docs/design.md). An outcome says one thing: may
this very try have been recorded, or may it be recorded yet?
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from payswitch.http.transport import NotSent, bytes_left
from payswitch.instants import format_instant, parse_instant_ms
from payswitch.payments.payment import format_cents, nearest_cents
from payswitch.processor_url import parse_processor_url
from payswitch.processors.retry_after import asked_pause_ms
from payswitch.reasons import reason

if TYPE_CHECKING:
    from payswitch.telemetry.traces import Step


@dataclass(frozen=True, slots=True)
class Paid:
    """It is recorded, with the `requestedAt` that was sent."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The processor knows the id or does not like the payment; this try recorded nothing."""

    status: int
    finding: Finding | None = None
    """What it said when it was asked which of the two; None before that."""


@dataclass(frozen=True, slots=True)
class NotPaid:
    """Certainly not recorded, now or later: nothing of it has left."""

    reason: str
    healthy: bool = True
    """False when it speaks against the processor."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The try is over; it was recorded or not, whoever wrote the answer. It may be sent to the same
    processor again, which knows the id; before it goes elsewhere, its processor must be asked."""

    status: int
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may be recorded, also later than now."""

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
    """The processor does not have the payment at this instant."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """The answer tells nothing."""

    reason: str
    retry_after_ms: int | None = None


Finding = Found | Missing | Unclear


@dataclass(frozen=True, slots=True)
class Report:
    """What a processor says of its health."""

    failing: bool
    min_response_ms: int


_GAVE_UP_WAITING = frozenset({408, 499})
"""Of the statuses below 500, those by which a gateway gives up a request that it has passed on."""
_LEDGER_ENDS_MS = 10**13
"""The year 2286: the ledger's windows reach from 1970 to there."""


def classify(status: int, retry_after_ms: int | None, content: bytes) -> Outcome:
    """What a complete answer to a payment means; `retry_after_ms` is the pause that it asks for."""
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
    """What the lack of a complete answer to a payment means."""
    if isinstance(error, NotSent):
        return NotSentInTime()
    if not isinstance(error, httpx.TransportError) or bytes_left(error):
        return Unknown(reason(error))
    return NotPaid(reason(error), healthy=isinstance(error, httpx.PoolTimeout))


def classify_finding(
    status: int, content: bytes, correlation_id: str, retry_after_ms: int | None = None
) -> Finding:
    """What a complete answer to `GET /payments/{id}` means; `retry_after_ms` as in `classify`."""
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
    cents = nearest_cents(amount)
    if cents is None or type(found_id) is not str or found_id.lower() != correlation_id:
        return Unclear("a body that is another payment")
    if not 0 <= requested_at < _LEDGER_ENDS_MS:
        return Unclear("an absurd instant")
    return Found(cents, requested_at)


def classify_health(status: int, content: bytes) -> Report | None:
    """The report, or None where the answer is not exactly one: then nothing is known."""
    if status != 200:
        return None
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    failing, slowness = document.get("failing"), document.get("minResponseTime")
    if type(failing) is not bool or type(slowness) is not int or slowness < 0:
        return None
    return Report(failing, slowness)


class Processor:
    """One processor, over the process' one pool of connections.

    It speaks to httpx' transport, not its client: that would look at redirects, cookies and
    environment on the way of every payment, and raise on a `Location` that is no URL.
    """

    def __init__(
        self,
        name: str,
        url: str,
        transport: httpx.AsyncBaseTransport,
        *,
        pay_limit_ms: int,
        find_limit_ms: int,
        connect_limit_ms: int,
    ) -> None:
        self.name = name
        self._transport = transport
        self._url, _ = place = parse_processor_url(url)
        self._payments = httpx.URL(f"{self._url}/payments")
        connect = connect_limit_ms / 1000
        self._pay_limits = _limits(connect, pay_limit_ms / 1000)
        self._find_limits = _limits(connect, find_limit_ms / 1000)
        self._question_headers = place.headers
        self._payment_headers = [
            (b"host", self._payments.netloc),
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in place.headers.items()),
        ]

    async def pay(
        self,
        correlation_id: str,
        cents: int,
        requested_at: int,
        may_send: Callable[[], bool],
        step: Step | None = None,
    ) -> Outcome:
        """Send a payment; `may_send` is asked directly before its bytes are written, with nothing
        awaited in between. Every outcome is a value; nothing but cancellation is raised. `step`
        traces the call."""
        body = (
            f'{{"correlationId":"{correlation_id}","amount":{format_cents(cents)},'
            f'"requestedAt":"{format_instant(requested_at)}"}}'
        ).encode()
        # A stream and its length: httpx would take 7 µs to find both out from the content.
        request = httpx.Request(
            "POST",
            self._payments,
            headers=[*self._payment_headers, (b"content-length", b"%d" % len(body))],
            stream=httpx.ByteStream(body),
            extensions={"timeout": self._pay_limits, "before_write": may_send},
        )
        try:
            response, content = await self._exchange(request, step)
        except httpx.RequestError as error:
            return classify_error(error)
        return classify(response.status_code, asked_pause_ms(response), content)

    async def find(self, correlation_id: str, step: Step | None = None) -> Finding:
        """Ask whether the processor has a payment. Nothing but cancellation is raised. `step`
        traces the call."""
        request = httpx.Request(
            "GET",
            f"{self._url}/payments/{correlation_id}",
            headers=self._question_headers,
            extensions={"timeout": self._find_limits},
        )
        try:
            response, content = await self._exchange(request, step)
        except httpx.RequestError as error:
            return Unclear(reason(error))
        pause_ms = asked_pause_ms(response)
        return classify_finding(response.status_code, content, correlation_id, pause_ms)

    async def health(self, limit_ms: int) -> Report | None:
        """Ask how the processor is; None where it doesn't say so in time."""
        request = httpx.Request(
            "GET",
            f"{self._url}/payments/service-health",
            headers=self._question_headers,
            extensions={"timeout": self._find_limits},
        )
        try:
            async with asyncio.timeout(limit_ms / 1000):
                response, content = await self._exchange(request)
        except (httpx.RequestError, TimeoutError):
            return None
        return classify_health(response.status_code, content)

    async def _exchange(
        self, request: httpx.Request, step: Step | None = None
    ) -> tuple[httpx.Response, bytes]:
        """The response and its body as it came: decoding could make any size of it."""
        if step is None:
            response = await self._transport.handle_async_request(request)
        else:
            response = await self._exchange_traced(request, step)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return response, b"".join([part async for part in response.stream])

    async def _exchange_traced(self, request: httpx.Request, step: Step) -> httpx.Response:
        if step.traceparent is not None:
            request.headers["traceparent"] = step.traceparent
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.RequestError as error:
            step.unanswered(error)
            raise
        step.answered(response.status_code)
        return response


def _limits(connect_s: float, read_s: float) -> dict[str, Any]:
    return {"connect": connect_s, "pool": connect_s, "read": read_s, "write": read_s}


def _is_json(content: bytes) -> bool:
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return True

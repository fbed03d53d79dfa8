"""The processor client: pay, find, health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from payswitch.http.transport import Transport
from payswitch.instants import format_instant
from payswitch.money import Currency
from payswitch.processor_url import parse_processor_url
from payswitch.processors.outcomes import (
    FindOutcome,
    HealthReport,
    Outcome,
    Unclear,
    classify,
    classify_error,
    classify_finding,
    classify_health,
)
from payswitch.processors.retry_after import asked_pause_ms
from payswitch.reasons import reason
from payswitch.settings import Settings
from payswitch.telemetry.tracing import NO_STEP, Step

CONNECT_LIMIT_MS = 1000
_BEYOND_THE_DELAY_MS = 500


class Processor:
    """One processor, over the process' pool of connections.

    It uses httpx' transport, not its client. The client handles redirects, cookies and environment
    for every payment, and raises on an invalid `Location`.
    """

    def __init__(
        self,
        name: str,
        url: str,
        transport: httpx.AsyncBaseTransport,
        *,
        currency: Currency,
        pay_limit_ms: int,
        find_limit_ms: int,
        connect_limit_ms: int = CONNECT_LIMIT_MS,
    ) -> None:
        self.name = name
        self._currency = currency
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
        step: Step = NO_STEP,
    ) -> Outcome:
        """Send a payment. The call of `may_send` comes directly before the write, with no await in
        between. Every outcome is a value; only cancellation is raised. `step` traces the call."""
        amount = self._currency.format_cents(cents)
        body = (
            f'{{"correlationId":"{correlation_id}","amount":{amount},'
            f'"requestedAt":"{format_instant(requested_at)}"}}'
        ).encode()
        # A stream and its length: httpx takes 7 µs to find both out from the content.
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

    async def find(self, correlation_id: str, step: Step = NO_STEP) -> FindOutcome:
        """Ask whether the processor has a payment. Only cancellation is raised. `step` traces the
        call."""
        request = self._question(correlation_id)
        try:
            response, content = await self._exchange(request, step)
        except httpx.RequestError as error:
            return Unclear(reason(error))
        return classify_finding(
            response.status_code,
            content,
            correlation_id,
            self._currency,
            asked_pause_ms(response),
        )

    async def health(self, limit_ms: int) -> HealthReport | None:
        """Ask for the processor's health report; None if it doesn't give one in time."""
        try:
            async with asyncio.timeout(limit_ms / 1000):
                response, content = await self._exchange(self._question("service-health"))
        except (httpx.RequestError, TimeoutError):
            return None
        return classify_health(response.status_code, content)

    def _question(self, name: str) -> httpx.Request:
        url, limits = f"{self._url}/payments/{name}", {"timeout": self._find_limits}
        return httpx.Request("GET", url, headers=self._question_headers, extensions=limits)

    async def _exchange(
        self, request: httpx.Request, step: Step = NO_STEP
    ) -> tuple[httpx.Response, bytes]:
        """The response and its raw body: a decoded one could have any size."""
        if step.traceparent is not None:
            request.headers["traceparent"] = step.traceparent
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.RequestError as error:
            step.unanswered(error)
            raise
        step.answered(response.status_code)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return response, b"".join([part async for part in response.stream])


def _limits(connect_s: float, read_s: float) -> dict[str, Any]:
    return {"connect": connect_s, "pool": connect_s, "read": read_s, "write": read_s}


def make_transport(settings: Settings) -> Transport:
    """The process' pool of connections, to both processors.

    A payment is sent before the lease's margin begins. If its bytes aren't acknowledged within the
    margin, the connection is dropped. So no payment reaches its processor after the lease.
    """
    # Twice the slots: questions (GET) go beside the payments.
    return Transport(
        max_connections_per_host=2 * settings.processor_slots,
        acknowledge_timeout=settings.lease_margin_ms / 1000,
    )


def make_processors(
    settings: Settings, transport: httpx.AsyncBaseTransport
) -> dict[str, Processor]:
    """Both processors by name. A call times out only after the processor's longest delay: an
    earlier end stops nothing over there and only makes outcomes unknown."""
    return {
        name: Processor(
            name,
            url,
            transport,
            currency=settings.currency,
            pay_limit_ms=settings.processor_max_delay_ms + _BEYOND_THE_DELAY_MS,
            find_limit_ms=settings.processor_find_limit_ms,
        )
        for name, url in settings.processor_urls.items()
    }

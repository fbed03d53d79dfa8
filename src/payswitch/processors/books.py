"""A processor's books: its admin call that sums any window."""

from __future__ import annotations

import json
from decimal import Decimal

import httpx

from payswitch.instants import format_instant
from payswitch.money import Currency, Total
from payswitch.processor_url import parse_processor_url
from payswitch.processors.processor import CONNECT_LIMIT_MS
from payswitch.reasons import reason
from payswitch.settings import Settings

_MOST_PAYMENTS = 10**15


class CannotAskError(Exception):
    """A processor did not give its totals; the message names it and the reason."""


class ProcessorBooks:
    """The totals that one processor has recorded."""

    def __init__(
        self,
        name: str,
        url: str,
        transport: httpx.AsyncBaseTransport,
        *,
        currency: Currency,
        token: str,
        limit_ms: int,
        connect_limit_ms: int = CONNECT_LIMIT_MS,
    ) -> None:
        self._name = name
        self._currency = currency
        self._url, _ = place = parse_processor_url(url)
        self._transport = transport
        self._headers = {**place.headers, "X-Rinha-Token": token}
        connect_s, limit_s = connect_limit_ms / 1000, limit_ms / 1000
        self._limits = {"connect": connect_s, "pool": limit_s, "read": limit_s, "write": limit_s}

    async def total(self, first_ms: int, last_ms: int) -> Total:
        """The total of the payments requested in a window, all of both milliseconds included.
        Raises `CannotAskError`."""
        total = parse_total(await self._summary(first_ms, last_ms), self._currency)
        if total is None:
            raise CannotAskError(f"{self._name}: the answer is not a summary")
        return total

    async def fee(self) -> Decimal:
        """The share of each payment's amount that the processor takes. Raises `CannotAskError`."""
        fee = parse_fee(await self._summary(0, 0))  # a window in which nothing was requested
        if fee is None:
            raise CannotAskError(f"{self._name}: a summary without a fee")
        return fee

    async def _summary(self, first_ms: int, last_ms: int) -> bytes:
        # Always both bounds: if one is missing, the processor ignores the other. A processor may
        # keep microseconds; the ledger doesn't.
        last = format_instant(last_ms).replace("Z", "999Z")
        request = httpx.Request(
            "GET",
            f"{self._url}/admin/payments-summary?from={format_instant(first_ms)}&to={last}",
            headers=self._headers,
            extensions={"timeout": self._limits},
        )
        try:
            response = await self._transport.handle_async_request(request)
            assert isinstance(response.stream, httpx.AsyncByteStream)
            content = b"".join([part async for part in response.stream])
        except httpx.RequestError as error:
            where = f"{self._url} (PAYMENT_PROCESSOR_URL_{self._name.upper()})"
            raise CannotAskError(
                f"{self._name} at {where} can't be asked: {reason(error)}"
            ) from None
        if response.status_code == 401:
            raise CannotAskError(f"{self._name} refuses PAYSWITCH_PROCESSOR_ADMIN_TOKEN")
        if response.status_code != 200:
            raise CannotAskError(f"{self._name}: status {response.status_code} for its summary")
        return content


def parse_total(content: bytes, currency: Currency) -> Total | None:
    """Read a processor's summary with its exact amount; None if it is none."""
    try:
        document = json.loads(content, parse_float=Decimal)
        count, cents = document["totalRequests"], currency.nearest_cents(document["totalAmount"])
    except (ValueError, KeyError, TypeError, RecursionError, ArithmeticError):
        return None
    if type(count) is not int or not 0 <= count <= _MOST_PAYMENTS or cents is None:
        return None
    return Total(count, cents)


def parse_fee(content: bytes) -> Decimal | None:
    """Read the fee in a processor's summary, a share of the amount; None if there is none."""
    try:
        fee = json.loads(content, parse_float=Decimal, parse_int=Decimal)["feePerTransaction"]
    except (ValueError, KeyError, TypeError, RecursionError, ArithmeticError):
        return None
    return fee if isinstance(fee, Decimal) and 0 <= fee <= 1 else None


def make_books(
    settings: Settings, transport: httpx.AsyncBaseTransport
) -> dict[str, ProcessorBooks]:
    """Both processors' books by name."""
    return {
        name: ProcessorBooks(
            name,
            url,
            transport,
            currency=settings.currency,
            token=settings.processor_admin_token,
            limit_ms=settings.processor_find_limit_ms,
        )
        for name, url in settings.processor_urls.items()
    }

"""The processor client: it sends what a connector makes, and hands it the responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import fields, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import PurePath
from typing import Any, TypeVar, get_args

import httpx

from payswitch.http.transport import Transport
from payswitch.instants import LEDGER_ENDS_MS
from payswitch.money import Total
from payswitch.processor_url import parse_processor_url
from payswitch.processors.connector import (
    Connector,
    ConnectorSettings,
    Headers,
    Instruction,
    NotUnderstoodError,
    Request,
    Response,
)
from payswitch.processors.connectors import ConnectorError, find_connector
from payswitch.processors.outcomes import (
    FindOutcome,
    Found,
    HealthReport,
    NotPaid,
    Outcome,
    Paid,
    PayOutcome,
    Unclear,
    Unknown,
    classify_error,
)
from payswitch.processors.retry_after import asked_pause_ms
from payswitch.processors.rinha import RinhaConnector
from payswitch.reasons import reason
from payswitch.settings import MASK, ProcessorSettings, SettingProblem, Settings, SettingsError
from payswitch.telemetry.tracing import NO_STEP, Step
from payswitch.text import printable

T = TypeVar("T")
_PAY_OUTCOMES = get_args(PayOutcome)
_FIND_OUTCOMES = get_args(FindOutcome)
_LONGEST_TEXT = 255
"""Characters of a connector's text that logs and records keep."""
_MOST_MS = 2**31

CONNECT_LIMIT_MS = 1000
_BEYOND_THE_DELAY_MS = 500
_ALWAYS_UP = HealthReport(failing=False, min_response_ms=0)


class CannotAskError(Exception):
    """A processor did not give its totals; the message names it and the reason."""


class ConnectorFaultError(Exception):
    """A connector raised an error, or returned something else than its contract says. The message
    holds nothing that the connector or the processor said, as that may be data of a payment."""

    def __init__(self, what: str, error: Exception) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = PurePath(trace.tb_frame.f_code.co_filename).name if trace else ""
        at = f" at {place}:{trace.tb_lineno}" if trace else ""
        super().__init__(f"the connector {what}: {type(error).__name__}{at}")


class Processor:
    """One processor, over the process' pool of connections.

    It uses httpx' transport, not its client. The client handles redirects, cookies and environment
    for every payment, and raises on an invalid `Location`.
    """

    def __init__(
        self,
        name: str,
        url: str,
        connector: Connector,
        transport: httpx.AsyncBaseTransport,
        *,
        pay_limit_ms: int,
        find_limit_ms: int,
        connect_limit_ms: int = CONNECT_LIMIT_MS,
        fixed_fee: Decimal | None = None,
        token_variable: str = "its token",
    ) -> None:
        self.name = name
        self._token_variable = token_variable
        self._fixed_fee = fixed_fee
        self.connector = connector
        self.prepares = type(connector).prepare is not Connector.prepare
        """Whether the connector ever needs a call before others."""
        self._transport = transport
        self._base, _ = place = parse_processor_url(url)
        self._target = lru_cache(maxsize=64)(self._make_target)
        # Sent before the connector's headers: a base URL with credentials is HTTP Basic.
        self._credentials = [(name.encode(), text.encode()) for name, text in place.headers.items()]
        connect = connect_limit_ms / 1000
        self._pay_limits = _limits(connect, pay_limit_ms / 1000)
        self._find_limits = _limits(connect, find_limit_ms / 1000)
        self._preparation: asyncio.Task[str | None] | None = None

    async def pay(
        self, instruction: Instruction, may_send: Callable[[], bool], step: Step = NO_STEP
    ) -> Outcome:
        """Send a payment. The call of `may_send` comes directly before the write, with no await in
        between. Every outcome is a value; only cancellation is raised. `step` traces the call."""
        try:
            request = self._httpx_request(self.connector.pay(instruction), self._pay_limits)
        except Exception as error:  # nothing was sent
            fault = ConnectorFaultError("makes no request", error)
            return NotPaid(str(fault), healthy=False)
        request.extensions["before_write"] = may_send
        try:
            response = await self._exchange(request, step)
        except httpx.RequestError as error:
            return classify_error(error)
        try:
            return _sound(self.connector.read_payment(instruction, response), _PAY_OUTCOMES)
        except Exception as error:
            return Unknown(str(ConnectorFaultError(f"can't read status {response.status}", error)))

    async def find(self, instruction: Instruction, step: Step = NO_STEP) -> FindOutcome:
        """Ask whether the processor has a payment. Only cancellation is raised. `step` traces the
        call."""
        if (unprepared := await self.prepare()) is not None:
            return Unclear(unprepared)
        try:
            response = await self._ask(self.connector.find(instruction), step)
            finding = self.connector.read_finding(instruction, response)
            finding = _sound(finding, _FIND_OUTCOMES)
        except httpx.RequestError as error:
            return Unclear(reason(error))
        except Exception as error:
            return Unclear(str(ConnectorFaultError("can't find out", error)))
        if isinstance(finding, Found) and not 0 <= finding.requested_at < LEDGER_ENDS_MS:
            return Unclear("an absurd instant")
        return finding

    def takes(self, instruction: Instruction) -> bool:
        """Whether the processor may get the payment at all. Raises `ConnectorFaultError`."""
        try:
            return self.connector.eligible(instruction)
        except Exception as error:
            raise ConnectorFaultError("can't tell whether it takes it", error) from None

    async def health(self, limit_ms: int) -> HealthReport | None:
        """Ask for the processor's health report; None if it doesn't give one in time."""
        try:
            async with asyncio.timeout(limit_ms / 1000):
                request = self.connector.health()
                if request is None:
                    return _ALWAYS_UP
                if await self.prepare() is not None:
                    return None
                return _sound_report(self.connector.read_health(await self._ask(request)))
        except Exception:  # unknown health is a safe answer
            return None

    async def total(self, first_ms: int, last_ms: int) -> Total:
        """The total of the payments requested in a window, all of both milliseconds included.
        Raises `CannotAskError`."""
        response = await self._books(lambda: self.connector.total(first_ms, last_ms))
        return self._told(self.connector.read_total, response, Total)

    async def fee(self) -> Decimal:
        """The share of each payment's amount that the processor takes: as it is set, or as the
        processor says. Raises `CannotAskError`."""
        if self._fixed_fee is not None:
            return self._fixed_fee
        return self._told(self.connector.read_fee, await self._books(self.connector.fee), Decimal)

    @property
    def tells_totals(self) -> bool:
        """Whether the connector can ask for totals; yes if it fails, as `total` then says why."""
        try:
            return self.connector.total(0, 0) is not None
        except Exception:
            return True

    @property
    def tells_health(self) -> bool:
        """Whether the connector can ask for a report; yes if it fails, which is no report."""
        try:
            return self.connector.health() is not None
        except Exception:
            return True

    async def prepare(self) -> str | None:
        """Make the call that the connector needs before others, if any; the reason if it failed.
        Callers at the same time share one call: a processor that stalls must not make them queue.
        """
        try:
            request = self.connector.prepare(_now_ms())
        except Exception as error:
            return str(ConnectorFaultError("can't prepare", error))
        if request is None:
            return None
        if self._preparation is None or self._preparation.done():
            self._preparation = asyncio.create_task(self._prepare(request), name="preparation")
        return await asyncio.shield(self._preparation)

    async def _prepare(self, request: Request) -> str | None:
        try:
            response = await self._ask(request)
            self.connector.read_preparation(response, _now_ms())
        except (httpx.RequestError, NotUnderstoodError) as error:
            return f"preparation: {reason(error)}"
        except Exception as error:
            return str(ConnectorFaultError("can't prepare", error))
        return None

    async def _books(self, make_request: Callable[[], Request | None]) -> Response:
        """The response to a question about books. Raises `CannotAskError`."""
        if (unprepared := await self.prepare()) is not None:
            raise CannotAskError(f"{self.name}: {unprepared}")
        try:
            request = make_request()
        except Exception as error:
            fault = ConnectorFaultError("makes no request", error)
            raise CannotAskError(f"{self.name}: {fault}") from None
        if request is None:
            raise CannotAskError(f"{self.name}: its connector can't ask for that")
        try:
            response = await self._ask(request)
        except httpx.RequestError as error:
            where = f"{self._base} (PAYMENT_PROCESSOR_URL_{self.name.upper()})"
            raise CannotAskError(
                f"{self.name} at {where} can't be asked: {reason(error)}"
            ) from None
        if response.status == 401:
            raise CannotAskError(f"{self.name} refuses {self._token_variable}")
        if response.status != 200:
            raise CannotAskError(f"{self.name}: status {response.status} for its summary")
        return response

    def _told(self, read: Callable[[Response], T], response: Response, kind: type[T]) -> T:
        try:
            return _require(read(response), kind)
        except NotUnderstoodError as error:
            raise CannotAskError(f"{self.name}: {reason(error)}") from None
        except Exception as error:
            fault = ConnectorFaultError("can't read the answer", error)
            raise CannotAskError(f"{self.name}: {fault}") from None

    async def _ask(self, request: Request, step: Step = NO_STEP) -> Response:
        return await self._exchange(self._httpx_request(request, self._find_limits), step)

    def _httpx_request(self, request: Request, limits: dict[str, Any]) -> httpx.Request:
        length = len(request.body) if request.body or request.method != "GET" else None
        url, headers = self._target(request.path, request.headers, length)
        # A stream and its length: httpx takes 7 µs to find both out from the content.
        return httpx.Request(
            request.method,
            url,
            headers=headers,
            stream=httpx.ByteStream(request.body),
            extensions={"timeout": limits},
        )

    def _make_target(
        self, path: str, headers: Headers, length: int | None
    ) -> tuple[httpx.URL, httpx.Headers]:
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        if length is not None:
            encoded.append((b"content-length", b"%d" % length))
        if path.startswith("/"):
            url = httpx.URL(self._base + path)
            encoded = [*self._credentials, *encoded]
        elif path.startswith(("http://", "https://")):
            url = httpx.URL(path)  # another host, which the base URL's credentials are not for
        else:
            raise ValueError("a path begins with a slash")
        return url, httpx.Headers([(b"host", url.netloc), *encoded])

    async def _exchange(self, request: httpx.Request, step: Step = NO_STEP) -> Response:
        """The response with its raw body: a decoded one could have any size."""
        if step.traceparent is not None:
            request.headers["traceparent"] = step.traceparent
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.RequestError as error:
            step.unanswered(error)
            raise
        step.answered(response.status_code)
        assert isinstance(response.stream, httpx.ByteStream)
        body = b"".join(response.stream)
        return Response(response.status_code, body, response.headers, asked_pause_ms(response))


def _require(value: Any, kind: type[T]) -> T:
    """Raises `TypeError`."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value


def _sound(outcome: T, kinds: tuple[type, ...]) -> T:
    """A connector's outcome with short, printable text: it goes into logs and records. Raises
    `TypeError` for anything else than an outcome whose numbers are numbers."""
    if not isinstance(outcome, kinds):
        raise TypeError
    if isinstance(outcome, Paid) and outcome.reference == "":
        return outcome
    sound: dict[str, Any] = {}
    for each in fields(outcome):  # type: ignore[arg-type]
        value = getattr(outcome, each.name)
        if each.name in ("reference", "code", "reason"):
            sound[each.name] = "" if value is None else printable(str(value))[:_LONGEST_TEXT]
        elif each.name == "retry_after_ms":
            sound[each.name] = None if value is None else min(max(0, int(value)), _MOST_MS)
        elif each.name in ("status", "cents", "requested_at"):
            sound[each.name] = _require(value, int)
    return replace(outcome, **sound)  # type: ignore[type-var]


def _sound_report(report: HealthReport | None) -> HealthReport | None:
    """A connector's report of health, or None. Raises `TypeError` for anything else."""
    if report is None:
        return None
    failing, speed_ms = report.failing, _require(report.min_response_ms, int)
    if type(failing) is not bool or not 0 <= speed_ms <= _MOST_MS:
        raise TypeError
    return report


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _limits(connect_s: float, read_s: float) -> dict[str, Any]:
    return {"connect": connect_s, "pool": connect_s, "read": read_s, "write": read_s}


def make_transport(settings: Settings) -> Transport:
    """The process' pool of connections, to all processors.

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
    """All processors by name, in order of preference. Raises `SettingsError` if a connector can't
    be loaded.

    A call times out only after the processor's longest delay: an earlier end stops nothing over
    there and only makes outcomes unknown.
    """
    return {each.name: _make_processor(settings, each, transport) for each in settings.processors}


def _make_processor(
    settings: Settings, processor: ProcessorSettings, transport: httpx.AsyncBaseTransport
) -> Processor:
    variable = f"PAYSWITCH_CONNECTOR_{processor.name.upper()}"
    try:
        kind = find_connector(processor.connector)
    except ConnectorError as error:
        raise SettingsError([SettingProblem((variable,), f"{variable}: {error}")]) from None
    token, token_variable = processor.token, f"PAYSWITCH_TOKEN_{processor.name.upper()}"
    if not token and kind is RinhaConnector:
        token, token_variable = settings.processor_admin_token, "PAYSWITCH_PROCESSOR_ADMIN_TOKEN"
    if kind.needs_token and not token:
        why = f"{token_variable}='': the connector {processor.connector} needs a token"
        raise SettingsError([SettingProblem((token_variable,), why)])
    known = ConnectorSettings(processor.name, token, settings.currency)
    try:
        connector = kind(known)
    except Exception as error:
        why = reason(error).replace(token or MASK, MASK)
        why = f"{variable}: connector {processor.connector!r} can't be made: {why}"
        raise SettingsError([SettingProblem((variable,), why)]) from None
    return Processor(
        processor.name,
        processor.url,
        connector,
        transport,
        pay_limit_ms=settings.processor_max_delay_ms + _BEYOND_THE_DELAY_MS,
        find_limit_ms=settings.processor_find_limit_ms,
        fixed_fee=processor.fixed_fee,
        token_variable=token_variable,
    )

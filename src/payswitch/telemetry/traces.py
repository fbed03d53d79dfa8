"""Traces of payments as spans, from the POST across the queue to the settlement.

The only module that knows OpenTelemetry. `docs/how-to/traces.md` lists the spans. Of a payment they
hold only the id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_EXPORT_BATCH_SIZE
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from payswitch.store import keys
from payswitch.telemetry.tracing import PaymentTrace, Step, Traces

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int]

_FLUSH_LIMIT_S = 2.0
"""A stop's wait for a collector, so that a worker stops within 14 s."""
_BATCH = 64
"""Spans sent at once. The sending thread holds the interpreter while it encodes them: the SDK's 512
raise the p99 of a POST at 500 a second from 11 to 28 ms, 64 to 13 ms."""
_LONGEST_HEADER = 512
_TRACEPARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ATTEMPTS = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_BUFFER = "opentelemetry.sdk._shared_internal"
_NS = 1_000_000

_CORRELATION_ID = "payswitch.correlation_id"
_REQUEST: Attributes = {
    "http.request.method": "POST",
    "http.route": "/payments",
    "url.path": "/payments",
    "url.scheme": "http",
}
_WAIT: Attributes = {
    "messaging.system": "redis",
    "messaging.destination.name": keys.QUEUE,
    "messaging.operation.name": "claim",
    "messaging.operation.type": "receive",
}


class SpanTraces(Traces):
    """The spans of one process. A thread of the SDK sends them from a buffer, so only `close` waits
    for a collector."""

    def __init__(
        self, provider: TracerProvider, processor_urls: Mapping[str, str] | None = None
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("payswitch")
        self._places = {name: _place(name, url) for name, url in (processor_urls or {}).items()}

    @classmethod
    def open(cls, service: str, processor_urls: Mapping[str, str] | None = None) -> SpanTraces:
        """Spans for the collector, sampler and limits that the SDK's own variables (`OTEL_…`) name.
        Raises `ValueError` if the SDK refuses one of them."""
        resource = Resource.create({SERVICE_NAME: service})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        size = None if os.environ.get(OTEL_BSP_MAX_EXPORT_BATCH_SIZE) else _BATCH
        exporter = _Collector(OTLPSpanExporter())
        provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=size))
        return cls(provider, processor_urls)

    def request(self, traceparent: bytes | None) -> Step:
        caller = None if traceparent is None else parse(traceparent.decode("latin-1"))
        context = _under(caller)
        return SpanStep(
            self._tracer.start_span("POST /payments", context, SpanKind.SERVER, _REQUEST)
        )

    def payment(
        self, correlation_id: str, traceparent: object, *, claim: int, began_ms: int, ended_ms: int
    ) -> PaymentTrace:
        wait = _Wait(correlation_id, claim, began_ms, ended_ms)
        return SpanPaymentTrace(self._tracer, self._places, wait, parse(traceparent))

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        is_done = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has already ended
                loop.call_soon_threadsafe(is_done.set)

        # A thread of its own, as Python waits for the executor's threads at the end.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_LIMIT_S):
                await is_done.wait()
        except TimeoutError:
            logger.warning("the last spans are lost: the collector did not take them in time")


class SpanStep(Step):
    """A step as a span."""

    __slots__ = ("_error", "_span", "traceparent")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._error = ""
        self.traceparent = _traceparent(span.get_span_context())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._fail(kind.__name__)
        self._span.end()

    def is_for(self, correlation_id: str) -> None:
        self._span.set_attribute(_CORRELATION_ID, correlation_id)

    def served(self, status: int) -> None:
        self.answered(status)
        if status >= 500:
            self._fail(str(status))

    def answered(self, status: int) -> None:
        self._error = str(status) if status >= 400 else ""
        self._span.set_attribute("http.response.status_code", status)

    def unanswered(self, error: Exception) -> None:
        self._error = type(error).__name__

    def set_outcome(self, outcome: str, *, failed: bool) -> None:
        self._span.set_attribute("payswitch.outcome", outcome)
        if failed:
            self._fail(self._error or outcome)

    def _fail(self, error: str) -> None:
        self._span.set_attribute("error.type", error)
        self._span.set_status(StatusCode.ERROR)


class _Wait(NamedTuple):
    """A payment's wait in the queue, until its claim; ms by Redis' clock."""

    correlation_id: str
    claim: int
    began_ms: int
    ended_ms: int


@dataclass(slots=True, eq=False)
class SpanPaymentTrace(PaymentTrace):
    """The spans of one claim of a payment.

    The wait in the queue becomes a span at the first step after it. So claims that are given back
    for want of a processor add no spans.
    """

    _tracer: Tracer
    _places: Mapping[str, Attributes]
    _wait: _Wait
    _parent: SpanContext | None
    _context: Context | None = None

    def pay(self, processor: str, number: int) -> Step:
        attributes = self._place(processor) | {
            "http.request.method": "POST",
            "payswitch.try": number,
        }
        return self._step("pay", SpanKind.CLIENT, attributes)

    def ask(self, processor: str) -> Step:
        attributes = self._place(processor) | {"http.request.method": "GET"}
        return self._step("ask", SpanKind.CLIENT, attributes)

    def settle(self, processor: str) -> Step:
        return self._step("settle", SpanKind.INTERNAL, {"payswitch.processor": processor})

    def bury(self, reason: str) -> Step:
        return self._step("bury", SpanKind.INTERNAL, {"payswitch.reason": reason})

    def _place(self, processor: str) -> dict[str, str | int]:
        return {**self._places.get(processor, {}), "payswitch.processor": processor}

    def _step(self, name: str, kind: SpanKind, attributes: Attributes) -> Step:
        if self._parent is not None and not self._parent.trace_flags.sampled:
            return SpanStep(NonRecordingSpan(self._parent))
        if self._context is None:
            self._wait_is_over()
        return SpanStep(self._tracer.start_span(name, self._context, kind, attributes))

    def _wait_is_over(self) -> None:
        waited = self._wait
        attributes = {
            **_WAIT,
            _CORRELATION_ID: waited.correlation_id,
            "payswitch.claim": waited.claim,
        }
        span = self._tracer.start_span(
            "queue",
            _under(self._parent),
            SpanKind.CONSUMER,
            attributes,
            start_time=waited.began_ms * _NS,
        )
        span.end(waited.ended_ms * _NS)
        if self._parent is None:
            self._parent = span.get_span_context()
        self._context = _under(self._parent)


class _Collector(SpanExporter):
    """An exporter that logs once when spans get lost and once when they no longer do, in place of
    the SDK's line for each export."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_away = False
        self._last_words = "it doesn't answer"
        for name in (_ATTEMPTS, _BUFFER):
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """As a filter of the SDK's loggers: whether to write the line."""
        if record.name == _ATTEMPTS:
            self._last_words = record.getMessage()
            return False
        return not self._is_away

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, in the SDK's thread."""
        result = self._exporter.export(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            logger.warning("spans get lost: %(error)s", {"error": self._last_words})
        elif self._is_away and not is_away:
            logger.info("spans are taken again")
        self._is_away = is_away
        return result

    def shutdown(self) -> None:
        """Stop the exporter; an export under way is given up."""
        self._exporter.shutdown()


def parse(traceparent: object) -> SpanContext | None:
    """Read a `traceparent` (W3C trace context) of any version; None for anything else."""
    if not isinstance(traceparent, str) or len(traceparent) > _LONGEST_HEADER:
        return None
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest):
        return None
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
    return context if context.is_valid else None


def _traceparent(context: SpanContext) -> str | None:
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _under(parent: SpanContext | None) -> Context:
    return Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())


def _place(name: str, url: str) -> Attributes:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or name, "server.port": port}

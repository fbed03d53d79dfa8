"""A collector for tests: takes spans as OTLP over HTTP and keeps them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class Seen:
    """A span as it came. Instants are ns since the epoch."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    is_error: bool
    attributes: dict[str, str | int]


class Collector:
    """Keeps all that it is sent; with `hangs` it takes connections and never answers."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs
        self.spans: list[Seen] = []
        self.is_closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Exchange)
        self._server.collector = self

    @property
    def url(self) -> str:
        """For `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Collector]:
        """Serve while the context is open."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.is_closed.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def trace_of(self, correlation_id: str) -> list[Seen]:
        """All spans of the traces that name this payment, by their start; the POST comes first, as
        the others begin at a whole millisecond of Redis' clock."""
        wanted = ("payswitch.correlation_id", correlation_id)
        ids = {span.trace_id for span in self.spans if wanted in span.attributes.items()}
        found = [span for span in self.spans if span.trace_id in ids]
        return sorted(found, key=lambda span: (span.name != "POST /payments", span.start))

    def take(self, body: bytes) -> None:
        """Keep what one call brings."""
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = str(_plain(resource_spans.resource.attributes)["service.name"])
            for scope in resource_spans.scope_spans:
                self.spans += [_seen(service, span) for span in scope.spans]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    collector: Collector


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        collector = self.server.collector
        body = self.rfile.read(int(self.headers["content-length"]))
        if collector.hangs:
            collector.is_closed.wait()
            return
        assert self.path == "/v1/traces"
        collector.take(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _seen(service: str, span: WireSpan) -> Seen:
    return Seen(
        service,
        span.name,
        WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == Status.STATUS_CODE_ERROR,
        _plain(span.attributes),
    )


def _plain(attributes: Iterable[KeyValue]) -> dict[str, str | int]:
    return {
        entry.key: getattr(entry.value, entry.value.WhichOneof("value") or "")
        for entry in attributes
    }

"""Spans, as the SDK's exporter in memory gets them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from types import MappingProxyType

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import StatusCode

from payswitch.dispatch.assembly import payment_trace
from payswitch.errors import StartError
from payswitch.payments.claims import Claim
from payswitch.settings import Settings
from payswitch.telemetry import traces as traces_module
from payswitch.telemetry.open_traces import open_traces
from payswitch.telemetry.traces import SpanTraces, parse
from payswitch.telemetry.tracing import PaymentTrace, Step

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"
URLS = MappingProxyType({"default": "http://user:secret@default.example:8001/base"})


class Spans:
    """Traces into memory."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.traces = SpanTraces(provider, URLS)

    @property
    def ended(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.ended]

    def only(self) -> ReadableSpan:
        [span] = self.ended
        return span

    def claimed(self, traceparent: object = SAMPLED, *, tries: int = 0) -> PaymentTrace:
        """A payment of instant 1000 that was due again at 5000 and is claimed at 6000."""
        claim = Claim("id", 1990, "1", "0", 0.0, tries=tries, accepted_at=1000, claimed_at=6000)
        return payment_trace(self.traces, claim, traceparent, due_at=5000)


def value(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def parent_id(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


# The header.


@pytest.mark.parametrize(
    "traceparent", [SAMPLED, UNSAMPLED, SAMPLED.replace("00-", "cc-", 1) + "-what-comes-later"]
)
def test_a_valid_header_is_understood(traceparent: str) -> None:
    context = parse(traceparent)
    assert context is not None
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert context.trace_flags.sampled is traceparent.endswith(("01", "later"))


@pytest.mark.parametrize(
    "traceparent",
    [
        *("", "x", SAMPLED[:-1], SAMPLED + "-more", SAMPLED + "\n", SAMPLED.upper()),
        *(f"ff{SAMPLED[2:]}", f"00-{'0' * 32}-{SPAN_ID}-01", f"00-{TRACE_ID}-{'0' * 16}-01"),
        *(f"cc{SAMPLED[2:]}-{'x' * 500}", SAMPLED.replace("4", "٤")),
        *(None, 5, True, SAMPLED.encode(), [SAMPLED], {"traceparent": SAMPLED}),
    ],
)
def test_what_is_no_header_counts_as_none(traceparent: object) -> None:
    assert parse(traceparent) is None


# The request.


def test_a_request_goes_on_with_its_clients_trace() -> None:
    spans = Spans()
    with spans.traces.request(SAMPLED.encode()):
        pass
    assert (trace_id(spans.only()), parent_id(spans.only())) == (TRACE_ID, SPAN_ID)


@pytest.mark.parametrize("header", [None, b"", b"\xff\xfe", SAMPLED.encode() + b"-x"])
def test_a_request_without_a_valid_header_begins_a_trace(header: bytes | None) -> None:
    spans = Spans()
    with spans.traces.request(header):
        pass
    assert parent_id(spans.only()) is None
    assert trace_id(spans.only()) != TRACE_ID


def test_what_a_request_hands_on_is_its_own_span() -> None:
    spans = Spans()
    with spans.traces.request(SAMPLED.encode()) as step:
        handed_on = step.traceparent
    context = spans.only().context
    assert context is not None
    assert handed_on == f"00-{TRACE_ID}-{context.span_id:016x}-01"


@pytest.mark.parametrize(("status", "is_error"), [(202, False), (409, False), (503, True)])
def test_only_an_error_of_ours_fails_a_request(status: int, is_error: bool) -> None:
    spans = Spans()
    with spans.traces.request(None) as step:
        step.served(status)
    span = spans.only()
    assert value(span, "http.response.status_code") == status
    assert (span.status.status_code is StatusCode.ERROR) is is_error
    assert value(span, "error.type") == (str(status) if is_error else None)


def test_a_client_that_hangs_up_fails_its_request() -> None:
    spans = Spans()
    with pytest.raises(asyncio.CancelledError), spans.traces.request(None):
        raise asyncio.CancelledError
    assert value(spans.only(), "error.type") == "CancelledError"


def test_an_unsampled_request_makes_no_span_and_hands_its_trace_on() -> None:
    spans = Spans()
    with spans.traces.request(UNSAMPLED.encode()) as step:
        step.is_for("id")
        step.served(202)
    handed_on = parse(step.traceparent)
    assert spans.ended == []
    assert handed_on is not None
    assert f"{handed_on.trace_id:032x}" == TRACE_ID
    assert not handed_on.trace_flags.sampled


def test_a_sdk_that_is_switched_off_hands_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    spans = Spans()
    with spans.traces.request(None) as step:
        assert step.traceparent is None
    with spans.claimed(None).pay("default", 1) as step:
        assert step.traceparent is None
    assert spans.ended == []


# The payment.


def test_the_first_wait_lasts_from_the_acceptance_to_the_claim() -> None:
    spans = Spans()
    with spans.claimed().settle("default"):
        pass
    wait = spans.ended[0]
    assert (wait.name, parent_id(wait)) == ("queue", SPAN_ID)
    assert (wait.start_time, wait.end_time) == (1_000_000_000, 6_000_000_000)


def test_a_wait_after_a_try_begins_when_the_next_is_due() -> None:
    spans = Spans()
    with spans.claimed(tries=1).settle("default"):
        pass
    assert (spans.ended[0].start_time, spans.ended[0].end_time) == (5_000_000_000, 6_000_000_000)


def test_a_claim_that_does_nothing_adds_nothing() -> None:
    spans = Spans()
    spans.claimed()
    assert spans.ended == []


def test_all_that_a_claim_does_stands_under_the_request() -> None:
    spans = Spans()
    trace = spans.claimed()
    for step in (trace.ask("default"), trace.pay("default", 2), trace.settle("default")):
        with step:
            pass
    assert spans.names == ["queue", "ask", "pay", "settle"]
    assert {(trace_id(span), parent_id(span)) for span in spans.ended} == {(TRACE_ID, SPAN_ID)}


@pytest.mark.parametrize("traceparent", [None, "", "spoilt", 7])
def test_a_job_without_a_context_begins_a_trace_of_its_own(traceparent: object) -> None:
    spans = Spans()
    trace = spans.claimed(traceparent)
    for step in (trace.pay("default", 1), trace.settle("default")):
        with step:
            pass
    wait, pay, settle = spans.ended
    assert wait.context is not None
    assert parent_id(wait) is None
    assert parent_id(pay) == parent_id(settle) == f"{wait.context.span_id:016x}"
    assert {trace_id(span) for span in spans.ended} == {trace_id(wait)}


def test_an_unsampled_payment_makes_no_span_and_hands_its_trace_on() -> None:
    spans = Spans()
    with spans.claimed(UNSAMPLED).pay("default", 1) as step:
        step.answered(500)
        step.set_outcome("Ended", failed=True)
    assert step.traceparent == UNSAMPLED
    assert spans.ended == []


def test_an_own_trace_that_the_sampler_leaves_out_makes_no_span() -> None:
    spans = Spans(ALWAYS_OFF)
    trace = spans.claimed(None)
    with trace.pay("default", 1), trace.settle("default"):
        pass
    assert spans.ended == []


def concluded(outcome: str, *, failed: bool, said: Exception | int | None) -> ReadableSpan:
    spans = Spans()
    with spans.claimed().pay("default", 1) as step:
        if isinstance(said, int):
            step.answered(said)
        elif said is not None:
            step.unanswered(said)
        step.set_outcome(outcome, failed=failed)
    return spans.ended[-1]


def test_a_payment_that_was_paid_says_by_whom() -> None:
    span = concluded("Paid", failed=False, said=200)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "default.example",
        "server.port": 8001,
        "payswitch.processor": "default",
        "payswitch.outcome": "Paid",
        "payswitch.try": 1,
    }
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("said", "error"),
    [(503, "503"), (httpx.ReadTimeout("x"), "ReadTimeout"), (200, "Unknown"), (None, "Unknown")],
)
def test_a_try_that_failed_says_why(said: Exception | int | None, error: str) -> None:
    span = concluded("Unknown", failed=True, said=said)
    assert span.status.status_code is StatusCode.ERROR
    assert value(span, "error.type") == error


def test_a_question_that_is_answered_with_404_has_not_failed() -> None:
    spans = Spans()
    with spans.claimed().ask("default") as step:
        step.answered(404)
        step.set_outcome("Missing", failed=False)
    assert spans.ended[-1].status.status_code is StatusCode.UNSET


def test_of_a_payment_spans_have_its_id_and_nothing_else() -> None:
    spans = Spans()
    trace = spans.claimed()
    steps: Sequence[Step] = (trace.ask("x"), trace.pay("x", 1), trace.settle("x"), trace.bury("y"))
    for step in steps:
        with step:
            pass
    assert value(spans.ended[0], "payswitch.correlation_id") == "id"
    assert not [span for span in spans.ended if "19" in str(dict(span.attributes or {}))]


# The collector.


class Scripted(SpanExporter):
    """Answers what it is told to, or waits until it is released."""

    def __init__(self, *results: SpanExportResult) -> None:
        self.results = [*results]
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if not self.results:
            self.released.wait()
            return SpanExportResult.FAILURE
        logging.getLogger(traces_module._ATTEMPTS).error("refused by %s", "peer")
        # The SDK itself leaves out what repeats the line before.
        logging.getLogger(traces_module._BUFFER).warning(
            f"buffer full, {len(self.results)} to come"
        )
        return self.results.pop(0)

    def shutdown(self) -> None:
        """Nothing."""


def test_a_collector_that_is_away_is_one_line_and_its_return_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken, lost = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    collector = traces_module._Collector(Scripted(taken, lost, lost, lost, taken, taken))
    caplog.set_level(logging.INFO)
    for _ in range(6):
        collector.export(())
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "buffer full, 6 to come"),
        ("WARNING", "buffer full, 5 to come"),
        ("WARNING", "spans get lost: refused by peer"),
        ("INFO", "spans are taken again"),
        ("WARNING", "buffer full, 1 to come"),
    ]


async def test_a_stop_does_not_wait_for_a_collector_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traces_module, "_FLUSH_LIMIT_S", 0.05)
    hanging = Scripted()

    class Hanging(SimpleSpanProcessor):
        def shutdown(self) -> None:
            self.span_exporter.export(())

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Hanging(hanging))
    await SpanTraces(provider).close()
    assert not hanging.released.is_set()
    assert "the last spans are lost" in caplog.text
    hanging.released.set()


def test_a_variable_that_the_sdk_refuses_ends_the_start_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(StartError, match=r"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT.*many"):
        open_traces(Settings(traces="otlp"), "payswitch-worker")

"""Traces on a real Redis: across the queue, over retries and workers, and in real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from arq.connections import ArqRedis
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from payswitch.dispatch.assembly import make_dispatcher, payment_trace
from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.ingress.app import create_app
from payswitch.payments.accepting import AcceptQueue
from payswitch.payments.payment import Payment
from payswitch.settings import Settings
from payswitch.telemetry.traces import SpanTraces
from tests.collector import Collector
from tests.integration.harness import FAST, Bench, bench, worker_process
from tests.support import LOST_REPLY, SLACK_S, RedisServer, Reply, eventually, free_port

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis, FAST) as made:
        yield made


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector().running() as made:
        yield made


class Traced:
    """A worker's hands that trace what they do."""

    def __init__(self, b: Bench) -> None:
        self._b = b
        self._dispatcher: Dispatcher = make_dispatcher(
            b.settings, b.redis, b.transport, limits=b.limits
        )
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.traces = SpanTraces(provider, b.settings.processor_urls)

    async def dispatch(self, payment: str, traceparent: str = SAMPLED) -> str:
        """Claim it and do what can be done now; returns its state then."""
        claim = await self._b.claim_when_due(payment)
        trace = payment_trace(self.traces, claim, traceparent, due_at=claim.claimed_at)
        await self._dispatcher.dispatch(claim, trace)
        return (await self._b.record(payment)).state

    async def until(self, state: str, payment: str) -> None:
        for _ in range(50):
            if await self.dispatch(payment) == state:
                return
        raise AssertionError(f"never {state}")

    @property
    def ended(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    @property
    def story(self) -> list[tuple[str, object, bool]]:
        """Name, outcome and failure of every span, all of which are the request's children."""
        for span in self.ended:
            assert span.context is not None
            assert span.parent is not None
            ids = f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}"
            assert ids == (TRACE_ID, SPAN_ID)
        return [
            (span.name, (span.attributes or {}).get("payswitch.outcome"), not span.status.is_ok)
            for span in self.ended
        ]


QUEUE = ("queue", None, False)


# One trace, whatever happens to the payment.


async def test_a_retry_after_a_failure_goes_on_in_the_trace(b: Bench) -> None:
    b.default.script = [Reply(500)]
    traced = Traced(b)
    await traced.until("settled", await b.accept())
    assert traced.story == [
        QUEUE,
        ("pay", "Ended", True),
        ("ask", "Missing", False),
        QUEUE,
        ("pay", "Paid", False),
        ("settle", "settled", False),
    ]


async def test_a_dead_letter_ends_the_trace(b: Bench) -> None:
    b.default.script = [Reply(422)]
    traced = Traced(b)
    await traced.until("dead", await b.accept())
    assert traced.story[1:] == [
        ("pay", "Refused", True),
        ("ask", "Missing", False),
        ("bury", "buried", False),
    ]


async def test_a_settlement_by_another_worker_is_in_the_trace(b: Bench) -> None:
    b.default.script = [LOST_REPLY]
    payment = await b.accept()
    first, second = Traced(b), Traced(b)
    await first.dispatch(payment)
    await second.until("settled", payment)
    assert first.story[1:] == [("pay", "Unknown", True)]
    assert second.story[1:] == [("ask", "Found", False), ("settle", "settled", False)]


async def test_a_call_that_got_no_answer_says_why(b: Bench) -> None:
    b.default.script = [LOST_REPLY]
    traced = Traced(b)
    await traced.dispatch(await b.accept())
    assert (traced.ended[-1].attributes or {})["error.type"] == "RemoteProtocolError"


async def test_a_processor_gets_the_context_of_the_call_that_it_serves(b: Bench) -> None:
    b.default.script = [Reply(500)]
    traced = Traced(b)
    await traced.until("settled", await b.accept())
    calls = [span.context for span in traced.ended if span.name in ("pay", "ask")]
    assert b.default.traceparents == [
        f"00-{TRACE_ID}-{call.span_id:016x}-01" for call in calls if call is not None
    ]


async def test_an_unsampled_payment_hands_its_context_to_the_processor(b: Bench) -> None:
    traced = Traced(b)
    assert await traced.dispatch(await b.accept(), UNSAMPLED) == "settled"
    assert (traced.ended, b.default.traceparents) == ([], [UNSAMPLED])


async def test_a_payment_that_is_not_traced_carries_no_header(b: Bench) -> None:
    await b.dispatch_until_done(await b.accept())
    assert b.default.traceparents == []


async def test_a_lease_that_ran_out_is_a_try_that_sent_nothing(b: Bench) -> None:
    traced = Traced(b)
    claim = await b.claim_when_due(await b.accept())
    trace = payment_trace(traced.traces, claim, SAMPLED, due_at=0)
    dispatcher = make_dispatcher(b.settings, b.redis, b.transport, limits=b.limits)
    await dispatcher.dispatch(replace(claim, expires_at=0.0), trace)
    assert traced.story[1:] == [("pay", "NotSentInTime", True)]
    assert b.default.posts == []


# The job.


async def post(app: Any, payment: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://ingress") as client,
    ):
        body = {"correlationId": payment, "amount": 19.9}
        return await client.post("/payments", json=body, headers=headers)


@pytest.mark.parametrize("header", [SAMPLED, UNSAMPLED, "spoilt", "x" * 8000])
async def test_the_job_carries_the_requests_context_in_55_bytes(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, header: str
) -> None:
    traced = Traced(b)
    app = create_app(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000), traces=traced.traces
    )
    payment = str(uuid4())
    assert (await post(app, payment, traceparent=header)).status_code == 202
    job = orjson.loads(await redis.get(f"arq:job:{payment}") or b"")
    carried = job["k"].pop("traceparent")
    assert (len(carried), job["k"]) == (55, {})
    assert (TRACE_ID in carried) is (TRACE_ID in header)


async def test_the_context_comes_through_the_payments_port_too(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    settings, address = (
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000),
        ("127.0.0.1", free_port()),
    )
    app = create_app(settings, traces=Traced(b).traces, payments_at=address)
    payment = str(uuid4())
    async with app.router.lifespan_context(app), httpx.AsyncClient(verify=False) as client:
        answer = await client.post(
            f"http://{address[0]}:{address[1]}/payments",
            json={"correlationId": payment, "amount": 1},
            headers={"traceparent": SAMPLED},
        )
    assert answer.status_code == 202
    job = orjson.loads(await redis.get(f"arq:job:{payment}") or b"")
    assert TRACE_ID in job["k"]["traceparent"]


async def test_a_refused_request_is_in_the_trace_with_its_payments_id(
    b: Bench, redis_server: RedisServer
) -> None:
    traced = Traced(b)
    settings = Settings(redis_url=redis_server.url, accept_limit_ms=60_000, max_backlog=1)
    await b.accept()
    payment = str(uuid4())
    app = create_app(settings, traces=traced.traces)
    assert (await post(app, payment)).status_code == 503
    [span] = traced.ended
    attributes = span.attributes or {}
    assert attributes["payswitch.correlation_id"] == payment
    assert attributes["error.type"] == "503"


# Processes, as they are while traces are switched on or off one by one.


def otlp(collector: Collector) -> dict[str, str]:
    return {
        "PAYSWITCH_TRACES": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }


async def accept(b: Bench, traceparent: str | None) -> str:
    queue = AcceptQueue(b.redis, limit_ms=SLACK_S * 1000, max_backlog=10**6)
    payment = str(uuid4())
    await queue.accept(Payment(payment, 1990), traceparent)
    return payment


async def is_settled(b: Bench, payment: str) -> None:
    async def settled() -> bool:
        return (await b.record(payment)).state == "settled"

    await eventually(settled, what=f"{payment} is settled")


async def test_a_worker_without_traces_pays_what_carries_a_context(
    b: Bench, redis_server: RedisServer
) -> None:
    payments = [await accept(b, traceparent) for traceparent in (SAMPLED, UNSAMPLED)]
    async with worker_process(b, redis_server.url):
        for payment in payments:
            await is_settled(b, payment)
    for payment in payments:
        assert await b.field(payment, "last_error") is None
    assert b.default.traceparents == []


async def test_a_context_that_is_missing_or_spoilt_holds_no_payment_up(
    b: Bench, redis_server: RedisServer, collector: Collector
) -> None:
    without = await accept(b, None)
    spoilt = [await accept(b, SAMPLED) for _ in range(5)]
    payments = [without, *spoilt]
    contexts: list[Any] = ["spoilt", "x" * 100_000, 7, None, {"a": []}]
    for payment, context in zip(spoilt, contexts, strict=True):
        job = orjson.loads(await b.redis.get(f"arq:job:{payment}") or b"")
        job["k"]["traceparent"] = context
        await b.redis.set(f"arq:job:{payment}", orjson.dumps(job))
    async with worker_process(b, redis_server.url, **otlp(collector)):
        for payment in payments:
            await is_settled(b, payment)
    assert len(b.default.posts) == len(payments)
    names = [span.name for span in collector.trace_of(without)]
    assert names == ["queue", "pay", "settle"]


async def test_a_stop_sends_the_last_spans(
    b: Bench, redis_server: RedisServer, collector: Collector
) -> None:
    payment = await accept(b, SAMPLED)
    late = {**otlp(collector), "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    async with worker_process(b, redis_server.url, **late):
        await is_settled(b, payment)
        assert collector.spans == []
    assert [span.name for span in collector.trace_of(payment)] == ["queue", "pay", "settle"]


# What is not asked for is not there.

RUN = "import sys; sys.argv[0] = 'payswitch'; from payswitch.cli.main import main; "
LOADED = (
    "import atexit; "
    "atexit.register(lambda: print([name for name in sys.modules if 'opentele' in name])); "
)


@contextlib.asynccontextmanager
async def part(source: str, *arguments: str, **environment: str) -> AsyncIterator[Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", source, *arguments),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("traces", ["off", "otlp"])
async def test_only_parts_that_trace_load_opentelemetry(
    b: Bench, redis_server: RedisServer, collector: Collector, traces: str
) -> None:
    environment = {
        **otlp(collector),
        "PAYSWITCH_TRACES": traces,
        "REDIS_URL": redis_server.url,
        "PAYMENT_PROCESSOR_URL_DEFAULT": b.default.url,
        "PAYMENT_PROCESSOR_URL_FALLBACK": b.fallback.url,
    }
    source = f"{RUN}{LOADED}main()"
    port, payment = free_port(), str(uuid4())
    async with (
        part(source, "ingress", f"--port={port}", **environment) as ingress,
        part(source, "worker", **environment) as worker,
        httpx.AsyncClient(verify=False, base_url=f"http://127.0.0.1:{port}") as client,
    ):

        async def is_accepted() -> bool:
            body = {"correlationId": payment, "amount": 19.9}
            try:
                return (await client.post("/payments", json=body)).status_code == 202
            except httpx.TransportError:
                return False

        await eventually(is_accepted, what="the payment is accepted")
        await is_settled(b, payment)
        for process in (ingress, worker):
            process.send_signal(signal.SIGTERM)
            loaded, _ = await process.communicate()
            assert process.returncode == 0
            assert (loaded.strip() == b"[]") is (traces == "off")
    assert len({span.service for span in collector.spans}) == (0 if traces == "off" else 2)


@pytest.mark.parametrize("command", [["worker"], ["ingress"], ["up"]], ids=" ".join)
async def test_a_start_without_the_extra_ends_with_one_line_that_names_it(
    command: list[str],
) -> None:
    source = f"{RUN}sys.modules['opentelemetry'] = None; main()"
    async with part(source, *command, PAYSWITCH_TRACES="otlp") as process:
        written, said = await process.communicate()
    assert (process.returncode, written) == (1, b"")
    assert said == (
        b"payswitch: PAYSWITCH_TRACES='otlp': it needs the extra `traces`: "
        b"pip install 'payswitch[traces]'\n"
    )

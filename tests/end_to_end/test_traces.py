"""Traces of the started system, as a collector gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.collector import Collector, Seen
from tests.end_to_end.conftest import StartSystem, starting
from tests.end_to_end.harness import System, client
from tests.support import eventually, free_port

ADMIN = {"X-Rinha-Token": "123"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector().running() as made:
        yield made


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[System]:
    """A system whose traces the collector takes."""
    with starting(tmp_path_factory.mktemp("system")) as start:
        yield start("--workers=1", **traced(collector.url))


def traced(endpoint: str, **more: str) -> dict[str, Any]:
    return {
        "PAYSWITCH_TRACES": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        **more,
    }


async def trace_with(collector: Collector, correlation_id: str, last: str) -> list[Seen]:
    """The trace of a payment, once it has a span of this name."""

    async def is_there() -> bool:
        names = {span.name for span in collector.trace_of(correlation_id)}
        return {"POST /payments", last} <= names

    await eventually(is_there, what=f"the trace has its {last}")
    return collector.trace_of(correlation_id)


async def set_failure(system: System, *, to: bool) -> None:
    """At both processors: a health check may come before the payment and choose the other one."""
    for url in (system.default_url, system.fallback_url):
        async with client(url) as http:
            answer = await http.put(
                "/admin/configurations/failure", json={"failure": to}, headers=ADMIN
            )
            assert answer.status_code == 200


async def test_one_trace_goes_from_the_post_to_the_settlement(
    system: System, collector: Collector
) -> None:
    payment = await system.pay(1990)
    spans = await trace_with(collector, payment, "settle")
    post = spans[0]
    assert [(span.service, span.name, span.kind) for span in spans] == [
        ("payswitch-ingress", "POST /payments", "server"),
        ("payswitch-worker", "queue", "consumer"),
        ("payswitch-worker", "pay", "client"),
        ("payswitch-worker", "settle", "internal"),
    ]
    assert len({span.trace_id for span in spans}) == 1
    assert [span.parent_id for span in spans] == ["", post.span_id, post.span_id, post.span_id]
    assert not any("19.9" in f"{span.attributes}" for span in spans)


async def test_a_clients_own_trace_goes_on_across_a_retry(
    system: System, collector: Collector
) -> None:
    await set_failure(system, to=True)
    trace_id, payment = uuid4().hex, str(uuid4())
    async with client(system.endpoint) as http:
        header = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        body = {"correlationId": payment, "amount": 1}
        assert (await http.post("/payments", json=body, headers=header)).status_code == 202
    await trace_with(collector, payment, "pay")
    await set_failure(system, to=False)
    spans = await trace_with(collector, payment, "settle")
    post = spans[0]
    tries = [span for span in spans if span.name == "pay"]
    assert {span.trace_id for span in spans} == {trace_id}
    assert post.parent_id == "00f067aa0ba902b7"
    assert {span.parent_id for span in spans[1:]} == {post.span_id}
    assert tries[0].is_error
    assert tries[0].attributes["http.response.status_code"] == 500
    assert tries[-1].attributes["payswitch.outcome"] == "Paid"
    assert [span.attributes["payswitch.try"] for span in tries] == [*range(1, len(tries) + 1)]
    assert len(tries) > 1


@pytest.mark.parametrize(
    "hangs", [False, pytest.param(True, marks=pytest.mark.long)], ids=["away", "hanging"]
)
async def test_a_collector_that_takes_nothing_loses_no_payment_and_no_stop(
    system: System, start_system: StartSystem, hangs: bool
) -> None:
    with Collector(hangs=True).running() as hanging:
        url = hanging.url if hangs else f"http://127.0.0.1:{free_port()}"
        other = start_system("--workers=1", **system.named, **traced(url))
        payments = [await other.pay(100) for _ in range(20)]
        await other.settled(*payments)
        assert other.stop() == 0
        assert "killed" not in other.output

"""What the simulator tells an auditor: its book and its journal, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from payswitch.simulator.dialect import SimulatorConfig
from tests.integration.simulator.test_faults import FAULTS, fault, lines
from tests.integration.simulator.test_server import (
    SLACK_S,
    Processor,
    payment,
    post,
    running,
    until,
)


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with running(SimulatorConfig("default", rate_limit_s=0)) as processor:
        yield processor


async def test_the_book_is_told_in_order_of_commit(processor: Processor) -> None:
    before = time.time_ns() // 1000
    later = await processor.http.post("/payments", json=payment(amount=1.5))
    assert later.status_code == 200
    sent = payment(correlationId=str(uuid4()).upper(), requestedAt="2000-01-01T00:00:00.000001Z")
    await processor.http.post("/payments", json=sent)
    first, second = await lines(processor, "/payments")
    assert first["cents"] == 150
    assert before <= first["committedAtUs"] <= second["committedAtUs"]
    assert second["committedAtUs"] <= time.time_ns() // 1000
    assert second == {
        "correlationId": str(sent["correlationId"]).lower(),
        "cents": 1990,
        "requestedAtUs": 946_684_800_000_001,
        "committedAtUs": second["committedAtUs"],
    }


async def test_an_empty_book_is_no_lines(processor: Processor) -> None:
    assert await lines(processor, "/payments") == []
    assert await lines(processor, "/journal") == []


def steps(events: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [(event["event"], event["fault"], event["status"]) for event in events]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("commit-close", [("committed", None), ("hung-up", None)]),
        ("commit-500", [("committed", None), ("answered", 500)]),
        ("commit-late", [("committed", None), ("answered", 200)]),
        ("close-commit", [("hung-up", None), ("committed", None)]),
        ("close", [("hung-up", None)]),
        ("429", [("answered", 429)]),
        ("422-unknown", [("answered", 422)]),
    ],
)
async def test_the_journal_tells_what_a_fault_did(
    processor: Processor, mode: str, expected: list[tuple[str, int | None]]
) -> None:
    await fault(processor, mode, lateMs=1, laterMs=[1, 1], journal=True)
    before, sent = time.time_ns() // 1000, payment()
    with contextlib.suppress(httpx.TransportError):
        await processor.http.post("/payments", json=sent)
    path = f"/journal?id={str(sent['correlationId']).upper()}"
    async with asyncio.timeout(SLACK_S):
        while len(await lines(processor, path)) < 1 + len(expected):
            await asyncio.sleep(0.01)
    events = await lines(processor, path)
    assert steps(events) == [
        ("arrived", mode, None),
        *((event, mode, status) for event, status in expected),
    ]
    instants = [before, *(event["atUs"] for event in events), time.time_ns() // 1000]
    assert instants == sorted(instants)
    assert {event["requestedAtUs"] for event in events} == {1_752_582_896_000_000}


async def test_the_journal_tells_the_ordinary_story_too(processor: Processor) -> None:
    await processor.administer("PUT", FAULTS, {"journal": True})
    sent = payment()
    for _ in range(2):
        await processor.http.post("/payments", json=sent)
    await processor.pay()
    processor.simulator.config.failing = True
    await processor.http.post("/payments", json=sent)
    assert steps(await lines(processor, f"/journal?id={sent['correlationId']}")) == [
        ("arrived", None, None),
        ("committed", None, None),
        ("answered", None, 200),
        ("arrived", None, None),
        ("known", None, None),
        ("answered", None, 422),
        ("arrived", None, None),
        ("failed", None, None),
        ("answered", None, 500),
    ]
    assert len(await lines(processor, "/journal")) == 12
    assert await lines(processor, f"/journal?id={uuid4()}") == []


async def test_the_journal_tells_that_a_client_was_gone(processor: Processor) -> None:
    await processor.administer("PUT", FAULTS, {"journal": True})
    processor.simulator.config.delay_ms = 200
    wire = await processor.wire()
    await wire.send(post())
    await until(lambda: processor.simulator.running == 1)
    wire.hang_up()
    await until(lambda: len(processor.simulator.book) == 1)
    events = steps(await lines(processor, "/journal"))
    assert events[1:] == [("committed", None, None), ("hung-up", None, None)]


async def test_nothing_is_journaled_unless_told_to_and_what_is_there_stays(
    processor: Processor,
) -> None:
    await processor.pay()
    assert await lines(processor, "/journal") == []
    await processor.administer("PUT", FAULTS, {"journal": True})
    await processor.pay()
    await processor.administer("PUT", FAULTS, {})
    await processor.pay()
    assert len(await lines(processor, "/journal")) == 3


async def test_a_purge_clears_book_and_journal(processor: Processor) -> None:
    await processor.administer("PUT", FAULTS, {"journal": True})
    await processor.pay()
    await processor.administer("POST", "/purge-payments")
    assert await lines(processor, "/payments") == []
    assert await lines(processor, "/journal") == []
    await processor.pay()
    assert len(await lines(processor, "/payments")) == 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PUT", FAULTS, {"goneMs": 0}), ("GET", "/payments", None), ("GET", "/journal", None)],
)
async def test_it_needs_the_token(
    processor: Processor, method: str, path: str, body: object
) -> None:
    response = await processor.http.request(method, f"/admin{path}", json=body)
    assert response.status_code == 401

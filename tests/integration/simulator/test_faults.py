"""The simulator's faults over real sockets: what the client sees, what the book then holds."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from payswitch.processors.connector import ConnectorSettings, Response
from payswitch.processors.rinha import RinhaConnector
from payswitch.simulator import faults as simulator_faults
from payswitch.simulator.dialect import SimulatorConfig
from tests.integration.simulator.test_server import (
    HOST,
    SLACK_S,
    TOKEN,
    Processor,
    Wire,
    payment,
    post,
    request,
    running,
    until,
)
from tests.support import eventually, free_port

RINHA = RinhaConnector(ConnectorSettings("default"))

FAULTS = "/configurations/faults"
ORDINARY = {"message": "payment processed successfully"}
BY_COIN = ["not-json", "truncated", "huge", "half-header", "drip"]


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with running(SimulatorConfig("default", rate_limit_s=0)) as processor:
        yield processor


async def fault(processor: Processor, mode: str, **settings: object) -> None:
    """Have every payment meet one fault."""
    response = await processor.administer("PUT", FAULTS, {"payments": {mode: 1}, **settings})
    assert response.status_code == 200


async def lines(processor: Processor, path: str) -> list[dict[str, Any]]:
    response = await processor.administer("GET", path)
    assert response.status_code == 200
    return [json.loads(line) for line in response.content.splitlines()]


async def ids_in_the_book(processor: Processor) -> list[str]:
    return [line["correlationId"] for line in await lines(processor, "/payments")]


async def end_of(wire: Wire) -> bytes:
    """What comes until the connection ends, whether it is closed or reset."""
    try:
        return await wire.rest()
    except ConnectionResetError:
        return b""


async def glimpse(processor: Processor, sent: bytes) -> bytes:
    """Send a request, read the first of its answer, and hang up."""
    reader, writer = await asyncio.open_connection(HOST, processor.port)
    writer.write(sent)
    async with asyncio.timeout(SLACK_S):
        first = await reader.read(1000)
    writer.close()
    return first


# What the client sees, and what the book holds.


async def test_a_payment_is_committed_and_its_connection_closed_without_an_answer(
    processor: Processor,
) -> None:
    await fault(processor, "commit-close")
    wire = await processor.wire()
    await wire.send(post() + post())  # the second finds nobody to read it
    assert await end_of(wire) == b""
    assert len(processor.simulator.book) == 1


async def test_a_payment_is_committed_and_answered_with_500(processor: Processor) -> None:
    await fault(processor, "commit-500")
    assert (await processor.pay()).status_code == 500
    assert len(processor.simulator.book) == 1


async def test_a_payment_is_committed_and_answered_with_429(processor: Processor) -> None:
    await fault(processor, "commit-429")
    answer = await processor.pay()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert len(processor.simulator.book) == 1


async def test_a_payment_is_called_malformed(processor: Processor) -> None:
    await fault(processor, "400")
    assert ((await processor.pay()).status_code, len(processor.simulator.book)) == (400, 0)


async def test_a_payment_is_committed_at_once_and_answered_late(processor: Processor) -> None:
    await fault(processor, "commit-late", lateMs=300)
    started = time.monotonic()
    answer = asyncio.create_task(processor.pay())
    await until(lambda: len(processor.simulator.book) == 1)
    assert not answer.done()
    assert (await answer).json() == ORDINARY
    assert time.monotonic() - started > 0.29


async def test_a_known_payment_is_answered_late_with_422(processor: Processor) -> None:
    known = payment()
    await processor.http.post("/payments", json=known)
    await fault(processor, "commit-late", lateMs=1)
    assert (await processor.http.post("/payments", json=known)).status_code == 422
    assert len(processor.simulator.book) == 1


async def test_the_connection_is_closed_first_and_the_payment_committed_later(
    processor: Processor,
) -> None:
    await fault(processor, "close-commit", laterMs=[400, 400])
    wire = await processor.wire()
    await wire.send(post())
    assert await end_of(wire) == b""
    assert len(processor.simulator.book) == 0
    await until(lambda: len(processor.simulator.book) == 1)


GATEWAY = {408, 429, 502, 503, 504}


async def test_a_gateway_answers_after_the_commit(processor: Processor) -> None:
    await fault(processor, "gateway-commit")
    statuses = {(await processor.pay()).status_code for _ in range(50)}
    assert statuses == GATEWAY
    assert len(processor.simulator.book) == 50


async def test_a_gateway_answers_early_and_some_payments_are_recorded_later(
    processor: Processor,
) -> None:
    await fault(processor, "gateway-early", laterMs=[1500, 1500])
    statuses = [(await processor.pay()).status_code for _ in range(50)]
    assert set(statuses) == GATEWAY
    assert len(processor.simulator.book) == 0
    await until(lambda: len(processor.simulator.book) > 0)


async def test_a_gateway_answers_late(processor: Processor) -> None:
    await fault(processor, "gateway-late", laterMs=[300, 300])
    started = time.monotonic()
    answers = await asyncio.gather(*(processor.pay() for _ in range(50)))
    assert {answer.status_code for answer in answers} == GATEWAY
    assert time.monotonic() - started > 0.29
    assert 0 < len(processor.simulator.book) < 50


async def test_a_close_comes_before_the_delay_and_nothing_is_recorded(
    processor: Processor,
) -> None:
    await fault(processor, "close")
    processor.simulator.config.delay_ms = 3_600_000
    wire = await processor.wire()
    await wire.send(post() + post())
    assert await end_of(wire) == b""
    assert processor.simulator.running == 0
    assert len(processor.simulator.book) == 0


@pytest.mark.parametrize(
    ("mode", "status", "retry_after"),
    [("429", 429, None), ("429-retry-after", 429, "1"), ("500", 500, None)],
)
async def test_a_payment_is_refused_and_not_recorded(
    processor: Processor, mode: str, status: int, retry_after: str | None
) -> None:
    await fault(processor, mode)
    response = await processor.pay()
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert len(processor.simulator.book) == 0


async def test_an_answer_is_no_json(processor: Processor) -> None:
    await fault(processor, "not-json")
    response = await processor.pay()
    assert response.status_code == 200
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(response.content)
    assert (await processor.pay()).status_code == 200  # on the same connection


async def test_an_answer_is_cut_off(processor: Processor) -> None:
    await fault(processor, "truncated")
    wire = await processor.wire()
    await wire.send(post())
    head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: %d" % len(orjson.dumps(ORDINARY)) in head
    assert orjson.dumps(ORDINARY).startswith(body)
    assert 0 < len(body) < len(orjson.dumps(ORDINARY))
    with pytest.raises(httpx.RemoteProtocolError):
        await processor.pay()


async def test_an_answer_is_ten_megabytes_of_json(processor: Processor) -> None:
    await fault(processor, "huge")
    for _ in range(2):  # the second on the same connection
        response = await processor.pay()
        assert response.status_code == 200
        assert len(response.content) == 10_000_000
        assert response.json().keys() == {"message"}


async def test_a_huge_answer_takes_no_memory_from_a_client_that_does_not_read(
    processor: Processor,
) -> None:
    await fault(processor, "huge")
    tracemalloc.start()
    try:
        silent = [await processor.wire() for _ in range(20)]
        for wire in silent:
            await wire.send(post())
        for _ in range(2):  # of 20 MB, while the others are stuck
            assert len((await processor.pay()).content) == 10_000_000
        for wire in silent:
            wire.hang_up()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80_000_000


async def test_half_a_header_comes_and_then_nothing(processor: Processor) -> None:
    await fault(processor, "half-header")
    reader, writer = await asyncio.open_connection(HOST, processor.port)
    writer.write(post())
    async with asyncio.timeout(SLACK_S):
        seen = await reader.read(1000)
    assert seen.startswith(b"HTTP/1.1 200 OK\r\nContent-")
    assert b"\r\n\r\n" not in seen
    writer.write(request("GET", "/payments/service-health"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1000), 0.5)
    writer.close()


async def test_an_answer_drips_a_byte_at_a_time(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator_faults, "DRIP_MS", 4)
    await fault(processor, "drip")
    started = time.monotonic()
    response = await processor.pay()
    assert (response.status_code, response.json()) == (200, ORDINARY)
    assert time.monotonic() - started > 0.3  # over a hundred bytes
    assert (await processor.pay()).status_code == 200


async def test_a_byte_a_second_is_the_speed_of_a_drip(processor: Processor) -> None:
    await fault(processor, "drip")
    reader, writer = await asyncio.open_connection(HOST, processor.port)
    writer.write(post())
    async with asyncio.timeout(SLACK_S):
        assert await reader.read(1000) == b"H"
        first = time.monotonic()
        assert await reader.read(1000) == b"T"
    assert time.monotonic() - first > 0.9
    writer.close()


async def test_422_is_told_of_a_payment_that_is_not_there(processor: Processor) -> None:
    await fault(processor, "422-unknown")
    lied = await processor.pay()
    assert (lied.status_code, len(processor.simulator.book)) == (422, 0)
    assert "already exists" in lied.json()["message"]


@pytest.mark.parametrize("mode", BY_COIN)
async def test_a_broken_answer_tells_nothing_about_the_book(
    processor: Processor, mode: str
) -> None:
    await fault(processor, mode)
    ids = [str(uuid4()) for _ in range(40)]
    for correlation_id in ids:
        assert await glimpse(processor, post(correlationId=correlation_id))
    recorded = await ids_in_the_book(processor)
    assert 8 < len(recorded) < 32
    await fault(processor, mode)
    for correlation_id in reversed(ids):
        assert await glimpse(processor, post(correlationId=correlation_id, amount=1))
    assert {line["cents"] for line in await lines(processor, "/payments")} == {1990, 100}
    again = await ids_in_the_book(processor)
    assert again[: len(recorded)] == recorded
    assert len(set(again)) == len(again)


@pytest.mark.parametrize(
    "mode", ["commit-500", "commit-429", "commit-late", "not-json", "422-unknown", "400"]
)
async def test_nothing_is_committed_while_failing(processor: Processor, mode: str) -> None:
    processor.simulator.config.failing = True
    await fault(processor, mode, lateMs=1)
    for _ in range(10):
        await processor.pay()
    assert len(processor.simulator.book) == 0


async def test_a_late_commit_does_not_come_while_failing(processor: Processor) -> None:
    await fault(processor, "close-commit", laterMs=[100, 100], journal=True)
    wire = await processor.wire()
    await wire.send(post())
    assert await end_of(wire) == b""
    processor.simulator.config.failing = True
    async with asyncio.timeout(SLACK_S):
        while (await lines(processor, "/journal"))[-1]["event"] != "failed":
            await asyncio.sleep(0.01)
    assert len(processor.simulator.book) == 0


async def test_a_fault_that_was_switched_off_during_the_delay_does_not_come(
    processor: Processor,
) -> None:
    await fault(processor, "500")
    processor.simulator.config.delay_ms = 300
    answer = asyncio.create_task(processor.pay())
    await until(lambda: processor.simulator.running == 1)
    await processor.administer("PUT", FAULTS, {})
    assert (await answer).json() == ORDINARY


async def test_faults_come_after_the_delay(processor: Processor) -> None:
    await fault(processor, "500")
    processor.simulator.config.delay_ms = 200
    started = time.monotonic()
    assert (await processor.pay()).status_code == 500
    assert time.monotonic() - started > 0.19


async def test_answers_keep_their_order_on_a_connection(processor: Processor) -> None:
    await fault(processor, "commit-late", lateMs=200)
    wire = await processor.wire()
    sent = payment()
    await wire.send(post(**sent), request("GET", f"/payments/{sent['correlationId']}"))
    late, found = await wire.answers(2)
    assert orjson.loads(late.body) == ORDINARY
    assert orjson.loads(found.body)["correlationId"] == sent["correlationId"]


# Health.


async def health(processor: Processor, mode: str) -> httpx.Response:
    await processor.administer("PUT", FAULTS, {"health": {mode: 1}})
    return await processor.http.get("/payments/service-health")


@pytest.mark.parametrize("failing", [True, False])
async def test_health_lies(processor: Processor, failing: bool) -> None:
    processor.simulator.config.failing = failing
    told = (await health(processor, "lie")).json()
    assert told["failing"] is not failing
    assert 0 <= told["minResponseTime"] <= 3000


async def test_health_is_refused(processor: Processor) -> None:
    assert (await health(processor, "429")).status_code == 429


async def test_health_has_wrong_types(processor: Processor) -> None:
    response = await health(processor, "wrong-types")
    told = set()
    for _ in range(30):
        assert response.status_code == 200
        assert RINHA.read_health(Response(200, response.content)) is None
        told.add(response.content)
        response = await processor.http.get("/payments/service-health")
    assert len(told) > 3


async def test_health_hangs(processor: Processor) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await health(processor, "hang")
    assert (await processor.pay()).status_code == 200


# The setting.


async def test_the_same_seed_brings_the_same_answers_again(processor: Processor) -> None:
    setting = {"seed": 7, "payments": {"500": 0.3, "429": 0.2, "not-json": 0.2}}
    setting["health"] = {"lie": 0.5}

    async def run() -> list[tuple[int, bytes]]:
        await processor.administer("PUT", FAULTS, setting)
        await processor.administer("POST", "/purge-payments")
        answers = []
        for n in range(30):
            paid = await processor.pay(correlationId=str(uuid4()))
            told = await processor.http.get("/payments/service-health")
            answers += [(paid.status_code, paid.content), (n, told.content)]
        return [*answers, (len(processor.simulator.book), b"")]

    first = await run()
    assert await run() == first
    assert {200, 429, 500} <= {status for status, _ in first}
    setting["seed"] = 8
    assert await run() != first


async def test_a_setting_replaces_the_whole_of_the_one_before(processor: Processor) -> None:
    setting = {
        "seed": 3,
        "payments": {"close": 0.5},
        "decisions": {},
        "health": {"hang": 1},
        "lateMs": 5,
        "laterMs": [1, 2],
        "decideMs": [3, 4],
        "journal": True,
        "silent": False,
    }
    nothing = {
        "seed": 0,
        "payments": {},
        "decisions": {},
        "health": {},
        "lateMs": 11_000,
        "laterMs": [200, 8000],
        "decideMs": [200, 2000],
        "journal": False,
        "silent": False,
    }
    first = await processor.administer("PUT", FAULTS, setting)
    assert first.json() == {"config": "faults", "was": nothing, "is": setting}
    second = await processor.administer("PUT", FAULTS, {})
    assert second.json() == {"config": "faults", "was": setting, "is": nothing}
    assert (await processor.pay()).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"payments": {"500": 2}},
        {"payments": {}, "health": {"lie": True}},
        {"journal": False, "laterMs": [2, 1]},
        {"goneMs": 10_000, "seeds": 1},
        {"goneMs": -1},
        [],
    ],
)
async def test_a_malformed_call_changes_nothing(processor: Processor, body: object) -> None:
    await fault(processor, "429", journal=True)
    refused = await processor.administer("PUT", FAULTS, body)
    assert refused.status_code == 400
    assert refused.json()["message"]
    assert (await processor.pay()).status_code == 429
    assert len(await lines(processor, "/journal")) == 2


# Silent, or gone, and back.


async def test_a_silent_processor_answers_nothing_and_records_nothing(
    processor: Processor,
) -> None:
    await processor.administer("PUT", FAULTS, {"silent": True})
    wires = [await processor.wire() for _ in range(3)]
    for wire, path in zip(
        wires, (b"", b"/" + str(uuid4()).encode(), b"/service-health"), strict=True
    ):
        await wire.send(b"GET /payments%b HTTP/1.1\r\nhost: x\r\n\r\n" % path if path else post())
    for wire in wires:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.answer(), 0.1)
    await processor.administer("PUT", FAULTS, {})
    assert (await processor.pay()).status_code == 200
    assert len(processor.simulator.book) == 1


async def test_a_processor_that_is_gone_refuses_connections_and_comes_back(
    processor: Processor,
) -> None:
    processor.simulator.config.delay_ms = 300
    wire, idle = await processor.wire(), await processor.wire()
    await wire.send(post())
    await until(lambda: processor.simulator.running == 1)
    assert (await processor.administer("PUT", FAULTS, {"goneMs": 1000})).status_code == 200
    with pytest.raises(ConnectionRefusedError):
        await processor.wire()
    assert await end_of(wire) == b""
    assert await end_of(idle) == b""
    assert len(processor.simulator.book) == 0
    await until(lambda: len(processor.simulator.book) == 1)
    with pytest.raises(ConnectionRefusedError):
        await processor.wire()
    processor.simulator.config.delay_ms = 0
    await eventually(lambda: pays(processor), what="the processor is back")
    assert len(processor.simulator.book) == 2


async def pays(processor: Processor) -> bool:
    try:
        return (await processor.pay()).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_processor_may_be_closed_while_it_is_gone() -> None:
    async with running(SimulatorConfig("default")) as processor:
        await processor.administer("PUT", FAULTS, {"goneMs": 60_000})
        await processor.simulator.close()
        assert await processor.simulator.start(HOST, processor.port) == processor.port
        assert (await processor.pay()).status_code == 200


# As a process of its own, on the loop that it has there.


async def test_the_command_is_gone_and_back_and_its_memory_stays_flat() -> None:
    port = free_port()
    command = ("-m", "payswitch", "simulator", "--name", "default", "--port", str(port))
    process = await asyncio.create_subprocess_exec(sys.executable, *command)
    try:
        base = f"http://{HOST}:{port}"
        async with httpx.AsyncClient(
            verify=False, base_url=base, timeout=SLACK_S, trust_env=False
        ) as http:

            async def administer(body: object) -> bool:
                try:
                    answer = await http.put(f"/admin{FAULTS}", json=body, headers=TOKEN)
                except httpx.TransportError:
                    return False
                return answer.status_code == 200

            await eventually(lambda: administer({"payments": {"huge": 1}}), what="it listens")
            before = resident_kb(process.pid)
            silent = [Wire(*await asyncio.open_connection(HOST, port)) for _ in range(30)]
            for wire in silent:
                await wire.send(post())
            for _ in range(3):
                assert len((await http.post("/payments", json=payment())).content) == 10**7
            assert resident_kb(process.pid) - before < 60_000  # of 330 MB
            assert await administer({"payments": {"commit-close": 1}, "goneMs": 300})
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, port)
            await eventually(lambda: administer({}), what="it is back")
            assert (await http.post("/payments", json=payment())).status_code == 200
    finally:
        process.terminate()
        assert await process.wait() == 0


def resident_kb(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4

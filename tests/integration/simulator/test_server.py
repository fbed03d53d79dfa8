"""The simulator over real sockets: a processor as the challenge's real one is."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from payswitch.http import server as http_server
from payswitch.http.server import Bounds, ServerConnection
from payswitch.money import Total
from payswitch.simulator.dialect import SimulatorConfig
from payswitch.simulator.server import Simulator

HOST = "127.0.0.1"
TOKEN = {"X-Rinha-Token": "123"}
ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
SLACK_S = 20
SLOTS = 800
PLACES = 500


class Answer:
    """A response as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        status_line, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        self.status = int(status_line.split(" ")[1])
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        self.body = body


class Wire:
    """A connection on which a test says exactly what is sent, and when."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *requests: bytes) -> None:
        self._writer.write(b"".join(requests))
        await self._writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(SLACK_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            answer = Answer(head, b"")
            answer.body = await self._reader.readexactly(
                int(answer.headers.get("content-length", 0))
            )
            return answer

    async def answers(self, count: int) -> list[Answer]:
        return [await self.answer() for _ in range(count)]

    async def rest(self) -> bytes:
        """What still comes until the simulator ends the connection, of its own accord."""
        async with asyncio.timeout(http_server.LINGER_S - 1):
            return await self._reader.read()

    def hang_up(self) -> None:
        self._writer.close()


class Processor:
    """A running simulator and the ways to it."""

    def __init__(self, simulator: Simulator, port: int, http: httpx.AsyncClient) -> None:
        self.simulator = simulator
        self.port = port
        self.http = http

    async def wire(self) -> Wire:
        return Wire(*await asyncio.open_connection(HOST, self.port))

    async def pay(self, **fields: object) -> httpx.Response:
        return await self.http.post("/payments", json=payment(**fields))

    async def administer(self, method: str, path: str, body: object = None) -> httpx.Response:
        return await self.http.request(method, f"/admin{path}", json=body, headers=TOKEN)

    async def summary(self, **bounds: str) -> Any:
        response = await self.http.get("/admin/payments-summary", params=bounds, headers=TOKEN)
        assert response.status_code == 200
        return json.loads(response.content, parse_float=Decimal)


def faults_of_the_loop() -> list[dict[str, Any]]:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    return faults


@asynccontextmanager
async def running(config: SimulatorConfig) -> AsyncIterator[Processor]:
    simulator = Simulator(config)
    faults = faults_of_the_loop()
    port = await simulator.start(HOST, 0)
    try:
        async with httpx.AsyncClient(
            verify=False,
            base_url=f"http://{HOST}:{port}",
            timeout=SLACK_S,
            trust_env=False,
        ) as http:
            yield Processor(simulator, port, http)
    finally:
        await simulator.close()
    assert faults == []


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with running(SimulatorConfig("default", rate_limit_s=0)) as processor:
        yield processor


def payment(**fields: object) -> dict[str, object]:
    return {
        "correlationId": str(uuid4()),
        "amount": 19.9,
        "requestedAt": "2025-07-15T12:34:56.000Z",
    } | fields


def request(
    method: str, path: str, body: bytes = b"", *headers: str, version: str = "1.1"
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: processor", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def post(*headers: str, **fields: object) -> bytes:
    return request("POST", "/payments", orjson.dumps(payment(**fields)), *headers)


def posts(count: int) -> bytes:
    return b"".join(post() for _ in range(count))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SLACK_S):
        while not condition():
            await asyncio.sleep(0.002)


# Payments.


async def test_a_payment_is_processed_and_found(processor: Processor) -> None:
    sent = payment(amount=19.904, requestedAt="2025-07-15T12:34:56.120Z")
    response = await processor.http.post("/payments", json=sent)
    assert (response.status_code, response.json()) == (
        200,
        {"message": "payment processed successfully"},
    )
    found = await processor.http.get(f"/payments/{str(sent['correlationId']).upper()}")
    assert found.status_code == 200
    assert found.headers["content-type"].startswith("application/json")
    assert found.text == (
        f'{{"correlationId":"{sent["correlationId"]}","amount":19.90,'
        '"requestedAt":"2025-07-15T12:34:56.12"}'
    )


@pytest.mark.parametrize("correlation_id", [ID, "", "x", "%C3%A9", "a/b"])
async def test_a_payment_that_was_not_recorded_is_not_found(
    processor: Processor, correlation_id: str
) -> None:
    assert (await processor.http.get(f"/payments/{correlation_id}")).status_code == 404


async def test_a_known_id_is_refused_in_any_case_and_changes_nothing(processor: Processor) -> None:
    sent = payment()
    await processor.http.post("/payments", json=sent)
    again = sent | {"correlationId": str(sent["correlationId"]).upper(), "amount": 7}
    response = await processor.http.post("/payments", json=again)
    assert response.status_code == 422
    assert "already exists" in response.json()["message"]
    assert processor.simulator.book.totals() == Total(1, 1990)


async def test_a_failing_processor_records_nothing(processor: Processor) -> None:
    processor.simulator.config.failing = True
    assert (await processor.pay()).status_code == 500
    assert len(processor.simulator.book) == 0


async def test_a_failing_processor_fails_a_known_id_too(processor: Processor) -> None:
    known = payment()
    await processor.http.post("/payments", json=known)
    processor.simulator.config.failing = True
    assert (await processor.http.post("/payments", json=known)).status_code == 500
    found = await processor.http.get(f"/payments/{known['correlationId']}")
    assert found.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        orjson.dumps(payment(correlationId="x")),
        orjson.dumps(payment(correlationId=ID, amount="19.90")),
        orjson.dumps(payment(correlationId=ID, amount=-1)),
        orjson.dumps(payment(correlationId=ID, requestedAt="yesterday")),
        orjson.dumps({"amount": 19.9}),
    ],
)
async def test_a_bad_payment_is_refused_at_once(processor: Processor, body: bytes) -> None:
    processor.simulator.config.delay_ms = 3_600_000
    response = await processor.http.post("/payments", content=body)
    assert response.status_code == 400
    assert response.json()["message"]
    assert len(processor.simulator.book) == 0


async def test_a_payment_waits_for_the_delay_that_it_began_with(processor: Processor) -> None:
    processor.simulator.config.delay_ms = 500
    started = time.monotonic()
    answer = asyncio.create_task(processor.pay())
    await until(lambda: processor.simulator.running == 1)
    processor.simulator.config.delay_ms = 3_600_000
    assert len(processor.simulator.book) == 0
    assert (await answer).status_code == 200
    assert time.monotonic() - started > 0.49


@pytest.mark.parametrize(("then", "status"), [(True, 500), (False, 200)])
async def test_whether_a_payment_fails_is_decided_when_the_delay_ends(
    processor: Processor, then: bool, status: int
) -> None:
    processor.simulator.config.delay_ms = 500
    processor.simulator.config.failing = not then
    answer = asyncio.create_task(processor.pay())
    await until(lambda: processor.simulator.running == 1)
    processor.simulator.config.failing = then
    assert (await answer).status_code == status


async def test_a_payment_that_is_looked_up_is_neither_delayed_nor_failed(
    processor: Processor,
) -> None:
    known = payment()
    await processor.http.post("/payments", json=known)
    processor.simulator.config.delay_ms = 3_600_000
    processor.simulator.config.failing = True
    assert (await processor.http.get(f"/payments/{known['correlationId']}")).status_code == 200


async def test_a_client_that_hangs_up_does_not_stop_the_payment(processor: Processor) -> None:
    processor.simulator.config.delay_ms = 500
    wire = await processor.wire()
    await wire.send(post())
    await until(lambda: processor.simulator.running == 1)
    wire.hang_up()
    assert len(processor.simulator.book) == 0
    await until(lambda: len(processor.simulator.book) == 1)


async def test_a_client_that_hangs_up_does_not_stop_a_payment_without_a_slot(
    processor: Processor,
) -> None:
    processor.simulator.config.delay_ms = 1500  # a busy machine reads so many for a while
    wire = await processor.wire()
    await wire.send(posts(SLOTS + 1))
    await until(lambda: processor.simulator.running == SLOTS)
    wire.hang_up()
    await until(lambda: len(processor.simulator.book) == SLOTS + 1)


# Slots.


async def test_what_finds_neither_slot_nor_place_is_refused(processor: Processor) -> None:
    processor.simulator.config.delay_ms = 500
    wire = await processor.wire()
    await wire.send(posts(SLOTS + PLACES + 2))
    await until(lambda: processor.simulator.running == SLOTS)
    answers = await wire.answers(SLOTS + PLACES + 2)
    assert {answer.status for answer in answers[:-2]} == {200}
    assert [answer.status for answer in answers[-2:]] == [429, 429]
    assert answers[-1].headers["retry-after"] == "5"
    assert len(processor.simulator.book) == SLOTS + PLACES
    processor.simulator.config.delay_ms = 0
    assert (await processor.pay()).status_code == 200


async def test_a_look_up_waits_for_a_slot_like_a_payment(processor: Processor) -> None:
    processor.simulator.config.delay_ms = 500
    wire = await processor.wire()
    await wire.send(posts(SLOTS))
    await until(lambda: processor.simulator.running == SLOTS)
    assert (await processor.http.get(f"/payments/{uuid4()}")).status_code == 404
    assert len(processor.simulator.book) > 0


async def test_one_slot_serves_all_that_wait_in_turn_once_the_delay_is_gone(
    processor: Processor,
) -> None:
    wire, others, known = await processor.wire(), await processor.wire(), payment()
    processor.simulator.config.delay_ms = 3_600_000
    await others.send(posts(SLOTS - 1))
    await until(lambda: processor.simulator.running == SLOTS - 1)
    processor.simulator.config.delay_ms = 500
    await wire.send(post())
    await until(lambda: processor.simulator.running == SLOTS)
    processor.simulator.config.delay_ms = 0
    look_up = request("GET", f"/payments/{known['correlationId']}")
    await wire.send(posts(PLACES - 2), post(**known), look_up)
    assert {answer.status for answer in await wire.answers(1 + PLACES)} == {200}
    assert processor.simulator.running == SLOTS - 1


# Health.

HEALTH = request("GET", "/payments/service-health")


async def test_health_tells_the_settings(processor: Processor) -> None:
    first = await processor.http.get("/payments/service-health")
    assert (first.status_code, first.json()) == (200, {"failing": False, "minResponseTime": 0})
    processor.simulator.config.delay_ms = 100
    processor.simulator.config.failing = True
    second = await processor.http.get("/payments/service-health")
    assert (second.status_code, second.json()) == (200, {"failing": True, "minResponseTime": 100})


async def test_each_window_answers_one_call_and_two_more_may_wait() -> None:
    async with running(SimulatorConfig("default", rate_limit_s=0.4)) as processor:
        wire = await processor.wire()
        started = time.monotonic()
        await wire.send(HEALTH * 4)
        elapsed, statuses = [], []
        for _ in range(4):
            answer = await wire.answer()
            elapsed.append(time.monotonic() - started)
            statuses.append(answer.status)
        assert statuses == [200, 200, 200, 429]
        assert answer.headers["retry-after"] == "1"
        assert elapsed[1] > 0.39
        assert elapsed[2] > 0.79


async def test_a_call_is_refused_with_the_length_of_the_window() -> None:
    async with running(SimulatorConfig("default")) as processor:
        waiting = await processor.wire()
        await waiting.send(HEALTH * 3)
        assert (await waiting.answer()).status == 200
        refused = await processor.http.get("/payments/service-health")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "5"


async def test_a_call_that_waits_tells_the_settings_of_the_moment_of_its_answer() -> None:
    async with running(SimulatorConfig("default", rate_limit_s=0.4)) as processor:
        wire = await processor.wire()
        await wire.send(HEALTH * 2)
        await wire.answer()
        processor.simulator.config.delay_ms = 77
        assert orjson.loads((await wire.answer()).body)["minResponseTime"] == 77


async def test_a_client_that_hangs_up_gives_its_place_in_the_wait_for_health_back() -> None:
    async with running(SimulatorConfig("default", rate_limit_s=2)) as processor:
        gone = await processor.wire()
        started = time.monotonic()
        await gone.send(HEALTH * 3)
        assert (await gone.answer()).status == 200
        response = await processor.http.get("/payments/service-health")
        assert response.status_code == 429
        gone.hang_up()
        async with asyncio.timeout(SLACK_S):
            while response.status_code == 429:
                response = await processor.http.get("/payments/service-health")
        assert response.status_code == 200
        assert time.monotonic() - started < 5.9  # the second window; else it were the fourth


# Administration.

ADMIN_CALLS = [
    ("GET", "/payments-summary", None),
    ("PUT", "/configurations/token", {"token": "x"}),
    ("PUT", "/configurations/delay", {"delay": 1}),
    ("PUT", "/configurations/failure", {"failure": True}),
    ("POST", "/purge-payments", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ADMIN_CALLS)
@pytest.mark.parametrize("headers", [{}, {"X-Rinha-Token": "124"}, {"X-Rinha-Token": ""}])
async def test_administration_needs_the_token(
    processor: Processor, method: str, path: str, body: object, headers: dict[str, str]
) -> None:
    await processor.pay()
    response = await processor.http.request(method, f"/admin{path}", json=body, headers=headers)
    assert response.status_code == 401
    assert processor.simulator.config == SimulatorConfig("default", rate_limit_s=0)
    assert len(processor.simulator.book) == 1


async def test_the_token_can_be_changed(processor: Processor) -> None:
    changed = await processor.administer("PUT", "/configurations/token", {"token": "é2"})
    assert (changed.status_code, changed.content) == (204, b"")
    assert "content-length" not in changed.headers
    assert (await processor.administer("GET", "/payments-summary")).status_code == 401
    headers = {b"X-Rinha-Token": "é2".encode()}
    response = await processor.http.get("/admin/payments-summary", headers=headers)
    assert response.status_code == 200


async def test_the_delay_and_the_failure_can_be_changed(processor: Processor) -> None:
    delay = await processor.administer("PUT", "/configurations/delay", {"delay": 100})
    assert (delay.status_code, delay.json()) == (200, {"config": "delay", "was": 0, "is": 100})
    failure = await processor.administer("PUT", "/configurations/failure", {"failure": True})
    assert (failure.status_code, failure.json()) == (
        200,
        {"config": "failure", "was": False, "is": True},
    )
    config = processor.simulator.config
    assert (config.delay_ms, config.failing) == (100, True)


@pytest.mark.parametrize(
    ("setting", "body"),
    [
        ("token", {"token": 1}),
        ("token", {"token": ""}),
        ("token", {}),
        ("delay", {"delay": -1}),
        ("delay", {"delay": 1.5}),
        ("delay", {"delay": True}),
        ("delay", {"delay": 2**31}),
        ("delay", {"milliseconds": 1}),
        ("failure", {"failure": 1}),
        ("failure", {"failure": "true"}),
        ("failure", []),
        ("failure", None),
    ],
)
async def test_a_bad_setting_is_refused(processor: Processor, setting: str, body: object) -> None:
    response = await processor.administer("PUT", f"/configurations/{setting}", body)
    assert response.status_code == 400
    assert processor.simulator.config == SimulatorConfig("default", rate_limit_s=0)


async def test_a_purge_forgets_every_payment(processor: Processor) -> None:
    known = payment()
    await processor.http.post("/payments", json=known)
    response = await processor.administer("POST", "/purge-payments")
    assert (response.status_code, response.json()) == (200, {"message": "All payments purged."})
    assert (await processor.http.get(f"/payments/{known['correlationId']}")).status_code == 404
    assert (await processor.http.post("/payments", json=known)).status_code == 200


async def test_a_summary_has_both_its_bounds_within() -> None:
    async with running(SimulatorConfig("default", fee=Decimal("0.07"))) as processor:
        for millisecond in (1, 2, 3, 4):
            at = f"2025-07-15T12:34:56.00{millisecond}Z"
            await processor.pay(amount=20.05, requestedAt=at)
        window = {"from": "2025-07-15T12:34:56.002Z", "to": "2025-07-15T09:34:56.003-03:00"}
        assert await processor.summary(**window) == {
            "totalRequests": 2,
            "totalAmount": Decimal("40.10"),
            "totalFee": Decimal("2.807"),
            "feePerTransaction": Decimal("0.07"),
        }


@pytest.mark.parametrize("bounds", [{}, {"from": "2025-07-16"}, {"to": "2025-07-14"}, {"to": ""}])
async def test_a_summary_that_lacks_a_bound_has_everything(
    processor: Processor, bounds: dict[str, str]
) -> None:
    for amount in (0.1, 0.2):
        await processor.pay(amount=amount)
    summary = await processor.summary(**bounds)
    assert (summary["totalRequests"], summary["totalAmount"]) == (2, Decimal("0.30"))


async def test_an_empty_summary_is_of_zeros(processor: Processor) -> None:
    await processor.pay()
    bounds = {"from": "2025-07-16", "to": "2025-07-14"}
    response = await processor.http.get("/admin/payments-summary", params=bounds, headers=TOKEN)
    assert response.text == (
        '{"totalRequests":0,"totalAmount":0.00,"totalFee":0.0000,"feePerTransaction":0.05}'
    )


async def test_an_offset_may_be_written_with_a_bare_plus(processor: Processor) -> None:
    await processor.pay()
    at = "2025-07-15T14:34:56+02:00"
    url = f"/admin/payments-summary?from={at}&to={at.replace(':', '%3A')}"
    assert (await processor.http.get(url, headers=TOKEN)).json()["totalRequests"] == 1


async def test_a_summary_with_a_bad_bound_is_refused(processor: Processor) -> None:
    bounds = {"from": "2025-07-16", "to": "tomorrow"}
    response = await processor.http.get("/admin/payments-summary", params=bounds, headers=TOKEN)
    assert response.status_code == 400


# HTTP.


@pytest.mark.parametrize("path", ["/", "/payment", "/admin", "/admin/books", "/payments-summary"])
async def test_an_unknown_path_is_not_found(processor: Processor, path: str) -> None:
    assert (await processor.http.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/payments", "POST"),
        ("HEAD", "/payments", "POST"),
        ("POST", "/payments/service-health", "GET"),
        ("DELETE", f"/payments/{ID}", "GET"),
        ("POST", "/admin/payments-summary", "GET"),
        ("GET", "/admin/purge-payments", "POST"),
        ("POST", "/admin/configurations/delay", "PUT"),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(
    processor: Processor, method: str, path: str, allow: str
) -> None:
    response = await processor.http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)


async def test_replies_come_in_the_order_of_the_requests(processor: Processor) -> None:
    wire = await processor.wire()
    known = payment()
    processor.simulator.config.delay_ms = 200
    look_up = request("GET", f"/payments/{known['correlationId']}")
    await wire.send(post(**known), look_up, request("GET", "/nowhere"), post())
    answers = await wire.answers(4)
    # The look-up was decided while the payment waited, though it is answered after it.
    assert [answer.status for answer in answers] == [200, 404, 404, 200]


async def test_a_connection_is_kept_for_one_request_after_another(processor: Processor) -> None:
    wire = await processor.wire()
    for _ in range(3):
        await wire.send(post())
        answer = await wire.answer()
        assert answer.status == 200
        assert "connection" not in answer.headers


async def test_a_request_may_come_byte_by_byte(processor: Processor) -> None:
    wire = await processor.wire()
    for byte in post():
        await wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.answer()).status == 200


async def test_a_body_may_come_in_chunks(processor: Processor) -> None:
    body = orjson.dumps(payment())

    async def chunks() -> AsyncIterator[bytes]:
        yield body[:10]
        yield body[10:]

    response = await processor.http.post("/payments", content=chunks())
    assert response.status_code == 200


async def test_a_connection_closes_after_the_request_that_asks_for_it(
    processor: Processor,
) -> None:
    wire = await processor.wire()
    await wire.send(post("Connection: close"), post())
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await wire.rest() == b""
    await wire.send(post())
    assert (await processor.pay()).status_code == 200
    assert len(processor.simulator.book) == 2


async def test_an_old_client_keeps_its_connection_only_if_it_says_so(processor: Processor) -> None:
    wire = await processor.wire()
    await wire.send(request("GET", "/nowhere", b"", "Connection: keep-alive", version="1.0"))
    assert (await wire.answer()).headers["connection"] == "keep-alive"
    await wire.send(request("GET", "/nowhere", b"", version="1.0"))
    assert (await wire.answer()).headers["connection"] == "close"
    assert await wire.rest() == b""


async def test_an_old_client_is_not_told_to_go_on(processor: Processor) -> None:
    wire = await processor.wire()
    await wire.send(request("POST", "/nowhere", b"x", "Expect: 100-continue", version="1.0"))
    assert (await wire.answer()).status == 404


async def test_a_payment_that_comes_with_an_offer_to_speak_another_protocol_is_paid(
    processor: Processor,
) -> None:
    wire = await processor.wire()
    for _ in range(2):
        await wire.send(post("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"))
        assert (await wire.answer()).status == 200


async def test_many_offers_at_once_are_all_answered(processor: Processor) -> None:
    wire = await processor.wire()
    await wire.send(post("Connection: upgrade", "Upgrade: h2c") * 2000)
    assert {answer.status for answer in await wire.answers(2000)} <= {200, 422}


async def test_a_tunnel_is_refused(processor: Processor) -> None:
    wire = await processor.wire()
    await wire.send(b"CONNECT /payments HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    assert (await wire.answer()).status == 400
    assert await wire.rest() == b""


async def test_an_offer_to_speak_another_protocol_is_not_taken(processor: Processor) -> None:
    wire = await processor.wire()
    head = b"GET /nowhere HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    await wire.send(head)
    assert (await wire.answer()).status == 404
    await wire.send(head)
    assert (await wire.answer()).status == 404


async def test_a_client_that_asks_first_is_told_to_go_on(processor: Processor) -> None:
    wire = await processor.wire()
    whole = post("Expect: 100-continue")
    head, separator, body = whole.partition(b"\r\n\r\n")
    processor.simulator.config.delay_ms = 100
    await wire.send(post(), head + separator)
    assert [answer.status for answer in await wire.answers(2)] == [200, 100]
    await wire.send(body)
    assert (await wire.answer()).status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /payments HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /payments HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"CONNECT processor:80 HTTP/1.1\r\n\r\n",
    ],
)
async def test_a_malformed_request_ends_the_connection(
    processor: Processor, garbage: bytes
) -> None:
    wire = await processor.wire()
    processor.simulator.config.delay_ms = 100
    await wire.send(post() + garbage + post())
    first, second = await wire.answers(2)
    assert (first.status, second.status) == (200, 400)
    assert second.headers["connection"] == "close"
    assert await wire.rest() == b""
    assert len(processor.simulator.book) == 1


async def test_a_body_that_is_too_large_ends_the_connection(processor: Processor) -> None:
    wire = await processor.wire()
    large = b" " * 4_000_000 + orjson.dumps(payment())
    await wire.send(request("POST", "/payments", large, "Expect: 100-continue"), post())
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert await wire.rest() == b""
    assert len(processor.simulator.book) == 0


async def test_a_body_that_grows_too_large_ends_the_connection(processor: Processor) -> None:
    wire = await processor.wire()
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    head = b"POST /payments HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    await wire.send(head, *[chunk] * 17, b"0\r\n\r\n", post())
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert await wire.rest() == b""
    assert len(processor.simulator.book) == 0


async def test_a_client_that_stays_on_after_the_last_reply_is_cut_off(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = await processor.wire()
    monkeypatch.setattr(http_server, "LINGER_S", 0.1)
    await wire.send(b"hello\r\n\r\n")
    assert (await wire.answer()).status == 400
    monkeypatch.undo()

    async def stay_on() -> None:
        while True:
            await wire.send(b"hello\r\n\r\n")
            await asyncio.sleep(0.01)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(stay_on(), SLACK_S)


async def test_a_body_of_just_the_limit_is_read(processor: Processor) -> None:
    body = orjson.dumps(payment())
    response = await processor.http.post("/payments", content=body.rjust(64 * 1024))
    assert response.status_code == 200


async def test_a_client_that_reads_late_is_read_late_and_gets_every_reply(
    processor: Processor,
) -> None:
    known = payment()
    await processor.http.post("/payments", json=known)
    count = 40_000  # 8 MB of replies: more than the kernel takes
    look_ups = request("GET", f"/payments/{known['correlationId']}") * count
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.setblocking(False)
        await loop.sock_connect(client, (HOST, processor.port))
        sending = asyncio.create_task(
            loop.sock_sendall(client, look_ups + post("Connection: close"))
        )
        for _ in range(100):  # while these are answered, a reading simulator would have it all
            assert (await processor.http.get("/nowhere")).status_code == 404
        assert len(processor.simulator.book) == 1
        replies = bytearray()
        async with asyncio.timeout(SLACK_S):
            while received := await loop.sock_recv(client, 1 << 20):
                replies += received
        await sending
    assert replies.count(b"HTTP/1.1 200 OK") == count + 1
    assert len(processor.simulator.book) == 2


async def test_a_fault_of_the_simulator_is_not_blamed_on_the_client() -> None:
    def handle(exchange: http_server.Exchange) -> None:
        raise ZeroDivisionError

    faults = faults_of_the_loop()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ServerConnection(handle, {}, Bounds()), HOST, 0)
    async with server:
        wire = Wire(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        await wire.send(post())
        assert await wire.rest() == b""
    assert isinstance(faults[0]["exception"].__context__, ZeroDivisionError)


# Starting and stopping.


async def test_a_port_that_is_taken_is_an_error(processor: Processor) -> None:
    with pytest.raises(OSError, match="in use"):
        await Simulator(SimulatorConfig("second")).start(HOST, processor.port)


async def test_closing_stops_what_is_under_way_and_keeps_the_book() -> None:
    faults = faults_of_the_loop()
    simulator = Simulator(SimulatorConfig("default"))
    port = await simulator.start(HOST, 0)
    before = Wire(*await asyncio.open_connection(HOST, port))
    await before.send(post())
    assert (await before.answer()).status == 200
    simulator.config.delay_ms = 1000  # a busy machine must not miss that they are under way
    await before.send(posts(SLOTS + 1), HEALTH, HEALTH)
    await until(lambda: simulator.running == SLOTS)
    await simulator.close()
    assert simulator.running == 0
    assert await before.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, port)

    assert await simulator.start(HOST, port) == port
    after = Wire(*await asyncio.open_connection(HOST, port))
    for _ in range(2):  # each takes as long as those under way had at most to go
        await after.send(post())
        assert (await after.answer()).status == 200
    assert len(simulator.book) == 3
    await simulator.close()
    assert faults == []


SERVE = """
import sys, uvloop
from payswitch.simulator.dialect import SimulatorConfig
from payswitch.simulator.server import serve
uvloop.run(serve(SimulatorConfig("default"), "127.0.0.1", int(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVE, str(port))
    try:
        wire = await connected(port)
        await wire.send(post(), post("Connection: close"))
        assert [answer.status for answer in await wire.answers(2)] == [200, 200]
        assert await wire.rest() == b""
        process.send_signal(number)
        async with asyncio.timeout(SLACK_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def connected(port: int) -> Wire:
    async with asyncio.timeout(SLACK_S):
        while True:
            try:
                return Wire(*await asyncio.open_connection(HOST, port))
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)

"""The ingress' payments port: what it serves, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from uuid import uuid4

import httpx
import pytest
from arq.connections import ArqRedis

from payswitch.http.server import Exchange, Listener, reply
from payswitch.ingress import bodies, payments_port
from payswitch.ingress.app import create_app
from payswitch.ingress.payments_port import PaymentsPort, Serve
from payswitch.ingress.problems import Answer
from payswitch.settings import Settings
from payswitch.store.client import connect
from tests.support import RedisServer, eventually, free_port

HOST = "127.0.0.1"
POST = b"POST /payments HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


class Held:
    """Answers 202 when it may."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.served = 0

    async def __call__(self, exchange: Exchange) -> Answer:
        self.served += 1
        self.asked.set()
        await self.go_on.wait()
        return Answer(202, [])


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    app = create_app(settings, payments_at=(HOST, port))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(verify=False, base_url=f"http://{HOST}:{port}") as client,
    ):
        yield client


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(Settings(redis_url=redis_server.url, accept_limit_ms=60_000)) as client:
        yield client


@contextlib.asynccontextmanager
async def port_of(serve: Serve) -> AsyncIterator[tuple[PaymentsPort, int]]:
    number = free_port()
    port = PaymentsPort(serve, serve)
    await port.open(HOST, number)
    try:
        yield port, number
    finally:
        await port.close()


async def test_a_payment_is_on_the_queue_when_it_is_acknowledged(
    client: httpx.AsyncClient, redis: ArqRedis
) -> None:
    ids = [str(uuid4()) for _ in range(50)]
    answers = await asyncio.gather(
        *(client.post("/payments", json={"correlationId": each, "amount": 2.5}) for each in ids)
    )
    for each, answer in zip(ids, answers, strict=True):
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/payments/{each}"
        assert answer.content == b""
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"])
        assert await redis.zscore("arq:queue", each) is not None


async def test_what_is_no_payment_is_answered_as_everywhere(client: httpx.AsyncClient) -> None:
    body = {"correlationId": str(uuid4()), "amount": 1}
    assert (await client.post("/payments", json=body)).status_code == 202
    for content, status in (
        ({**body, "amount": 2}, 409),
        ({**body, "amount": -1}, 422),
        ([], 422),
    ):
        answer = await client.post("/payments", json=content)
        assert answer.status_code == answer.json()["status"] == status
        assert answer.headers["content-type"] == "application/problem+json"
    twice = f'{{"correlationId":"{uuid4()}","amount":1,"amount":2}}'
    answer = await client.post("/payments", content=twice)
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "amount must be given once, not 2 times",
    )
    answer = await client.post("/payments", content=b"{", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


async def test_a_payment_is_told_that_redis_is_away(
    own_redis: RedisServer,
) -> None:
    settings = Settings(redis_url=own_redis.url, accept_limit_ms=300)
    async with serving(settings) as client:
        assert (await client.get("/readyz")).status_code == 200
        own_redis.kill()
        answer = await client.post("/payments", json={"correlationId": str(uuid4()), "amount": 1})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "send it again" in answer.json()["detail"]
        own_redis.start()

        async def accepted() -> bool:
            body = {"correlationId": str(uuid4()), "amount": 1}
            return (await client.post("/payments", json=body)).status_code == 202

        await eventually(accepted, what="a payment is accepted again")


async def test_a_payment_is_told_that_redis_is_short_of_memory(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=5)
    await redis.config_set("maxmemory", "100mb")
    settings = Settings(redis_url=own_redis.url, max_memory_percent=1)
    async with serving(settings) as client:

        async def is_told() -> bool:
            body = {"correlationId": str(uuid4()), "amount": 1}
            answer = await client.post("/payments", json=body)
            return answer.status_code == 503 and "short of memory" in answer.json()["detail"]

        await eventually(is_told, what="Redis is short of memory")
    await redis.aclose(close_connection_pool=True)


async def test_before_a_payment_is_refused_redis_is_looked_at_again(
    redis_server: RedisServer, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payswitch.store.watch._EVERY_S", 1000)
    monkeypatch.setattr("payswitch.store.watch._FRESH_S", 0)
    await redis.config_set("maxmemory", 1)
    async with serving(Settings(redis_url=redis_server.url, accept_limit_ms=60_000)) as client:
        statuses = []
        for memory in (1, 0):
            await redis.config_set("maxmemory", memory)
            body = {"correlationId": str(uuid4()), "amount": 1}
            statuses.append((await client.post("/payments", json=body)).status_code)
    assert statuses == [503, 202]


async def test_its_payments_are_counted_as_all_others(redis_server: RedisServer) -> None:
    port = free_port()
    app = create_app(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000), payments_at=(HOST, port)
    )
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(verify=False) as client,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as scraper,
    ):
        body = {"correlationId": str(uuid4()), "amount": 1}
        for document in (body, body, {**body, "amount": -1}):
            await client.post(f"http://{HOST}:{port}/payments", json=document)
        text = (await scraper.get("/metrics")).text
    assert 'payswitch_accept_seconds_count{result="accepted"} 2.0' in text
    assert 'payswitch_accept_seconds_count{result="refused"} 1.0' in text
    assert 'payswitch_acceptances_total{verdict="new"} 1.0' in text
    assert 'payswitch_acceptances_total{verdict="same"} 1.0' in text


async def test_payments_at_once_are_all_answered(
    client: httpx.AsyncClient, redis: ArqRedis
) -> None:
    bodies = [{"correlationId": str(uuid4()), "amount": 1} for _ in range(100)]
    bodies += bodies[:50]
    answers = await asyncio.gather(*(client.post("/payments", json=body) for body in bodies))
    assert {(answer.status_code, answer.text) for answer in answers} == {(202, "")}
    assert await redis.zcard("arq:queue") == 100


async def test_who_sends_bad_requests_without_waiting_gets_one_answer(
    redis_server: RedisServer,
) -> None:
    port = free_port()
    app = create_app(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000), payments_at=(HOST, port)
    )
    async with app.router.lifespan_context(app):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(POST * 1000)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("step", ["parse_payment", "Answer"])
async def test_a_bug_is_a_500_and_logged(
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"payswitch.ingress.accept.{step}", fail)
    answer = await client.post("/payments", json={"correlationId": str(uuid4()), "amount": 1})
    assert answer.status_code == answer.json()["status"] == 500
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/payments"), ("GET", "/"), ("GET", "/payments-summary"), ("GET", "/metrics")),
        *(("POST", "/purge-payments"), ("HEAD", "/readyz"), ("POST", "/payments/")),
    ],
)
async def test_everything_else_is_not_here(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 404
    if method != "HEAD":
        assert "nothing but POST /payments" in answer.json()["detail"]
    assert (await client.get("/readyz")).status_code == 200


async def test_it_is_ready_while_redis_answers(own_redis: RedisServer) -> None:
    settings = Settings(redis_url=own_redis.url, accept_limit_ms=300)
    async with serving(settings) as client:
        ready = (await client.get("/readyz")).json()
        assert ready == {"status": "ready", "durability": {"promise": "disk", "kept": True}}
        own_redis.kill()
        assert (await client.get("/readyz")).status_code == 503
        own_redis.start()

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(ready, what="it is ready again")


async def test_a_body_in_pieces_is_a_payment_when_it_is_whole(
    client: httpx.AsyncClient,
) -> None:
    payment = b'{"correlationId":"%b","amount":1}' % str(uuid4()).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(payment), 7):
            yield payment[at : at + 7]

    headers = {"content-type": "application/json"}
    answer = await client.post("/payments", content=pieces(), headers=headers)
    assert answer.status_code == 202


async def test_the_largest_body_is_taken_and_one_byte_more_is_not(
    client: httpx.AsyncClient,
) -> None:
    payment = b'{"correlationId":"%b","amount":1}' % str(uuid4()).encode()
    for size, status in (
        (bodies.MAX_BODY_BYTES, 202),
        (bodies.MAX_BODY_BYTES + 1, 413),
        (3 * bodies.MAX_BODY_BYTES, 413),
    ):
        answer = await client.post(
            "/payments", content=payment.ljust(size), headers={"content-type": "application/json"}
        )
        assert answer.status_code == status
        if status == 413:
            assert answer.json()["status"] == 413
    answer = await client.request("HEAD", "/payments", content=b" " * 5000)
    assert answer.status_code == 413
    assert (await client.get("/readyz")).status_code == 200


async def test_who_brings_nothing_is_dropped_and_who_waits_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(payments_port, "IDLE_S", 0.1)
    app = Held()
    async with port_of(app) as (_, number):
        waiting_reader, waiting = await asyncio.open_connection(HOST, number)
        waiting.write(POST)
        await app.asked.wait()
        idle = await asyncio.open_connection(HOST, number)
        half_a_head = await asyncio.open_connection(HOST, number)
        half_a_head[1].write(b"POST /paym")
        half_a_body = await asyncio.open_connection(HOST, number)
        half_a_body[1].write(b"POST /payments HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        async with asyncio.timeout(20):
            assert await idle[0].read() == b""
            assert await half_a_head[0].read() == b""
            assert (await half_a_body[0].read()).startswith(b"HTTP/1.1 408 ")
        app.go_on.set()
        assert await waiting_reader.readline() == b"HTTP/1.1 202 Accepted\r\n"
        for _, writer in (idle, half_a_head, half_a_body, (None, waiting)):
            writer.close()


async def test_a_connection_that_has_brought_something_since_is_not_idle() -> None:
    listener = Listener(lambda exchange: exchange.answer(reply(HTTPStatus.OK)))
    reader, writer = await asyncio.open_connection(HOST, await listener.start(HOST, 0))
    for _ in range(3):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n")
        listener.end_idle()
    listener.end_idle()
    assert await reader.read() == b""
    writer.close()
    await listener.close()


async def test_one_connection_too_many_takes_the_place_of_the_oldest_that_is_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(payments_port, "_BOUNDS", payments_port._BOUNDS._replace(connections=3))
    app = Held()
    async with port_of(app) as (_, number):
        opened = [await asyncio.open_connection(HOST, number)]
        opened[0][1].write(POST)
        await app.asked.wait()
        opened += [await asyncio.open_connection(HOST, number) for _ in range(3)]
        with contextlib.suppress(ConnectionError):
            assert await opened[1][0].read() == b""
        opened[2][1].write(POST)
        opened[3][1].write(POST)
        app.go_on.set()
        for at in (0, 2, 3):
            assert await opened[at][0].readline() == b"HTTP/1.1 202 Accepted\r\n"
        for _, writer in opened:
            writer.close()


async def test_at_its_end_whole_requests_are_answered_and_the_others_are_not() -> None:
    app = Held()
    async with port_of(app) as (port, number):
        reader, writer = await asyncio.open_connection(HOST, number)
        writer.write(POST + POST.replace(b"th: 0", b"th: 9"))
        idle_reader, idle_writer = await asyncio.open_connection(HOST, number)
        await app.asked.wait()
        closing = asyncio.create_task(port.close())
        assert await idle_reader.read() == b""
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(HOST, number)
        app.go_on.set()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 202 Accepted\r\n")
        assert b"Connection: close" in answer
        assert answer.count(b"HTTP/1.1") == app.served == 1
        await closing
        writer.close()
        idle_writer.close()


async def test_who_does_not_wait_for_an_answer_gets_that_one_alone() -> None:
    app = Held()
    async with port_of(app) as (_, number):
        reader, writer = await asyncio.open_connection(HOST, number)
        writer.write(POST * 1000)
        await app.asked.wait()
        await writer.drain()
        app.go_on.set()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 202 Accepted\r\n")
        assert b"Connection: close" in answer
        assert answer.count(b"HTTP/1.1") == app.served == 1
        writer.close()


async def test_a_server_that_finishes_answers_what_is_whole_where_more_has_begun() -> None:
    exchanges: list[Exchange] = []
    handled = asyncio.Event()

    def handle(exchange: Exchange) -> None:
        exchanges.append(exchange)
        handled.set()

    listener = Listener(handle)
    reader, writer = await asyncio.open_connection(HOST, await listener.start(HOST, 0))
    writer.write(POST + POST.replace(b"th: 0", b"th: 9"))
    await handled.wait()
    listener.finish()
    exchanges[0].answer(reply(HTTPStatus.OK))
    answer = await reader.read()
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1") == len(exchanges) == 1
    writer.close()
    await listener.close()


async def test_a_bug_is_logged_and_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(exchange: Exchange) -> Answer:
        raise ZeroDivisionError

    async with port_of(app) as (_, number):
        reader, writer = await asyncio.open_connection(HOST, number)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert "ZeroDivisionError" in caplog.text


async def test_the_command_serves_both_ports(redis: ArqRedis, redis_server: RedisServer) -> None:
    port, payments = free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "ingress", f"--port={port}"),
        f"--payments-port={payments}",
        env={**os.environ, "REDIS_URL": redis_server.url},
    )
    async with httpx.AsyncClient(verify=False, timeout=30) as client:
        for url in (f"http://{HOST}:{port}", f"http://{HOST}:{payments}"):

            async def ready(url: str = url) -> bool:
                try:
                    return (await client.get(f"{url}/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(ready, what="it is ready")
            body = {"correlationId": str(uuid4()), "amount": 1.5}
            assert (await client.post(f"{url}/payments", json=body)).status_code == 202
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert await redis.zcard("arq:queue") == 2


async def test_a_taken_port_is_one_line(redis_server: RedisServer) -> None:
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "payswitch", "ingress", f"--port={free_port()}"),
            f"--payments-port={number}",
            env={**os.environ, "REDIS_URL": redis_server.url},
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().splitlines()[-1].endswith(f"port {number}: address already in use")


async def test_several_processes_have_no_such_port() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "ingress", "--payments-port=9002", "--workers=2"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert "--payments-port is for one process" in errors.decode()


async def test_both_ports_must_differ() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "ingress", "--port=9001", "--payments-port=9001"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert "must be another than --port" in errors.decode()

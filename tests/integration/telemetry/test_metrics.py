"""`/metrics` of processes on a real Redis: of an ingress with several processes above all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from arq.connections import ArqRedis

from payswitch.operations import history as history_module
from payswitch.operations.history import HistoryWriter
from payswitch.payments.claims import Claims
from payswitch.store.client import connect
from payswitch.telemetry.shared_counts import shared, shared_by_processes
from tests.end_to_end.harness import processes
from tests.integration.harness import Bench, bench
from tests.metrics import value
from tests.support import PROCESSORS, SLACK_S, RedisServer, Reply, eventually, free_port

MEMORY = Path("/dev/shm")


def owners() -> list[int]:
    """The process that made each folder of shared counts."""
    return [int(each.name.split("-")[2]) for each in MEMORY.glob("payswitch-metrics-*")]


class Ingress:
    """An ingress of three processes, each of which may answer a new connection."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(verify=False) as client:
            return await client.get(self.url + path)

    async def pay(self, times: int) -> None:
        """Have so many payments accepted, each through a connection of its own."""
        for _ in range(times):
            body = {"correlationId": str(uuid4()), "amount": 1.5}
            async with httpx.AsyncClient(verify=False) as client:
                assert (await client.post(f"{self.url}/payments", json=body)).status_code == 202

    async def seen(self) -> set[tuple[float | None, float | None]]:
        """What several scrapes say of the accepted ones: their number by both who count them."""
        texts = [(await self.get("/metrics")).text for _ in range(10)]
        return {
            (
                value(text, "payswitch_accept_seconds_count", result="accepted"),
                value(text, "payswitch_acceptances_total", verdict="new"),
            )
            for text in texts
        }

    @property
    def children(self) -> set[int]:
        """Its serving processes."""
        return {pid for pid, (parent, _) in processes().items() if parent == self.process.pid}

    async def is_ready(self) -> bool:
        try:
            return (await self.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False


@contextlib.asynccontextmanager
async def an_ingress(redis_url: str, *options: str, **environment: str) -> AsyncIterator[Ingress]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "ingress", "--port", str(port), *options),
        env={**os.environ, "REDIS_URL": redis_url, **environment},
    )
    ingress = Ingress(process, port)
    try:
        await eventually(ingress.is_ready, what="the ingress is ready")
        yield ingress
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
async def test_another_programs_folder_of_metrics_is_left_alone(
    redis_server: RedisServer, tmp_path: Path, name: str
) -> None:
    async with an_ingress(redis_server.url, **{name: str(tmp_path)}) as ingress:
        await ingress.pay(1)
    assert not os.listdir(tmp_path)


async def test_several_processes_count_as_one_also_after_one_was_killed(
    redis_server: RedisServer,
) -> None:
    async with an_ingress(redis_server.url, "--workers", "3") as ingress:

        async def all_serve() -> bool:
            return len(ingress.children) == 3

        await eventually(all_serve, what="three processes serve")
        await ingress.pay(60)
        assert await ingress.seen() == {(60, 60)}
        killed = min(ingress.children)
        os.kill(killed, signal.SIGKILL)

        async def is_replaced() -> bool:
            return len(ingress.children - {killed}) == 3 and await ingress.is_ready()

        await eventually(is_replaced, what="another process serves in its place")
        await ingress.pay(40)
        assert await ingress.seen() == {(100, 100)}


@pytest.mark.skipif(not MEMORY.is_dir(), reason="no files in memory here")
async def test_a_stop_leaves_no_folder_and_a_start_removes_those_of_killed_ones(
    redis_server: RedisServer,
) -> None:
    for number, left in ((signal.SIGKILL, 1), (signal.SIGTERM, 0)):
        async with an_ingress(redis_server.url, "--workers", "2") as ingress:
            pid = ingress.process.pid
            assert owners().count(pid) == 1
            ingress.process.send_signal(number)
            await asyncio.wait_for(ingress.process.wait(), SLACK_S)
            assert owners().count(pid) == left
    with shared_by_processes():
        assert os.getpid() in owners()
        assert not {*owners()} - processes().keys()


async def test_a_killed_ingress_takes_its_processes_along(redis_server: RedisServer) -> None:
    async with an_ingress(redis_server.url, "--workers", "3") as ingress:
        children = ingress.children
        assert len(children) >= 3
        ingress.process.kill()

        async def have_ended() -> bool:
            return not children & processes().keys()

        await eventually(have_ended, what="no process is left")
    with shared_by_processes():  # the next ingress removes the killed one's folder
        folder = shared()
        assert folder is not None
        prefix = f"payswitch-metrics-{ingress.process.pid}-"
        assert [each for each in folder.parent.iterdir() if each.name.startswith(prefix)] == []


async def test_refusals_are_counted_by_status_and_reason(redis_server: RedisServer) -> None:
    async with an_ingress(redis_server.url) as ingress, httpx.AsyncClient(verify=False) as client:
        payments = f"{ingress.url}/payments"
        await client.post(payments, json={})
        await client.post(payments, content=b"x", headers={"content-type": "text/plain"})
        redis_server.signal(signal.SIGSTOP)
        try:
            body = {"correlationId": str(uuid4()), "amount": 1}
            assert (await client.post(payments, json=body)).status_code == 503
        finally:
            redis_server.signal(signal.SIGCONT)
        text = (await ingress.get("/metrics")).text
    for status in ("422", "415", "503"):
        assert value(text, "payswitch_refusals_total", status=status) == 1
    assert value(text, "payswitch_accept_seconds_count", result="refused") == 2
    assert value(text, "payswitch_accept_seconds_count", result="unavailable") == 1
    assert value(text, "payswitch_unavailable_total", reason="silent") == 1


@pytest.mark.parametrize("part", ["worker", "health"])
async def test_a_taken_port_ends_a_part_with_one_line(redis_server: RedisServer, part: str) -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "payswitch", part),
            env={
                **os.environ,
                "REDIS_URL": redis_server.url,
                "PAYSWITCH_METRICS_PORT": str(port),
                "PAYSWITCH_LOG_LEVEL": "error",
            },
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), SLACK_S)
    assert process.returncode == 1
    expected = f"payswitch: 127.0.0.1:{port} for the metrics: address already in use\n"
    assert err.decode() == expected


@pytest.fixture
async def one_worker(redis: ArqRedis, redis_server: RedisServer) -> AsyncIterator[Worker]:
    port = free_port()
    async with bench(redis) as b:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "payswitch", "worker"),
            env={
                **os.environ,
                "REDIS_URL": redis_server.url,
                "PAYMENT_PROCESSOR_URL_DEFAULT": b.default.url,
                "PAYMENT_PROCESSOR_URL_FALLBACK": b.fallback.url,
                "PAYSWITCH_METRICS_PORT": str(port),
            },
        )
        worker = Worker(b, f"http://127.0.0.1:{port}")
        await eventually(worker.serves, what="it serves its metrics")
        yield worker
        process.terminate()
        await process.wait()


class Worker:
    """A worker that serves its metrics, and what it pays through."""

    def __init__(self, b: Bench, url: str) -> None:
        self.bench = b
        self.url = url

    async def request(self, path: str, method: str = "GET") -> httpx.Response:
        async with httpx.AsyncClient(verify=False) as client:
            return await client.request(method, self.url + path)

    async def value(self, sample: str, **labels: str) -> float | None:
        return value((await self.request("/metrics")).text, sample, **labels)

    async def serves(self) -> bool:
        try:
            return (await self.request("/metrics")).status_code == 200
        except httpx.TransportError:
            return False


async def test_a_worker_serves_nothing_else(one_worker: Worker) -> None:
    assert (await one_worker.request("/")).status_code == 404
    wrong = await one_worker.request("/metrics", "POST")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")
    head = await one_worker.request("/metrics", "HEAD")
    assert (head.status_code, head.content) == (200, b"")


async def test_a_packet_full_of_requests_is_one_scrape(one_worker: Worker) -> None:
    url = httpx.URL(one_worker.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n" * 1000)
    answers = await asyncio.wait_for(reader.read(), SLACK_S)
    writer.close()
    assert answers.count(b"HTTP/1.1 200 OK") == 1


async def test_a_header_that_never_ends_is_not_kept(one_worker: Worker) -> None:
    url = httpx.URL(one_worker.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nX: ")

    async def send_for_ever() -> None:
        while True:
            writer.write(b"a" * 65536)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send_for_ever(), SLACK_S)


async def test_failures_open_the_breaker_that_a_worker_shows(one_worker: Worker) -> None:
    one_worker.bench.default.script = [Reply(500, b"{}", record=False)] * 1000
    for _ in range(8):
        await one_worker.bench.accept()
    state = {"processor": "default", "state": "closed"}

    async def is_open() -> bool:
        return await one_worker.value("payswitch_breaker_state", **state) == 0

    await eventually(is_open, what="the breaker opens")
    ended = {"processor": "default", "outcome": "ended"}
    assert (await one_worker.value("payswitch_processor_call_seconds_count", **ended) or 0) >= 5


async def test_a_worker_shows_a_processor_that_refuses_most(one_worker: Worker) -> None:
    one_worker.bench.default.script = [Reply(422)] * 1000
    for _ in range(8):
        await one_worker.bench.accept()

    async def refuses() -> bool:
        return await one_worker.value("payswitch_breaker_refusing", processor="default") == 1

    await eventually(refuses, what="the breaker opens")
    assert await one_worker.value("payswitch_breaker_refusing", processor="fallback") == 0


async def test_a_redis_that_is_away_is_counted(own_redis: RedisServer) -> None:
    client = connect(own_redis.url, limit_s=1)
    writer = HistoryWriter(client, PROCESSORS)
    writer.start()

    async def knows() -> bool:
        return writer.latest is not None

    async def has_failed() -> bool:
        return writer.failures > 0

    await eventually(knows, what="it has read Redis")
    assert writer.failures == 0
    own_redis.kill()
    await eventually(has_failed, what="it counts the failure")
    await writer.close()
    await client.aclose(close_connection_pool=True)


async def test_what_was_read_long_ago_is_not_shown(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = HistoryWriter(redis, PROCESSORS)
    await writer.write()
    assert writer.latest is not None
    monkeypatch.setattr(history_module, "FRESH_S", -1)
    assert writer.latest is None


async def test_only_the_first_claim_counts_as_the_wait_in_the_queue(redis: ArqRedis) -> None:
    async with bench(redis) as b:
        await b.accept()
        claims = Claims(redis, lease_ms=1500, deadline_ms=60_000, max_delay_ms=300)
        [claimed] = (await claims.take(10)).taken
        assert claims.waits.total == 1
        await b.dispatcher.give_back(claimed.claim, delay_ms=0)
        assert (await claims.take(10)).taken
        assert claims.waits.total == 1

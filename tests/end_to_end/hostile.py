"""Two ingress instances behind HAProxy, without workers, and raw connections that abuse them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from payswitch.local.machine import find_haproxy
from tests.end_to_end.harness import HOST, Ports, clean_environment, client, processes
from tests.support import SLACK_S, RedisServer, eventually

WHOLE_DOORS = [
    "ingress",
    pytest.param(
        "haproxy",
        marks=pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed"),
    ),
]
"""Where clients come in for everything: at one ingress, or at HAProxy before two."""

DOORS = [*WHOLE_DOORS, "payments port"]
"""The same, and where an ingress takes payments only."""

Clients = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
"""Open connections."""

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_LOCATION = re.compile(rb"^location: */payments/(\S+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """One answer as it came over a connection."""

    status: int
    head: bytes
    body: bytes

    @property
    def accepted(self) -> str | None:
        """The id of the payment that this answer acknowledges."""
        found = _LOCATION.search(self.head)
        return found[1].decode() if found and self.status == 202 else None


@dataclass
class Edge:
    """The running servers, by door."""

    redis: RedisServer
    ports: dict[str, int]
    payments_ports: list[int]
    """Where HAProxy sends payments."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def url(self, door: str) -> str:
        """Where a client would call."""
        return f"http://{HOST}:{self.ports[door]}"

    def pids(self, *names: str) -> set[int]:
        """Every process that serves, or those of these names; the worker of HAProxy among them."""
        started = {self.processes[name].pid for name in names or self.processes}
        return started | {pid for pid, (parent, _) in processes().items() if parent in started}

    def rss_mb(self) -> dict[int, float]:
        """Resident memory of each process, in MB."""
        return {pid: _rss_mb(pid) for pid in self.pids()}

    def payments(self) -> set[str]:
        """The ids of all payments that exist."""
        with Redis(port=self.redis.port) as redis:
            return {key.decode().partition(":")[2] for key in redis.keys("payment:*")}

    async def pay(self, door: str) -> str:
        """Pay as an honest client, once; returns the id."""
        payment = str(uuid4())
        async with client(self.url(door)) as http:
            answer = await http.post("/payments", json={"correlationId": payment, "amount": 1})
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/payments/{payment}"
        return payment

    async def talk(
        self,
        door: str,
        data: bytes,
        *,
        head: bool = False,
        quiet: Callable[[], Awaitable[None]] | None = None,
        source: str = HOST,
    ) -> list[Answer]:
        """Send bytes from an address, take what comes until the server closes, and hang up. With
        `quiet` also once that has returned and nothing has come meanwhile."""
        reader, writer = await asyncio.open_connection(
            HOST, self.ports[door], local_addr=(source, 0)
        )
        received = b""
        try:
            writer.write(data)
            async with asyncio.timeout(SLACK_S):
                while more := await _read(reader, quiet):
                    received += more
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.transport.abort()
        return parse_answers(received, head=head)


async def _read(reader: asyncio.StreamReader, quiet: Callable[[], Awaitable[None]] | None) -> bytes:
    """What comes next; nothing if it doesn't come before `quiet` returns."""
    if quiet is None:
        return await reader.read(65_536)
    more = asyncio.ensure_future(reader.read(65_536))
    silence = asyncio.ensure_future(quiet())
    try:
        await asyncio.wait({more, silence}, return_when=asyncio.FIRST_COMPLETED)
        return more.result() if more.done() else b""
    finally:
        more.cancel()
        silence.cancel()


def parse_answers(received: bytes, *, head: bool = False) -> list[Answer]:
    """Split what came into answers; the last may be cut off. `head`: they have no bodies."""
    answers = []
    while found := _HEAD.match(received):
        status = int(found[1])
        length = _LENGTH.search(found[2])
        size = int(length[1]) if length and status >= 200 and not head else 0
        end = found.end() + size
        answers.append(Answer(status, found[2], received[found.end() : end]))
        received = received[end:]
    assert not received.startswith(b"{"), received
    return answers


@contextlib.contextmanager
def running_edge(
    folder: Path, *, purge: str = "off", payments_ports: bool = True, **settings: str
) -> Iterator[Edge]:
    """Redis, two ingress and, where it is installed, HAProxy before them; without `payments_ports`
    nobody listens where HAProxy looks for these. `settings` are more variables."""
    redis = RedisServer(folder)
    redis.start()
    ports = Ports()
    names = {"ingress": ports.ingress, "ingress-2": ports.ingress + 1, "haproxy": ports.endpoint}
    payments_at = {"ingress": ports.default, "ingress-2": ports.fallback}
    doors = {**names, "payments port": ports.default}
    edge = Edge(redis, doors, list(payments_at.values()))
    environment = clean_environment({"REDIS_URL": redis.url, "PAYSWITCH_PURGE": purge, **settings})
    try:
        for name in ("ingress", "ingress-2"):
            command = [sys.executable, "-P", "-m", "payswitch", "ingress"]
            options = [f"--port={names[name]}"]
            if payments_ports:
                options.append(f"--payments-port={payments_at[name]}")
            edge.processes[name] = subprocess.Popen(
                [*command, *options], env=environment, stderr=subprocess.DEVNULL
            )
        if (haproxy := find_haproxy()) is not None:
            bindings = {"PAYSWITCH_BIND": f"{HOST}:{ports.endpoint}"}
            bindings |= {f"INGRESS_{n + 1}": f"{HOST}:{ports.ingress + n}" for n in (0, 1)}
            bindings |= {
                f"PAYMENTS_{n}": f"{HOST}:{port}" for n, port in enumerate(payments_at.values(), 1)
            }
            edge.processes["haproxy"] = subprocess.Popen(
                haproxy, env=environment | bindings, stderr=subprocess.DEVNULL
            )
        asyncio.run(_all_ready(edge))
        yield edge
    finally:
        for process in edge.processes.values():
            process.terminate()
        for process in edge.processes.values():
            process.wait(SLACK_S)
        redis.kill()


async def _all_ready(edge: Edge) -> None:
    for name in edge.processes:
        async with client(edge.url(name)) as http:

            async def ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/readyz")).status_code == 200
                return False

            await eventually(ready, what=f"{name} is ready")


@contextlib.asynccontextmanager
async def many_connections(
    port: int, data: bytes | Callable[[], bytes], count: int
) -> AsyncIterator[Clients]:
    """So many connections that have sent these bytes, or those made for each, and say no more."""
    opened: Clients = []

    async def connect() -> None:
        async with gate:
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(data() if callable(data) else data)
            opened.append((reader, writer))

    gate = asyncio.Semaphore(100)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(connect())
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()


def allow_files(count: int) -> None:
    """Let this process open so many files; skip the test where the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} open files, the system allows {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0

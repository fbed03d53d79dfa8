"""Clients that are slow, silent, endless or that hide requests within requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from payswitch.local.machine import find_haproxy
from tests.end_to_end.conftest import StartSystem
from tests.end_to_end.harness import HOST, PATIENT_MS, processes
from tests.end_to_end.hostile import (
    DOORS,
    Answer,
    Edge,
    allow_files,
    many_connections,
    running_edge,
)
from tests.end_to_end.load import drive
from tests.support import eventually

NEEDS_HAPROXY = pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed")
POST = b"POST /payments HTTP/1.1\r\nHost: x\r\n"
FLAT_MB = 100
"""What a process may grow by under clients that do nothing but come."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    with running_edge(folder, PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS) as edge:
        yield edge


def grown_mb(edge: Edge, before: dict[int, float]) -> float:
    """The most that any process has grown by; all of them run still."""
    after = edge.rss_mb()
    assert after.keys() == before.keys()
    return max(after[pid] - before[pid] for pid in before)


async def last_words(
    connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
    drip: bytes = b"",
    *,
    within_s: float = 90,
) -> set[bytes]:
    """Wait until the server has closed all these connections, each of which gets a byte more every
    half second; returns the different status lines that came."""

    async def end(reader: asyncio.StreamReader) -> bytes:
        received = b""
        with contextlib.suppress(ConnectionError):
            received = await reader.read()
        return received.partition(b"\r\n")[0]

    async def drip_on() -> None:
        while True:
            await asyncio.sleep(0.5)
            for _, writer in connections:
                writer.write(drip)

    dripping = asyncio.create_task(drip_on())
    try:
        async with asyncio.timeout(within_s):
            return set(await asyncio.gather(*(end(reader) for reader, _ in connections)))
    finally:
        dripping.cancel()


STALLED = {
    "idle": (b"", b""),
    "half a request line": (b"POST /pay", b"a"),
    "half a header": (POST + b"X-Slow: ", b"a"),
    "half a body": (POST + b"Content-Length: 90\r\n\r\n{", b" "),
    "half a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n50\r\n{", b" "),
    "half a large body": (
        # More than HAProxy's buffer takes, so that it waits for the rest at an ingress.
        POST + b"X: " + b"x" * 6000 + b"\r\nContent-Length: 4000\r\n\r\n" + b" " * 1500,
        b" ",
    ),
}
"""What clients begin with, and what each of them then sends now and then."""


@pytest.mark.parametrize(
    "count",
    [40, pytest.param(700, marks=[pytest.mark.long, pytest.mark.timeout(300)])],
    ids=["few", "many"],
)
async def test_clients_that_stall_keep_nobody_out_and_are_dropped(edge: Edge, count: int) -> None:
    """So many of each kind at once, at both ports of an ingress and at HAProxy."""
    doors = sorted(
        edge.ports.keys() & {"ingress", "payments port", *edge.processes} - {"ingress-2"}
    )
    allow_files(len(STALLED) * len(doors) * count + 1000)
    for door in doors:
        await edge.pay(door)
    before = edge.rss_mb()
    async with AsyncExitStack() as stack:
        waiting = {
            (door, kind): asyncio.create_task(last_words(connections, drip))
            for door, (kind, (data, drip)) in itertools.product(doors, STALLED.items())
            for connections in [
                await stack.enter_async_context(many_connections(edge.ports[door], data, count))
            ]
        }
        paid = {await edge.pay(door) for door in doors * 10}
        assert paid <= edge.payments()
        assert grown_mb(edge, before) < FLAT_MB + 0.1 * count
        heard = {which: await words for which, words in waiting.items()}
    for (door, kind), statuses in heard.items():
        if "body" in kind or "chunk" in kind:
            allowed = {408, 413, 503} if kind == "half a large body" else {408}
            if door == "payments port":  # the oldest make room without a word
                statuses.discard(b"")
            assert {int(status.split()[1]) for status in statuses} <= allowed, (door, kind)
    for door in doors:
        await edge.pay(door)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", [kind for kind in STALLED if kind != "half a large body"])
async def test_five_thousand_clients_that_stall_keep_nobody_out(
    edge: Edge, door: str, kind: str
) -> None:
    allow_files(6000)
    before = edge.rss_mb()
    data, drip = STALLED[kind]
    async with many_connections(edge.ports[door], data, 5000) as stalled:
        waiting = asyncio.create_task(last_words(stalled, drip))
        for _ in range(20):
            await edge.pay(door)
        assert grown_mb(edge, before) < FLAT_MB
        await waiting
    await edge.pay(door)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize(
    "megabytes",
    [10, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(300)])],
    ids=["10 MB", "1 GB"],
)
async def test_a_huge_body_is_refused_early(
    edge: Edge, door: str, framing: str, megabytes: int
) -> None:
    before = edge.rss_mb()
    million = b" " * 1_000_000
    head, piece = {
        "content-length": (b"Content-Length: %d\r\n\r\n" % (megabytes * 1_000_000), million),
        "chunked": (b"Transfer-Encoding: chunked\r\n\r\n", b"f4240\r\n" + million + b"\r\n"),
    }[framing]
    _, writer = await asyncio.open_connection(HOST, edge.ports[door])
    sent = 0
    try:
        writer.write(POST + head)
        async with asyncio.timeout(60):
            for _ in range(megabytes):
                writer.write(piece)
                await writer.drain()
                sent += 1
                await edge.pay(door)
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    assert sent < 10
    assert grown_mb(edge, before) < 50


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_a_body_that_is_too_large_is_answered_with_413(
    edge: Edge, door: str, framing: str
) -> None:
    """By one byte."""
    body = b" " * 4097
    whole = {
        "content-length": b"Content-Length: 4097\r\n\r\n" + body,
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n1001\r\n" + body + b"\r\n0\r\n\r\n",
    }[framing]
    [answer] = await edge.talk(door, POST + whole)
    assert answer.status == 413
    assert b"application/problem+json" in answer.head


@NEEDS_HAPROXY
async def test_large_bodies_that_stall_have_few_places_and_keep_no_payment_waiting(
    edge: Edge,
) -> None:
    data, _ = STALLED["half a large body"]
    async with many_connections(edge.ports["haproxy"], data, 80) as large:
        first, _ = await asyncio.wait(
            [asyncio.create_task(reader.readline()) for reader, _ in large],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert {(await each).split()[1] for each in first} == {b"503"}
        for _ in range(20):
            await edge.pay("haproxy")


@NEEDS_HAPROXY
async def test_a_reload_of_haproxy_loses_no_request(start_system: StartSystem) -> None:
    system = start_system("--workers=1", PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS)
    master = system.pids()["haproxy"]
    load = asyncio.create_task(drive(system, rate=100, count=300))
    for _ in range(3):
        old = children(master)
        os.kill(master, signal.SIGUSR2)

        async def renewed(old: set[int] = old) -> bool:
            return bool(children(master) - old) and hears(master, signal.SIGUSR2)

        await eventually(renewed, what="HAProxy has another worker")
    done = await load
    assert done.refused == []
    assert len(done.accepted) == 300
    assert system.pids()["haproxy"] == master


def children(parent: int) -> set[int]:
    """The processes that a process has started."""
    return {pid for pid, (its_parent, _) in processes().items() if its_parent == parent}


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, and lets it through."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = {name: int(mask, 16) for name, mask in re.findall(r"Sig(\w+):\s+(\w+)", status)}
    return bool((masks["Cgt"] & ~masks["Blk"]) >> (number - 1) & 1)


# Requests that hide others. `{a}` and `{b}` are payments of 67 bytes; the second value says which
# of them a reader of RFC 9112 may see; one that follows a refused request may be.
A, B = b"{a}", b"{b}"
HIDDEN = POST + b"Content-Length: 67\r\n\r\n" + B
HIDDEN_SIZE = len(HIDDEN) - len(B) + 67
CHUNK_A = b"43\r\n" + A + b"\r\n0\r\n\r\n"
SHAPES: dict[str, tuple[bytes, str]] = {
    "pipelined": (POST + b"Content-Length: 67\r\n\r\n" + A + HIDDEN, "ab"),
    "in a body": (POST + b"Content-Length: %d\r\n\r\n" % HIDDEN_SIZE + HIDDEN, ""),
    "CL.TE": (
        POST + b"Content-Length: 67\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK_A + HIDDEN,
        "ab",
    ),
    "TE.CL": (
        POST
        + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%x\r\n" % HIDDEN_SIZE
        + HIDDEN,
        "",
    ),
    "two lengths": (POST + b"Content-Length: 0\r\nContent-Length: 67\r\n\r\n" + A + HIDDEN, ""),
    "a list of lengths": (POST + b"Content-Length: 0, 67\r\n\r\n" + A + HIDDEN, ""),
    "the same length twice": (
        POST + b"Content-Length: 67\r\nContent-Length: 67\r\n\r\n" + A + HIDDEN,
        "ab",
    ),
    "length with plus": (POST + b"Content-Length: +67\r\n\r\n" + A + HIDDEN, ""),
    "length with minus": (POST + b"Content-Length: -67\r\n\r\n" + A + HIDDEN, ""),
    "length in hex": (POST + b"Content-Length: 0x43\r\n\r\n" + A + HIDDEN, ""),
    "length with a space inside": (POST + b"Content-Length: 6 7\r\n\r\n" + A + HIDDEN, ""),
    "space before the colon": (POST + b"Content-Length : 67\r\n\r\n" + A + HIDDEN, ""),
    "space before the colon of TE": (
        POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNK_A + HIDDEN,
        "",
    ),
    "a folded header": (POST + b"X: a\r\n Content-Length: 0\r\n\r\n" + HIDDEN, "b"),
    "a folded TE": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNK_A + HIDDEN, "ab"),
    "bare line feeds": (
        (POST + b"Content-Length: 67\r\n\r\n").replace(b"\r", b"") + A + HIDDEN,
        "ab",
    ),
    "a bare carriage return": (POST + b"X: a\rContent-Length: 67\r\n\r\n" + HIDDEN, ""),
    "NUL in a header": (POST + b"X: a\0b\r\nContent-Length: 67\r\n\r\n" + A + HIDDEN, "b"),
    "TE: xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNK_A + HIDDEN, ""),
    "TE with a vertical tab": (
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNK_A + HIDDEN,
        "",
    ),
    "TE with a tab": (POST + b"Transfer-Encoding:\tchunked\r\n\r\n" + CHUNK_A + HIDDEN, "ab"),
    "TE: identity": (
        POST + b"Transfer-Encoding: identity\r\nContent-Length: 67\r\n\r\n" + A + HIDDEN,
        "",
    ),
    "TE in odd casing": (POST + b"tRANSFER-eNCODING: CHUnked\r\n\r\n" + CHUNK_A + HIDDEN, "ab"),
    "TE twice": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n" + CHUNK_A + HIDDEN,
        "",
    ),
    "chunked twice": (
        POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNK_A + HIDDEN,
        "ab",
    ),
    "chunked not last": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + CHUNK_A + HIDDEN, ""),
    "TE in HTTP/1.0": (
        POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK_A + HIDDEN,
        "a",
    ),
    "a chunk extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK_A.replace(b"43", b"43;x=y") + HIDDEN,
        "ab",
    ),
    "a line feed in a chunk extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK_A.replace(b"43", b"43;\nx") + HIDDEN,
        "",
    ),
    "a chunk size with 0x": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK_A.replace(b"43", b"0x43") + HIDDEN,
        "",
    ),
    "a negative chunk size": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK_A.replace(b"43", b"-43") + HIDDEN,
        "",
    ),
    "a chunk size beyond 64 bits": (
        POST
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + CHUNK_A.replace(b"43", b"10000000000000043")
        + HIDDEN,
        "",
    ),
    "a chunk longer than it says": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK_A.replace(b"43", b"42") + HIDDEN,
        "",
    ),
    "in a trailer": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n43\r\n" + A + b"\r\n0\r\nX: " + HIDDEN,
        "ab",
    ),
    "GET with a body": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % HIDDEN_SIZE + HIDDEN,
        "",
    ),
    "an underscore for the hyphen": (POST + b"Content_Length: 67\r\n\r\n" + A + HIDDEN, ""),
    "absolute form": (
        POST.replace(b"/pay", b"http://y/pay") + b"Content-Length: 67\r\n\r\n" + A,
        "a",
    ),
    "two spaces in the request line": (
        POST.replace(b" /", b"  /") + b"Content-Length: 67\r\n\r\n" + A,
        "a",
    ),
    "a line before the request": (
        b"\r\n" + POST + b"Content-Length: 67\r\n\r\n" + A + HIDDEN,
        "ab",
    ),
    "no version": (b"POST /payments\r\n" + HIDDEN, ""),
    "an upgrade": (
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 67\r\n\r\n" + A + HIDDEN,
        "ab",
    ),
    "a method in a path": (
        b"GET /x HTTP/1.1\r\nX: y\r\n\r\n".replace(b"/x", b"/x\r\n") + HIDDEN,
        "",
    ),
}


def payment(correlation_id: str) -> bytes:
    """A payment of 67 bytes."""
    return b'{"correlationId":"%s","amount":1}' % correlation_id.encode()


class Victims:
    """Three honest clients who pay one after another, while others attack."""

    def __init__(self, edge: Edge, door: str) -> None:
        self._edge, self._door = edge, door
        self._over = False
        self.paid: set[str] = set()

    async def pay(self) -> None:
        """Pay until `stop`."""
        while not self._over:
            self.paid.add(await self._edge.pay(self._door))

    def stop(self) -> None:
        self._over = True

    async def rounds(self) -> None:
        """Return after so many payments that the servers have come by every open connection."""
        enough = len(self.paid) + 24
        while len(self.paid) < enough:
            await asyncio.sleep(0.01)


async def attack(
    edge: Edge, door: str, shape: bytes, victims: Victims
) -> tuple[str, str, list[Answer]]:
    """Send a shape with two new payments; returns their ids and what came back until the server
    closed, or had nothing more to say while it served others."""
    a, b = str(uuid4()), str(uuid4())
    data = shape.replace(A, payment(a)).replace(B, payment(b))
    return a, b, await edge.talk(door, data, quiet=victims.rounds)


async def assert_unhurt(edge: Edge, door: str, shapes: dict[str, tuple[bytes, str]]) -> None:
    """Send the shapes while others pay: each gets its own answers, and only what was answered
    exists."""
    victims = Victims(edge, door)
    before = edge.payments()
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(victims.pay())
        outcomes = await asyncio.gather(
            *(attack(edge, door, data, victims) for data, _ in shapes.values())
        )
        victims.stop()
    expected = before | victims.paid
    wrong = []
    for (name, (_, seen)), (a, b, answers) in zip(shapes.items(), outcomes, strict=True):
        accepted = {answer.accepted for answer in answers if answer.accepted}
        failed = any(answer.status >= 500 for answer in answers)
        if failed or not accepted <= {{"a": a, "b": b}[which] for which in seen}:
            wrong.append((name, answers))
        expected |= accepted
    assert wrong == []
    assert edge.payments() == expected


def test_the_payments_have_the_length_that_the_shapes_say() -> None:
    length = len(payment(str(uuid4())))
    assert length == 67


@pytest.mark.parametrize("door", DOORS)
async def test_no_request_is_smuggled_in_another(edge: Edge, door: str) -> None:
    await assert_unhurt(edge, door, SHAPES)


LENGTHS = [b"", b"Content-Length: 0\r\n", b"Content-Length: 67\r\n", b"Content-Length: 90\r\n"]
SPELLINGS = [
    *(b"Transfer-Encoding", b"transfer-encoding", b"Transfer_Encoding", b" Transfer-Encoding"),
    *(b"Transfer-Encoding ", b"Transfer-Encoding\t", b"X: y\nTransfer-Encoding"),
]
CODINGS = [
    *(b"chunked", b" chunked", b"\tchunked", b"\x0bchunked", b"\x00chunked", b'"chunked"'),
    *(b"Chunked", b"chunke\xc4\x8f", b"chunked ", b"chunked;q=1", b"chunked,", b",chunked"),
    *(b"\r\n chunked", b"identity", b"identity, chunked", b"chunked\r\nTransfer-Encoding: x"),
]
BODIES = [
    CHUNK_A,
    CHUNK_A.replace(b"\r\n", b"\n"),
    CHUNK_A.replace(b"43", b"043"),
    CHUNK_A.replace(b"43", b"43 "),
    b"0\r\n\r\n",
    A,
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "count",
    [100, pytest.param(2500, marks=[pytest.mark.long, pytest.mark.timeout(600)])],
    ids=["some", "all"],
)
async def test_no_mixture_of_framings_smuggles_a_request(edge: Edge, door: str, count: int) -> None:
    """Whatever is taken for a request is answered to its sender, and nothing else is."""
    mixtures = list(itertools.product(LENGTHS, SPELLINGS, CODINGS, BODIES))
    chosen = random.Random(count).sample(mixtures, min(count, len(mixtures)))
    shapes = {
        repr(parts): (
            POST + length + spelling + b":" + coding + b"\r\n\r\n" + body + HIDDEN,
            "ab",
        )
        for parts in chosen
        for length, spelling, coding, body in [parts]
    }
    names = list(shapes)
    for first in range(0, len(names), 200):
        await assert_unhurt(edge, door, {name: shapes[name] for name in names[first : first + 200]})

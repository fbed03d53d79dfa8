"""Many clients at once, and one that takes all that it can get."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from payswitch.local.machine import find_haproxy
from tests.end_to_end.harness import HOST, PATIENT_MS
from tests.end_to_end.hostile import Edge, allow_files, many_connections, running_edge
from tests.support import SLACK_S, eventually

pytestmark = pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed")

POST = b"POST /payments HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
HUNDRED = [f"127.0.0.{n}" for n in range(101, 201)]
"""Addresses of clients, all of this machine."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Its Redis has all the time that a slow machine takes for hundreds of payments at once."""
    folder = tmp_path_factory.mktemp("edge")
    with running_edge(folder, PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS) as edge:
        yield edge


def pay(more: bytes = b"") -> bytes:
    body = b'{"correlationId":"%s","amount":1}' % str(uuid4()).encode()
    return POST + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


@contextlib.contextmanager
def burst(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many clients, each of which sends its payment once it is connected and waits for nothing.
    They are plain sockets: HAProxy waits 5 s for a request, however slow the machine is."""
    allow_files(count + 500)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = socket.create_connection((HOST, port), timeout=SLACK_S)
            clients.append(stack.enter_context(client))
            client.sendall(pay())
        yield clients


def statuses(clients: list[socket.socket]) -> Counter[int]:
    """How often each status came."""
    return Counter(int(client.makefile("rb").read().split()[1]) for client in clients)


def test_of_3000_payments_in_one_moment_none_is_refused(edge: Edge) -> None:
    """HAProxy, which was away for a moment, finds all of them, and makes the ones wait for which
    the ingress have no room."""
    if int(Path("/proc/sys/net/core/somaxconn").read_text()) < 3000:
        pytest.skip("the system lets fewer clients wait for a program")
    haproxy = edge.pids("haproxy")
    for pid in haproxy:
        os.kill(pid, signal.SIGSTOP)
    try:
        with burst(edge.ports["haproxy"], 3000) as clients:
            for pid in haproxy:
                os.kill(pid, signal.SIGCONT)
            assert statuses(clients) == {202: 3000}
    finally:
        for pid in haproxy:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.long
def test_of_16_000_payments_that_come_as_fast_as_they_can_none_is_refused(edge: Edge) -> None:
    with burst(edge.ports["haproxy"], 16_000) as clients:
        assert statuses(clients) == {202: 16_000}


DAWDLING = POST + b"X-Padding: " + b"x" * 6000 + b"\r\nContent-Length: 4000\r\n\r\n" + b" " * 1500
"""More than a buffer takes, so that it waits for the rest at an ingress."""


async def test_a_client_that_dawdles_takes_no_place_of_others(edge: Edge) -> None:
    """It sends as many such requests at once as there are places, and more."""
    large = pay(b"Cookie: " + b"x" * 6000 + b"\r\n")
    whole = pay().replace(b"Content-Length: 67", b"Content-Length: 4000") + b" " * 3933
    both = whole.replace(b"Connection", b"Cookie: " + b"x" * 6000 + b"\r\nConnection")
    async with AsyncExitStack() as stack:
        dawdling = await stack.enter_async_context(
            many_connections(edge.ports["haproxy"], DAWDLING, 70)
        )
        refused = [asyncio.ensure_future(reader.readline()) for reader, _ in dawdling]

        async def has_its_share() -> bool:
            return sum(each.done() for each in refused) == 62

        await eventually(has_its_share, what="the client has 8 requests under way")
        for request in (pay(), large, both):
            answers = await asyncio.gather(
                *(edge.talk("haproxy", request_of(request), source=each) for each in HUNDRED)
            )
            assert Counter(answer.status for [answer] in answers) == {202: len(HUNDRED)}
        for each in refused:
            each.cancel()


async def test_a_client_that_watches_a_lot_takes_no_place_of_others(edge: Edge) -> None:
    watch = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
    async with many_connections(edge.ports["haproxy"], watch, 40) as greedy:
        heads = await asyncio.gather(*(reader.readline() for reader, _ in greedy))
        assert Counter(line.split()[1] for line in heads) == {b"200": 32, b"503": 8}
        reader, writer = await asyncio.open_connection(
            HOST, edge.ports["haproxy"], local_addr=(HUNDRED[0], 0)
        )
        writer.write(watch)
        async with asyncio.timeout(SLACK_S):
            assert (await reader.readline()).split()[1] == b"200"
        writer.transport.abort()


def request_of(template: bytes) -> bytes:
    """The same request for another payment."""
    at = template.index(b'"correlationId":"') + len(b'"correlationId":"')
    return template[:at] + str(uuid4()).encode() + template[at + 36 :]

"""The transport over real sockets, on both event loops; where it matters, beside stock httpx."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import inspect
import itertools
import os
import random
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import httpx
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from payswitch.http.client_connection import ClientConnection, ResponseReader
from payswitch.http.transport import NotSent, Transport, bytes_left

HOST = "127.0.0.1"
SLACK_S = 20
SOON_S = 0.1
LATER_S = 0.6
LIMIT = 64 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Test = Callable[..., Coroutine[Any, Any, None]]


def on_both_loops(test: Test) -> Callable[..., None]:
    """Run a test on asyncio's own loop and on uvloop: they write, abort and report differently."""

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            problems: list[Any] = []
            runner.get_loop().set_exception_handler(lambda _, problem: problems.append(problem))
            runner.run(asyncio.wait_for(test(**arguments), SLACK_S))
            assert problems == []

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]
    own = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(test)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own, *signature.parameters.values()]
    )
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    mark = pytest.mark.parametrize("new_loop", loops, ids=["asyncio", "uvloop"])
    return cast(Callable[..., None], mark(run))


class Peer:
    """The server's side of one connection, on which a test says exactly what is sent, and when."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.socket = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))

    async def request(self) -> bytes:
        """The next request, with its body; raises `IncompleteReadError` where there is none."""
        head = await self.head()
        body = b""
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                body = await self.reader.readexactly(int(line.split(b":")[1]))
        return head + body

    async def head(self) -> bytes:
        """The head of a request, without reading more of its body than comes along."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def drained(self) -> tuple[int, str]:
        """Read past the stream: how many bytes still come, and how the connection ends."""
        size, loop = 0, asyncio.get_running_loop()
        self.socket.setblocking(False)
        try:
            while part := await loop.sock_recv(self.socket, 64 * 1024):
                size += len(part)
        except ConnectionResetError:
            return size, "reset"
        return size, "closed"

    def pause(self) -> None:
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def read_on(self) -> None:
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def send_much(self, piece: bytes, times: int) -> None:
        for _ in range(times):
            await self.send(piece)

    async def answer(self, *parts: bytes) -> bytes:
        request = await self.request()
        await self.send(*parts)
        return request

    async def rest(self) -> bytes:
        """What still comes until the client ends the connection in an orderly way."""
        return await self.reader.read()

    def end_silently(self) -> None:
        """Send a FIN at once, before the client's loop runs."""
        self.socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        self.socket.close()
        self.writer.close()

    def reset(self) -> None:
        if self.socket.fileno() == -1:
            return
        reset_on_close(self.socket)
        self.socket.close()
        self.writer.transport.abort()


def reset_on_close(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A socket whose connections nobody accepts but the test."""
    with socket.create_server((HOST, 0)) as listener:
        listener.setblocking(False)
        yield listener


class Server:
    """A listening socket whose connections are served by the test itself."""

    def __init__(self, scheme: str, listener: asyncio.Server) -> None:
        self.listener = listener
        port = listener.sockets[0].getsockname()[1]
        self.url = httpx.URL(f"{scheme}://{HOST}:{port}/payments")
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()

    async def stop(self) -> None:
        """Listen no longer."""
        self.listener.close()
        await asyncio.sleep(0)

    async def accept(self) -> Peer:
        """The next connection."""
        return await self._accepted.get()

    def accepted(self, peer: Peer) -> None:
        self.peers.append(peer)
        self._accepted.put_nowait(peer)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)


@asynccontextmanager
async def serving(
    each: Callable[[Peer], Coroutine[Any, Any, None]] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """A server. `each`, if given, serves every connection in the test's stead."""

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        server.accepted(peer)
        if each is not None:
            server.spawn(each(peer))

    listener = await asyncio.start_server(connected, HOST, 0, ssl=tls)
    server = Server("https" if tls else "http", listener)
    try:
        yield server
    finally:
        listener.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        for peer in server.peers:
            peer.reset()
        await asyncio.sleep(0)


def limits(**seconds: float | None) -> dict[str, float | None]:
    return {"connect": SLACK_S, "read": SLACK_S, "write": SLACK_S, "pool": SLACK_S} | seconds


def post(
    url: httpx.URL | str,
    content: Any = b"{}",
    method: str = "POST",
    headers: Any = None,
    **extensions: Any,
) -> httpx.Request:
    return httpx.Request(
        method, url, content=content, headers=headers, extensions={"timeout": limits()} | extensions
    )


def start(
    transport: httpx.AsyncBaseTransport, request: httpx.Request
) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(transport.handle_async_request(request))


async def failure(call: asyncio.Task[httpx.Response]) -> httpx.TransportError:
    """The error with which a call ends."""
    with pytest.raises(httpx.TransportError) as caught:
        await call
    return caught.value


async def cancelled(call: asyncio.Task[httpx.Response]) -> None:
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call


async def ended(peer: Peer) -> str:
    """How the client ends a connection."""
    try:
        await peer.rest()
    except ConnectionResetError:
        return "reset"
    return "closed"


async def outcome(transport: httpx.AsyncBaseTransport, request: httpx.Request) -> Any:
    """All that a caller sees of a call."""
    try:
        response = await transport.handle_async_request(request)
        content = await response.aread()
    except httpx.TransportError as error:
        return type(error)
    version, reason = (response.extensions[key] for key in ("http_version", "reason_phrase"))
    return response.status_code, response.headers.raw, content, version, reason


@functools.cache
def default_trust() -> ssl.SSLContext:
    return httpx.create_ssl_context()


async def both_outcomes(request: Callable[[], httpx.Request]) -> tuple[Any, Any]:
    """What stock httpx makes of a request, and what ours does."""
    async with httpx.AsyncHTTPTransport(verify=default_trust()) as stock, Transport() as ours:
        return await outcome(stock, request()), await outcome(ours, request())


def replying(reply: bytes) -> Callable[[Peer], Coroutine[Any, Any, None]]:
    async def serve(peer: Peer) -> None:
        await peer.answer(reply)
        peer.hang_up()

    return serve


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

ANSWERS = {
    "a length": FINAL,
    "no body": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "an empty reason": b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
    "a reason beyond ascii": b"HTTP/1.1 200 \xc3\xa9t\xc3\xa9\r\nContent-Length: 2\r\n\r\nok",
    "no length": b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nuntil the end",
    "no headers": b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "nothing but the head of an error": b"HTTP/1.1 404 Not Found\r\n\r\n",
    "nothing, as it says": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "chunks": CHUNKED + b"2\r\nok\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "no chunk": CHUNKED + b"0\r\n\r\n",
    "chunk extensions": CHUNKED + b'2;a=b;c="d"\r\nok\r\n0\r\n\r\n',
    "padded chunk sizes": CHUNKED + b"2  \r\nok\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
    "chunks by HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"2\r\nok\r\n0\r\n\r\n",
    "Connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 to the end": b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "repeated headers": b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b\r\nX:\r\n"
    b"SET-COOKIE: a\r\nContent-Length: 0\r\n\r\n",
    "spaces around values": b"HTTP/1.1 200 OK\r\nX: \t a  b \t \r\nContent-Length:\t2\r\n\r\nok",
    "values beyond ascii": b"HTTP/1.1 200 OK\r\nX: \xe9\xff\r\nContent-Length: 2\r\n\r\nok",
    "100": b"HTTP/1.1 100 Continue\r\n\r\n" + FINAL,
    "103 with headers": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nX: y\r\n\r\n" + FINAL,
    "103 with a length": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" + FINAL,
    "103 with chunks": b"HTTP/1.1 103 Hi\r\nTransfer-Encoding: chunked\r\n\r\n" + FINAL,
    "100 that closes": b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n" + FINAL,
    "100 by HTTP/1.0": b"HTTP/1.0 100 Continue\r\n\r\n" + FINAL.replace(b"1.1", b"1.0"),
    "fifty of 1xx": b"HTTP/1.1 199 Wait\r\nX: y\r\n\r\n" * 50 + FINAL,
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "204 with a length": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    "304 with a length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    "status 600": b"HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\nok",
    "an upgrade offered": b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 2\r\n\r\nok",
    "a second response": FINAL + b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad",
    "garbage after it": FINAL + b"garbage",
    "garbage after the last": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok" + b"garbage",
    "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"ok", mtime=0),
}

BROKEN = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 20",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "no blank line": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
    "half a chunk": CHUNKED + b"5\r\nok",
    "no last chunk": CHUNKED + b"2\r\nok\r\n",
    "only a 100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "an empty line first": b"\r\n" + FINAL,
    "HTTP/2 without a minor": b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "lower case": b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n",
    "status 099 and another": b"HTTP/1.1 099 No\r\n\r\n" + FINAL,
    "101": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    "101 without upgrade": b"HTTP/1.1 101 Switching\r\n\r\n" + FINAL,
    "no colon": b"HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "bare CR": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "lengths in conflict": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
    "a length of words": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
    "a length beyond 64 bits": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
    "gzip as a transfer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    "gzip, chunked": CHUNKED.replace(b": ", b": gzip, ") + b"2\r\nok\r\n0\r\n\r\n",
    "chunked twice": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a chunk size of words": CHUNKED + b"zz\r\nok\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-2\r\nok\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": CHUNKED + b"f" * 21 + b"\r\nok\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"2\r\nok!!\r\n0\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,
}

STRICTER_THAN_STOCK = {
    "nothing but the head of a success": b"HTTP/1.1 200 OK\r\n\r\n",
    "nothing but the head of a success in HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n",
    "lines without CR": FINAL.replace(b"\r\n", b"\n"),
    "folded lines": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "control characters": b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 2\r\n\r\nok",
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "a list of equal lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "a length with chunks": CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.2": FINAL.replace(b"HTTP/1.1", b"HTTP/1.2"),
    "a body over the limit": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (LIMIT + 1),
    "chunks over the limit": CHUNKED + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 17 + b"0\r\n\r\n",
    "headers over the limit": FINAL.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * LIMIT + b"\r\n\r\n"),
    "1xx over the limit": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000 + FINAL,
    "trailers over the limit": CHUNKED + b"0\r\n" + b"X: yyyyyyyy\r\n" * 6000 + b"\r\n",
}


def table(cases: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("reply", cases.values(), ids=cases.keys())


@table(ANSWERS)
@on_both_loops
async def test_a_response_is_what_stock_httpx_makes_of_it(reply: bytes) -> None:
    async with serving(replying(reply)) as server:
        stock, ours = await both_outcomes(lambda: post(server.url))
    assert isinstance(ours, tuple)
    assert ours == stock


@table(BROKEN)
@on_both_loops
async def test_a_broken_response_is_the_error_that_stock_httpx_raises(reply: bytes) -> None:
    async with serving(replying(reply)) as server:
        stock, ours = await both_outcomes(lambda: post(server.url))
    assert ours is httpx.RemoteProtocolError
    assert stock is httpx.RemoteProtocolError


@table(STRICTER_THAN_STOCK)
@on_both_loops
async def test_these_responses_are_refused_though_stock_httpx_takes_them(reply: bytes) -> None:
    async with serving(replying(reply)) as server:
        stock, ours = await both_outcomes(lambda: post(server.url))
    assert ours is httpx.RemoteProtocolError
    assert isinstance(stock, tuple)


@on_both_loops
async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LIMIT
    async with serving(replying(head + b"x" * LIMIT)) as server, Transport() as transport:
        response = await transport.handle_async_request(post(server.url))
    assert len(response.read()) == LIMIT


@on_both_loops
async def test_a_body_of_ten_megabytes_is_not_read() -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url))
        peer = await server.accept()
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n")
        with tracing_memory() as peak:
            with pytest.raises(ConnectionError):
                await peer.send_much(bytes(64 * 1024), times=160)
            error = await failure(call)
            assert peak() < 2_000_000
    assert type(error) is httpx.RemoteProtocolError
    assert bytes_left(error)


@contextmanager
def tracing_memory() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


WHOLE = [
    OK,
    b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
    CHUNKED + b"5;a=b\r\nhello\r\nB\r\n, my friend\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"HTTP/1.1 422 Unprocessable Entity\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
    b"Content-Length: 17\r\n\r\n" + b'{"message":"\r\n!"}'[:17],
]


def read_in(reader: ResponseReader, parts: list[bytes]) -> Any:
    reader.begin()
    for index, part in enumerate(parts):
        assert not reader.is_complete, f"complete before part {index} of {parts}"
        reader.feed(part)
    assert reader.is_complete
    response = reader.response()
    return response.status_code, response.headers.raw, response.read(), reader.keeps_alive


@given(
    st.lists(
        st.tuples(st.sampled_from(WHOLE), st.sets(st.integers(1, 120), max_size=12)),
        min_size=1,
        max_size=4,
    )
)
def test_however_responses_are_cut_they_read_the_same(
    responses: list[tuple[bytes, set[int]]],
) -> None:
    """One reader for all, as on one connection: nothing may be left over from one to the next."""
    reader = ResponseReader(LIMIT)
    for whole, cuts in responses:
        edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
        parts = [whole[a:b] for a, b in itertools.pairwise(edges)]
        assert read_in(reader, parts) == read_in(ResponseReader(LIMIT), [whole])


@table(
    {
        "a length": OK,
        "chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
        "trailers": CHUNKED + b"2\r\nok\r\n0\r\nX: y\r\n\r\n",
        "204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "103": b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + OK,
        "HTTP/1.0 that stays": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n"
        b"Content-Length: 2\r\n\r\nok",
        "an error": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    }
)
@on_both_loops
async def test_after_a_clean_response_the_connection_serves_the_next_request(reply: bytes) -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url))
        peer = await server.accept()
        for _ in range(3):
            await peer.answer(reply)
            await call
            call = start(transport, post(server.url))
        await peer.answer(OK)
        response = await call
        assert len(server.peers) == 1
    assert response.headers.raw == [(b"Content-Length", b"2")]
    assert response.read() == b"ok"


@table(
    {
        "Connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "close in a list": b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "a second response": OK + OK,
        "garbage": OK + b"garbage",
        "a body after 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    }
)
@on_both_loops
async def test_after_these_responses_the_connection_is_closed(reply: bytes) -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url))
        peer = await server.accept()
        await peer.answer(reply)
        response = await call
        assert response.is_success
        assert await peer.rest() == b""
        second = start(transport, post(server.url))
        await (await server.accept()).answer(OK)
        await second


@on_both_loops
async def test_the_connection_used_last_is_used_next() -> None:
    async with serving() as server, Transport() as transport:
        calls = [start(transport, post(server.url)) for _ in range(3)]
        peers = [await server.accept() for _ in calls]
        for index in (1, 2, 0):
            await peers[index].request()
        for index in (1, 2, 0):
            await peers[index].send(OK)
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            calls = [call for call in calls if not call.done()]
        for _ in range(2):
            call = start(transport, post(server.url))
            await peers[0].answer(OK)
            await call


async def echo(peer: Peer, gate: Callable[[bytes], Awaitable[None]] | None = None) -> None:
    """Answer every request with its own body, until the client ends the connection."""
    try:
        while True:
            body = (await peer.request()).partition(b"\r\n\r\n")[2]
            if gate is not None:
                await gate(body)
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    except (asyncio.IncompleteReadError, ConnectionError):
        peer.hang_up()


@on_both_loops
async def test_a_hundred_calls_at_once_get_each_its_own_answer() -> None:
    async with serving(echo) as server, Transport(max_connections_per_host=7) as transport:
        bodies = [b"%d" % n for n in range(100)]
        assert await echoed(transport, server, bodies) == bodies
        assert len(server.peers) == 7


async def echoed(transport: Transport, server: Server, bodies: list[bytes]) -> list[bytes]:
    calls = [start(transport, post(server.url, body)) for body in bodies]
    return [response.read() for response in await asyncio.gather(*calls)]


ILLEGAL = {
    "a header in a value": {"headers": {"x": "a\r\nInjected: b"}},
    "a line feed in a value": {"headers": {"x": "a\n"}},
    "a carriage return in a value": {"headers": {"x": "a\rb"}},
    "NUL in a value": {"headers": {"x": "a\0b"}},
    "a space before a value": {"headers": {"x": " a"}},
    "a space in a name": {"headers": {"x y": "a"}},
    "a header in a name": {"headers": {"x: a\r\nInjected": "b"}},
    "an empty name": {"headers": {"": "a"}},
    "a space in the method": {"method": "PO ST"},
    "no host": {"headers": {"host": ""}, "drop": "host"},
    "two hosts": {"headers": [("host", "a"), ("host", "b")]},
    "a length of words": {"headers": {"content-length": "two"}},
    "gzip as a transfer": {"headers": {"transfer-encoding": "gzip"}},
}

# Stock httpx sends some of these, or lets an error of h11 through.
MISMATCHED = {
    "too short a body": {"headers": {"content-length": "3"}},
    "too long a body": {"headers": {"content-length": "1"}},
    "a body without a length": {"drop": "content-length"},
    "chunks of a length": {"headers": {"content-length": "2", "transfer-encoding": "chunked"}},
    "chunks": {"headers": {"transfer-encoding": "chunked"}, "drop": "content-length"},
    "a body in pieces": {"content": iter([b"{", b"}"]), "headers": {"content-length": "2"}},
    "a header twice": {"headers": [("x", "a"), ("X", "b")]},
}


def illegal(url: httpx.URL, drop: str = "", **arguments: Any) -> httpx.Request:
    request = post(url, **arguments)
    if drop:
        del request.headers[drop]
    return request


@pytest.mark.parametrize("case", ILLEGAL.values(), ids=ILLEGAL.keys())
@on_both_loops
async def test_an_illegal_request_is_a_local_error_as_in_stock_httpx(case: dict[str, Any]) -> None:
    async with serving() as server:
        outcomes = await both_outcomes(lambda: illegal(server.url, **case))
    assert outcomes == (httpx.LocalProtocolError, httpx.LocalProtocolError)


@pytest.mark.parametrize("case", (ILLEGAL | MISMATCHED).values(), ids=(ILLEGAL | MISMATCHED).keys())
@on_both_loops
async def test_of_an_illegal_request_nothing_is_sent(case: dict[str, Any]) -> None:
    async with serving() as server, Transport() as transport:
        error = await failure(start(transport, illegal(server.url, **case)))
        assert type(error) is httpx.LocalProtocolError
        assert not bytes_left(error)
        assert server.peers == []


@pytest.mark.parametrize("body", [b"one, two", b""])
@on_both_loops
async def test_a_request_is_sent_as_its_headers_say(body: bytes) -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url, body))
        peer = await server.accept()
        request = await peer.answer(OK)
        response = await call
        assert response.request.url == server.url
        await transport.aclose()
        assert await peer.rest() == b""
    head, _, rest = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /payments HTTP/1.1\r\nHost: 127.0.0.1:")
    assert head.lower().endswith(b"content-length: %d" % len(body))
    assert rest == body


@on_both_loops
async def test_a_client_sees_no_difference() -> None:
    reply = b"HTTP/1.1 201 Made\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    body = gzip.compress(b'{"a":"\xc3\xa9"}')
    async with (
        serving(replying(reply % len(body) + body)) as server,
        httpx.AsyncClient(transport=Transport()) as client,
    ):
        response = await client.post(server.url, json={})
    assert (response.status_code, response.reason_phrase) == (201, "Made")
    assert (response.http_version, response.json()) == ("HTTP/1.1", {"a": "é"})
    assert response.request.url == server.url
    assert response.elapsed.total_seconds() >= 0


# Errors, and whether bytes may have left


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://localhost/", httpx.UnsupportedProtocol),
        ("//localhost/", httpx.UnsupportedProtocol),
        ("http://nowhere.invalid/", httpx.ConnectError),
        (f"http://{'a' * 70}.invalid/", httpx.ConnectError),
    ],
)
@on_both_loops
async def test_a_server_that_cannot_be_is_the_error_that_stock_httpx_raises(
    url: str, error: type[httpx.TransportError]
) -> None:
    assert await both_outcomes(lambda: post(url)) == (error, error)
    async with Transport() as transport:
        assert not bytes_left(await failure(start(transport, post(url))))


@on_both_loops
async def test_no_connection_is_told_in_words() -> None:
    with socket.create_server((HOST, 0)) as listener:
        refused = f"http://{HOST}:{listener.getsockname()[1]}/"
    async with Transport() as transport:
        assert str(await failure(start(transport, post(refused)))) == "connection refused"
        unknown = str(await failure(start(transport, post("http://nowhere.invalid/"))))
        # Without a name server the second is all that can be said.
        assert unknown.startswith(
            (
                "host name not known: nowhere.invalid",
                "host name can't be looked up: nowhere.invalid (",
            )
        )
        too_long = f"http://{'a' * 70}.invalid/"
        error = await failure(start(transport, post(too_long)))
        assert str(error) == f"host name not valid: {'a' * 70}.invalid"


@on_both_loops
async def test_a_refused_connection_is_a_connect_error() -> None:
    with socket.create_server((HOST, 0)) as listener:
        url = httpx.URL(f"http://{HOST}:{listener.getsockname()[1]}/")
    assert await both_outcomes(lambda: post(url)) == (httpx.ConnectError, httpx.ConnectError)
    async with Transport() as transport:
        assert not bytes_left(await failure(start(transport, post(url))))


@contextmanager
def deaf_server() -> Iterator[httpx.URL]:
    """A server whose queue of connections is full: the kernel ignores further ones."""
    with socket.create_server((HOST, 0), backlog=0) as listener:
        address = listener.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(address)
            yield httpx.URL(f"http://{HOST}:{address[1]}/")


@on_both_loops
async def test_a_connection_that_is_not_answered_is_a_connect_timeout() -> None:
    with deaf_server() as url:
        timeout = limits(connect=SOON_S)
        assert await both_outcomes(lambda: post(url, timeout=timeout)) == (
            httpx.ConnectTimeout,
            httpx.ConnectTimeout,
        )
        async with Transport() as transport:
            call = start(transport, post(url, timeout={"connect": SOON_S}))
            error = await failure(call)
            assert str(error) == f"no connection within {SOON_S:g} s"
            assert not bytes_left(error)


@on_both_loops
async def test_a_connection_reset_after_the_request_is_a_read_error() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    async with serving(serve) as server, Transport() as transport:
        assert await both_outcomes(lambda: post(server.url)) == (httpx.ReadError, httpx.ReadError)
        request = post(server.url)
        error = await failure(start(transport, request))
    assert bytes_left(error)
    assert error.request is request


@on_both_loops
async def test_a_connection_that_breaks_at_the_write_is_a_write_error() -> None:
    with listening() as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/"

        def break_off(_: ClientConnection) -> bool:
            connection = listener.accept()[0]
            connection.shutdown(socket.SHUT_WR)
            reset_on_close(connection)
            connection.close()
            return True

        with mock.patch.object(ClientConnection, "is_usable", break_off):
            async with Transport() as transport:
                error = await failure(start(transport, post(url)))
    assert type(error) is httpx.WriteError
    assert bytes_left(error)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", OK[:-1], CHUNKED])
@on_both_loops
async def test_silence_is_a_read_timeout_and_resets_the_connection(reply: bytes) -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url, timeout=limits(read=SOON_S)))
        peer = await server.accept()
        await peer.answer(reply)
        error = await failure(call)
        assert await ended(peer) == "reset"
    assert type(error) is httpx.ReadTimeout
    assert bytes_left(error)


@on_both_loops
async def test_a_response_that_drips_does_not_hold_a_call_beyond_the_read_timeout() -> None:
    async def drip(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(SOON_S / 10)

    async with serving(drip) as server, Transport() as transport:
        error = await failure(start(transport, post(server.url, timeout={"read": SOON_S})))
    assert type(error) is httpx.ReadTimeout


@on_both_loops
async def test_a_server_that_does_not_read_is_a_write_timeout() -> None:
    async def ignore(peer: Peer) -> None:
        peer.pause()

    def build() -> httpx.Request:
        return post(server.url, bytes(16_000_000), timeout=limits(write=SOON_S))

    async with serving(ignore) as server, Transport() as transport:
        assert await both_outcomes(build) == (httpx.WriteTimeout, httpx.WriteTimeout)
        assert bytes_left(await failure(start(transport, build())))


@on_both_loops
async def test_the_limits_of_one_call_do_not_outlive_it() -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url, timeout=limits(read=LATER_S)))
        peer = await server.accept()
        await peer.answer(OK)
        await call
        call = start(transport, post(server.url))
        await peer.request()
        await asyncio.sleep(LATER_S * 1.5)
        await peer.send(OK)
        assert (await call).status_code == 200


@on_both_loops
async def test_a_call_keeps_its_own_limit_on_a_connection_of_another_one() -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url, timeout=limits(read=3600)))
        peer = await server.accept()
        await peer.answer(OK)
        await call
        call = start(transport, post(server.url, timeout=limits(read=SOON_S)))
        await peer.request()
        assert type(await failure(call)) is httpx.ReadTimeout


WRITE_LIMIT_S = 2.0
"""16 MB go through one loop in time, on a busy machine, too."""


@on_both_loops
async def test_a_slow_write_that_ends_in_time_is_no_error() -> None:
    body = bytes(16_000_000)
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url, body, timeout={"write": WRITE_LIMIT_S}))
        peer = await server.accept()
        assert (await peer.request()).endswith(body)
        await asyncio.sleep(WRITE_LIMIT_S * 1.1)
        await peer.send(OK)
        assert (await call).status_code == 200


@on_both_loops
async def test_an_answer_before_the_request_was_written_stands_but_ends_the_connection() -> None:
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url, bytes(16_000_000)))
        peer = await server.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert (await call).status_code == 413
        assert (await peer.drained())[1] == "reset"


# Connections that end while nobody uses them


def speak(peer: Peer) -> None:
    peer.socket.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("spoil", [Peer.end_silently, speak])
@on_both_loops
async def test_a_connection_that_ended_unnoticed_is_not_used(spoil: Callable[[Peer], None]) -> None:
    """The loop has no chance to run between the server's deed and the request."""
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        peer = await warm(server, transport)
        server.spawn(answer_next(server))
        spoil(peer)
        response = await transport.handle_async_request(post(server.url))
        assert response.status_code == 200
        assert len(server.peers) == 2


async def answer_next(server: Server) -> None:
    await (await server.accept()).answer(OK)


@pytest.mark.parametrize("spoil", [Peer.end_silently, speak])
@on_both_loops
async def test_a_connection_that_ends_while_before_write_is_asked_is_not_used(
    spoil: Callable[[Peer], None],
) -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        peer = await warm(server, transport)
        server.spawn(answer_next(server))
        unspoilt = [peer]

        def spoil_once() -> None:
            if unspoilt:
                spoil(unspoilt.pop())

        request = post(server.url, before_write=spoil_once)
        assert (await transport.handle_async_request(request)).status_code == 200
        assert len(server.peers) == 2


@on_both_loops
async def test_an_answer_that_is_there_before_the_request_is_never_its_answer() -> None:
    with listening() as listener:
        accepted: list[socket.socket] = []

        def greet() -> None:
            accepted.append(listener.accept()[0])
            accepted[0].send(OK)

        async with Transport() as transport:
            url = f"http://{HOST}:{listener.getsockname()[1]}/"
            error = await failure(start(transport, post(url, before_write=greet)))
        assert type(error) is httpx.ConnectError
        assert not bytes_left(error)
        assert accepted[0].recv(1) == b""
        accepted[0].close()


@pytest.mark.parametrize("spoil", [Peer.hang_up, Peer.end_silently, speak])
@on_both_loops
async def test_a_connection_that_ended_is_closed_without_being_asked_for(
    spoil: Callable[[Peer], None],
) -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        peer = await warm(server, transport)
        spoil(peer)
        assert await peer.rest() == b""
        await warm(server, transport)


@on_both_loops
async def test_a_connection_idle_for_too_long_is_closed_and_not_used() -> None:
    async with (
        serving() as server,
        Transport(keepalive_expiry=SOON_S, max_connections_per_host=1) as transport,
    ):
        peer = await warm(server, transport)
        await asyncio.sleep(SOON_S * 1.5)
        await warm(server, transport)
        assert await peer.rest() == b""


@on_both_loops
async def test_a_connection_may_be_expired_as_soon_as_it_is_idle() -> None:
    async with serving() as server, Transport(keepalive_expiry=0) as transport:
        for _ in range(3):
            peer = await warm(server, transport)
            assert await peer.rest() == b""


@on_both_loops
async def test_a_connection_is_idle_since_its_last_response() -> None:
    async with serving() as server, Transport(keepalive_expiry=LATER_S) as transport:
        call = start(transport, post(server.url))
        peer = await server.accept()
        await asyncio.sleep(LATER_S * 1.5)
        await peer.answer(OK)
        await call
        call = start(transport, post(server.url))
        await peer.answer(OK)
        await call


@on_both_loops
async def test_a_tls_connection_that_ended_is_not_used(
    certificate: Path, server_tls: ssl.SSLContext
) -> None:
    trusting = ssl.create_default_context(cafile=certificate)
    async with (
        serving(tls=server_tls) as server,
        Transport(ssl_context=trusting, max_connections_per_host=1) as transport,
    ):
        server.url = server.url.copy_with(host="localhost")
        peer = await warm(server, transport)
        peer.hang_up()
        assert await peer.rest() == b""
        await warm(server, transport)


@on_both_loops
async def test_a_tls_connection_on_which_an_answer_came_twice_is_not_used(
    certificate: Path, server_tls: ssl.SSLContext
) -> None:
    """The loop has no chance to run between the second answer and the next request."""
    trusting = ssl.create_default_context(cafile=certificate)
    async with (
        serving(tls=server_tls) as server,
        Transport(ssl_context=trusting, max_connections_per_host=1) as transport,
    ):
        server.url = server.url.copy_with(host="localhost")
        peer = await warm(server, transport)
        server.spawn(answer_next(server))
        peer.writer.write(OK.replace(b"ok", b"no"))
        response = await transport.handle_async_request(post(server.url))
        assert response.read() == b"ok"
        assert len(server.peers) == 2


@on_both_loops
async def test_traffic_on_other_connections_closes_those_idle_for_too_long() -> None:
    async with serving() as server, Transport(keepalive_expiry=SOON_S) as transport:
        calls = [start(transport, post(server.url)) for _ in range(2)]
        old, busy = [await server.accept() for _ in calls]
        await old.answer(OK)
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(SOON_S * 1.5)
        await busy.answer(OK)
        assert await old.rest() == b""
        await asyncio.gather(*calls)


@on_both_loops
async def test_a_connection_that_ends_before_the_request_is_a_certain_failure() -> None:
    with listening() as listener:
        async with Transport() as transport:
            call = start(transport, post(f"http://{HOST}:{listener.getsockname()[1]}/"))
            while True:
                with contextlib.suppress(BlockingIOError):
                    listener.accept()[0].close()
                    break
                await asyncio.sleep(0)
            error = await failure(call)
    assert type(error) is httpx.ConnectError
    assert not bytes_left(error)


# before_write


@on_both_loops
async def test_before_write_is_asked_directly_before_the_bytes_leave() -> None:
    async with serving() as server, Transport() as transport:
        peer = await warm(server, transport)
        peer.pause()
        loop = asyncio.get_running_loop()
        before, after = loop.create_future(), loop.create_future()

        def look(at: asyncio.Future[bool]) -> None:
            at.set_result(bool(select.select([peer.socket], [], [], 0)[0]))

        call = start(transport, post(server.url, before_write=lambda: look(before)))
        # In the same round of the loop, as what runs next.
        loop.call_soon(look, after)
        assert (await before, await after) == (False, True)
        peer.read_on()
        await peer.answer(OK)
        await call


async def warm(server: Server, transport: Transport) -> Peer:
    """Leave one idle connection behind."""
    call = start(transport, post(server.url))
    peer = await server.accept()
    await peer.answer(OK)
    await call
    return peer


def refuse() -> bool:
    return False


def fail() -> bool:
    raise ValueError("the lease is over")


@pytest.mark.parametrize("before_write", [refuse, fail])
@on_both_loops
async def test_when_before_write_refuses_nothing_is_sent_and_the_connection_lives_on(
    before_write: Callable[[], bool],
) -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        refused = post(server.url, b"refused", before_write=before_write)
        error = await failure(start(transport, refused))
        assert type(error) is NotSent
        assert isinstance(error, httpx.TransportError)
        assert not bytes_left(error)
        assert error.request is refused
        call = start(transport, post(server.url, b"second"))
        peer = await server.accept()
        assert (await peer.answer(OK)).endswith(b"second")
        await call
        error = await failure(start(transport, refused))
        assert type(error) is NotSent
        call = start(transport, post(server.url, b"third"))
        assert (await peer.answer(OK)).endswith(b"third")
        await call
        assert len(server.peers) == 1


@on_both_loops
async def test_a_connection_that_before_write_refused_goes_to_who_waits() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        calls = [start(transport, post(server.url, before_write=refuse)) for _ in range(3)]
        last = start(transport, post(server.url))
        await (await server.accept()).answer(OK)
        assert (await last).status_code == 200
        assert [type(await failure(call)) for call in calls] == [NotSent] * 3


@on_both_loops
async def test_before_write_may_return_nothing() -> None:
    async with serving(echo) as server, Transport() as transport:
        response = await transport.handle_async_request(post(server.url, before_write=lambda: None))
    assert response.status_code == 200


# Calls that are given up


@on_both_loops
async def test_a_cancelled_call_resets_its_connection_and_what_was_not_sent_never_is() -> None:
    body = bytes(40_000_000)
    async with serving() as server, Transport() as transport:
        call = start(transport, post(server.url, body))
        peer = await server.accept()
        await peer.head()
        await cancelled(call)
        received, end = await peer.drained()
        assert received < len(body) / 2
        assert end == "reset"


@on_both_loops
async def test_a_connection_whose_call_was_cancelled_is_not_used_again() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        call = start(transport, post(server.url))
        peer = await server.accept()
        await peer.request()
        await cancelled(call)
        call = start(transport, post(server.url))
        await (await server.accept()).answer(OK)
        assert (await call).status_code == 200
        assert await ended(peer) == "reset"


@on_both_loops
async def test_a_call_cancelled_when_its_response_is_there_costs_nobody_else_anything() -> None:
    """The connection may be at someone else's service before the cancelled call gets to run."""
    async with serving(echo) as server, Transport() as transport:
        for rounds in range(20):
            first = start(transport, post(server.url, b"first"))
            await pass_rounds(rounds)

            async def cancel_and_call(first: asyncio.Task[httpx.Response]) -> httpx.Response:
                first.cancel()
                return await transport.handle_async_request(post(server.url, b"second"))

            second = await asyncio.create_task(cancel_and_call(first))
            assert second.read() == b"second"
            await cancelled(first)


@pytest.mark.parametrize("victim", [0, 1, 2])
@on_both_loops
async def test_a_call_may_be_cancelled_at_any_step(victim: int) -> None:
    """One connects, one waits for it, one waits behind; then one of them is cancelled."""
    async with serving(echo) as server:
        for steps in range(30):
            async with Transport(max_connections_per_host=1) as transport:
                calls = [start(transport, post(server.url, b"%d" % n)) for n in range(3)]
                await pass_rounds(steps)
                await cancelled(calls.pop(victim))
                answers = [response.read() for response in await asyncio.gather(*calls)]
                assert answers == [b"%d" % n for n in range(3) if n != victim]
                assert await echoed(transport, server, [b"next"]) == [b"next"]


async def pass_rounds(count: int) -> None:
    """Let the loop run so many rounds: what is tested is where exactly a call is interrupted."""
    for _ in range(count):
        await asyncio.sleep(0)


@on_both_loops
async def test_closing_at_any_step_leaves_no_connection_behind() -> None:
    async with serving(echo) as server:
        for rounds in range(1, 30):
            transport = Transport(max_connections_per_host=1)
            calls = [start(transport, post(server.url)) for _ in range(2)]
            await pass_rounds(rounds)
            calls[1].cancel()
            await transport.aclose()
            await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.gather(*server.tasks)


@pytest.mark.parametrize("seed", range(5))
@on_both_loops
async def test_storms_of_cancellations_cost_no_place_and_make_none(seed: int) -> None:
    chance = random.Random(seed)
    held, opened = asyncio.Semaphore(0), asyncio.Event()

    async def gate(body: bytes) -> None:
        if body == b"hold":
            held.release()
            await opened.wait()

    async with (
        serving(functools.partial(echo, gate=gate)) as server,
        Transport(max_connections_per_host=4) as transport,
    ):
        for _ in range(30):
            calls = [start(transport, post(server.url)) for _ in range(12)]
            for call in chance.sample(calls, 10):
                await pass_rounds(chance.randrange(4))
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        holders = [start(transport, post(server.url, b"hold")) for _ in range(4)]
        for _ in holders:
            await held.acquire()
        error = await failure(start(transport, post(server.url, timeout=limits(pool=0))))
        assert type(error) is httpx.PoolTimeout
        opened.set()
        await asyncio.gather(*holders)


# The pool


@on_both_loops
async def test_when_no_place_is_free_in_time_it_is_a_pool_timeout() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        call = start(transport, post(server.url))
        peer = await server.accept()
        request = post(server.url, timeout=limits(pool=SOON_S))
        error = await failure(start(transport, request))
        assert type(error) is httpx.PoolTimeout
        assert error.request is request
        assert not bytes_left(error)
        await peer.answer(OK)
        await call
        call = start(transport, post(server.url))
        await peer.answer(OK)
        await call


@on_both_loops
async def test_who_waits_longest_is_served_first_and_nobody_overtakes() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        calls = [start(transport, post(server.url, b"%d" % n)) for n in range(4)]
        peer = await server.accept()
        order = [await peer.answer(OK)]
        await calls[0]
        calls.append(start(transport, post(server.url, b"late")))
        order += [await peer.answer(OK) for _ in range(4)]
        await asyncio.gather(*calls)
    assert [request[-1:] for request in order] == [b"0", b"1", b"2", b"3", b"e"]


@on_both_loops
async def test_a_connection_that_ends_leaves_its_place_to_who_waits() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        calls = [start(transport, post(server.url)) for _ in range(3)]
        first = await server.accept()
        await first.request()
        first.hang_up()
        assert type(await failure(calls[0])) is httpx.RemoteProtocolError
        second = await server.accept()
        await second.answer(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
        await calls[1]
        await (await server.accept()).answer(OK)
        await calls[2]


@on_both_loops
async def test_a_connection_that_ends_on_its_way_to_who_waits_is_replaced() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        calls = [start(transport, post(server.url)) for _ in range(2)]
        peer = await server.accept()
        await peer.request()
        peer.socket.send(OK)
        peer.end_silently()
        await (await server.accept()).answer(OK)
        await asyncio.gather(*calls)


@on_both_loops
async def test_a_place_that_frees_while_a_connection_changes_hands_is_not_forgotten() -> None:
    async with serving() as server, Transport(max_connections_per_host=2) as transport:
        calls = [start(transport, post(server.url)) for _ in range(4)]
        peers = [await server.accept() for _ in range(2)]
        for peer in peers:
            await peer.request()
        peers[0].socket.send(OK)
        peers[1].end_silently()
        await (await server.accept()).answer(OK)
        await peers[0].answer(OK)
        await asyncio.wait(calls)
        assert sum(call.exception() is None for call in calls) == 3


@on_both_loops
async def test_those_who_wait_for_a_server_that_is_gone_all_hear_of_it() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        calls = [start(transport, post(server.url)) for _ in range(4)]
        peer = await server.accept()
        await peer.request()
        await server.stop()
        peer.hang_up()
        errors = [type(await failure(call)) for call in calls]
    assert errors == [httpx.RemoteProtocolError] + [httpx.ConnectError] * 3


@on_both_loops
async def test_every_origin_has_its_own_places() -> None:
    async with (
        serving() as one,
        serving(echo) as other,
        Transport(max_connections_per_host=1) as transport,
    ):
        call = start(transport, post(one.url))
        peer = await one.accept()
        await transport.handle_async_request(post(other.url))
        await peer.answer(OK)
        await call


# Names


class Names:
    """What the name `processor.test` stands for, on asyncio's own loop, and how often it was
    asked for."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = list(hosts)
        self.asked = 0
        self.answers = True
        self._end_of_silence = threading.Event()
        self._getaddrinfo = socket.getaddrinfo

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Questions get no answer before the end, until `answers` is set again."""
        self.answers = False
        try:
            yield
        finally:
            self._end_of_silence.set()

    def getaddrinfo(self, host: Any, *rest: Any, **options: Any) -> Any:
        """In the place of `socket.getaddrinfo`."""
        if host != "processor.test":
            return self._getaddrinfo(host, *rest, **options)
        self.asked += 1
        if not self.answers:
            self._end_of_silence.wait()
        return [found for each in self.hosts for found in self._getaddrinfo(each, *rest, **options)]


def named(url: httpx.URL) -> httpx.Request:
    return post(url.copy_with(host="processor.test"))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names(HOST)
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    return made


async def test_many_connections_at_once_cost_one_lookup(names: Names) -> None:
    async with serving(echo) as server, Transport() as transport:
        calls = [start(transport, named(server.url)) for _ in range(100)]
        assert {response.status_code for response in await asyncio.gather(*calls)} == {200}
        assert len(server.peers) == 100
    assert names.asked == 1


async def test_the_first_address_that_takes_a_connection_is_used(names: Names) -> None:
    names.hosts = ["127.0.0.2", HOST]
    async with serving(echo) as server, Transport() as transport:
        response = await transport.handle_async_request(named(server.url))
        assert response.status_code == 200


async def test_where_no_address_takes_a_connection_it_is_a_connect_error(names: Names) -> None:
    names.hosts = ["127.0.0.2", "127.0.0.3"]
    async with serving(echo) as server, Transport() as transport:
        error = await failure(start(transport, named(server.url)))
        assert type(error) is httpx.ConnectError
        assert not bytes_left(error)


async def test_a_host_is_looked_up_anew_for_the_next_connection(names: Names) -> None:
    async def once(peer: Peer) -> None:
        await peer.answer(OK)
        peer.hang_up()

    async with serving(once) as server, Transport() as transport:
        await transport.handle_async_request(named(server.url))
        names.hosts = ["127.0.0.2"]
        await asyncio.wait(server.tasks)
        error = await failure(start(transport, named(server.url)))
        assert type(error) is httpx.ConnectError
        assert len(server.peers) == 1


async def test_a_lookup_that_does_not_come_back_costs_one_connect_timeout(names: Names) -> None:
    async with serving(echo) as server, Transport() as transport:
        with names.silent():
            stuck = named(server.url)
            stuck.extensions["timeout"] = limits(connect=SOON_S)
            error = await failure(start(transport, stuck))
            assert type(error) is httpx.ConnectTimeout
            assert not bytes_left(error)
            names.answers = True
            response = await transport.handle_async_request(named(server.url))
            assert response.status_code == 200


# Closing


@on_both_loops
async def test_closing_ends_idle_connections_in_order_and_resets_busy_ones() -> None:
    async with serving() as server, Transport(max_connections_per_host=2) as transport:
        calls = [start(transport, post(server.url)) for _ in range(2)]
        idle, busy = [await server.accept() for _ in calls]
        await idle.answer(OK)
        await busy.request()
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await transport.aclose()
        assert [await ended(idle), await ended(busy)] == ["closed", "reset"]
        error = await failure(calls[1])
        assert type(error) is httpx.ReadError
        assert bytes_left(error)


@on_both_loops
async def test_closing_fails_those_who_wait_or_connect() -> None:
    async with serving() as server, Transport(max_connections_per_host=1) as transport:
        calls = [start(transport, post(server.url)) for _ in range(3)]
        await pass_rounds(1)
        await transport.aclose()
        errors = [await failure(call) for call in calls]
        assert [type(error) for error in errors] == [httpx.ConnectError] * 3
        assert len(server.peers) <= 1
        call = start(transport, post(server.url))
        while not call.done():
            server.spawn(echo(await server.accept()))
            await asyncio.wait([call], timeout=SOON_S)
        assert (await call).status_code == 200


# TLS


OPENSSL_COMMAND = (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, and its key in the same file, that only itself vouches for."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, chain, both = folder / "key.pem", folder / "chain.pem", folder / "both.pem"
    subprocess.run(
        [openssl, *OPENSSL_COMMAND.split(), "-keyout", key, "-out", chain],
        check=True,
        capture_output=True,
    )
    both.write_text(key.read_text() + chain.read_text())
    return both


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@on_both_loops
async def test_over_tls_the_server_is_named_and_its_certificate_checked(
    certificate: Path, server_tls: ssl.SSLContext
) -> None:
    named: list[str | None] = []
    server_tls.sni_callback = lambda _, name, __: named.append(name)
    trusting = ssl.create_default_context(cafile=certificate)
    async with (
        serving(echo, server_tls) as server,
        Transport(ssl_context=trusting) as transport,
    ):
        url = server.url.copy_with(host="localhost")
        for body in (b"one", bytes(60_000), b"three"):
            response = await transport.handle_async_request(post(url, body))
            assert response.read() == body
        assert len(server.peers) == 1
    assert named == ["localhost"]


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("localhost", "certificate not trusted: self-signed certificate"),
        (HOST, "certificate is for another host"),
    ],
    ids=["unknown issuer", "another name"],
)
@on_both_loops
async def test_over_tls_a_bad_certificate_is_a_connect_error(
    host: str, words: str, certificate: Path, server_tls: ssl.SSLContext
) -> None:
    context = None if host == "localhost" else ssl.create_default_context(cafile=certificate)
    asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
    async with serving(echo, server_tls) as server, Transport(ssl_context=context) as transport:
        url = server.url.copy_with(host=host)
        error = await failure(start(transport, post(url)))
    assert type(error) is httpx.ConnectError
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert str(error).replace("self signed", "self-signed") == words  # as OpenSSL 1.1 has it
    assert not bytes_left(error)


@on_both_loops
async def test_over_tls_a_server_that_speaks_plain_http_is_told_from_others() -> None:
    async def serve(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with serving(serve) as server, Transport() as transport:
        url = server.url.copy_with(scheme="https")
        error = await failure(start(transport, post(url)))
    assert str(error) in ("TLS failed: wrong version number", "TLS failed: record layer failure")


@on_both_loops
async def test_over_tls_a_server_that_never_shakes_hands_is_a_connect_timeout() -> None:
    async with serving() as server, Transport() as transport:
        url = server.url.copy_with(scheme="https")
        error = await failure(start(transport, post(url, timeout=limits(connect=SOON_S))))
    assert type(error) is httpx.ConnectTimeout


@on_both_loops
async def test_over_tls_a_call_that_is_given_up_ends_its_connection(
    certificate: Path, server_tls: ssl.SSLContext
) -> None:
    trusting = ssl.create_default_context(cafile=certificate)
    async with (
        serving(tls=server_tls) as server,
        Transport(ssl_context=trusting, max_connections_per_host=1) as transport,
    ):
        url = server.url.copy_with(host="localhost")
        call = start(transport, post(url, timeout=limits(read=SOON_S)))
        peer = await server.accept()
        await peer.request()
        assert type(await failure(call)) is httpx.ReadTimeout
        assert await ended(peer) == "reset"
        call = start(transport, post(url))
        await (await server.accept()).answer(OK)
        assert (await call).status_code == 200

"""Tests how HTTP clients behave on errors.

A payment must not be sent twice. So three things matter more than speed: errors that tell whether
anything was written, a check of the lease directly before the write, and the end of a call that is
given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiohttp
import httpx

from bench.processor_candidates import Candidate, Limits, Post

_SHORT_S = 0.3
_PATIENCE_S = 5.0
_LARGE = 8 * 1024 * 1024
_BODY = b'{"correlationId":"4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3","amount":19.90}'
_PAID = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

_SAYS_NOTHING_WRITTEN = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
)

Serve = Callable[[socket.socket], None]


class Peer:
    """A scripted server in a thread of its own."""

    def __init__(self, serve: Serve) -> None:
        self.connections: list[socket.socket] = []
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/payments"

    @contextlib.contextmanager
    def running(self) -> Iterator[Peer]:
        """Serve while the context is open."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            for connection in (self._listener, *self.connections):
                connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(_PATIENCE_S)
                self.connections.append(connection)
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._serve(connection)


def read_request(connection: socket.socket) -> bytes:
    """One request; shorter if the client hangs up."""
    data = b""
    while not data.endswith(_BODY) and (part := connection.recv(65536)):
        data += part
    return data


def _answering(answer: bytes, *, reset: bool = False) -> Serve:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    return serve


def _silent(connection: socket.socket) -> None:
    read_request(connection)


def _paying(connection: socket.socket) -> None:
    while read_request(connection):
        connection.sendall(_PAID)


BROKEN: dict[str, tuple[Serve, Limits]] = {
    "no answer in time": (_silent, Limits(4, read_s=_SHORT_S)),
    "reset": (_answering(b"", reset=True), Limits(4)),
    "hung up": (_answering(b""), Limits(4)),
    "nonsense": (_answering(b"nonsense\r\n\r\n"), Limits(4)),
    "cut off": (_answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), Limits(4)),
}
"""The possible behaviours of a processor that has read the payment."""


async def _error(post: Post, url: str) -> str | BaseException:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            answer = await post(url, _BODY)
    except Exception as error:
        return error
    return f"answer of {len(answer.content):,} bytes"


async def errors(candidate: Candidate) -> dict[str, str | BaseException]:
    """The exception for each fault; the first three happen before anything is written."""
    found: dict[str, str | BaseException] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}/payments"
    async with candidate(Limits(4)) as post:
        found["refused"] = await _error(post, nobody)
    with _full_backlog() as url:
        async with candidate(Limits(4, connect_s=_SHORT_S)) as post:
            found["connect time-out"] = await _error(post, url)
    with Peer(_silent).running() as peer:
        async with candidate(Limits(1, pool_s=_SHORT_S)) as post:
            first = asyncio.ensure_future(_error(post, peer.url))
            await asyncio.sleep(_SHORT_S)
            found["pool time-out"] = await _error(post, peer.url)
            first.cancel()
            await asyncio.wait([first])
    for name, (serve, limits) in BROKEN.items():
        with Peer(serve).running() as peer:
            async with candidate(limits) as post:
                found[name] = await _error(post, peer.url)
    return found


@contextlib.contextmanager
def _full_backlog() -> Iterator[str]:
    """The URL of a listener with a full backlog that never accepts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/payments"


async def hook_is_next_to_write(candidate: Candidate) -> str:
    """Whether the hook is called with a connection at hand, and the bytes have left when the event
    loop continues after it."""
    if await _hook_precedes_pool(candidate):
        return "waits for a connection in between"
    may_read = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(_PAID)
        may_read.wait(_PATIENCE_S)
        _paying(connection)

    seen: list[bool] = []

    def hook() -> None:
        calls.append(None)
        if len(calls) == 2:
            asyncio.get_running_loop().call_soon(look)

    def look() -> None:
        seen.append(_has_data(peer.connections[-1]))
        may_read.set()

    calls: list[None] = []
    with Peer(serve).running() as peer:
        async with candidate(Limits(4), hook) as post:
            first, second = await _error(post, peer.url), await _error(post, peer.url)
    if isinstance(first, Exception) or isinstance(second, Exception):
        return f"failed: {second!r}"
    if len(seen) != 1:
        return "no hook"
    return "yes" if seen == [True] else "something in between"


async def _hook_precedes_pool(candidate: Candidate) -> bool:
    calls: list[None] = []
    with Peer(_silent).running() as peer:
        async with candidate(Limits(1), lambda: calls.append(None)) as post:
            both = [asyncio.ensure_future(_error(post, peer.url)) for _ in range(2)]
            await asyncio.sleep(_SHORT_S)
            found = len(calls)
            for call in both:
                call.cancel()
            await asyncio.wait(both)
    return found == 2


class _RefusedError(Exception):
    pass


async def hook_refuses(candidate: Candidate) -> str:
    """Whether an exception in the hook stops the payment, and the resulting exception."""
    received: list[bytes] = []

    def refuse() -> None:
        raise _RefusedError

    def serve(connection: socket.socket) -> None:
        received.append(read_request(connection))
        connection.sendall(_PAID)

    with Peer(serve).running() as peer:
        async with candidate(Limits(4), refuse) as post:
            found = await _error(post, peer.url)
    if any(received):
        return "sent all the same"
    return f"nothing sent, {shown(found)}"


async def given_up(candidate: Candidate) -> str:
    """The peer's view of a cancelled call."""
    has_read = asyncio.Event()
    end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        loop.call_soon_threadsafe(has_read.set)
        loop.call_soon_threadsafe(end.set_result, _end_of(connection))

    with Peer(serve).running() as peer:
        async with candidate(Limits(4)) as post:
            call = asyncio.ensure_future(post(peer.url, _BODY))
            await has_read.wait()
            call.cancel()
            await asyncio.wait([call])
            return await end


def _end_of(connection: socket.socket) -> str:
    connection.settimeout(1.0)
    try:
        return "more data" if connection.recv(1) else "closed"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "left open"


async def stale_connection(candidate: Candidate, *, pause_s: float) -> str:
    """Whether a payment goes out on a kept connection that the peer ended `pause_s` ago. The loop
    runs in that time; 0: it hasn't run since."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(_PAID)
        if connection is peer.connections[0]:
            ended.wait(_PATIENCE_S)
        else:
            _paying(connection)

    with Peer(serve).running() as peer:
        async with candidate(Limits(4)) as post:
            await _error(post, peer.url)
            await asyncio.sleep(_SHORT_S)
            old = peer.connections[0]
            old.shutdown(socket.SHUT_WR)
            if pause_s:
                await asyncio.sleep(pause_s)
            found = await _error(post, peer.url)
            went_out = _has_data(old)
            ended.set()
    if went_out:
        return f"sent on it, {shown(found)}"
    return "noticed" if isinstance(found, str) else f"not sent, {shown(found)}"


def _has_data(connection: socket.socket) -> bool:
    # Asked first, because `recv` would wait for as long as the socket's time-out is.
    if not select.select([connection], [], [], 0)[0]:
        return False
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


async def large_response(candidate: Candidate) -> str:
    """The outcome of a response of 8 MiB."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % _LARGE
    with Peer(_answering(head + bytes(_LARGE))).running() as peer:
        async with candidate(Limits(4)) as post:
            return shown(await _error(post, peer.url))


def shown(found: str | BaseException) -> str:
    """An error's name, with its package unless that is httpx."""
    if isinstance(found, str):
        return found
    package = type(found).__module__.partition(".")[0]
    name = type(found).__name__.lstrip("_")
    return name if package in ("httpx", "bench") else f"{package}.{name}"


NOT_WRITTEN = ("refused", "connect time-out", "pool time-out")


def tells_apart(found: dict[str, str | BaseException]) -> list[str]:
    """The flaws of the errors as a proof that nothing was written."""
    problems: list[str] = []
    for name, error in found.items():
        says = isinstance(error, _SAYS_NOTHING_WRITTEN)
        if name in NOT_WRITTEN and not says:
            problems.append(f"{name}: {shown(error)}, which may have been written")
        elif name not in NOT_WRITTEN and says:
            problems.append(f"{name}: {shown(error)}, though it was written")
    return problems


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The behaviour of one candidate."""

    errors: dict[str, str]
    """The errors' names, by fault."""
    misleading: list[str]
    """Errors that don't tell whether something was written; empty if all do."""
    hook: str
    refusal: str
    given_up: str
    stale: str
    stale_at_once: str
    """The same when the loop has not run since."""
    large_response: str


async def observe(candidate: Candidate) -> Behaviour:
    """Make all experiments with one candidate; takes a few seconds."""
    found = await errors(candidate)
    return Behaviour(
        errors={name: shown(error) for name, error in found.items()},
        misleading=tells_apart(found),
        hook=await hook_is_next_to_write(candidate),
        refusal=await hook_refuses(candidate),
        given_up=await given_up(candidate),
        stale=await stale_connection(candidate, pause_s=_SHORT_S),
        stale_at_once=await stale_connection(candidate, pause_s=0),
        large_response=await large_response(candidate),
    )

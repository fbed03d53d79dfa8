"""A small HTTP/1.1 server for the simulator, for `/metrics` and for the ingress' payments port:
requests in, replies out in the requests' order.

It is written on `httptools` and `asyncio.Protocol` rather than on a framework, so that no
measurement measures the simulator, and so that the simulator can hold a reply back or break it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, cast

import httptools
import orjson

from payswitch.reasons import reason

MAX_BODY_BYTES = 64 * 1024
LINGER_S = 5.0
_MOST_THROWN_AWAY = 512 * 1024

_BACKLOG = 4096

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STAY = b"\r\n"
_STAY_OLD = b"Connection: keep-alive\r\n\r\n"
_CLOSE = b"Connection: close\r\n\r\n"


class Reply(NamedTuple):
    """An answer for any connection, which adds the `Connection` header and the blank line."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        """The status code, as in the head."""
        return int(self.head[9:12])


def reply(
    status: HTTPStatus,
    body: bytes = b"",
    *headers: bytes,
    content_type: bytes = b"application/json; charset=utf-8",
) -> Reply:
    """Make a reply of a status, a body (by default JSON) and more header lines."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *headers]
    if body:
        lines.append(b"Content-Type: " + content_type)
    if status is not HTTPStatus.NO_CONTENT:
        lines.append(b"Content-Length: %d" % len(body))
    return Reply(b"\r\n".join([*lines, b""]), body)


def message(status: HTTPStatus, text: str, *headers: bytes) -> Reply:
    """Make a reply whose body is `{"message": text}`."""
    return reply(status, orjson.dumps({"message": text}), *headers)


class Bounds(NamedTuple):
    """The limits of a server, and its answers to requests beyond them."""

    body_bytes: int = MAX_BODY_BYTES
    request_bytes: int = 512 * 1024
    """Head and body as they come: the parser alone would keep a header line that never ends."""
    connections: float = math.inf
    pipelining: bool = True
    """If off, a pipelined request gets no answer, and the one before it is the last: a client could
    send any number of them."""
    malformed: Reply = message(HTTPStatus.BAD_REQUEST, "malformed request")
    too_large: Reply = message(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes"
    )
    too_slow: Reply = message(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time")


_BOUNDS = Bounds()


@dataclass(slots=True, eq=False)
class Exchange:
    """One request, and the way to answer it: now or later, in any order, once.

    Header names are in lower case. `path` and `query` are raw: not percent-decoded.
    """

    _connection: ServerConnection
    method: bytes = b""
    path: bytes = b""
    query: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    outcome: Reply | None = None
    at_turn: Callable[[], None] | None = None
    keeps_alive: bool = True
    separator: bytes = _STAY

    @property
    def transport(self) -> asyncio.Transport:
        """The connection's: takes raw bytes in place of an answer, at this request's turn."""
        return self._connection.transport

    @property
    def abandoned(self) -> bool:
        """Whether the client has hung up: it will read no answer."""
        return self.transport.is_closing()

    def answer(self, outcome: Reply) -> None:
        """Send the reply as soon as those to the connection's earlier requests are sent; to HEAD,
        without its body."""
        self.outcome = outcome if self.method != b"HEAD" else Reply(outcome.head, b"")
        self._connection.flush()

    def await_turn(self, act: Callable[[], None]) -> None:
        """Call `act` as soon as the replies to the connection's earlier requests are sent, unless
        this request has its reply by then."""
        self.at_turn = act
        self._connection.flush()

    def hang_up(self) -> None:
        """End the connection at once, with all its requests."""
        self._connection.abort()

    def close_after(self) -> None:
        """Make the answer to this request the last on its connection."""
        self.keeps_alive = False
        self.separator = _CLOSE


class State(Enum):
    """How far a connection has come."""

    READING = auto()
    ANSWERING = auto()
    """It takes no more requests; those that it has taken get their answers."""
    ENDING = auto()
    """Its last answer is sent."""


class ServerConnection(asyncio.Protocol):
    """One client's connection. Every complete request goes to `handle`, which may answer later.

    `connections` holds it while it is open. It answers requests beyond its `bounds` by itself, such
    as 400 to a malformed one and 413 to too large a body, and then ends.
    """

    def __init__(
        self,
        handle: Callable[[Exchange], None],
        connections: dict[ServerConnection, None],
        bounds: Bounds,
    ) -> None:
        self._handle = handle
        self._connections = connections
        self._bounds = bounds
        self._parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self._pipeline: deque[Exchange] = deque()
        self._url = b""
        self._unread_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._head_without_offer = b""
        self._incoming: Exchange | None = None
        self._state = State.READING
        self.requests = 0
        """The number of whole requests so far."""

    @property
    def at_work(self) -> bool:
        """Whether a whole request waits for its answer."""
        return len(self._pipeline) > (self._incoming is not None)

    def end(self) -> None:
        """End the connection after the answers to the requests that are whole by now."""
        if not self.at_work:
            self.transport.close()
            return
        self._state = State.ANSWERING
        self._pipeline[-1 if self._incoming is None else -2].close_after()

    def give_up(self) -> None:
        """End a connection that brings nothing; a client that has begun a body gets an answer."""
        if self._incoming is None:
            self.transport.close()
        else:
            self._refuse(self._bounds.too_slow)

    def abort(self) -> None:
        """End the connection at once, with all its requests."""
        self._state = State.ANSWERING
        self.transport.abort()

    def flush(self) -> None:
        """Send the replies that are ready and whose turn it is."""
        if self._state is State.ENDING or self.transport.is_closing():
            return
        while self._pipeline:
            exchange = self._pipeline[0]
            if exchange.outcome is None:
                act, exchange.at_turn = exchange.at_turn, None
                if act is not None:
                    act()
                return
            self._pipeline.popleft()
            head, body = exchange.outcome
            self.transport.write(b"".join((head, exchange.separator, body)))
            if not exchange.keeps_alive:
                self._hang_up()
                return

    def _hang_up(self) -> None:
        self._state = State.ENDING
        # Closing a socket that holds unread bytes resets it, and the client could lose the reply.
        # So close only this half, and throw away what still comes in, for a while.
        self.transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    def _refuse(self, outcome: Reply) -> None:
        self._state = State.ANSWERING
        exchange, self._incoming = self._incoming, None
        if exchange is None:
            exchange = Exchange(self)
            self._pipeline.append(exchange)
        exchange.close_after()
        exchange.answer(outcome)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if len(self._connections) >= self._bounds.connections and not self._made_room():
            self.abort()
            return
        self._connections[self] = None

    def _made_room(self) -> bool:
        """End the oldest connection without an unanswered request, if there is one."""
        for other in self._connections:
            if not other.at_work:
                other.abort()
                del self._connections[other]
                return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.pop(self, None)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._state is not State.READING:
            self._throw_away(len(data))
            return
        while data and self._state is State.READING:
            room = self._bounds.request_bytes - self._unread_bytes
            if room <= 0:
                self.abort()
                return
            piece, data = data[:room], data[room:]
            self._unread_bytes += len(piece)
            rest = self._read(piece)
            if rest is not None:
                self._read_on(rest)

    def _throw_away(self, size: int) -> None:
        self._unread_bytes += size
        if self._unread_bytes > _MOST_THROWN_AWAY:
            self.abort()

    def _read(self, data: bytes | memoryview) -> memoryview | None:
        """Parse data. Returns the rest if the parser has stopped before the end, else None."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            return memoryview(data)[stop.args[0] :]
        except httptools.HttpParserCallbackError:
            raise  # our fault, not the client's
        except httptools.HttpParserError:
            if self._state is State.READING:
                self._refuse(self._bounds.malformed)
        return None

    def _read_on(self, rest: memoryview | None) -> None:
        """Ignore an offer to go on in another protocol, as a server may (RFC 9110, section 7.8).

        Java's client makes one with its first request. The parser can't ignore it: it stops after
        the head, as if no body came. So feed it the head again, without the offer.
        """
        while rest is not None and self._head_without_offer:
            head, self._head_without_offer = self._head_without_offer, b""
            self._read(head)
            rest = self._read(rest)

    # What httptools calls, in this order.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._state is not State.READING:
            return
        if self._pipeline and not self._bounds.pipelining:
            self._state = State.ANSWERING
            self._pipeline[-1].close_after()
            return
        if self._parser.should_upgrade():
            self._take_offer()
            return
        exchange = self._incoming = Exchange(self)
        self._pipeline.append(exchange)
        exchange.method = self._parser.get_method()
        exchange.headers = headers = self._headers
        old = self._parser.get_http_version() == "1.0"
        if not self._parser.should_keep_alive():
            exchange.close_after()
        elif old:
            exchange.separator = _STAY_OLD
        length = headers.get(b"content-length")
        if length is None:
            self._headers = {}  # a trailer adds no header
        if length is not None and int(length) > self._bounds.body_bytes:
            self._refuse(self._bounds.too_large)
        elif headers.get(b"expect", b"").lower() == b"100-continue" and not old:
            exchange.await_turn(partial(self.transport.write, _CONTINUE))

    def _take_offer(self) -> None:
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refuse(self._bounds.malformed)
            return
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self._url, version)]
        lines += [b"%b: %b" % each for each in self._headers.items() if each[0] != b"upgrade"]
        self._head_without_offer = b"\r\n".join([*lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        if self._incoming is None:
            return
        self._incoming.body += body
        if len(self._incoming.body) > self._bounds.body_bytes:
            self._refuse(self._bounds.too_large)

    def on_message_complete(self) -> None:
        self._unread_bytes = 0
        exchange = self._incoming
        if exchange is None:
            return
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            self._refuse(self._bounds.malformed)
            return
        exchange.path = url.path or b"/"
        exchange.query = url.query or b""
        self._incoming = None
        if not exchange.keeps_alive:
            self._state = State.ANSWERING
        self.requests += 1
        self._handle(exchange)


class Listener:
    """Takes connections at one address. Requests go to `handle`."""

    def __init__(self, handle: Callable[[Exchange], None], bounds: Bounds = _BOUNDS) -> None:
        self._handle = handle
        self._bounds = bounds
        self._connections: dict[ServerConnection, None] = {}
        self._requests: dict[ServerConnection, int] = {}
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: a free one if `port` is 0.

        Raises:
            OSError: the address is taken or not this machine's.
        """
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: ServerConnection(self._handle, self._connections, self._bounds),
                host,
                port,
                backlog=_BACKLOG,
            )
        except UnicodeError as error:
            raise OSError(reason(error, host)) from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def finish(self) -> None:
        """Stop listening, and end every connection after the answers that it still owes."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.end()

    def end_idle(self) -> None:
        """End the connections that have brought no whole request since the last call."""
        for connection, before in self._requests.items():
            if connection.requests == before and not connection.at_work:
                connection.give_up()
        self._requests = {connection: connection.requests for connection in self._connections}

    def break_off(self, but: Exchange | None = None) -> None:
        """Stop listening and end every connection at once but that of one exchange."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            if but is None or connection is not but._connection:
                connection.abort()

    async def close(self) -> None:
        """Stop listening and end every connection at once, as if the process were killed."""
        if self._server is None:
            return
        self.break_off()
        await self._server.wait_closed()
        self._server = None

"""A little HTTP/1.1 server for the simulator, for `/metrics` and for the ingress' payments port:
requests in, replies out in the requests' order.

Written on `httptools` and `asyncio.Protocol` rather than on a framework, so that the simulator is
never what a measurement measures, and so that a reply can be held back or broken at will.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from http import HTTPStatus
from typing import NamedTuple, cast

import httptools
import orjson

from payswitch.reasons import reason

MAX_BODY_BYTES = 64 * 1024
LINGER_S = 5.0
_MOST_THROWN_AWAY = 512 * 1024

_BACKLOG = 4096
_RELISTEN_S = 0.1

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STAY = b"\r\n"
_STAY_OLD = b"Connection: keep-alive\r\n\r\n"
_CLOSE = b"Connection: close\r\n\r\n"


_logger = logging.getLogger(__name__)


class Reply(NamedTuple):
    """An answer that may be given on any connection: `Connection` and the blank line are added."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        """The status code, as in the head."""
        return int(self.head[9:12])

    def without_body(self) -> Reply:
        """The same as an answer to HEAD."""
        return Reply(self.head, b"")


class Ending(Enum):
    """What becomes of a connection after a `Stream`."""

    GO_ON = "go on"
    CLOSE = "close"
    SILENCE = "silence"


class Stream(NamedTuple):
    """An answer in pieces, raw, one every `interval_s` seconds as long as the client takes them.

    Nothing is added to them: they may break HTTP. `status` is what the client can read of it.
    """

    pieces: Iterator[bytes]
    status: int | None = HTTPStatus.OK.value
    interval_s: float = 0.0
    ending: Ending = Ending.GO_ON


def reply(
    status: HTTPStatus,
    body: bytes = b"",
    *headers: bytes,
    content_type: bytes = b"application/json; charset=utf-8",
) -> Reply:
    """Make a reply of a status, a body (JSON or as `content_type` says) and more header lines."""
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
    """What a server takes, and what it answers to more."""

    body_bytes: int = MAX_BODY_BYTES
    request_bytes: int = 512 * 1024
    """Head and body as they come: the parser itself would keep a header line that never ends."""
    connections: float = math.inf
    pipelining: bool = True
    """Where it is off, who sends a request before the last one's answer gets that answer alone: it
    could send any number of them."""
    malformed: Reply = message(HTTPStatus.BAD_REQUEST, "malformed request")
    too_large: Reply = message(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes"
    )
    too_slow: Reply = message(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time")


_BOUNDS = Bounds()


class Exchange:
    """One request, and the way to answer it: now or later, in any order, once.

    Header names are in lower case. `path` and `query` are raw: not percent-decoded.
    """

    __slots__ = (
        "_connection",
        "awaits_continue",
        "body",
        "headers",
        "keeps_alive",
        "method",
        "outcome",
        "path",
        "pieces",
        "query",
        "separator",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.method = b""
        self.path = b""
        self.query = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.outcome: Reply | None = None
        self.pieces: Stream | None = None
        self.awaits_continue = False
        self.keeps_alive = True
        self.separator = _STAY

    @property
    def abandoned(self) -> bool:
        """Whether the client has hung up, so that nobody will read an answer."""
        return self._connection.closing

    def answer(self, outcome: Reply) -> None:
        """Send the reply as soon as those to the connection's earlier requests are sent."""
        self.outcome = outcome
        self._connection.flush()

    def stream(self, outcome: Stream) -> None:
        """Begin to send the pieces as soon as it is this request's turn."""
        self.pieces = outcome
        self._connection.flush()

    def hang_up(self) -> None:
        """End the connection at once, with all that is under way on it."""
        self._connection.abort()

    def close_after(self, afterwards: Callable[[], None] | None = None) -> None:
        """Make the answer to this request the last on its connection; then call `afterwards`."""
        self.keeps_alive = False
        self.separator = _CLOSE
        self._connection.afterwards = afterwards


class Connection(asyncio.Protocol):
    """One client's connection. Every complete request goes to `handle`, which may answer later.

    `connections` is where it keeps itself while it is open. A request that can't be read is
    answered here: 400 if it is malformed, 413 if its body is too large; then the connection ends.
    `bounds` says what is taken. `afterwards` is called once when its last answer is sent.
    """

    def __init__(
        self,
        handle: Callable[[Exchange], None],
        connections: dict[Connection, None],
        bounds: Bounds,
    ) -> None:
        self._handle = handle
        self._connections = connections
        self._bounds = bounds
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._pipeline: deque[Exchange] = deque()
        self._url = b""
        self._unread_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._head_without_offer = b""
        self._incoming: Exchange | None = None
        self._deaf = False
        self._mute = False  # flush sends nothing: a stream has the word, or nobody ever will
        self._leaving = False
        self._stream: Stream | None = None
        self._next_piece: asyncio.TimerHandle | None = None
        self._full = False
        self.afterwards: Callable[[], None] | None = None
        self.requests = 0
        """That were whole."""

    @property
    def closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._transport.is_closing()

    @property
    def leaving(self) -> bool:
        """Whether its last answer is sent and it is about to end."""
        return self._leaving

    @property
    def at_work(self) -> bool:
        """Whether a whole request waits for its answer."""
        return len(self._pipeline) > (self._incoming is not None)

    def end(self) -> None:
        """End the connection when those requests are answered that are whole by now."""
        if not self.at_work:
            self._transport.close()
            return
        self._deaf = True
        self._pipeline[-1 if self._incoming is None else -2].close_after()

    def give_up(self) -> None:
        """End a connection that brings nothing; who began a body is told."""
        if self._incoming is None:
            self._transport.close()
        else:
            self._refuse(self._bounds.too_slow)

    def abort(self) -> None:
        """End the connection at once, whatever is under way on it."""
        self._deaf = True
        self._transport.abort()

    def flush(self) -> None:
        """Send the replies that are ready and whose turn it is."""
        if self._mute or self.closing:
            return
        while self._pipeline:
            exchange = self._pipeline[0]
            if exchange.outcome is None:
                if exchange.pieces is not None:
                    self._mute = True
                    self._stream = exchange.pieces
                    self._send_piece()
                elif exchange.awaits_continue:
                    exchange.awaits_continue = False
                    self._transport.write(_CONTINUE)
                return
            self._pipeline.popleft()
            head, body = exchange.outcome
            self._transport.write(b"".join((head, exchange.separator, body)))
            if not exchange.keeps_alive:
                self._hang_up()
                return

    def _send_piece(self) -> None:
        self._next_piece = None
        if self._stream is None or self.closing or self._full:
            return
        piece = next(self._stream.pieces, None)
        if piece is None:
            self._end_stream(self._stream.ending)
            return
        self._transport.write(piece)
        # One piece a round of the loop: uvloop says that its buffer is full only at a round's end.
        self._next_piece = asyncio.get_running_loop().call_later(
            self._stream.interval_s, self._send_piece
        )

    def _end_stream(self, ending: Ending) -> None:
        self._stream = None
        exchange = self._pipeline.popleft()
        if ending is Ending.CLOSE or (ending is Ending.GO_ON and not exchange.keeps_alive):
            self._hang_up()
        elif ending is Ending.GO_ON:
            self._mute = False
            self.flush()

    def _hang_up(self) -> None:
        self._deaf = self._mute = self._leaving = True
        # Closing a socket that holds unread bytes resets it, and the client could lose the reply:
        # so only this half is closed, and what still comes in is thrown away for a while.
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)
        if self.afterwards is not None:
            self.afterwards()

    def _refuse(self, outcome: Reply) -> None:
        self._deaf = True
        exchange, self._incoming = self._incoming, None
        if exchange is None:
            exchange = Exchange(self)
            self._pipeline.append(exchange)
        exchange.close_after()
        exchange.answer(outcome.without_body() if exchange.method == b"HEAD" else outcome)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._connections) >= self._bounds.connections and not self._has_another_place():
            self.abort()
            return
        self._connections[self] = None

    def _has_another_place(self) -> bool:
        """Whether an older connection is ended that keeps nobody waiting."""
        for other in self._connections:
            if not other.at_work:
                other.abort()
                del self._connections[other]
                return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.pop(self, None)
        self._stream = None
        if self._next_piece is not None:
            self._next_piece.cancel()

    def pause_writing(self) -> None:
        self._full = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self.closing:
            return
        self._transport.resume_reading()
        if self._stream is not None and self._next_piece is None:
            self._send_piece()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._throw_away(len(data))
            return
        while data and not self._deaf:
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
        """Have data parsed; what is left of it where the parser stopped, else None."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            return memoryview(data)[stop.args[0] :]
        except httptools.HttpParserCallbackError:
            raise  # a fault of ours, not of the client
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(self._bounds.malformed)
        return None

    def _read_on(self, rest: memoryview | None) -> None:
        """Ignore an offer to go on in another protocol, as a server may (RFC 9110, section 7.8).

        Java's client makes one with its first request. The parser can't ignore it: it stops after
        the head, as if no body came. So it gets that head once more, without the offer.
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
        if self._deaf:
            return
        if self._pipeline and not self._bounds.pipelining:
            self._deaf = True
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
            self._headers = {}  # what a trailer adds is no header
        if length is not None and int(length) > self._bounds.body_bytes:
            self._refuse(self._bounds.too_large)
        elif headers.get(b"expect", b"").lower() == b"100-continue" and not old:
            exchange.awaits_continue = True
            self.flush()

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
        self._deaf = not exchange.keeps_alive
        self.requests += 1
        self._handle(exchange)


class Listener:
    """Takes connections at one address, and can be gone for a while. Requests go to `handle`."""

    def __init__(self, handle: Callable[[Exchange], None], bounds: Bounds = _BOUNDS) -> None:
        self._handle = handle
        self._bounds = bounds
        self._connections: dict[Connection, None] = {}
        self._requests: dict[Connection, int] = {}
        self._server: asyncio.Server | None = None
        self._absence: asyncio.Task[None] | None = None
        self._host = ""
        self._port = 0

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: a free one if `port` is 0.

        Raises:
            OSError: the address is taken or not this machine's.
        """
        try:
            self._server = await self._listen(host, port)
        except UnicodeError as error:
            raise OSError(reason(error, host)) from None
        self._host, self._port = host, self._server.sockets[0].getsockname()[1]
        return self._port

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: Connection(self._handle, self._connections, self._bounds),
            host,
            port,
            backlog=_BACKLOG,
        )

    def finish(self) -> None:
        """Stop listening, and end every connection once it has the answers under way."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.end()

    def end_idle(self) -> None:
        """End the connections that have brought no whole request since this was called last."""
        for connection, before in self._requests.items():
            if connection.requests == before and not connection.at_work:
                connection.give_up()
        self._requests = {connection: connection.requests for connection in self._connections}

    async def close(self) -> None:
        """Stop listening and end every connection at once, as if the process were killed."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        if self._absence is not None:
            self._absence.cancel()
            await asyncio.wait([self._absence])
            self._absence = None
        await self._server.wait_closed()
        self._server = None

    def leave(self, exchange: Exchange, for_s: float) -> None:
        """Refuse connections from now on, for `for_s` seconds; the open ones are aborted.

        That happens when `exchange`, which has asked for it, has its answer; it is the last on its
        connection.
        """
        if self._server is not None:
            self._server.close()
        if self._absence is not None:
            self._absence.cancel()
        self._absence = asyncio.get_running_loop().create_task(self._return(for_s))
        exchange.close_after(self._abort_others)

    async def _return(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            try:
                self._server = await self._listen(self._host, self._port)
            except OSError as error:  # somebody's outgoing connection may have got the port
                _logger.warning(
                    "can't listen on %(host)s:%(port)d yet: %(error)s",
                    {"host": self._host, "port": self._port, "error": reason(error)},
                )
                await asyncio.sleep(_RELISTEN_S)
            else:
                return

    def _abort_others(self) -> None:
        for connection in tuple(self._connections):
            if not connection.leaving:
                connection.abort()

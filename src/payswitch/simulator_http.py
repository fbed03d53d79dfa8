"""The little HTTP/1.1 that the simulator speaks: requests in, replies out in the requests' order.

Written on `httptools` and `asyncio.Protocol` rather than on a framework, so that the simulator is
never what a measurement measures, and so that a reply can be held back or broken at will.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple, cast

import httptools
import orjson

MAX_BODY_BYTES = 64 * 1024
LINGER_S = 5.0

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STAY = b"\r\n"
_STAY_OLD = b"Connection: keep-alive\r\n\r\n"
_CLOSE = b"Connection: close\r\n\r\n"


class Reply(NamedTuple):
    """An answer that may be given on any connection: `Connection` and the blank line are added."""

    head: bytes
    body: bytes


def reply(status: HTTPStatus, body: bytes = b"", *headers: bytes) -> Reply:
    """Make a reply of a status, a JSON body (or none) and further header lines."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *headers]
    if body:
        lines.append(b"Content-Type: application/json; charset=utf-8")
    if status is not HTTPStatus.NO_CONTENT:
        lines.append(b"Content-Length: %d" % len(body))
    return Reply(b"\r\n".join([*lines, b""]), body)


def message(status: HTTPStatus, text: str, *headers: bytes) -> Reply:
    """Make a reply whose body is `{"message": text}`."""
    return reply(status, orjson.dumps({"message": text}), *headers)


_MALFORMED = message(HTTPStatus.BAD_REQUEST, "malformed request")
_TOO_LARGE = message(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes"
)


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

    def close_after(self) -> None:
        """Make the answer to this request the last on its connection."""
        self.keeps_alive = False
        self.separator = _CLOSE


class Connection(asyncio.Protocol):
    """One client's connection. Every complete request goes to `handle`, which may answer later.

    `connections` is where it keeps itself while it is open. A request that can't be read is
    answered here: 400 if it is malformed, 413 if its body is too large; then the connection ends.
    """

    def __init__(self, handle: Callable[[Exchange], None], connections: set[Connection]) -> None:
        self._handle = handle
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._pipeline: deque[Exchange] = deque()
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._incoming: Exchange | None = None
        self._deaf = False

    @property
    def closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._transport.is_closing()

    def abort(self) -> None:
        """End the connection at once, whatever is under way on it."""
        self._transport.abort()

    def flush(self) -> None:
        """Send the replies that are ready and whose turn it is."""
        if self.closing:
            return
        while self._pipeline:
            exchange = self._pipeline[0]
            if exchange.outcome is None:
                if exchange.awaits_continue:
                    exchange.awaits_continue = False
                    self._transport.write(_CONTINUE)
                return
            self._pipeline.popleft()
            head, body = exchange.outcome
            self._transport.write(b"".join((head, exchange.separator, body)))
            if not exchange.keeps_alive:
                self._hang_up()

    def _hang_up(self) -> None:
        # Closing a socket that holds unread bytes resets it, and the client could lose the reply:
        # so only this half is closed, and what still comes in is thrown away for a while.
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def _refuse(self, outcome: Reply) -> None:
        self._deaf = True
        exchange, self._incoming = self._incoming, None
        if exchange is None:
            exchange = Exchange(self)
            self._pipeline.append(exchange)
        exchange.close_after()
        exchange.answer(outcome)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.closing:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # a fault of ours, not of the client
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._deaf:
                self._refuse(_MALFORMED)

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
        exchange = self._incoming = Exchange(self)
        self._pipeline.append(exchange)
        exchange.method = self._parser.get_method()
        exchange.headers = headers = self._headers
        old = self._parser.get_http_version() == "1.0"
        if self._parser.should_upgrade() or not self._parser.should_keep_alive():
            exchange.close_after()
        elif old:
            exchange.separator = _STAY_OLD
        if int(headers.get(b"content-length", 0)) > MAX_BODY_BYTES:
            self._refuse(_TOO_LARGE)
        elif headers.get(b"expect", b"").lower() == b"100-continue" and not old:
            exchange.awaits_continue = True
            self.flush()

    def on_body(self, body: bytes) -> None:
        if self._incoming is None:
            return
        self._incoming.body += body
        if len(self._incoming.body) > MAX_BODY_BYTES:
            self._refuse(_TOO_LARGE)

    def on_message_complete(self) -> None:
        exchange = self._incoming
        if exchange is None:
            return
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            self._refuse(_MALFORMED)
            return
        exchange.path = url.path or b"/"
        exchange.query = url.query or b""
        self._incoming = None
        self._deaf = not exchange.keeps_alive
        self._handle(exchange)

"""HTTP/1.1 as a client speaks it on one keep-alive connection: a request out, its response in.

`httptools` parses the response, which is kept in memory. `payswitch.http.transport` chooses the
connection for a request.
"""

from __future__ import annotations

import asyncio
import math
import re
import select
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import httptools
import httpx

from payswitch.reasons import reason

# h11's grammar, which httpx' own transport enforces.
_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"
_VALUE = rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?"
_HEAD = re.compile(rb"%b [\x21-\x7e]+ HTTP/1\.1\r\n(?:%b: %b\r\n)*" % (_TOKEN, _TOKEN, _VALUE))

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_IN_ORDER = struct.pack("ii", 0, 0)
_MOST_TURNS = 10
"""Turns of the loop to wait for a read: it comes in the first or the second one."""
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)


def encode(request: httpx.Request) -> bytes:
    """Render a request, whose body is bytes, as it goes over the wire.

    Raises `httpx.LocalProtocolError` unless its parts make exactly one valid HTTP/1.1 request: a
    server would read bytes beyond the announced length as another one.
    """
    if not isinstance(request.stream, httpx.ByteStream):
        raise httpx.LocalProtocolError("the body is not bytes")
    body = b"".join(request.stream)
    fields = tuple(request.headers.raw)
    head, announced = _encode_head(request.method, request.url.raw_path, fields)
    if announced != b"%d" % len(body):
        raise httpx.LocalProtocolError("the content length is not the body's")
    return b"%b\r\n%b" % (head, body)


@lru_cache(maxsize=256)
def _encode_head(
    method: str, target: bytes, fields: tuple[tuple[bytes, bytes], ...]
) -> tuple[bytes, bytes]:
    """A request's head without its empty line, and the length that it announces. Cached, because
    the heads of payments hardly differ."""
    lines = [b"%b %b HTTP/1.1\r\n" % (method.encode(), target)]
    lines += [b"%b: %b\r\n" % field for field in fields]
    head = b"".join(lines)
    # The count tells a value with a line break in it from two headers.
    if head.count(b"\n") != len(lines) or not _HEAD.fullmatch(head):
        raise httpx.LocalProtocolError("illegal method, target, header name or header value")
    headers = {name.lower(): value for name, value in fields}
    if len(headers) < len(fields) or b"host" not in headers:
        raise httpx.LocalProtocolError("a repeated header, or no host header")
    if b"transfer-encoding" in headers:
        raise httpx.LocalProtocolError("the content length is not the body's")
    return head, headers.get(b"content-length", b"0")


class ResponseReader:
    """Assembles one response at a time from the bytes that arrive, however they are cut.

    The body without its chunk framing may have `max_bytes`, and so may all the rest of a response.
    A breach of the protocol raises `httpx.RemoteProtocolError`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parser = httptools.HttpResponseParser(self)
        # As h11: "Connection: close" on an informational response doesn't end the exchange, and
        # some servers pad a chunk's size.
        self._parser.set_dangerous_leniencies(
            lenient_keep_alive=True, lenient_spaces_after_chunk_size=True
        )
        self.begin()

    def begin(self) -> None:
        """Expect the response to a new request."""
        self._is_untouched = True
        self._overhead = 0
        self._body_size = 0
        self._body: list[bytes] = []
        self.is_complete = False
        self.keeps_alive = False
        self._begin_head()

    def _begin_head(self) -> None:
        self._in_head = True
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._codings: list[bytes] = []
        self._has_length = False

    def feed(self, data: bytes) -> None:
        """Take bytes; `is_complete` tells whether they held the response's end."""
        if self._is_untouched and not data.startswith(b"H"):
            raise httpx.RemoteProtocolError("the answer is not HTTP")
        self._is_untouched = False
        body_size = self._body_size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.is_complete:
                cause = error.__context__
                if isinstance(cause, httpx.RemoteProtocolError):
                    raise cause from None
                raise httpx.RemoteProtocolError(f"not HTTP: {error}") from error
            # The response stands, but no request asked for the bytes after it.
            self.keeps_alive = False
        self._overhead += len(data) - (self._body_size - body_size)
        if self._overhead > self._max_bytes:
            raise httpx.RemoteProtocolError(f"headers of more than {self._max_bytes} bytes")

    def end(self) -> None:
        """Take the end of the stream, which completes a response without an announced length."""
        if self._is_untouched:
            raise httpx.RemoteProtocolError("the connection ended without an answer")
        if self._in_head or self._has_length or self._codings:
            raise httpx.RemoteProtocolError("the connection ended within the answer")
        if 200 <= self._status < 300 and not self._body_size:
            # Stock httpx takes this for an empty body, but a success may have been cut off here.
            raise httpx.RemoteProtocolError("the connection ended before the answer's body")
        self.is_complete = True

    def response(self) -> httpx.Response:
        """The complete response. Its content keeps its encoding: `httpx` decodes it."""
        return httpx.Response(
            self._status,
            headers=self._headers,
            stream=httpx.ByteStream(b"".join(self._body)),
            extensions={"http_version": self._version, "reason_phrase": self._reason},
        )

    # What httptools calls, for informational responses too.

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise httpx.RemoteProtocolError("data after the response")

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        value = value.rstrip(b" \t")
        self._headers.append((name, value))
        key = name.lower()
        if key == b"transfer-encoding":
            self._codings.append(value.lower())
        elif key == b"content-length":
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status < 100 or self._status == 101:
            raise httpx.RemoteProtocolError(f"unexpected status {self._status}")
        if self._codings and self._codings != [b"chunked"]:
            raise httpx.RemoteProtocolError("the only transfer encoding is chunked, once")
        self._version = b"HTTP/" + self._parser.get_http_version().encode()
        self._in_head = False

    def on_body(self, part: bytes) -> None:
        self._body_size += len(part)
        if self._body_size > self._max_bytes:
            raise httpx.RemoteProtocolError(f"a body of more than {self._max_bytes} bytes")
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._status < 200:
            self._begin_head()
        else:
            self.is_complete = True
            self.keeps_alive = self._parser.should_keep_alive()


class ClientConnection(asyncio.Protocol):
    """One connection, which carries one exchange at a time.

    It calls `released` when a response is complete and it can serve another request, and `lost` as
    soon as it no longer can, possibly more than once. Bytes that the peer's kernel has not
    acknowledged after `acknowledge_timeout` seconds end it and are never sent again (RFC 5482;
    Linux only).
    """

    _transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        max_response_bytes: int,
        released: Callable[[ClientConnection], None],
        lost: Callable[[ClientConnection], None],
        acknowledge_timeout: float | None = None,
    ) -> None:
        self.idle_since = 0.0
        self.is_new = True
        """It has not carried a request yet."""
        self._acknowledge_timeout = acknowledge_timeout
        self._loop = loop
        self._reader = ResponseReader(max_response_bytes)
        self._released = released
        self._lost = lost
        self._probe = select.poll()
        self._exchange: asyncio.Future[httpx.Response] | None = None
        self._is_stuck = False
        self._limit_s = math.inf
        self._ends_at = math.inf
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def is_open(self) -> bool:
        """Whether the loop has not seen its end."""
        return not self._transport.is_closing()

    def is_usable(self) -> bool:
        """Whether a request can be sent: it has not ended, and no byte has come unasked.

        Asks the socket itself, as the loop may not have run since the peer closed or spoke.
        """
        return self.is_open() and not self._probe.poll(0)

    async def read_on(self) -> None:
        """Let the loop read the bytes that have come. Under TLS they may be a session ticket;
        anything else closes the connection."""
        for _ in range(_MOST_TURNS):
            if not self.is_open() or self.is_usable():
                return
            await asyncio.sleep(0)

    def send(
        self, request: bytes, read_timeout: float | None, write_timeout: float | None
    ) -> asyncio.Future[httpx.Response]:
        """Write a request before this call returns; the future brings its response.

        Both limits, in seconds, run from this call on: until the response is complete, and until
        the kernel has taken the last byte. A caller that stops waiting must call `give_up`.
        """
        self.is_new = False
        self._reader.begin()
        self._exchange = exchange = self._loop.create_future()
        self._transport.write(request)
        self._limit_read(math.inf if read_timeout is None else read_timeout)
        if self._is_stuck and write_timeout is not None:
            self._write_timer = self._loop.call_later(
                write_timeout, self._expire_write, write_timeout
            )
        return exchange

    def give_up(self, exchange: asyncio.Future[httpx.Response]) -> None:
        """Abort the connection if that exchange is still under way."""
        if self._exchange is exchange:
            self._fail(httpx.ReadError("given up"))

    def close(self) -> None:
        """End the connection, and the exchange that is under way."""
        if self._exchange is not None:
            self._fail(httpx.ReadError("the transport was closed"))
        else:
            if not self._transport.is_closing():
                self._linger(_CLOSE_IN_ORDER)
            self._transport.close()
            self._lost(self)

    # What asyncio calls; after `eof_received` it closes the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.idle_since = self._loop.time()
        self._probe.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        # Bytes that have not left when this process is killed must never leave: the kernel would
        # go on delivering them for minutes, after another worker has taken the payment over.
        self._linger(_RESET_ON_CLOSE)
        if self._acknowledge_timeout is not None and _USER_TIMEOUT is not None:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(
                socket.IPPROTO_TCP, _USER_TIMEOUT, int(self._acknowledge_timeout * 1000)
            )
        if transport.get_extra_info("ssl_object") is None:
            # Bytes that the kernel doesn't take at once count as stuck. Older versions of uvloop
            # also put a write below this mark off to the end of the loop's round.
            self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            self.close()
            return
        try:
            self._reader.feed(data)
        except httpx.RemoteProtocolError as error:
            self._fail(error)
        else:
            if self._reader.is_complete:
                self._finish()

    def eof_received(self) -> None:
        if self._exchange is None:
            self.close()
            return
        try:
            self._reader.end()
        except httpx.RemoteProtocolError as error:
            self._fail(error)
        else:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_read_timer()
        if exc is None:
            self.eof_received()
            return
        kind = httpx.WriteError if isinstance(exc, BrokenPipeError) else httpx.ReadError
        error = kind(reason(exc))
        error.__cause__ = exc
        self._fail(error)

    def pause_writing(self) -> None:
        self._is_stuck = True

    def resume_writing(self) -> None:
        self._is_stuck = False

    def _limit_read(self, seconds: float) -> None:
        """Let one timer serve many requests, because one for each costs as much as its write."""
        self._limit_s, self._ends_at = seconds, self._loop.time() + seconds
        timer = self._read_timer
        if timer is None or timer.when() > self._ends_at:
            self._set_read_timer()

    def _set_read_timer(self) -> None:
        self._stop_read_timer()
        if self._ends_at < math.inf:
            self._read_timer = self._loop.call_at(self._ends_at, self._expire_read)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _expire_read(self) -> None:
        self._read_timer = None
        if self._exchange is None:
            return  # the next request sets it again
        if self._loop.time() < self._ends_at:
            self._set_read_timer()
        else:
            self._fail(httpx.ReadTimeout(f"no complete answer within {self._limit_s:g} s"))

    def _expire_write(self, seconds: float) -> None:
        if self._is_stuck:
            self._fail(httpx.WriteTimeout(f"the request was not taken within {seconds:g} s"))

    def _fail(self, error: httpx.TransportError) -> None:
        exchange = self._take_exchange()
        self._reset()
        if exchange is not None and not exchange.done():
            exchange.set_exception(error)

    def _finish(self) -> None:
        exchange = self._take_exchange()
        if exchange is not None and not exchange.done():
            exchange.set_result(self._reader.response())
        if self._is_stuck:
            self._reset()
        elif self._reader.keeps_alive:
            self.idle_since = self._loop.time()
            self._released(self)
        else:
            self.close()

    def _take_exchange(self) -> asyncio.Future[httpx.Response] | None:
        exchange, self._exchange = self._exchange, None
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        return exchange

    def _reset(self) -> None:
        self._transport.abort()
        self._lost(self)

    def _linger(self, how: bytes) -> None:
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)

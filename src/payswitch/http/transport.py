"""A lean `httpx` transport for HTTP/1.1: pooled keep-alive connections at a constant cost.

httpx' own transport walks its whole pool for every request, which makes many requests in flight
quadratically expensive. This one gives the same responses and raises the same errors, with these
differences:

- The response is read into memory, up to a limit; beyond it, `httpx.RemoteProtocolError`.
- The read timeout bounds the whole response, from the write on, not the single read.
- The connect timeout bounds DNS, TCP and TLS together. Connections that are opened at the same time
  share one look-up.
- It asks a request's extension `before_write` directly before it writes the bytes.
- Bytes that came before the request was written are never its answer: the connection is dropped. A
  success without a length is an error if its connection ends before a byte of the body.
- Every error tells whether bytes of the request may have left: see `bytes_left`. A connection that
  ends before the write is an `httpx.ConnectError`.
- It refuses responses that `httptools` refuses: line ends without CR, folded lines or control
  characters in headers, a repeated Content-Length, one along with Transfer-Encoding.
- Requests have bodies of bytes and no header twice. No `HEAD`, `CONNECT`, upgrades, proxies, HTTP/2
  or unix sockets, and of httpx' extensions none but `timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from functools import partial

import httpx

from payswitch.http.addresses import Address, Addresses
from payswitch.http.client_connection import ClientConnection, encode
from payswitch.reasons import reason


class NotSent(httpx.TransportError):
    """`before_write` refused: not a byte of the request was written."""


_NEVER_LEFT = (
    NotSent,
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)


def bytes_left(error: httpx.TransportError) -> bool:
    """Whether bytes of a request that failed in `Transport` may have left; False is certain."""
    return not isinstance(error, _NEVER_LEFT)


class Transport(httpx.AsyncBaseTransport):
    """Carries `httpx` requests over HTTP/1.1, with and without TLS.

    The request's `timeout` extension, which `httpx.AsyncClient` always sets, has the limits of a
    call in seconds: `connect`, `pool`, `read`, `write`. None, or a missing one, is no limit.

    A request may bring a callable as its extension `before_write`. It is called when a connection
    is at hand, and nothing is awaited between its return and the write. If it returns False or
    raises, nothing is written, the connection stays in the pool and `NotSent` is raised.

    A call that is cancelled or runs out of time resets its connection: bytes of the request that
    have not reached the peer never will. So does any end of the process. Bytes that the peer's
    kernel has not acknowledged after `acknowledge_timeout` are not sent again.
    """

    def __init__(
        self,
        *,
        max_connections_per_host: int = 512,
        acknowledge_timeout: float | None = None,
        max_response_bytes: int = 64 * 1024,
        keepalive_expiry: float = 4.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._new_pool = partial(
            Pool,
            max_connections=max_connections_per_host,
            keepalive_expiry=keepalive_expiry,
            max_response_bytes=max_response_bytes,
            acknowledge_timeout=acknowledge_timeout,
        )
        self._ssl_context = ssl_context
        self._pools: dict[tuple[str, str, int | None], Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its response; the errors are those of `httpx`, and `NotSent`."""
        try:
            data = encode(request)
            pool = self._pool_for(request.url)
            limits = request.extensions.get("timeout", {})
            while True:
                connection = pool.take() or await pool.wait(
                    limits.get("pool"), limits.get("connect")
                )
                try:
                    _ask(request)
                except BaseException:
                    pool.put(connection)
                    raise
                if connection.is_usable():
                    break
                await pool.check(connection)
            exchange = connection.send(data, limits.get("read"), limits.get("write"))
            try:
                response = await exchange
            except asyncio.CancelledError:
                connection.give_up(exchange)
                raise
        except httpx.TransportError as error:
            error.request = request
            raise
        response.request = request
        return response

    async def aclose(self) -> None:
        """Close idle connections and reset busy ones, whose calls fail with `httpx.ReadError`."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
        # The loop closes the sockets in its next round.
        await asyncio.sleep(0)

    def _pool_for(self, url: httpx.URL) -> Pool:
        origin = (url.scheme, url.host, url.port)
        pool = self._pools.get(origin)
        if pool is None:
            if url.scheme not in ("http", "https") or not url.host:
                raise httpx.UnsupportedProtocol(f"neither http:// nor https://: {url!r}")
            if url.scheme == "https" and self._ssl_context is None:
                self._ssl_context = httpx.create_ssl_context()
            pool = self._pools[origin] = self._new_pool(
                url, self._ssl_context if url.scheme == "https" else None
            )
        return pool


def _ask(request: httpx.Request) -> None:
    before_write = request.extensions.get("before_write")
    if before_write is None:
        return
    try:
        is_refused = before_write() is False
    except Exception as error:
        raise NotSent("before_write failed") from error
    if is_refused:
        raise NotSent("before_write refused")


class Pool:
    """The connections to one origin: idle ones on a stack, waiting callers in a queue.

    A place is free, reserved by a caller that is about to use it, or taken by an open connection.
    """

    def __init__(
        self,
        url: httpx.URL,
        ssl_context: ssl.SSLContext | None,
        *,
        max_connections: int,
        keepalive_expiry: float,
        max_response_bytes: int,
        acknowledge_timeout: float | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if ssl_context else 80)
        self._addresses = Addresses(self._host, self._port)
        self._ssl_context = ssl_context
        self._max_connections = max_connections
        self._keepalive_expiry = keepalive_expiry
        self._new_connection = partial(
            ClientConnection,
            self._loop,
            max_response_bytes,
            self.put,
            self._lost,
            acknowledge_timeout,
        )
        self._idle: deque[ClientConnection] = deque()
        self._open: set[ClientConnection] = set()
        self._reserved = 0
        self._waiters: deque[asyncio.Future[ClientConnection | None]] = deque()
        self._is_closed = False

    def take(self) -> ClientConnection | None:
        """The connection that was used last, if any is idle and still open."""
        while self._idle:
            connection = self._idle.pop()
            if self._is_alive(connection):
                return connection
            connection.close()
        return None

    async def wait(self, pool_limit: float | None, connect_limit: float | None) -> ClientConnection:
        """Open a connection, or wait for one from another caller or for a place to open it."""
        if self._has_place():
            self._reserved += 1
        elif connection := await self._queue(pool_limit):
            if self._is_alive(connection):
                self._adopt(connection)
                return connection
            connection.close()
        return await self._connect(connect_limit)

    async def check(self, connection: ClientConnection) -> None:
        """Look at a connection on which bytes came before the request was written: keep it for the
        next request, or drop it. Raises `httpx.ConnectError` if it has carried no request yet."""
        try:
            await connection.read_on()
        except BaseException:
            connection.close()
            raise
        if connection.is_usable():
            self.put(connection)
            return
        connection.close()
        if connection.is_new:
            raise httpx.ConnectError("the connection ended before the request was written")

    def put(self, connection: ClientConnection) -> None:
        """Hand a connection to the caller that waits longest, or keep it for the next request."""
        if self._is_closed:
            connection.close()
            return
        if waiter := self._next_waiter():
            # Only reserved: it may have ended by the time the waiter runs.
            self._open.discard(connection)
            self._reserved += 1
            waiter.set_result(connection)
            return
        self._idle.append(connection)
        while self._idle and self._is_expired(self._idle[0]):
            self._idle.popleft().close()

    def close(self) -> None:
        """Close all connections; waiting callers fail."""
        self._is_closed = True
        self._addresses.close()
        for connection in tuple(self._open):
            connection.close()

    def _has_place(self) -> bool:
        return len(self._open) + self._reserved < self._max_connections

    def _is_expired(self, connection: ClientConnection) -> bool:
        return self._loop.time() - connection.idle_since >= self._keepalive_expiry

    def _is_alive(self, connection: ClientConnection) -> bool:
        return not self._is_closed and not self._is_expired(connection) and connection.is_open()

    def _next_waiter(self) -> asyncio.Future[ClientConnection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    async def _queue(self, limit: float | None) -> ClientConnection | None:
        """Wait for a reserved place, with a connection in it or without."""
        waiter: asyncio.Future[ClientConnection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        timer = None if limit is None else self._loop.call_later(limit, _expire, waiter, limit)
        try:
            return await waiter
        except BaseException:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _adopt(self, connection: ClientConnection) -> None:
        self._reserved -= 1
        self._open.add(connection)

    def _pass_on(self, connection: ClientConnection | None) -> None:
        if connection is None:
            self._reserved -= 1
            self._offer_place()
        else:
            self._adopt(connection)
            self.put(connection)

    def _offer_place(self) -> None:
        if self._has_place() and (waiter := self._next_waiter()):
            self._reserved += 1
            waiter.set_result(None)

    def _lost(self, connection: ClientConnection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._offer_place()

    async def _connect(self, limit: float | None) -> ClientConnection:
        """Open a connection in the place that is reserved."""
        try:
            connection = await self._open_connection(limit)
        except BaseException:
            self._pass_on(None)
            raise
        self._adopt(connection)
        if self._is_closed:
            connection.close()
            raise httpx.ConnectError("the transport was closed")
        return connection

    async def _open_connection(self, limit: float | None) -> ClientConnection:
        if self._is_closed:
            raise httpx.ConnectError("the transport was closed")
        try:
            async with asyncio.timeout(limit):
                return await self._connect_to_any(await self._addresses.get())
        except TimeoutError as error:
            self._addresses.give_up()
            within = "in time" if limit is None else f"within {limit:g} s"
            raise httpx.ConnectTimeout(f"no connection {within}") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(reason(error, self._host)) from error

    async def _connect_to_any(self, addresses: list[Address]) -> ClientConnection:
        """Connect to the first address that answers. Raises the last one's error if none does."""
        *others, last = addresses
        for address in others:
            with contextlib.suppress(OSError):
                return await self._connect_to(address)
        return await self._connect_to(last)

    async def _connect_to(self, address: Address) -> ClientConnection:
        _, connection = await self._loop.create_connection(
            self._new_connection,
            address.host,
            self._port,
            family=address.family,
            ssl=self._ssl_context,
            server_hostname=self._host if self._ssl_context else None,
        )
        return connection


def _expire(waiter: asyncio.Future[ClientConnection | None], limit: float) -> None:
    if not waiter.done():
        waiter.set_exception(httpx.PoolTimeout(f"no connection was free within {limit:g} s"))

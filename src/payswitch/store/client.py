"""Connections to Redis."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable
from typing import Any

import orjson
from arq.connections import ArqRedis
from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.connection import AbstractConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.redis_url import tls_defaults
from payswitch.store.channels import Channels, ChannelScript
from payswitch.store.errors import Epoch, Parser, WrongServerError, unreachable


class _OwnConnection(AbstractConnection):
    """A connection that isn't reused once its server turned out to be the wrong one (`Epoch`).

    It sends without `asyncio.wait_for`, which costs a task for every command. Before Python 3.12 it
    also swallows a cancellation that comes just as the send ends (python/cpython issue 86296), so
    that a worker would never stop.
    """

    def __init__(self, *args: Any, epoch: Epoch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = epoch
        self._opened_in = epoch.number

    async def connect(self) -> None:
        """Connect, unless it is connected; note the epoch."""
        if not self.is_connected:
            self._opened_in = self.epoch.number
        await super().connect()  # type: ignore[no-untyped-call]

    @property
    def is_stale(self) -> bool:
        """Whether its server has turned out to be the wrong one."""
        return self._opened_in != self.epoch.number

    async def can_read_destructive(self) -> bool:
        """Whether the pool must reconnect it before its next use."""
        return self.is_stale or bool(await super().can_read_destructive())  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read the answer to a command; a wrong server ends the epoch."""
        try:
            return await super().read_response(*args, **kwargs)
        except WrongServerError:
            self.epoch.end()
            raise

    def _error_message(self, exception: BaseException) -> str:
        return unreachable(exception, self._host_error())

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if not self.is_connected:
            await self.connect()
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        parts = command.encode() if isinstance(command, str) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([parts] if isinstance(parts, bytes) else parts)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(self._error_message(error)) from error
        except BaseException:
            await self.disconnect(nowait=True)
            raise


class _PolledConnection(_OwnConnection):
    """Checks before each use whether Redis has closed the connection or sent stray bytes: in the
    kernel, in the loop's buffer and in the parser. redis-py's own check reads until a timer fires
    at once, which takes a quarter of a command's CPU. TLS connections keep it, because there the
    unread bytes may be a session ticket."""

    async def can_read_destructive(self) -> bool:
        if self._writer is None or self.is_stale:
            return True
        buffer: Any = self._reader
        parser: Any = self._parser
        if buffer._buffer or parser._reader.has_data():
            return True
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))


class _TcpConnection(_PolledConnection, Connection):
    pass


class _TlsConnection(_OwnConnection, SSLConnection):
    async def connect(self) -> None:
        try:
            await super().connect()
        except RedisTimeoutError:
            # A Redis without TLS takes the greeting for half a command and waits for the rest.
            raise RedisTimeoutError("it does not answer in time: does it speak TLS?") from None


class _UnixConnection(_PolledConnection, UnixDomainSocketConnection):
    pass


_CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class Client(ArqRedis):
    """An `ArqRedis` that calls its scripts through channels."""

    def __init__(self, pool: ConnectionPool, *, limit_s: float) -> None:
        super().__init__(
            pool_or_conn=pool, job_serializer=orjson.dumps, job_deserializer=orjson.loads
        )
        self.epoch: Epoch = pool.connection_kwargs["epoch"]
        self._channels = Channels(pool, limit_s=limit_s)

    def register_script(self, script: Any) -> ChannelScript:  # type: ignore[override]
        """The script, called through a channel."""
        return ChannelScript(self, script, self._channels)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections and channels."""
        self._channels.close()
        await super().aclose(close_connection_pool)


def connect(url: str, *, limit_s: float) -> Client:
    """A client for `url`; each command times out after `limit_s`.

    It connects on first use. It writes arq's jobs as JSON and calls scripts through lean channels
    (`payswitch.store.channels`). If a server answers that it is the wrong one, no open connection
    is used again.
    """
    pool: ConnectionPool = ConnectionPool.from_url(
        url,
        socket_timeout=limit_s,
        socket_connect_timeout=min(limit_s, 1.0),
        parser_class=Parser,
        epoch=Epoch(),
        **tls_defaults(url),
    )
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return Client(pool, limit_s=limit_s)

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
    """Not used again once its server turned out to be the wrong one (`Epoch`).

    It sends without `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes
    just as the send ends (python/cpython issue 86296), so that a worker told to stop would go on
    for ever; it also costs a task for every command.
    """

    def __init__(self, *args: Any, epoch: Epoch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = epoch
        self._opened_in = epoch.number

    async def connect(self) -> None:
        """Connect and greet, unless it is connected."""
        if not self.is_connected:
            self._opened_in = self.epoch.number
        await super().connect()  # type: ignore[no-untyped-call]

    @property
    def is_stale(self) -> bool:
        """Whether it leads to a server that has turned out to be the wrong one."""
        return self._opened_in != self.epoch.number

    async def can_read_destructive(self) -> bool:
        """Whether the pool must open it anew before its next use."""
        return self.is_stale or bool(await super().can_read_destructive())  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read the answer to a command."""
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
    """Asks before each use whether Redis has closed the connection or sent what nobody asked for:
    the kernel, the loop's buffer, and the parser, wherever that got to. redis-py reads until a
    timer ends at once, a quarter of a command's CPU; under TLS that remains, as what can be read
    there may be a session ticket."""

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
            # A Redis without TLS waits for the rest of what it takes for a command.
            raise RedisTimeoutError("it does not answer in time: does it speak TLS?") from None


class _UnixConnection(_PolledConnection, UnixDomainSocketConnection):
    pass


_CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class Client(ArqRedis):
    """An `ArqRedis` that calls its scripts through channels of its own."""

    def __init__(self, pool: ConnectionPool, *, limit_s: float) -> None:
        super().__init__(
            pool_or_conn=pool, job_serializer=orjson.dumps, job_deserializer=orjson.loads
        )
        self.epoch: Epoch = pool.connection_kwargs["epoch"]
        self._channels = Channels(pool, limit_s=limit_s)

    def register_script(self, script: Any) -> ChannelScript:  # type: ignore[override]
        """A script that is called as redis-py's are."""
        return ChannelScript(self, script, self._channels)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections, the channels among them."""
        self._channels.close()
        await super().aclose(close_connection_pool)


def connect(url: str, *, limit_s: float) -> Client:
    """A client for `url` whose every command is given up after `limit_s`.

    It connects when it is first used. arq's jobs go through it as JSON, scripts through lean
    channels (`payswitch.store.channels`). Where a server answers that it is the wrong one, no
    connection that is open then is used again.
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

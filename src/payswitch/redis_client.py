"""Connections to Redis, and whether it may be trusted with acknowledged payments."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import orjson
from arq.connections import ArqRedis
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.channels import Channels, ChannelScript
from payswitch.start_error import StartError

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5


class UntrustworthyRedisError(StartError):
    """Redis may lose what it has acknowledged, and the settings demand that it doesn't."""


class _CancellableSends(AbstractConnection):
    """Sends without `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes
    just as the send ends (python/cpython issue 86296), so that a worker told to stop would go on
    for ever; it also costs a task for every command."""

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
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
            raise RedisConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:
            await self.disconnect(nowait=True)
            raise


class _PolledConnection(_CancellableSends):
    """Asks before each use whether Redis has closed the connection or sent what nobody asked for:
    the kernel, the loop's buffer, and the parser, wherever that got to. redis-py reads until a
    timer ends at once, a quarter of a command's CPU; under TLS that remains, as what can be read
    there may be a session ticket."""

    async def can_read_destructive(self) -> bool:
        if self._writer is None:
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


class _TlsConnection(_CancellableSends, SSLConnection):
    pass


class _UnixConnection(_PolledConnection, UnixDomainSocketConnection):
    pass


_CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class _Client(ArqRedis):
    """An `ArqRedis` that calls its scripts through channels of its own."""

    def __init__(self, pool: ConnectionPool, *, limit_s: float) -> None:
        super().__init__(
            pool_or_conn=pool, job_serializer=orjson.dumps, job_deserializer=orjson.loads
        )
        self._channels = Channels(pool, limit_s=limit_s)

    def register_script(self, script: Any) -> ChannelScript:  # type: ignore[override]
        """A script that is called as redis-py's are."""
        return ChannelScript(self, script, self._channels)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections, the channels among them."""
        self._channels.close()
        await super().aclose(close_connection_pool)


def connect(url: str, *, limit_s: float) -> ArqRedis:
    """A client for `url` whose every command is given up after `limit_s`.

    It connects when it is first used. arq's jobs go through it as JSON, scripts through lean
    channels (`payswitch.channels`).
    """
    pool: ConnectionPool = ConnectionPool.from_url(
        url, socket_timeout=limit_s, socket_connect_timeout=min(limit_s, 1.0)
    )
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return _Client(pool, limit_s=limit_s)


def shown(url: str) -> str:
    """A URL without its credentials."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


async def risks(redis: Redis) -> list[str]:
    """What this Redis may lose, a sentence each; empty when it may be trusted.

    Raises `RedisError` when it can't be reached.
    """
    try:
        config: dict[str, Any] = {}
        for pattern in ("maxmemory*", "append*", "no-appendfsync-on-rewrite"):
            config.update(await redis.config_get(pattern))
    except RedisError as error:
        if "CONFIG" not in str(error).upper() and "NOPERM" not in str(error).upper():
            raise
        return ["CONFIG is not allowed, so it can't be checked what Redis may lose"]
    return judge(config)


def judge(config: dict[str, Any]) -> list[str]:
    """What a Redis with these settings may lose."""
    found: list[str] = []
    if config.get("maxmemory", "0") != "0" and config.get("maxmemory-policy") != "noeviction":
        found.append(
            f"maxmemory-policy is {config.get('maxmemory-policy')}: short of memory, Redis throws "
            "away payments (set noeviction)"
        )
    if config.get("appendonly") != "yes":
        found.append(
            "appendonly is off: a restart of Redis loses every payment since the last snapshot "
            "(set appendonly yes)"
        )
    elif config.get("appendfsync") != "always":
        found.append(
            f"appendfsync is {config.get('appendfsync')}: a crash loses acknowledged payments "
            "and pins of the last seconds (set appendfsync always)"
        )
    elif config.get("no-appendfsync-on-rewrite", "no") != "no":
        found.append(
            "no-appendfsync-on-rewrite is on: a crash during a rewrite of the append-only file "
            "loses acknowledged payments and pins (set it to no)"
        )
    return found


async def check_trust(redis: Redis, *, demand: bool) -> None:
    """Log what Redis may lose; with `demand`, raise `UntrustworthyRedisError` instead.

    A Redis that is away is not judged, but with `demand` it is waited for.
    """
    is_waiting = False
    while True:
        try:
            found = await risks(redis)
            break
        except (RedisError, OSError) as error:
            if not is_waiting:
                logger.warning(
                    "redis is away, so it is not checked what it may lose: %(error)s",
                    {"error": error},
                )
            if not demand:
                return
        is_waiting = True
        await asyncio.sleep(_ASK_AGAIN_S)
    if found and demand:
        raise UntrustworthyRedisError("; ".join(found))
    for risk in found:
        logger.warning("redis: %(risk)s", {"risk": risk})

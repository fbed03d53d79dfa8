"""Lean calls of Lua scripts: redis-py opens each connection, and this module reads and writes it.

A script call through redis-py's client costs several times what the call itself needs (a pool with
a lock, a coroutine a layer, two timers, a stream), and every payment waits for one. So scripts use
channels, with the same errors and limits, one call at a time on a connection. Other commands don't.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any, cast

import hiredis
from redis.asyncio import Connection, ConnectionPool
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.store.errors import Epoch, WrongServerError

Argument = str | bytes | int | float

_INCOMPLETE = object()


class Channel(asyncio.Protocol):
    """One connection: a command goes out, its answer comes back. Any other event closes it, so
    that no call ever gets another's answer."""

    def __init__(self, connection: Connection, limit_s: float) -> None:
        """Take over a connection that redis-py has opened. A call times out after `limit_s`."""
        self._limit_s = limit_s
        # Kept, because redis-py's writer closes the transport when it is garbage-collected.
        self._opened = cast(Any, connection)
        self._epoch: Epoch = self._opened.epoch
        self._opened_in = self._epoch.number
        self._transport: asyncio.Transport = self._opened._writer.transport
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=self._opened._parser.parse_error,
            notEnoughData=_INCOMPLETE,
        )
        self._answer: asyncio.Future[Any] | None = None
        self._ends_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether it can take a call, as far as the loop knows."""
        return self._opened_in == self._epoch.number and not self._transport.is_closing()

    def has_news(self) -> bool:
        """Whether unread input waits on the idle connection: its end, a stray answer, or under TLS
        perhaps a session ticket."""
        return bool(self._poll.poll(0))

    async def call(self, command: bytes) -> Any:
        """Redis' answer to a packed command. Raises `RedisTimeoutError` after the limit,
        `RedisConnectionError` if the connection ends first, and Redis' own errors."""
        if not self.is_open:
            raise RedisConnectionError("the connection ended before the call")
        self._answer = answer = self._loop.create_future()
        self._ends_at = self._loop.time() + self._limit_s
        # One timer serves many calls: a timer each would cost as much as packing the command.
        if self._timer is None:
            self._timer = self._loop.call_at(self._ends_at, self._expire)
        self._transport.write(command)
        try:
            return await answer
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Abort the connection; unsent bytes are dropped."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, and hand a complete answer to the waiting call."""
        try:
            self._reader.feed(data)
            answer = self._reader.gets()
        except InvalidResponse as error:
            self._fail(error)
            return
        if answer is not _INCOMPLETE:
            self._take(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the waiting call."""
        self._opened._writer = None  # else redis-py warns of a connection left open
        if self._timer is not None:
            self._timer.cancel()
        self._fail(RedisConnectionError(f"the connection ended: {exc or 'closed by redis'}"))

    def _take(self, answer: Any) -> None:
        if self._answer is None or self._reader.has_data():
            self._fail(RedisConnectionError("an answer that nobody asked for"))
        elif isinstance(answer, WrongServerError):
            self._epoch.end()
            self._fail(answer)
        else:
            self._end(answer)

    def _expire(self) -> None:
        self._timer = None
        if self._answer is None:
            return
        if self._loop.time() < self._ends_at:
            self._timer = self._loop.call_at(self._ends_at, self._expire)
            return
        self._fail(RedisTimeoutError(f"no answer within {self._limit_s:g} s"))

    def _fail(self, error: Exception) -> None:
        self.close()
        self._end(error)

    def _end(self, outcome: Any) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


class Channels:
    """A pool of channels: one for each concurrent call. Each call times out after `limit_s`."""

    def __init__(self, pool: ConnectionPool, *, limit_s: float) -> None:
        self._pool = pool
        self._limit_s = limit_s
        self._idle: list[Channel] = []
        self._is_closed = False

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes through a connection that is open already."""
        return any(each.is_open and not each.has_news() for each in self._idle)

    async def call(self, *command: Argument) -> Any:
        """Redis' answer to a command. Raises `RedisError`."""
        channel = self._take() or await self._open()
        try:
            packed = hiredis.pack_command(cast(Any, command))
            return await channel.call(packed)
        finally:
            self._give_back(channel)

    def close(self) -> None:
        """Close the connections; those in use close when their calls end."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Channel | None:
        while self._idle:
            channel = self._idle.pop()
            if channel.is_open and not channel.has_news():
                return channel
            channel.close()
        return None

    def _give_back(self, channel: Channel) -> None:
        if self._is_closed or not channel.is_open:
            channel.close()
        else:
            self._idle.append(channel)

    async def _open(self) -> Channel:
        connection = cast(Connection, self._pool.make_connection())  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return Channel(connection, self._limit_s)


class ChannelScript(AsyncScript):
    """redis-py's Lua script, called through a channel."""

    def __init__(self, client: Any, text: str, channels: Channels) -> None:
        super().__init__(client, text)
        self._text = text
        self._channels = channels

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes through a connection that is open already."""
        return self._channels.is_connected

    async def __call__(self, keys: Any = (), args: Any = (), client: Any = None) -> Any:
        """Redis' answer; if Redis has forgotten the script, send it again. Raises `RedisError`."""
        if client is not None:
            return await super().__call__(keys, args, client)
        rest = (len(keys), *keys, *args)
        try:
            return await self._channels.call("EVALSHA", self.sha, *rest)
        except NoScriptError:
            return await self._channels.call("EVAL", self._text, *rest)

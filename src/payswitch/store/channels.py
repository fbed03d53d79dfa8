"""Lean calls of Lua scripts: redis-py opens each connection, and this module reads and writes it.

A script call through redis-py's client costs several times what the call itself needs (a pool with
a lock, a coroutine a layer, two timers, a stream), and every payment waits for one. So scripts use
channels, with the same errors and limits, one call at a time on a connection. Other commands don't.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.store.errors import Epoch, WrongServerError
from payswitch.store.partitions import Argument

Commands = Sequence[Sequence[Argument]]

_INCOMPLETE = object()
_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)


class Channel(asyncio.Protocol):
    """One connection: the commands of a call go out, their answers come back. Any other event
    closes it, so that no call ever gets another's answers."""

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
        self._answer: asyncio.Future[list[Any]] | None = None
        self._answers: list[Any] = []
        self._expected = 1
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

    async def call(self, commands: bytes, count: int) -> list[Any]:
        """Redis' answers to `count` packed commands, sent in one write; Redis' own errors are among
        them. Raises `RedisTimeoutError` after the limit, and `RedisConnectionError` if the
        connection ends first."""
        if not self.is_open:
            raise RedisConnectionError("the connection ended before the call")
        self._expected = count
        self._answers = []
        answer: asyncio.Future[list[Any]] = self._loop.create_future()
        self._answer = answer
        self._ends_at = self._loop.time() + self._limit_s
        # One timer serves many calls: a timer each would cost as much as packing the command.
        if self._timer is None:
            self._timer = self._loop.call_at(self._ends_at, self._expire)
        self._transport.write(commands)
        try:
            return await answer
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Abort the connection; unsent bytes are dropped."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, and hand complete answers to the waiting call."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _INCOMPLETE:
                self._answers.append(answer)
                if len(self._answers) >= self._expected:
                    self._take()
                    return
        except InvalidResponse as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the waiting call."""
        self._opened._writer = None  # else redis-py warns of a connection left open
        if self._timer is not None:
            self._timer.cancel()
        self._fail(RedisConnectionError(f"the connection ended: {exc or 'closed by redis'}"))

    def _take(self) -> None:
        if self._answer is None or self._reader.has_data():
            self._fail(RedisConnectionError("an answer that nobody asked for"))
            return
        if any(isinstance(answer, WrongServerError) for answer in self._answers):
            self._epoch.end()
            self.close()
        self._end(self._answers)

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

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        limit_s: float,
        meet: Callable[[str], None] | None = None,
    ) -> None:
        """`meet` is told the id of the server's run for each new connection."""
        self._pool = pool
        self._limit_s = limit_s
        self._meet = meet
        self._idle: list[Channel] = []
        self._is_closed = False

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes through a connection that is open already."""
        return any(each.is_open and not each.has_news() for each in self._idle)

    async def call(
        self,
        commands: Commands | Callable[[], Commands],
        then: Callable[[list[Any]], Commands] | None = None,
    ) -> list[Any]:
        """Redis' answers to the commands, sent in one write; its errors are among them. Commands
        that depend on the server's run are made once it is met. `then` may name more for the same
        connection, whose answers follow. Raises `RedisError` if a connection fails."""
        channel = self._take() or await self._open()
        try:
            if callable(commands):
                commands = commands()
            answers = await channel.call(_packed(commands), len(commands))
            more = () if then is None else then(answers)
            if more:
                answers += await channel.call(_packed(more), len(more))
            return answers
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
        channel = Channel(connection, self._limit_s)
        if self._meet is not None:
            [info] = await channel.call(_packed([("INFO", "server")]), 1)
            found = _RUN_ID.search(info) if isinstance(info, bytes) else None
            self._meet("" if found is None else found[1].decode())
        return channel


def _packed(commands: Commands) -> bytes:
    return b"".join([hiredis.pack_command(cast(Any, command)) for command in commands])

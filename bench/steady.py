"""The client of `bench.failover`: `python -m bench.steady HOST PORT RATE SECONDS` posts RATE new
payments a second, whatever becomes of the earlier ones, each once.

It prints a line when it begins, with that instant, and one with all answers when it ends. Instants
are those of `time.monotonic`, the same for all processes.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import NamedTuple, cast
from uuid import uuid4

import click
import httptools
import uvloop

from bench.local import answer
from payswitch.process import die_with_parent

NO_ANSWER = 0
"""In place of a status: the connection ended, or nothing came in time."""
_LAST_WITHIN_S = 5.0
_BEGINS_AFTER_S = 0.2


class Answer(NamedTuple):
    """A payment and its answer."""

    correlation_id: str
    at: float
    """The instant at which it was sent."""
    status: int
    ms: float
    why: str
    """The body of an answer that isn't 202."""


class _Poster(asyncio.Protocol):
    """A connection, for one payment at a time."""

    _transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._correlation_id = ""
        self._sent_at = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""

    def post(self, correlation_id: str, request: bytes) -> None:
        """Send a payment."""
        self._correlation_id = correlation_id
        self._sent_at = time.monotonic()
        self._body = b""
        self._transport.write(request)

    def end(self) -> None:
        """Close the connection; a payment that is under way has no answer."""
        self._transport.abort()
        self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A piece of an answer's body."""
        self._body += body

    def on_message_complete(self) -> None:
        """An answer is complete."""
        self._note(self._parser.get_status_code(), self._body.decode(errors="replace"))
        if self._parser.should_keep_alive() and not self._transport.is_closing():
            self._load.idle.append(self)
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._load.idle:
            self._load.idle.remove(self)
        if self._correlation_id:
            self._note(NO_ANSWER, str(exc or "the connection ended"))

    def _note(self, status: int, why: str) -> None:
        ms = (time.monotonic() - self._sent_at) * 1000
        self._load.note(self, Answer(self._correlation_id, self._sent_at, status, ms, why))
        self._correlation_id = ""


class Load:
    """Posts at a steady rate; `answers` has what came of it."""

    def __init__(self, host: str, port: int) -> None:
        self.answers: list[Answer] = []
        self.idle: list[_Poster] = []
        self._busy: set[_Poster] = set()
        self._host, self._port = host, port
        self._head = (
            b"POST /payments HTTP/1.1\r\nhost: %b:%d\r\ncontent-type: application/json\r\n"
            % (host.encode(), port)
        )

    async def run(self, rate: float, seconds: float) -> None:
        """Post for so long, then wait for the last answers."""
        loop = asyncio.get_running_loop()
        began = loop.time() + _BEGINS_AFTER_S
        answer({"began": began})
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(began + number / rate - loop.time())
                if self.idle:
                    self._post(self.idle.pop())
                else:
                    group.create_task(self._post_on_a_new_one())
        give_up = loop.time() + _LAST_WITHIN_S
        while self._busy and loop.time() < give_up:
            await asyncio.sleep(0.01)
        for poster in [*self._busy, *self.idle]:
            poster.end()

    def note(self, poster: _Poster, found: Answer) -> None:
        """Keep an answer."""
        self._busy.discard(poster)
        self.answers.append(found if found.status != 202 else found._replace(why=""))

    async def _post_on_a_new_one(self) -> None:
        loop = asyncio.get_running_loop()
        sent_at = time.monotonic()
        try:
            _, poster = await loop.create_connection(lambda: _Poster(self), self._host, self._port)
        except OSError as error:
            self.answers.append(Answer(str(uuid4()), sent_at, NO_ANSWER, 0.0, str(error)))
            return
        self._post(poster)

    def _post(self, poster: _Poster) -> None:
        correlation_id = str(uuid4())
        body = b'{"correlationId":"%b","amount":19.9}' % correlation_id.encode()
        self._busy.add(poster)
        poster.post(
            correlation_id, self._head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )


async def _run(host: str, port: int, rate: float, seconds: float) -> None:
    load = Load(host, port)
    await load.run(rate, seconds)
    answer([list(each) for each in load.answers])


@click.command()
@click.argument("host")
@click.argument("port", type=int)
@click.argument("rate", type=float)
@click.argument("seconds", type=float)
def main(host: str, port: int, rate: float, seconds: float) -> None:
    """Post RATE payments a second to HOST:PORT for SECONDS."""
    die_with_parent(os.getppid())
    uvloop.run(_run(host, port, rate, seconds))


if __name__ == "__main__":
    main()

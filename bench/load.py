"""The client of `bench.pipeline`: `python -m bench.load HOST PORT COUNT AT_ONCE` posts COUNT new
payments, AT_ONCE at a time, and prints the result.

It speaks only the HTTP that it needs, to take little CPU from the measured processes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import cast
from uuid import uuid4

import click
import httptools
import uvloop

from bench.local import BenchError, answer
from payswitch.process import die_with_parent

_LIMIT_S = 60.0


class Poster(asyncio.Protocol):
    """A connection that posts its next payment after each answer, and repeats after a 503. `done`
    resolves when no payment is left, or with the error."""

    _transport: asyncio.Transport

    def __init__(self, head: bytes, bodies: Iterator[bytes]) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.refused = 0
        self._head = head
        self._bodies = bodies
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._post_next()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or BenchError("the endpoint closed a connection"))

    def on_message_complete(self) -> None:
        """An answer is complete."""
        status = self._parser.get_status_code()
        if status == 503:
            self.refused += 1
            self._post()
        elif status == 202:
            self._post_next()
        else:
            self._end(BenchError(f"a payment was answered with status {status}"))

    def _post_next(self) -> None:
        body = next(self._bodies, None)
        if body is None:
            self._end(None)
        else:
            self._body = body
            self._post()

    def _post(self) -> None:
        self._transport.write(self._head + self._body)

    def _end(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
            self._transport.close()


async def post_payments(host: str, port: int, count: int, at_once: int) -> None:
    """Post all payments. Raises `BenchError` or `OSError` if one isn't accepted."""
    bodies = [b'{"correlationId":"%b","amount":19.9}' % str(uuid4()).encode() for _ in range(count)]
    head = (
        b"POST /payments HTTP/1.1\r\nhost: %b:%d\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % (host.encode(), port, len(bodies[0]))
    )
    loop = asyncio.get_running_loop()
    left = iter(bodies)
    began, used = time.monotonic(), time.process_time()
    async with asyncio.timeout(_LIMIT_S):
        posters = [
            (await loop.create_connection(lambda: Poster(head, left), host, port))[1]
            for _ in range(at_once)
        ]
        await asyncio.gather(*(poster.done for poster in posters))
    ended = time.monotonic()
    answer(
        {
            "began": began,
            "ended": ended,
            "cpu_s": time.process_time() - used,
            "refused": sum(poster.refused for poster in posters),
        }
    )


@click.command()
@click.argument("host")
@click.argument("port", type=int)
@click.argument("count", type=int)
@click.argument("at_once", type=int)
def main(host: str, port: int, count: int, at_once: int) -> None:
    """Post so many payments to HOST:PORT."""
    die_with_parent(os.getppid())
    uvloop.run(post_payments(host, port, count, at_once))


if __name__ == "__main__":
    main()

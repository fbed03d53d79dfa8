"""Answers that break HTTP: raw bytes in pieces, at a pace of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto
from http import HTTPStatus
from typing import NamedTuple

from payswitch.http.server import Exchange, Reply

_FULL_BYTES = 64 * 1024
_FULL_PAUSE_MS = 10.0
"""The pause before the next look at a client that does not read."""


class Ending(Enum):
    """A connection's way on after a `Stream`."""

    GO_ON = auto()
    CLOSE = auto()
    SILENCE = auto()


class Stream(NamedTuple):
    """An answer in pieces, one every `interval_ms` as long as the client takes them.

    Nothing is added to them. `status` is the one that the client can read.
    """

    pieces: Iterator[bytes]
    status: int | None = HTTPStatus.OK.value
    interval_ms: float = 0.0
    ending: Ending = Ending.GO_ON


def send_stream(
    stream: Stream, exchange: Exchange, later: Callable[[float, Callable[[], None]], None]
) -> None:
    """Send the pieces from the request's turn on. `later` makes a call after so many ms."""

    def go_on() -> None:
        if exchange.abandoned:
            return
        if exchange.transport.get_write_buffer_size() > _FULL_BYTES:
            later(_FULL_PAUSE_MS, go_on)
            return
        piece = next(stream.pieces, None)
        if piece is None:
            _end(exchange, stream.ending)
            return
        exchange.transport.write(piece)
        later(stream.interval_ms, go_on)

    exchange.await_turn(go_on)


def _end(exchange: Exchange, ending: Ending) -> None:
    if ending is Ending.SILENCE:
        return
    if ending is Ending.CLOSE:
        exchange.close_after()
    exchange.separator = b""
    exchange.answer(Reply(b"", b""))

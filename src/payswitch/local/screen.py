"""The log lines of several processes on one screen, each with the name of its part."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from typing import Any, TextIO

import orjson

from payswitch.instants import format_instant
from payswitch.telemetry.logs import json_line
from payswitch.text import printable

LONGEST_LINE = 16 * 1024

_OWN = "payswitch"
_CHUNK = 1024 * 1024  # more than a pipe holds
_COLORS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)


class LineSplitter:
    """Makes lines of a stream of bytes, whatever the bytes are.

    Control characters become escape sequences as in Python's source; a line of more than
    `LONGEST_LINE` bytes comes in pieces.
    """

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[str]:
        """Take bytes; return the lines that they complete."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        pieces = [piece for line in lines for piece in _cut(line)]
        if len(self._partial) > LONGEST_LINE:
            *more, self._partial = _cut(self._partial)
            pieces += more
        return [_printable(piece) for piece in pieces]

    def rest(self) -> list[str]:
        """Return the unfinished line, if there is one: its writer has ended."""
        line, self._partial = self._partial, b""
        return [_printable(line)] if line else []


class Screen:
    """Writes lines to a terminal or a file, each after the name of its part; as JSON, each is an
    object that names its part.

    It calls `on_gone` when the reader is gone, and throws away all later lines.
    """

    def __init__(self, stream: TextIO, names: Iterable[str], *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json
        self.on_gone: Callable[[], None] = lambda: None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        colored = is_colored(stream, os.environ) and not as_json
        known = [_OWN, *names]
        self._colors = dict(zip(known, cycle(_COLORS), strict=False)) if colored else {}
        width = max(map(len, known))
        self._prefixes = {name: self.painted(name, f"{name:<{width}} | ") for name in known}

    def painted(self, name: str, text: str) -> str:
        """A text in the color of a part, if there are colors."""
        color = self._colors.get(name)
        return text if color is None else f"\x1b[{color}m{text}\x1b[0m"

    def say(self, text: str) -> None:
        """Write a log line of this process' own."""
        if self._as_json:
            self._write_json(_OWN, {**_now(), "level": "info", "message": text})
        else:
            self.lines(_OWN, [f"{time.strftime('%H:%M:%S')} {text}"])

    def lines(self, name: str, lines: Iterable[str]) -> None:
        """Write the lines of a part."""
        if self._as_json:
            for line in lines:
                self._write_json(name, _document_of(line))
            return
        prefix = self._prefixes[name]
        self.text("".join(f"{prefix}{line}\n" for line in lines))

    def _write_json(self, name: str, document: dict[str, Any]) -> None:
        self.text(json_line(document | {"part": name}) + "\n")

    def text(self, text: str) -> None:
        """Write a text as it is."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self.on_gone()


class LogPipe:
    """Takes a part's output at `write_fd` and shows it on the screen.

    It outlives the part's process and serves the next one.
    """

    def __init__(self, name: str, screen: Screen) -> None:
        self._name = name
        self._screen = screen
        self._splitter = LineSplitter()
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        asyncio.get_running_loop().add_reader(self._read_fd, self._read)

    def drain(self) -> None:
        """Show the rest of the pipe, to the last line: the process has ended."""
        self._read()
        self._screen.lines(self._name, self._splitter.rest())

    def close(self) -> None:
        """Give both ends back."""
        asyncio.get_running_loop().remove_reader(self._read_fd)
        os.close(self._read_fd)
        os.close(self.write_fd)

    def _read(self) -> None:
        try:
            data = os.read(self._read_fd, _CHUNK)
        except BlockingIOError:
            return
        self._screen.lines(self._name, self._splitter.feed(data))


def is_colored(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether to use colors there: on a terminal that has them, without NO_COLOR."""
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return stream.isatty()


def _document_of(line: str) -> dict[str, Any]:
    """A line as JSON: as it is, or wrapped if its program knows no JSON."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        document = None
    return document if isinstance(document, dict) else {**_now(), "message": line}


def _now() -> dict[str, str]:
    return {"time": format_instant(time.time_ns() // 1_000_000)}


def _cut(line: bytes) -> list[bytes]:
    """A line in pieces that are short enough; an empty line is one piece."""
    return [line[start : start + LONGEST_LINE] for start in range(0, len(line) or 1, LONGEST_LINE)]


def _printable(line: bytes) -> str:
    text = line.removesuffix(b"\r").decode(errors="backslashreplace")
    return printable(text.replace("\t", "    "))

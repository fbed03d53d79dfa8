"""Standard output and error, whatever they are: a terminal of any encoding, a pipe, a full disk or
nothing at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator

from payswitch.reasons import reason

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def prepare() -> None:
    """Have what the encoding lacks spelt out, as `\\xe9`, and what is closed written to nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def can_not_be_written(error: OSError) -> bool:
    """Whether an error is one of a file, which no connection has."""
    return error.errno in _NO_ROOM


@contextlib.contextmanager
def one_line_where_nothing_can_be_written() -> Iterator[None]:
    """End the command with one line and exit code 1 where its output finds no room."""
    try:
        yield
    except OSError as error:
        if not can_not_be_written(error):
            raise
        # Else Python tries once more at its end, and says so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"payswitch: the output can't be written: {reason(error)}", file=sys.stderr)
        sys.exit(1)

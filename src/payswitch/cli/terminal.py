"""Prepares standard output and error for any terminal, pipe, full disk or closed stream."""

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
    """Escape characters that the encoding lacks, as `\\xe9`; discard output to a closed stream."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_output_full(error: OSError) -> bool:
    """Whether a file has no room: a connection never has these errors."""
    return error.errno in _NO_ROOM


@contextlib.contextmanager
def one_line_if_output_is_full() -> Iterator[None]:
    """End the command with one line and exit code 1 if its output has no room."""
    try:
        yield
    except OSError as error:
        if not is_output_full(error):
            raise
        # Otherwise Python writes again at its end, and prints another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"payswitch: the output can't be written: {reason(error)}", file=sys.stderr)
        sys.exit(1)

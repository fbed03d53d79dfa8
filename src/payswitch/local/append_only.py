"""Cutting off the transaction that Redis had written by half when it was killed.

Redis finds at its start that its append-only file ends amid a transaction, and doesn't execute it;
but it cuts off only the last half command, so the opened transaction stays in the file, and what
it writes from then on goes into it. A second restart then executes the half transaction as well
(seen with Redis 7.0 and 8.2; valkey-io/valkey pull request 4342). Cutting the file before Redis
reads it, as `redis-check-aof --fix` does, leaves nothing to be executed by half.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

_BEGIN = b"*1\r\n$5\r\nMULTI\r\n"
_END = b"*1\r\n$4\r\nEXEC\r\n"


def cut_open_transaction(folder: Path) -> int:
    """Cut the transaction that was not ended from the end of the append-only file in `folder`,
    if there is one; returns how many bytes that were.

    Raises `OSError` if the file can't be read or written.
    """
    file = _last_file(folder)
    if file is None or not file.stat().st_size:
        return 0
    with file.open("r+b") as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            begin = content.rfind(_BEGIN)
            if begin <= content.rfind(_END):
                return 0
            size = len(content)
        stream.truncate(begin)
        os.fsync(stream.fileno())
    return size - begin


def _last_file(folder: Path) -> Path | None:
    """Where Redis would go on writing: in the last increment. What Redis wrote before it was 7 is
    one file, which later ones take over."""
    manifest = folder / "appendonlydir" / "appendonly.aof.manifest"
    if manifest.is_file():
        increments = re.findall(r"^file (\S+) .*type i\b", manifest.read_text(), re.MULTILINE)
        return manifest.parent / increments[-1] if increments else None
    single = folder / "appendonly.aof"
    return single if single.is_file() else None

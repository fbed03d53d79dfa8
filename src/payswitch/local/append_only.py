"""Cuts off the transaction that a killed Redis had written only in part.

If its append-only file ends amid a transaction, Redis doesn't execute it at its start. But it cuts
off only the last incomplete command: the opened transaction stays in the file, and later writes go
into it. A second restart then also executes the partial transaction (seen with Redis 7.0 and 8.2;
valkey-io/valkey pull request 4342). So the file is cut before Redis reads it, as
`redis-check-aof --fix` does.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

_BEGIN = b"*1\r\n$5\r\nMULTI\r\n"
_END = b"*1\r\n$4\r\nEXEC\r\n"


def cut_open_transaction(folder: Path) -> int:
    """Cut an unfinished transaction from the end of the append-only file in `folder`, if there is
    one. Returns its size in bytes.

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
    """The file to which Redis would append: the last increment. Before version 7 Redis wrote one
    file, which later versions take over."""
    manifest = folder / "appendonlydir" / "appendonly.aof.manifest"
    if manifest.is_file():
        increments = re.findall(r"^file (\S+) .*type i\b", manifest.read_text(), re.MULTILINE)
        return manifest.parent / increments[-1] if increments else None
    single = folder / "appendonly.aof"
    return single if single.is_file() else None

"""Redis' memory: whether there is room for new payments.

The backpressure keeps a part of Redis' `maxmemory` free for what is accepted already. Whatever gets
past it is refused by Redis itself, all or nothing (`accept.lua`).
"""

from __future__ import annotations

from collections.abc import Mapping

_TAKES_AGAIN_BELOW = 0.95
"""The part of the mark below which payments are taken again, so that it doesn't flap."""


def is_short(memory: Mapping[str, str], *, max_percent: int, was_short: bool) -> bool:
    """Judge the answer to `INFO memory` (bytes) as Redis itself does: its buffers for the
    append-only file and for replicas do not count, and without a `maxmemory` there is no limit."""
    limit = _number(memory, "maxmemory")
    used = _number(memory, "used_memory") - _number(memory, "mem_not_counted_for_evict")
    mark = limit * max_percent / 100
    return limit > 0 and used > (mark * _TAKES_AGAIN_BELOW if was_short else mark)


def _number(memory: Mapping[str, str], name: str) -> int:
    text = memory.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0

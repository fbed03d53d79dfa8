"""Redis' memory: whether there is room for new payments.

The backpressure keeps a part of `maxmemory` free for payments that are accepted already. Beyond
that Redis itself refuses, all or nothing (`accept.lua`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_TAKES_AGAIN_BELOW = 0.95
"""Hysteresis: payments are taken again below this part of the mark."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Redis' memory in bytes."""

    used: int = 0
    limit: int = 0
    """0 is no limit."""

    def is_short(self, *, max_percent: int, was_short: bool) -> bool:
        """Whether more than `max_percent` of the limit is in use."""
        mark = self.limit * max_percent / 100
        return self.limit > 0 and self.used > (mark * _TAKES_AGAIN_BELOW if was_short else mark)


def parse_memory(memory: Mapping[str, str]) -> Memory:
    """Read the answer to `INFO memory`. As in Redis' own judgement, the buffers for the append-only
    file and for replicas don't count."""
    used = _number(memory, "used_memory") - _number(memory, "mem_not_counted_for_evict")
    return Memory(max(0, used), _number(memory, "maxmemory"))


def _number(memory: Mapping[str, str], name: str) -> int:
    text = memory.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0

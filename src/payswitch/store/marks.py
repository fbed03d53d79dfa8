"""Marks: what this process knows to be confirmed by the replicas of a cluster.

Each confirmed call writes its partition's mark, a number that only grows. A node keeps its writes
in order, so one that has a mark has all that was confirmed before it. Replicas have confirmed what
is known here, so whichever node serves a partition, now or after a failover, has it as well. One
that doesn't has lost money: a primary that came back older, within the node time-out and thus
without an election, or a replica that should never have been promoted.

A process lets marks grow only once it has known a run of the node for a while: else calls on a node
that came back older would lift its marks before those who know better have looked.
"""

from __future__ import annotations

from payswitch.store import keys
from payswitch.store.partitions import Partition

WRITE = """
local found = redis.pcall('GET', KEYS[1])
local mark = (type(found) == 'string' and tonumber(found) or 0) + ARGV[1]
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], string.format('%.0f', mark))
return mark"""
"""Writes and returns the mark `KEYS[1]`, grown by `ARGV[1]` (0 or 1). It is also the write that
`WAIT` waits for: since Redis 7.2 it waits for the connection's last write alone, so after a call
that only reads it would not wait for what the call has read. `DEL` comes first, so that it works
out of memory."""


class Marks:
    """The highest mark of each partition that was confirmed to this process."""

    def __init__(self) -> None:
        self._confirmed: dict[str, int] = {}

    @staticmethod
    def key(generation: str) -> str:
        """The key of the mark of the partition with this generation key."""
        return generation.replace(keys.GENERATION, keys.CONFIRMED)

    def confirm(self, key: str, mark: int) -> None:
        """Note that replicas have a mark."""
        self._confirmed[key] = max(mark, self._confirmed.get(key, 0))

    def known(self, partition: Partition) -> int:
        """The mark that any node of the partition must have; 0 if none is known."""
        return self.at(self.key(partition.generation))

    def at(self, key: str) -> int:
        """The same by the mark's key."""
        return self._confirmed.get(key, 0)

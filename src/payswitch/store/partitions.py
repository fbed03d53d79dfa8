"""Partitions: the parts into which a Redis Cluster's payments fall, each in one hash slot.

The keys of a partition carry its hash tag, so that one script can touch all of them. A single Redis
has one partition, without a tag.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, Protocol

from redis.asyncio import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from payswitch.store import keys

_MIDDLE = 16
"""A tag lies in the middle 1/16 of its range of slots. So each of up to 16 nodes with equal,
contiguous ranges gets as many of 16 partitions as any other, or one more."""

Argument = str | bytes | int | float
Call = tuple[Sequence[str], Sequence[Argument]]
"""The keys and the arguments of one call of a script."""
Confirm = bool | Literal["twice"] | Callable[[Any], bool]
"""Whether replicas must have what a call tells: always, never, always and they are asked a second
time if they don't confirm it in time, or if its answer says so."""


def partition_of(correlation_id: str, count: int) -> int:
    """The number of a payment's partition, of `count`."""
    if count == 1:
        return 0
    try:
        identity = bytes.fromhex(correlation_id.replace("-", ""))
    except ValueError:  # no id of ours: another program may have put it there
        identity = correlation_id.encode(errors="backslashreplace")
    return zlib.crc32(identity) % count


@cache
def tags(count: int) -> tuple[str, ...]:
    """The hash tag of each of `count` partitions: that of partition i leads into the i-th of
    `count` equal ranges of the slots, near its middle."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < count:
        part, offset = divmod(key_slot(str(number).encode()) * count, SLOTS)
        if abs(2 * offset - SLOTS) * _MIDDLE <= SLOTS:
            found.setdefault(part, str(number))
        number += 1
    return tuple(found[part] for part in range(count))


class Node(Protocol):
    """A Redis server that runs scripts."""

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes through a connection that is open already."""

    async def run(
        self, text: str, sha: str, calls: Sequence[Call], *, confirm: Confirm
    ) -> list[Any]:
        """The script's answer to each call, or its error. With `confirm`, the replicas have what
        the calls have written and read. Raises `RedisError` if no call has an answer."""


class Nodes(Protocol):
    """Knows the node of each slot."""

    def home(self, slot: int) -> str:
        """A name for the node of a slot by what is known now; empty if nothing is."""

    async def locate(self, slot: int) -> Node:
        """The node of a slot. Raises `RedisError` if none is known."""

    async def locate_again(self, slot: int, wrong: Exception) -> Node | None:
        """The node of a slot after its node has answered `wrong`; None if there is no other. Raises
        `RedisError`."""


class Partition:
    """One partition: the names of its keys, and the way to its node."""

    __slots__ = (
        "_nodes",
        "_only_home",
        "_suffix",
        "_untagged",
        "generation",
        "number",
        "redis",
        "slot",
        "tag",
    )

    def __init__(self, number: int, tag: str, redis: Redis, nodes: Nodes) -> None:
        """`tag` is without braces, and empty on a single Redis."""
        self.number = number
        self.tag = f"{{{tag}}}" if tag else ""
        """The hash tag with its braces: each job id begins with it."""
        self._suffix = f":{self.tag}" if tag else ""
        self._untagged = keys.SELECTION if tag == keys.SELECTION else ""  # it is in this slot
        self.redis = redis
        """For ordinary commands: it leads to this partition's node."""
        self._nodes = nodes
        self._only_home = "" if tag else nodes.home(0)  # asked for each payment
        self.generation = self.key(keys.GENERATION)
        self.slot = key_slot(self.generation.encode())

    def __repr__(self) -> str:
        return f"Partition({self.number}, {self.tag!r})"

    def key(self, name: str) -> str:
        """This partition's key of a name in `keys`."""
        return name if name == self._untagged else name + self._suffix

    def job_id(self, correlation_id: str) -> str:
        """A payment's id in the queue, its keys and the scripts."""
        return self.tag + correlation_id

    def correlation_id(self, job_id: bytes) -> str:
        """The payment of a job id; bytes that aren't UTF-8 are escaped."""
        return job_id.decode(errors="backslashreplace").removeprefix(self.tag)

    def family(self, name: str, member: str) -> str:
        """This partition's key of a family's member, such as a processor's line."""
        return f"{self.key(name)}:{member}"

    def record(self, correlation_id: str) -> str:
        """The key of a payment's record."""
        return keys.RECORD_PREFIX + self.tag + correlation_id

    @property
    def home(self) -> str:
        """A name for its node, as known now."""
        return self._only_home or self._nodes.home(self.slot)

    async def locate(self) -> Node:
        """Its node. Raises `RedisError` if none is known."""
        return await self._nodes.locate(self.slot)

    async def locate_again(self, wrong: Exception) -> Node | None:
        """Its node after its node has answered `wrong`; None if there is no other."""
        return await self._nodes.locate_again(self.slot, wrong)


class Partitions(Sequence[Partition]):
    """All partitions in order, and `common`: the keys of the deployment as a whole."""

    def __init__(self, every: Sequence[Partition], common: Partition, deployment: str) -> None:
        self._every = tuple(every)
        self._only = self._every[0] if len(every) == 1 else None
        self.common = common
        self.deployment = deployment
        """What every partition must say of the deployment; empty if it is not asked."""

    def __len__(self) -> int:
        return len(self._every)

    def __getitem__(self, number: Any) -> Any:
        return self._every[number]

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._every)

    @property
    def with_common(self) -> tuple[Partition, ...]:
        """The common keys first, then every partition; on a single Redis they are the same."""
        return (self.common, *(each for each in self._every if each is not self.common))

    def of(self, correlation_id: str) -> Partition:
        """The partition of a payment."""
        return self._only or self._every[partition_of(correlation_id, len(self._every))]

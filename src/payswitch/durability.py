"""What a 202 stands for: the failures that an acknowledged payment survives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MOST_PARTITIONS = 256


class Durability(StrEnum):
    """The values of `PAYSWITCH_DURABILITY`, the strongest promise first.

    Redis' `appendfsync everysec` keeps neither: while a sync is under way, it acknowledges writes
    and holds them back in its own memory, for up to 2 s.
    """

    REPLICAS = "replicas"
    """Redis has synced the payment to its disk, and replicas have it."""
    DISK = "disk"
    """Redis has synced the payment to its disk."""
    PROCESS = "process"
    """Redis has written the payment to the kernel of its host."""

    @property
    def survives(self) -> str:
        """The failures that an acknowledged payment survives, in words."""
        return _SURVIVES[self]

    @property
    def appendfsync(self) -> tuple[str, ...]:
        """The values of Redis' `appendfsync` that keep the promise, the cheapest first."""
        return _APPENDFSYNC[self]


_SURVIVES = {
    Durability.REPLICAS: "the loss of a node with its disk and a failover, and a power cut",
    Durability.DISK: "the end of any process and a power cut",
    Durability.PROCESS: "the end of any process, no power cut",
}
_APPENDFSYNC = {
    Durability.REPLICAS: ("always",),
    Durability.DISK: ("always",),
    Durability.PROCESS: ("no", "always"),
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deployment in a cluster was begun with; it never changes.

    `payswitch init` writes it into every partition. Each script then refuses a partition that says
    otherwise: with another number of partitions one id would be taken twice, and an empty partition
    after an accident must not pass for a new one.
    """

    partitions: int = 16
    durability: Durability = Durability.DISK
    replicas: int = 0
    """Each confirmed call waits for so many of a partition's replicas."""

    def __str__(self) -> str:
        """As it stands in each partition."""
        return f"partitions={self.partitions} durability={self.durability} replicas={self.replicas}"

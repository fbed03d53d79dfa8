"""What a deployment in a cluster was begun with; it never changes.

`payswitch init` writes it into every partition. Each script then refuses a partition that says
otherwise: with another number of partitions one id would be taken twice, and an empty partition
after an accident must not pass for a new one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deployment:
    """The number of partitions, what a 202 stands for, and how many replicas confirm it."""

    partitions: int = 16
    durability: str = "disk"
    replicas: int = 0
    """Each confirmed call waits for so many of a partition's replicas."""

    def __str__(self) -> str:
        """As it stands in each partition."""
        return f"partitions={self.partitions} durability={self.durability} replicas={self.replicas}"

"""What a 202 stands for: the failures that an acknowledged payment survives."""

from __future__ import annotations

from enum import StrEnum


class Durability(StrEnum):
    """The values of `PAYSWITCH_DURABILITY`, the strongest promise first.

    Redis' `appendfsync everysec` keeps neither: while a sync is under way, it acknowledges writes
    and holds them back in its own memory, for up to 2 s.
    """

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
    Durability.DISK: "the end of any process and a power cut",
    Durability.PROCESS: "the end of any process, no power cut",
}
_APPENDFSYNC = {
    Durability.DISK: ("always",),
    Durability.PROCESS: ("no", "always"),
}

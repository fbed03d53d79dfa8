"""What the machine itself had left: a guest's times mean little while its host gives the cores to
others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Ticks:
    """The sums of all cores' ticks since boot (proc(5), `/proc/stat`)."""

    total: int
    idle: int
    stolen: int
    cores: int

    @classmethod
    def read(cls, stat: Path = _STAT) -> Ticks | None:
        """As they are now; None where the system doesn't say."""
        try:
            lines = stat.read_text().splitlines()
        except OSError:
            return None
        numbers = [int(word) for word in lines[0].split()[1:9]]
        cores = sum(line.startswith("cpu") for line in lines) - 1
        return cls(sum(numbers), numbers[3] + numbers[4], numbers[7], cores)


@dataclass(frozen=True, slots=True)
class Host:
    """How the machine's cores were spent meanwhile."""

    cores: int
    idle_cores: float
    stolen_share: float
    """Of all cores' time; it went to the host's other guests while something here could run."""

    @classmethod
    def between(cls, before: Ticks | None, after: Ticks | None) -> Host | None:
        """From one moment to a later one; None where the system doesn't say."""
        if before is None or after is None or after.total <= before.total:
            return None
        total = after.total - before.total
        return cls(
            cores=after.cores,
            idle_cores=(after.idle - before.idle) / total * after.cores,
            stolen_share=(after.stolen - before.stolen) / total,
        )

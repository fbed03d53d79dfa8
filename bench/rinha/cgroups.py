"""What a container has used, by its control group: version 1 and 2 of the kernel's interface."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from bench.rinha.site import Usage


def usage_of(pid: int, *, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> Usage:
    """CPU, throttling and memory of a process's control group; None for what isn't readable here,
    as where containers run in another machine."""
    folders = _folders(pid, proc, root)
    if "" in folders:
        return _usage_2(pid, folders[""])
    return _usage_1(pid, folders)


def cpu_stat(
    pid: int, *, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")
) -> Path | None:
    """The file about a process's quota; None where it isn't here."""
    folders = _folders(pid, proc, root)
    folder = folders.get("", folders.get("cpu"))
    return None if folder is None else folder / "cpu.stat"


def parse_table(text: str) -> dict[str, int]:
    """The numbers of such a file by name."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def throttled_s(stat: Mapping[str, int]) -> float | None:
    """How long a control group stood still because its quota was spent, by its `cpu.stat`."""
    if "throttled_usec" in stat:
        return stat["throttled_usec"] / 10**6
    return _seconds(stat.get("throttled_time"), 10**9)


def _folders(pid: int, proc: Path, root: Path) -> dict[str, Path]:
    """The folder of each controller; of version 2 the one for all, under an empty name."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return {}
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path.lstrip("/")
    if (root / "cgroup.controllers").exists():
        return {"": root / paths.get("", "")}
    return {name: root / name / path for name, path in paths.items() if name}


def _usage_2(pid: int, folder: Path) -> Usage:
    cpu = _table(folder / "cpu.stat")
    return Usage(
        cpu_s=_seconds(cpu.get("usage_usec"), 10**6),
        memory_bytes=_number(folder / "memory.current"),
        memory_peak_bytes=_number(folder / "memory.peak"),
        periods=cpu.get("nr_periods"),
        throttled_periods=cpu.get("nr_throttled"),
        throttled_s=throttled_s(cpu),
        process=pid,
    )


def _usage_1(pid: int, folders: dict[str, Path]) -> Usage:
    nowhere = Path("/nonexistent")
    cpu = _table(folders.get("cpu", nowhere) / "cpu.stat")
    memory = folders.get("memory", nowhere)
    used_ns = _number(folders.get("cpuacct", nowhere) / "cpuacct.usage")
    return Usage(
        cpu_s=_seconds(used_ns, 10**9),
        memory_bytes=_number(memory / "memory.usage_in_bytes"),
        memory_peak_bytes=_number(memory / "memory.max_usage_in_bytes"),
        periods=cpu.get("nr_periods"),
        throttled_periods=cpu.get("nr_throttled"),
        throttled_s=throttled_s(cpu),
        process=pid,
    )


def _table(file: Path) -> dict[str, int]:
    try:
        return parse_table(file.read_text())
    except OSError:
        return {}


def _number(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _seconds(value: int | None, per_second: int) -> float | None:
    return None if value is None else value / per_second

"""What keeps a system busy: the kernel's counters, a hundred times a second.

A thread reads them, so they cost the system under test nothing but its share of the machine.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import FileIO
from pathlib import Path

from bench.rinha.cgroups import cpu_stat, parse_table, throttled_s

_PROC = Path("/proc")
_ROOT = Path("/sys/fs/cgroup")
_EVERY_S = 0.01
_MOST_BYTES = 4096
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")

_CLIENTS_WAIT_FOR = ("haproxy", "ingress", "redis", "(users)")
"""How the names of these parts begin. What the others wait for makes no client wait."""

Counter = Callable[[float], float]
"""Adds up a cause's milliseconds; called with those since the sample before."""


class Sampler:
    """Samples the parts of these processes while its context is open."""

    def __init__(self, pids: Mapping[str, int], *, proc: Path = _PROC, root: Path = _ROOT) -> None:
        counters = dict(_counters(pids, proc, root))
        self._names = list(counters)
        self._counters = list(counters.values())
        self._times = array("d")
        self._sums = array("d")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def busy(self, began: float, ended: float) -> dict[str, float]:
        """By cause the share of the time between two instants of the monotonic clock, from the
        last sample before it to the first one after it. Causes overlap."""
        before = max(0, bisect.bisect_right(self._times, began) - 1)
        after = min(len(self._times) - 1, bisect.bisect_left(self._times, ended))
        if after <= before:
            return {}
        spent_ms = (self._times[after] - self._times[before]) * 1000
        sums = zip(self._names, self._row(before), self._row(after), strict=True)
        return {name: (end - start) / spent_ms for name, start, end in sums if end > start}

    def sample(self, now: float) -> None:
        """Read all counters at this instant of the monotonic clock."""
        since_ms = (now - self._times[-1]) * 1000 if self._times else 0.0
        self._sums.extend([count(since_ms) for count in self._counters])
        self._times.append(now)

    def _row(self, index: int) -> array[float]:
        width = len(self._names)
        return self._sums[index * width : (index + 1) * width]

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            self.sample(time.monotonic())


class _Read:
    """A counter that is a number in a file of the kernel, with that many to a millisecond."""

    def __init__(self, file: Path, number: Callable[[str], float]) -> None:
        self._file = _KernelFile(file)
        self._number = number
        self._last = 0.0

    def __call__(self, since_ms: float) -> float:
        if text := self._file.read():
            self._last = self._number(text)
        return self._last


class _While:
    """A counter of the time in which a file of the kernel says something."""

    def __init__(self, file: Path, says: Callable[[str], bool]) -> None:
        self._file = _KernelFile(file)
        self._says = says
        self._sum = 0.0

    def __call__(self, since_ms: float) -> float:
        if (text := self._file.read()) and self._says(text):
            self._sum += since_ms
        return self._sum


class _KernelFile:
    """A file that the kernel writes anew for each read; empty if there is none (any more)."""

    def __init__(self, file: Path) -> None:
        self._opened: FileIO | None = None
        with contextlib.suppress(OSError):
            self._opened = file.open("rb", buffering=0)

    def read(self) -> str:
        """What it says now."""
        if self._opened is None:
            return ""
        try:
            return os.pread(self._opened.fileno(), _MOST_BYTES, 0).decode()
        except OSError:
            return ""


def _counters(pids: Mapping[str, int], proc: Path, root: Path) -> Iterator[tuple[str, Counter]]:
    yield "cores stolen", _Read(proc / "stat", lambda text: int(text.split()[8]) * _TICK_MS)
    yield "memory short", _Read(proc / "pressure/memory", _short_ms)
    own = cpu_stat(os.getpid(), proc=proc, root=root)
    for part, pid in pids.items():
        folder = proc / str(_working(pid, proc))
        yield f"{part} computes", _Read(folder / "schedstat", partial(_milliseconds, 0))
        if not part.startswith(_CLIENTS_WAIT_FOR):
            continue
        yield f"{part} lacks a core", _Read(folder / "schedstat", partial(_milliseconds, 1))
        yield f"{part} waits for the disk", _While(folder / "stat", _is_blocked)
        stat = cpu_stat(pid, proc=proc, root=root)
        if stat is not None and stat != own:
            yield f"{part} throttled", _Read(stat, _throttled_ms)
    if redis := pids.get("redis"):
        # It has no child otherwise, as it writes no snapshots.
        yield "file rewritten", _While(_children_file(redis, proc), bool)


def _working(pid: int, proc: Path) -> int:
    """The process that does a part's work: HAProxy has a child for it."""
    children = _KernelFile(_children_file(pid, proc)).read().split()
    return int(children[-1]) if children else pid


def _children_file(pid: int, proc: Path) -> Path:
    return proc / str(pid) / "task" / str(pid) / "children"


def _milliseconds(field: int, schedstat: str) -> float:
    """Of a process' main thread: 0 is the time on a core, 1 the time that it waited for one."""
    return int(schedstat.split()[field]) / 10**6


def _is_blocked(stat: str) -> bool:
    # The name of the program, in brackets, may hold spaces.
    return stat.rpartition(")")[2].split()[0] == "D"


def _short_ms(pressure: str) -> float:
    """Time in which some task waited for memory: reclaim, or a page that was given up."""
    return int(pressure.split()[4].removeprefix("total=")) / 1000


def _throttled_ms(stat: str) -> float:
    return (throttled_s(parse_table(stat)) or 0) * 1000

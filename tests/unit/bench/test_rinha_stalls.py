"""Which payments make a stall, and what was busy meanwhile."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from bench.rinha.result import stall_table
from bench.rinha.sampler import Sampler
from bench.rinha.stalls import SlowCall, Stall, find_stalls
from tests.support import SLACK_S

REDIS, HAPROXY, CHILD, WORKER, OTHER = 42, 43, 44, 45, 46


def idle(began: float, ended: float) -> Mapping[str, float]:
    return {}


def test_slow_calls_that_overlap_are_one_stall() -> None:
    calls = [SlowCall(1.03, 50.0), SlowCall(1.0, 40.0), SlowCall(1.01, 25.0), SlowCall(2.0, 30.0)]
    assert find_stalls(calls, idle) == [
        Stall(1.0, 80.0, 3, {}),
        Stall(2.0, 30.0, 1, {}),
    ]


def test_a_short_call_within_a_long_one_ends_no_stall() -> None:
    calls = [SlowCall(1.0, 100.0), SlowCall(1.01, 25.0), SlowCall(1.09, 30.0)]
    assert find_stalls(calls, idle) == [Stall(1.0, 120.0, 3, {})]


def test_a_stall_names_what_took_a_third_of_it_the_longest_first() -> None:
    asked: list[tuple[float, float]] = []

    def busy(began: float, ended: float) -> Mapping[str, float]:
        asked.append((began, ended))
        return {"redis computes": 0.2, "file rewritten": 0.4, "cores stolen": 1.2}

    (stall,) = find_stalls([SlowCall(3.0, 50.0)], busy)
    assert list(stall.busy.items()) == [("cores stolen", 60.0), ("file rewritten", 20.0)]
    assert asked[0] == pytest.approx((3.0, 3.05))


class Machine:
    """The kernel's files of a Redis and a HAProxy in containers."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.root = folder / "proc", folder / "cgroup"
        self.write(self.root / "cgroup.controllers", "cpu memory")
        groups = {REDIS: "redis", HAPROXY: "haproxy", WORKER: "worker", os.getpid(): "own"}
        for pid, group in groups.items():
            self.write(self.proc / f"{pid}/cgroup", f"0::/{group}\n")
            self.write(self.proc / f"{pid}/task/{pid}/children", "")
        self.write(self.proc / f"{HAPROXY}/task/{HAPROXY}/children", f"{CHILD} ")
        for pid in (REDIS, HAPROXY, CHILD, WORKER):
            self.schedule(pid)
            self.state(pid, "S")
        self.stolen(0)
        self.memory(0)
        self.throttled("redis", 0)
        self.throttled("worker", 0)

    @staticmethod
    def write(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def schedule(self, pid: int, *, ran_ms: int = 0, waited_ms: int = 0) -> None:
        self.write(self.proc / f"{pid}/schedstat", f"{ran_ms * 10**6} {waited_ms * 10**6} 7\n")

    def state(self, pid: int, letter: str) -> None:
        self.write(self.proc / f"{pid}/stat", f"{pid} (two words) {letter} 1 2 3")

    def stolen(self, ms: int) -> None:
        ticks = ms * os.sysconf("SC_CLK_TCK") // 1000
        self.write(self.proc / "stat", f"cpu  1 2 3 4 5 6 7 {ticks} 9 9\ncpu0 1 2\n")

    def memory(self, ms: int) -> None:
        averages = "avg10=0.00 avg60=0.00 avg300=0.00"
        text = f"some {averages} total={ms * 1000}\nfull {averages} total=0\n"
        self.write(self.proc / "pressure/memory", text)

    def throttled(self, group: str, ms: int) -> None:
        self.write(self.root / f"{group}/cpu.stat", f"nr_throttled 1\nthrottled_usec {ms * 1000}\n")

    def sampler(self) -> Sampler:
        pids = {"redis": REDIS, "haproxy": HAPROXY, "worker-1": WORKER}
        return Sampler(pids, proc=self.proc, root=self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def busy_after(machine: Machine, sampler: Sampler) -> dict[str, float]:
    """Its causes over the 100 ms before this sample."""
    sampler.sample(10.1)
    return sampler.busy(10.0, 10.1)


def test_where_nothing_happens_nothing_is_busy(machine: Machine) -> None:
    sampler = machine.sampler()
    sampler.sample(10.0)
    assert busy_after(machine, sampler) == {}


def test_shares_are_of_the_time_between_the_samples(machine: Machine) -> None:
    sampler = machine.sampler()
    sampler.sample(10.0)
    machine.schedule(REDIS, ran_ms=80, waited_ms=10)
    machine.stolen(50)
    machine.memory(20)
    machine.throttled("redis", 70)
    assert busy_after(machine, sampler) == pytest.approx(
        {
            "redis computes": 0.8,
            "redis lacks a core": 0.1,
            "cores stolen": 0.5,
            "memory short": 0.2,
            "redis throttled": 0.7,
        }
    )


def test_a_part_that_waits_for_the_disk_is_seen_at_each_sample(machine: Machine) -> None:
    sampler = machine.sampler()
    sampler.sample(10.0)
    machine.state(REDIS, "D")
    sampler.sample(10.06)
    machine.state(REDIS, "S")
    assert busy_after(machine, sampler) == pytest.approx({"redis waits for the disk": 0.6})


def test_a_child_of_redis_rewrites_its_file(machine: Machine) -> None:
    sampler = machine.sampler()
    sampler.sample(10.0)
    machine.write(machine.proc / f"{REDIS}/task/{REDIS}/children", f"{OTHER} ")
    assert busy_after(machine, sampler) == pytest.approx({"file rewritten": 1.0})


def test_the_process_that_works_for_a_part_is_its_child(machine: Machine) -> None:
    sampler = machine.sampler()
    sampler.sample(10.0)
    machine.schedule(CHILD, ran_ms=90)
    assert busy_after(machine, sampler) == pytest.approx({"haproxy computes": 0.9})


def test_a_worker_may_take_a_core_but_makes_no_client_wait(machine: Machine) -> None:
    sampler = machine.sampler()
    sampler.sample(10.0)
    machine.schedule(WORKER, ran_ms=60, waited_ms=40)
    machine.throttled("worker", 30)
    assert busy_after(machine, sampler) == pytest.approx({"worker-1 computes": 0.6})


def test_processes_that_share_the_bench_s_quota_have_none_of_their_own(machine: Machine) -> None:
    machine.write(machine.proc / f"{REDIS}/cgroup", "0::/own\n")
    machine.throttled("own", 0)
    sampler = machine.sampler()
    sampler.sample(10.0)
    machine.throttled("own", 70)
    assert busy_after(machine, sampler) == {}


def test_a_part_that_has_ended_stops_counting(machine: Machine) -> None:
    machine.schedule(REDIS, ran_ms=500)
    sampler = machine.sampler()
    sampler.sample(10.0)
    machine.write(machine.proc / f"{REDIS}/schedstat", "")
    assert busy_after(machine, sampler) == {}


def test_a_system_without_such_files_tells_nothing(tmp_path: Path) -> None:
    sampler = Sampler({"redis": REDIS}, proc=tmp_path, root=tmp_path)
    sampler.sample(10.0)
    sampler.sample(10.1)
    assert sampler.busy(10.0, 10.1) == {}


def test_before_the_second_sample_nothing_is_known(machine: Machine) -> None:
    sampler = machine.sampler()
    assert sampler.busy(1.0, 2.0) == {}
    sampler.sample(10.0)
    assert sampler.busy(1.0, 2.0) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's files are Linux'")
def test_a_process_that_computes_is_seen_while_it_does() -> None:
    endless = [sys.executable, "-c", "while True: pass"]
    ends_at = time.monotonic() + SLACK_S
    with subprocess.Popen(endless) as process, Sampler({"part": process.pid}) as sampler:
        began = time.monotonic()
        try:
            while "part computes" not in sampler.busy(began, time.monotonic()):
                assert time.monotonic() < ends_at
                time.sleep(0.01)
        finally:
            process.kill()


def shown(stalls: list[Stall]) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(stall_table(stalls, accepted=1000))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_longest_stalls_are_shown_and_the_others_counted() -> None:
    stalls = [Stall(float(second), 100.0 + second, 5, {}) for second in range(12)]
    stalls[3] = Stall(3.0, 500.0, 40, {"redis throttled": 300.0, "file rewritten": 200.0})
    text = shown(stalls)
    assert "stalls: 12, 1.66 s together; 95 payments (9.50 %) took over 20 ms" in text
    longest = "3.00 s 500 ms 40 redis throttled 300 ms, file rewritten 200 ms"
    assert longest in [" ".join(line.split()) for line in text.splitlines()]
    assert text.count("unexplained") == 9
    assert "2 more, of 101 ms at most" in text
    assert " 0.00 s" not in text

"""What parts use, as the kernel's files have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.rinha.cgroups import usage_of
from bench.rinha.host import Host, Ticks
from bench.rinha.processes import usages_of
from bench.rinha.site import Usage


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_version_2_of_control_groups(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    group = root / "machine/worker"
    write(root / "cgroup.controllers", "cpu memory")
    write(proc / "42/cgroup", "0::/machine/worker\n")
    write(
        group / "cpu.stat",
        "usage_usec 2500000\nnr_periods 30\nnr_throttled 4\nthrottled_usec 1500000\n",
    )
    write(group / "memory.current", "1000\n")
    write(group / "memory.peak", "2000\n")
    assert usage_of(42, proc=proc, root=root) == Usage(2.5, 1000, 2000, 30, 4, 1.5, process=42)


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    write(
        proc / "42/cgroup",
        "4:memory:/machine/worker\n3:cpuacct,cpu:/machine/worker\n2:name=systemd:/else\n0::/\n",
    )
    write(
        root / "cpu/machine/worker/cpu.stat",
        "nr_periods 30\nnr_throttled 4\nthrottled_time 1500000000\n",
    )
    write(root / "cpuacct/machine/worker/cpuacct.usage", "2500000000\n")
    write(root / "memory/machine/worker/memory.usage_in_bytes", "1000\n")
    write(root / "memory/machine/worker/memory.max_usage_in_bytes", "2000\n")
    assert usage_of(42, proc=proc, root=root) == Usage(2.5, 1000, 2000, 30, 4, 1.5, process=42)


def test_an_older_kernel_tells_no_peak(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    write(root / "cgroup.controllers", "cpu memory")
    write(proc / "42/cgroup", "0::/worker\n")
    write(root / "worker/cpu.stat", "usage_usec 1000000\n")
    write(root / "worker/memory.current", "1000\n")
    usage = usage_of(42, proc=proc, root=root)
    assert (usage.cpu_s, usage.memory_bytes) == (1.0, 1000)
    assert (usage.memory_peak_bytes, usage.periods) == (None, None)


def test_containers_of_another_machine_tell_nothing(tmp_path: Path) -> None:
    assert usage_of(42, proc=tmp_path, root=tmp_path) == Usage(process=42)


def test_a_process_is_counted_with_those_that_it_started(tmp_path: Path) -> None:
    for pid, child in (("42", "43"), ("43", "")):
        fields = " ".join(str(number) for number in range(40))
        write(tmp_path / pid / "stat", f"{pid} (two words) S {fields}")
        write(tmp_path / pid / "status", "Name: x\nVmHWM:\t  20 kB\nVmRSS:\t  10 kB\n")
        write(tmp_path / pid / "task" / pid / "children", child)
    usage = usages_of({"part": 42}, tmp_path)["part"]
    assert (usage.memory_bytes, usage.memory_peak_bytes, usage.process) == (20_480, 40_960, 42)
    # Fields 14 and 15 of stat, here 10 and 11, in ticks.
    assert usage.cpu_s == pytest.approx(2 * 21 / os.sysconf("SC_CLK_TCK"))


def test_a_running_process_is_read() -> None:
    usage = usages_of({"part": os.getpid()})["part"]
    assert usage.memory_bytes is not None
    assert usage.memory_bytes > 1_000_000


def test_a_process_that_has_ended_is_left_out(tmp_path: Path) -> None:
    assert usages_of({"part": 42}, tmp_path) == {}


def test_usage_of_a_run_is_what_was_used_within_it() -> None:
    before = Usage(1.0, 10, 20, 5, 1, 0.5, restarts=2, process=7)
    after = Usage(4.0, 15, 30, 25, 3, 0.75, restarts=2, process=7)
    assert after.since(before) == Usage(3.0, 15, 30, 20, 2, 0.25, restarts=0, process=7)


@pytest.mark.parametrize(("counted", "restarts"), [(0, 1), (3, 3)])
def test_a_part_that_was_started_anew_counts_as_restarted(counted: int, restarts: int) -> None:
    before = Usage(9.0, periods=90, process=7)
    after = Usage(2.0, periods=20, restarts=counted, process=8)
    assert after.since(before) == Usage(2.0, periods=20, restarts=restarts, process=8)


def stat(folder: Path, *, user: int, idle: int, iowait: int, steal: int) -> Path:
    file = folder / "stat"
    each = f"{user} 0 0 {idle} {iowait} 0 0 {steal} 0 0"
    file.write_text(f"cpu  {each}\ncpu0 {each}\ncpu1 {each}\nintr 12 3\nctxt 5\n")
    return file


def test_the_host_is_counted_between_two_moments(tmp_path: Path) -> None:
    before = Ticks.read(stat(tmp_path, user=100, idle=1000, iowait=10, steal=7))
    after = Ticks.read(stat(tmp_path, user=150, idle=1100, iowait=40, steal=27))
    host = Host.between(before, after)
    assert host == Host(cores=2, idle_cores=1.3, stolen_share=0.1)


def test_a_system_without_such_counters_tells_nothing(tmp_path: Path) -> None:
    ticks = Ticks.read(stat(tmp_path, user=1, idle=2, iowait=3, steal=4))
    assert Ticks.read(tmp_path / "none") is None
    assert Host.between(None, ticks) is None
    assert Host.between(ticks, None) is None
    assert Host.between(ticks, ticks) is None

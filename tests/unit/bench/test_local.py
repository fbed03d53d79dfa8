"""The processes that benches start."""

from __future__ import annotations

import os

import pytest

from bench.local import BenchError, read_answer, running, tree_cpu_s


def test_an_answer_is_a_line_of_json_of_the_process() -> None:
    say = "from bench.local import answer; answer({'wall_s': 1.5})"
    with running("-c", say) as process:
        assert read_answer(process) == {"wall_s": 1.5}


def test_a_process_that_ends_without_an_answer_is_an_error_that_shows_its_log(
    capfd: pytest.CaptureFixture[str],
) -> None:
    fails = "raise SystemExit('nothing to measure')"
    with pytest.raises(BenchError, match="exit code 1"), running("-c", fails) as process:
        read_answer(process)
    assert "nothing to measure" in capfd.readouterr().err


def test_the_cpu_time_of_a_tree_counts_its_children() -> None:
    busy = "sum(range(10**7)); print(1, flush=True); import time; time.sleep(60)"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    with running("-c", starts) as process:
        read_answer(process)
        assert tree_cpu_s(process.pid) > 0.05
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        with open(children) as file:
            os.kill(int(file.read()), 15)

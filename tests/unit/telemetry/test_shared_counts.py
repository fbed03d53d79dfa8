"""The folder in which the processes of one ingress share their counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from payswitch.telemetry.shared_counts import remove_oldest_of_ended


def test_of_the_files_of_ended_processes_the_oldest_go_beyond_a_bound(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    for number, pid in enumerate([ended.pid] * 5 + [os.getpid()]):
        file = tmp_path / f"counter{number}_{pid}.db"
        file.touch()
        os.utime(file, (1000 - number, 1000 - number))
    remove_oldest_of_ended(tmp_path, kept=3)
    assert sorted(each.name.split("_")[0] for each in tmp_path.iterdir()) == [
        *("counter0", "counter1", "counter2", "counter5")
    ]

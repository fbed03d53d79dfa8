"""The bench of payments that wait for one processor runs through, with few of them."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest

from bench.common import RESULTS


@pytest.mark.long
def test_it_says_what_waiting_costs_and_how_soon_all_are_paid() -> None:
    path = RESULTS / "waiting.json"
    path.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.waiting", "--payments", "200", "--seconds", "15"],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "200 payments wait for one processor" in done.stdout
    found = orjson.loads(path.read_bytes())
    assert found["phases"].keys() == {"hangs", "answers questions", "idle"}
    assert 0 <= found["firstPaidSeconds"] <= found["drainedSeconds"]
    assert (RESULTS / "waiting.png").stat().st_size > 10_000

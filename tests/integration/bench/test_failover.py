"""The failover bench runs through, with one lost primary and a low rate."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest

from bench.common import RESULTS


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_lost_primary_costs_its_own_partitions_alone() -> None:
    path = RESULTS / "failover.json"
    path.unlink(missing_ok=True)
    options = ("--rounds", "1", "--seconds", "12", "--rate", "50")
    done = subprocess.run(
        [sys.executable, "-m", "bench.failover", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=230,
    )
    assert done.returncode == 0, done.stderr
    assert "a primary is lost" in done.stdout
    [found] = orjson.loads(path.read_bytes())["rounds"]
    whole, lost = found["no node is lost"], found["a primary is lost"]
    assert whole["refused"] == whole["others_refused"] == lost["others_refused"] == 0
    assert lost["refused"] > 0
    assert 0 < lost["promoted_s"] <= lost["in_step_s"]
    assert (RESULTS / "failover.png").stat().st_size > 10_000

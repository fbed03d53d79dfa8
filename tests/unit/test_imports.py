"""What each part must not load: it would cost every process memory and each of its starts CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

CASES = {
    "payswitch.simulator.server": {"redis", "httpx", "starlette", "granian", "rich"},
    "payswitch.ingress.server": {"httpx", "rich"},
    "workers.payments, workers.health": {"starlette", "granian", "rich"},
}


@pytest.mark.parametrize("part", CASES)
def test_a_part_loads_nothing_that_others_need(part: str) -> None:
    source = f"import sys, payswitch.cli.main, {part}; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", source], check=True, capture_output=True, text=True
    )
    assert {*ended.stdout.split()} & CASES[part] == set()

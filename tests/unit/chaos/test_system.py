"""Where a chaos run's parts listen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from payswitch.chaos.system import options_of


def test_runs_that_begin_together_take_ports_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_ports = []
    monkeypatch.setattr("payswitch.chaos.system.is_taken", lambda port: False)
    for pid in (4711, 4712, 4713):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        first_ports.append(options_of(tmp_path, workers=3, processors=3).port)
    lowest, middle, highest = sorted(first_ports)
    assert middle - lowest >= 150
    assert highest - middle >= 150

"""The scored run from the command line, much shortened, against processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from payswitch.durability import Durability
from tests.documented import REPOSITORY
from tests.end_to_end.harness import ENDPOINT


def rinha(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.rinha", *arguments],
        cwd=REPOSITORY,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )


def read(file: Path) -> Any:
    return orjson.loads(file.read_bytes())


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_shortened_preview_is_played_scored_and_drawn(tmp_path: Path) -> None:
    options = ("--target=processes", "--time-scale=0.05", "--durability=disk")
    run = rinha("preview", *options, f"--out={tmp_path}")
    assert run.returncode == 0, run.stdout + run.stderr
    folder = tmp_path / "preview"
    result, ours = read(folder / "result.json"), read(folder / "result.json")["payswitch"]
    accepted = result["pagamentos_solicitados"]["qtd_sucesso"]
    processed = [result[f"pagamentos_realizados_{name}"] for name in ("default", "fallback")]
    assert accepted > 500, run.stdout
    assert sum(each["num_pagamentos"] for each in processed) + result["lag"]["lag"] == accepted
    assert ours["differenceAtRest"] == {"count": 0, "cents": 0}, run.stdout
    assert ours["problems"] == []
    assert ours["durability"] == "disk"
    assert {"redis", "worker-1", ENDPOINT[-1], "(users)"} <= set(ours["parts"])
    assert 0 <= ours["host"]["idleCores"] <= ours["host"]["cores"]
    assert all(stall["ms"] > 20 and stall["payments"] for stall in ours["stalls"])
    samples = read(folder / "timeline.json")["samples"]
    assert samples[-1]["accepted"] == accepted
    assert any(sample["selected"] for sample in samples)
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "shortened: the score is none" in run.stdout


@pytest.mark.parametrize("durability", Durability)
def test_what_runs_already_keeps_its_durability(durability: Durability) -> None:
    run = rinha("preview", "--no-start", f"--durability={durability}")
    assert run.returncode == 2
    assert "--durability needs --start" in run.stderr


def test_an_unknown_scenario_is_refused() -> None:
    run = rinha("semifinal")
    assert run.returncode == 2
    assert "preview" in run.stderr

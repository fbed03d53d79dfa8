"""What the bench beside other queues says and pins, without running them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench import peers
from bench.peers.__main__ import install
from bench.peers.programs import PEERS
from bench.peers.promises import PROMISES
from tests.support import SLACK_S

SOURCES = Path(peers.__path__[0])
PAGE = (Path(__file__).parents[3] / "docs" / "performance.md").read_text()


def test_a_peer_that_the_machine_cannot_run_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go1.19.8\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    systems, left_out = install()
    assert systems == {}
    assert left_out == [
        "bullmq is left out: there is no node.",
        "asynq is left out: go 1.19.8 is older than 1.24.",
    ]


@pytest.mark.parametrize("question", PROMISES)
def test_every_contender_answers_every_question_as_the_page_has_it(question: str) -> None:
    answers = PROMISES[question]
    assert answers.keys() == {*PEERS, "payswitch"}
    row = [question, answers["bullmq"], answers["asynq"], answers["payswitch"]]
    assert f"| {' | '.join(row)} |" in PAGE


def test_every_package_of_node_is_pinned_and_no_host_is_named() -> None:
    package = orjson.loads((SOURCES / "bullmq" / "package.json").read_bytes())
    locked = orjson.loads((SOURCES / "bullmq" / "package-lock.json").read_bytes())["packages"]
    for name, version in package["dependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version
    others = {name: each for name, each in locked.items() if name}
    assert all("integrity" in each and "resolved" not in each for each in others.values())


def test_the_module_of_go_is_pinned_with_its_sum() -> None:
    [version] = re.findall(r"hibiken/asynq (v\S+)", (SOURCES / "asynq" / "go.mod").read_text())
    sums = (SOURCES / "asynq" / "go.sum").read_text()
    assert f"github.com/hibiken/asynq {version} h1:" in sums


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's death")
def test_another_program_ends_with_the_bench() -> None:
    program = ["-m", "bench.program", "sh", "-c", "echo up; exec sleep 600"]
    starts = f"import subprocess, sys; subprocess.run([sys.executable, *{program!r}])"
    with subprocess.Popen([sys.executable, "-c", starts], stdout=subprocess.PIPE) as bench:
        assert bench.stdout is not None
        assert bench.stdout.readline() == b"up\n"
        bench.send_signal(signal.SIGKILL)
        # The pipe ends when the last of both has ended.
        rest, _ = bench.communicate(timeout=SLACK_S)
        assert rest == b""

"""The chaos run from the command line: the promise holds, and a broken promise is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from payswitch.chaos.system import find_libfaketime
from tests.documented import REPOSITORY
from tests.end_to_end.harness import clean_environment

QUICK = {
    "PAYSWITCH_LEASE_MS": "4000",
    "PAYSWITCH_LEASE_MARGIN_MS": "300",
    "PAYSWITCH_PROCESSOR_MAX_DELAY_MS": "2500",
    "PAYSWITCH_PROCESSOR_FIND_LIMIT_MS": "1500",
    "PAYSWITCH_RETRY_CAP_MS": "2000",
}
"""Settings under which recoveries fit into half a minute."""


def chaos(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "payswitch", "chaos", f"--out={folder}", *options],
        env=clean_environment({"ALL_PROXY": "socks5://127.0.0.1:9", **(environment or {})}),
        capture_output=True,
        text=True,
        check=False,
    )


def verdict(folder: Path, seed: int) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads((folder / f"seed-{seed}" / "verdict.json").read_bytes())
    return document


def assert_holds(
    run: subprocess.CompletedProcess[str], folder: Path, seed: int, *, least: int = 500
) -> dict[str, Any]:
    """No violation, and enough went on for that to mean something."""
    assert run.returncode == 0, run.stdout + run.stderr
    found = verdict(folder, seed)
    assert found["holds"], found
    assert (found["lost"], found["double"], found["differenceCents"]) == (0, 0, 0)
    assert found["accepted"] > least, found
    assert (folder / f"seed-{seed}" / "timeline.png").read_bytes().startswith(b"\x89PNG")
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("minutes", "durability"),
    [(0.15, "process"), pytest.param(0.5, "disk", marks=pytest.mark.long)],
)
def test_some_seconds_of_everything_break_no_promise(
    tmp_path: Path, minutes: float, durability: str
) -> None:
    run = chaos(
        tmp_path,
        *("--seed=11", f"--minutes={minutes}", "--rate=60"),
        environment={
            **QUICK,
            "PAYSWITCH_DURABILITY": durability,
            "PAYSWITCH_LOG_FORMAT": "json",
            "PAYSWITCH_LOG_LEVEL": "error",
        },
    )
    says_so = "no clock is set, as libfaketime is not installed" in run.stderr
    assert says_so is (find_libfaketime() is None)
    found = assert_holds(run, tmp_path, 11, least=200)
    log = (tmp_path / "seed-11" / "system.log").read_text()
    assert " INFO    taking jobs from arq:queue\n" in log
    assert '"event"' not in log
    assert {event["kind"] for event in found["plan"]} > {"freeze", "kill", "redis-kill", "decline"}
    assert [*found["settled"]] == ["default", "fallback", "acme"]
    assert "holds" in run.stdout
    assert f"PAYSWITCH_DURABILITY={durability}" in run.stdout
    assert found["durability"] == durability


@pytest.mark.long
@pytest.mark.timeout(400)
def test_two_minutes_of_everything_with_the_settings_that_users_have(tmp_path: Path) -> None:
    run = chaos(tmp_path, "--seed=21", "--minutes=2")
    found = assert_holds(run, tmp_path, 21)
    assert sum(found["faultsMet"].values()) > 100


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_redis_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    run = chaos(
        tmp_path,
        "--seed=31",
        "--minutes=0.7",
        "--faults=redis-kill,redis-cut,answers",
        "--rate=200",
    )
    assert_holds(run, tmp_path, 31)


@pytest.mark.timeout(300)
def test_a_cluster_that_loses_a_node_with_its_disk_breaks_no_promise(tmp_path: Path) -> None:
    faults = "--faults=node-wipe,failover,redis-kill,redis-cut,redis-flush,kill,answers,retries"
    run = chaos(
        tmp_path,
        *("--redis=cluster", "--seed=2", "--minutes=0.2", "--rate=60", faults),
        environment=QUICK,
    )
    found = assert_holds(run, tmp_path, 2, least=200)
    assert {"node-wipe", "failover"} <= {event["kind"] for event in found["plan"]}
    assert "moved to another node" not in run.stderr  # the log has it, not the screen


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_cluster_whose_nodes_are_wiped_frozen_and_cut_off_breaks_no_promise(
    tmp_path: Path,
) -> None:
    run = chaos(
        tmp_path,
        *("--redis=cluster", "--seed=3", "--minutes=1", "--rate=100"),
        environment=QUICK,
    )
    found = assert_holds(run, tmp_path, 3)
    assert {"node-wipe", "failover", "nodes-restart", "shard-pause"} <= {*found["faults"]}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_under_clean_faults_the_summary_equals_the_books_all_along(tmp_path: Path) -> None:
    run = chaos(tmp_path, "--seed=41", "--minutes=0.7", "--faults=clean,client")
    found = assert_holds(run, tmp_path, 41)
    assert len(found["windowsUnderLoad"]) > 15
    assert found["settleGapMs"]["worst"] < 30_000


@pytest.mark.long
@pytest.mark.timeout(480)
def test_a_dispatcher_that_unpins_on_a_lost_answer_is_found_out(tmp_path: Path) -> None:
    for part in ("src", "workers", "haproxy.cfg"):
        copy = shutil.copytree if (REPOSITORY / part).is_dir() else shutil.copy
        copy(REPOSITORY / part, tmp_path / part)
    dispatcher = tmp_path / "src" / "payswitch" / "dispatch" / "dispatcher.py"
    source = dispatcher.read_text()
    broken = re.sub(
        r"^( +)case Unknown\(\):.*\n",
        r"\g<0>\1    work.findings.closed.add(routed.id)\n",
        source,
        flags=re.MULTILINE,
    )
    assert broken != source
    dispatcher.write_text(broken)
    out = tmp_path / "out"
    variables = {
        # Between a lost answer and the next try the choice of a processor has time to change.
        "PAYSWITCH_RETRY_BASE_MS": "4000",
        "PAYSWITCH_RETRY_CAP_MS": "4000",
        "PYTHONPATH": os.pathsep.join((str(tmp_path / "src"), str(tmp_path))),
    }
    # The seed alone doesn't decide whether the choice changes in time: the interleaving does, too.
    for seed in (6, 8, 11, 12, 13, 14):
        run = chaos(
            out,
            *(f"--seed={seed}", "--minutes=0.2", "--rate=60"),
            "--faults=answers,failing,gone,health",
            environment=QUICK | variables,
        )
        assert "the job failed" not in (out / f"seed-{seed}" / "system.log").read_text()
        if run.returncode:
            break
    assert run.returncode == 1, run.stdout + run.stderr
    found = verdict(out, seed)
    assert found["double"] > 0
    story = found["histories"][0]
    assert sum(entry is not None for entry in story["books"].values()) > 1
    assert {event["event"] for journal in story["journals"].values() for event in journal}
    assert "paid twice" in run.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--faults=everything",), "redis-kill"),
        (("--minutes=0",), "minutes"),
        (("--seed=-1",), "seed"),
        (("--faults=failover,kill",), "failover: only with --redis cluster"),
    ],
)
def test_a_wrong_option_is_refused_in_words(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    run = chaos(tmp_path, *options)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_wrong_setting_is_refused_in_one_line(tmp_path: Path) -> None:
    run = chaos(tmp_path, "--minutes=0.1", environment={"PAYSWITCH_LEASE_MS": "soon"})
    assert run.returncode == 1
    assert run.stderr.count("PAYSWITCH_LEASE_MS") == 1
    assert "Traceback" not in run.stderr

"""The units in `deploy/systemd/`: systemd takes them, and they fit what the parts do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from payswitch.settings import Settings, variables
from tests.commands import parse
from tests.documented import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "systemd"
COMMON = FOLDER / "payswitch-.service.d" / "common.conf"
UNITS = sorted(each.name for each in FOLDER.glob("*.service"))
PROGRAM = "/opt/payswitch/bin/payswitch"
STOP_SLACK_S = 5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def section(path: Path, name: str) -> dict[str, list[str]]:
    """The values of each key of a section; a key may come again."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif "=" in line and not line.startswith("#") and current == name:
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


SERVICE = section(COMMON, "Service")
CREDENTIALS = dict(each.split(":", 1) for each in SERVICE["LoadCredential"])
ENVIRONMENT = dict(each.split("=", 1) for each in SERVICE["Environment"])


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with a program that is there, and an instance of each template."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    for unit in UNITS:
        text = (tmp_path / unit).read_text()
        (tmp_path / unit).write_text(text.replace(PROGRAM, sys.executable))
        if unit != instance(unit):
            (tmp_path / instance(unit)).symlink_to(unit)
    return tmp_path


def instance(unit: str) -> str:
    """What an operator starts."""
    return unit.replace("@", "@9001")


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@needs_systemd
def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    units = [f"./{instance(unit)}" for unit in UNITS]
    check = analyze(installed, "verify", "--man=no", *units, "./payswitch.target")
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_can_do_little_beside_its_work(unit: str, installed: Path) -> None:
    # 9.6 without the file that all units have in common; systemd calls up to 2 "OK".
    check = analyze(installed, "security", "--offline=yes", "--threshold=20", f"./{instance(unit)}")
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_runs_a_part_as_the_command_line_has_it(unit: str) -> None:
    [command] = section(FOLDER / unit, "Service")["ExecStart"]
    program, *words = command.replace("%i", "9001").split()
    assert program == PROGRAM
    assert parse(words) == (words[0],)
    assert unit.startswith(f"payswitch-{words[0]}")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_and_stops_with_the_target(unit: str) -> None:
    assert section(FOLDER / unit, "Install") == {"WantedBy": ["payswitch.target"]}
    assert section(COMMON, "Unit")["PartOf"] == ["payswitch.target"]


def test_a_part_has_time_to_stop() -> None:
    [limit] = SERVICE["TimeoutStopSec"]
    assert int(limit.removesuffix("s")) >= Settings.stop_limit_ms / 1000 + STOP_SLACK_S


def test_every_secret_that_all_parts_need_is_a_credential() -> None:
    files = {
        each.file_name
        for key, each in variables().items()
        if each.file_name and not key.endswith(".token")  # `rinha` needs none of its own
    }
    wanted = files - {"PAYSWITCH_PURGE_TOKEN_FILE"}
    given = {name: path for name, path in ENVIRONMENT.items() if name.endswith("_FILE")}
    assert given.keys() == wanted
    assert set(given.values()) == {f"%d/{credential}" for credential in CREDENTIALS}
    assert {name: f"/etc/payswitch/{name}" for name in CREDENTIALS} == CREDENTIALS


def test_what_is_set_is_allowed() -> None:
    plain = {name: each for name, each in ENVIRONMENT.items() if not name.endswith("_FILE")}
    settings = Settings.from_environment(plain)
    assert (settings.purge, settings.redis_trust) == ("off", "require")

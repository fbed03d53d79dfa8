"""What is in `deploy/`: Prometheus takes it, and each alert fires when it should."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from tests.metrics import DEPLOY, alerts

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in the folder."""
    return subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False
    )


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml")],
    ids=lambda arguments: arguments[1],
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    check = promtool(*arguments)
    assert check.returncode == 0, check.stdout + check.stderr


@needs_promtool
def test_every_alert_fires_when_it_should_and_not_else() -> None:
    check = promtool("test", "rules", "alerts.test.yml")
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_alert_has_a_test_of_each_kind() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts.test.yml").read_text())["tests"]
    wanted = [f"{rule['alert']} {how}" for rule in alerts() for how in ("fires", "is quiet")]
    assert [each["name"] for each in tests] == wanted


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["annotations"].keys() == {"summary", "action"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")

"""Every command of the tutorial, in order, shows what the tutorial says."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.end_to_end.harness import READY, Ports, clean_environment
from tests.support import SLACK_S

REPOSITORY = Path(__file__).parents[2]
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
TOOLS = ("make", "curl", "redis-cli", "seq")
LOOKS = re.compile(r"curl localhost\S+$|redis-cli get |\S*payswitch dead list")
"""Commands that only look, which a reader repeats until it is so."""


@dataclass(frozen=True)
class Command:
    """A command as the tutorial has it, and what it shows."""

    line: str
    shown: str

    def is_shown(self, output: str) -> bool:
        """Whether this is what the tutorial promises; `…` is anything."""
        pattern = ".*".join(re.escape(part) for part in self.shown.split("…"))
        plain = "\n".join(line.rstrip() for line in output.replace("\r", "").splitlines())
        return re.fullmatch(pattern, plain.strip(), re.DOTALL) is not None


def commands() -> list[Command]:
    """All commands of the page."""
    blocks = re.findall(r"^```console\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            first, *rest = each.splitlines()
            # A command goes on in lines that are indented; what it shows never is.
            more = [*itertools.takewhile(lambda line: line.startswith("  "), rest)]
            found.append(Command("\n".join([first, *more]), "\n".join(rest[len(more) :]).strip()))
    return found


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    """The ports of the system that the tutorial's first command has started."""
    start = commands()[0].line
    assert start == "make up"
    ports = Ports()
    log = tmp_path / "log"
    options = [*ports.options(), f"--state={tmp_path / 'state'}"]
    with log.open("wb") as stream:
        system = subprocess.Popen(
            [*start.split(), f"ARGS={' '.join(options)}"],
            cwd=REPOSITORY,
            env=clean_environment({}),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        deadline = monotonic() + 2 * SLACK_S
        while READY not in log.read_text():
            assert system.poll() is None, log.read_text()
            assert monotonic() < deadline, log.read_text()
            sleep(0.05)
        yield ports
    finally:
        os.killpg(system.pid, signal.SIGINT)  # as Ctrl-C does
        system.wait(2 * SLACK_S)


def at(ports: Ports, line: str) -> str:
    """A command for the system that runs on other ports than the tutorial's."""
    for usual, port in ((9999, ports.endpoint), (8001, ports.default), (8002, ports.fallback)):
        line = line.replace(f"localhost:{usual}", f"localhost:{port}")
    return re.sub(r"^redis-cli", f"redis-cli -p {ports.redis}", line)


def run(line: str, environment: dict[str, str]) -> str:
    """What a shell in the repository's folder shows for a command line."""
    ended = subprocess.run(
        ["bash", "-c", line],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        timeout=2 * SLACK_S,
        text=True,
        check=False,
    )
    return ended.stdout


@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")
def test_every_command_shows_what_the_tutorial_says(ports: Ports) -> None:
    environment = clean_environment(
        {
            "REDIS_URL": f"redis://127.0.0.1:{ports.redis}/0",
            "PAYMENT_PROCESSOR_URL_DEFAULT": f"http://127.0.0.1:{ports.default}",
            "PAYMENT_PROCESSOR_URL_FALLBACK": f"http://127.0.0.1:{ports.fallback}",
            "COLUMNS": "140",
        }
    )
    _, *rest = commands()
    assert len(rest) >= 15
    for command in rest:
        deadline = monotonic() + SLACK_S
        output = run(at(ports, command.line), environment)
        while not command.is_shown(output):
            assert LOOKS.match(command.line), f"{command.line}\n{output}"
            assert monotonic() < deadline, f"{command.line}\n{output}"
            sleep(0.1)
            output = run(at(ports, command.line), environment)


def test_nothing_else_in_the_tutorial_looks_like_a_command() -> None:
    fences = re.findall(r"^```(\w*)$", TUTORIAL.read_text(), re.MULTILINE)
    assert set(fences) == {"console", "text", ""}
    outside = re.sub(r"^```console\n.*?^```", "", TUTORIAL.read_text(), flags=re.DOTALL | re.M)
    assert not re.search(r"^\s*\$ ", outside, re.MULTILINE)
    assert READY in outside

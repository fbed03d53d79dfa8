"""Every command of the tutorial, in order, shows what the tutorial says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.documented import REPOSITORY, Command, beside_the_blocks, commands
from tests.end_to_end.harness import READY, Ports, clean_environment
from tests.support import SLACK_S

PAGE = "docs/tutorial.md"
TOOLS = ("make", "curl", "redis-cli", "seq")
LOOKS = re.compile(r"curl localhost\S+$|redis-cli get |\S*payswitch dead list")
"""Commands that only look, which a reader repeats until it is so."""


def is_shown(command: Command, output: str) -> bool:
    """Whether this is what the tutorial promises; `…` is anything."""
    pattern = ".*".join(re.escape(part) for part in command.shown.split("…"))
    plain = "\n".join(line.rstrip() for line in output.replace("\r", "").splitlines())
    return re.fullmatch(pattern, plain.strip(), re.DOTALL) is not None


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    """The ports of the system that the tutorial's first command has started."""
    start = commands(PAGE)[0].line
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
    _, *rest = commands(PAGE)
    assert len(rest) >= 15
    for command in rest:
        deadline = monotonic() + SLACK_S
        output = run(at(ports, command.line), environment)
        while not is_shown(command, output):
            assert LOOKS.match(command.line), f"{command.line}\n{output}"
            assert monotonic() < deadline, f"{command.line}\n{output}"
            sleep(0.1)
            output = run(at(ports, command.line), environment)


def test_the_tutorial_shows_when_the_system_is_ready() -> None:
    assert READY in beside_the_blocks(PAGE)

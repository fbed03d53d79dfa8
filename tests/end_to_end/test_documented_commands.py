"""The commands of the pages, run as they stand there, in a started system, and what they show."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from select import select
from time import monotonic, sleep
from typing import Any

import httpx
import orjson
import pytest

from payswitch.local.machine import Port
from payswitch.operations.controls import Controls
from payswitch.payments.records import Record, read_record
from payswitch.store import keys
from payswitch.store.client import connect
from tests.documented import PAID, REPOSITORY, SCENES, Command, commands
from tests.end_to_end.conftest import starting
from tests.end_to_end.harness import HOST, Ports, System, clean_environment
from tests.support import ANA, SLACK_S, eventually, free_port

READY = {
    "payswitch worker": "taking jobs from",
    "payswitch health": "taking jobs from",
    "payswitch ingress": "listening on",
    "payswitch simulator": "listens on",
    "payswitch status --watch": "backlog",
}
"""What a command that runs until it is stopped writes once it works."""

LOOKS = re.compile(r"curl \S*localhost\S+$|redis-cli (get|zscore|hgetall) ")
"""Commands that only look, which a reader repeats until it is so."""

_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

TOKEN = {"X-Rinha-Token": "123"}

SLOW = ("docs/commands.md", "docs/reconciliation.md", "docs/simulator.md")
"""Each runs a dozen commands, and so a dozen interpreters."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose one worker pays through default as soon as one payment was."""
    with starting(tmp_path_factory.mktemp("system")) as start:
        yield start("--workers=1")


@pytest.fixture(scope="module")
def shell(system: System, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A reader's terminal for the system that the pages share."""
    return Shell(system, tmp_path_factory.mktemp("shell"))


class Shell:
    """Runs a page's commands against a system on other ports than the pages'."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        # Waiting is for people: the tests repeat what only looks.
        write_program(programs / "sleep", "exec true")
        if found := shutil.which("redis-cli"):
            write_program(programs / "redis-cli", f'exec {found} -p {system.ports.redis} "$@"')
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        self.environment = clean_environment(
            {
                "PATH": path,
                "COLUMNS": "140",
                **system.named,
            }
        )
        for name in ("haproxy.cfg", "deploy"):
            (folder / name).symlink_to(REPOSITORY / name)

    def has(self, command: Command) -> bool:
        """Whether this machine has the program."""
        program = re.sub(r"^(?:\w+=\S* |(?:until|for) .*?\b(?=curl|redis-cli))*", "", command.line)
        name = program.split()[0]
        return name == "cd" or shutil.which(name, path=self.environment["PATH"]) is not None

    def popen(self, command: Command, terminal: int) -> subprocess.Popen[bytes]:
        """Start a command, which writes to the terminal or pipe."""
        line = re.sub(r" &$", "", at(self.system.ports, command.line))
        return subprocess.Popen(
            ["bash", "-c", line],
            # The reader of this page is where Redis keeps its file.
            cwd=self.system.state / "redis" if "backup" in command.page else self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: Command) -> tuple[int, str]:
        """A command's exit code, and what it shows."""
        process = self.popen(command, subprocess.PIPE)
        shown, _ = process.communicate(b"y\n", timeout=SLACK_S)
        return process.returncode, shown.decode()

    def start_and_stop(self, command: Command, ready: str) -> None:
        """Run a command until it works, then stop it as Ctrl-C does."""
        ours, its = os.openpty()  # as `--watch` shows nothing without a terminal
        process = self.popen(command, its)
        os.close(its)
        shown = b""
        try:
            while ready.encode() not in shown and select([ours], [], [], SLACK_S)[0]:
                shown += os.read(ours, 65_536)
            if port := re.search(r"--port (\d+)", str(process.args)):
                asyncio.run(answers(int(port[1])))
            os.killpg(process.pid, signal.SIGINT)
            while process.poll() is None and select([ours], [], [], SLACK_S)[0]:
                with contextlib.suppress(OSError):  # its end is closed
                    shown += os.read(ours, 65_536)
        finally:
            os.close(ours)
            process.kill()
        assert ready in shown.decode(), f"{command.line}\n{shown.decode()}"
        assert process.wait(SLACK_S) == 0, f"{command.line}\n{shown.decode()}"


def write_program(path: Path, text: str) -> None:
    """Write a shell script that can be called by its name."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def at(ports: Ports, line: str) -> str:
    """A command for the system that runs on other ports than the pages'."""
    for usual, port in ((9999, ports.endpoint), (8001, ports.default), (8002, ports.fallback)):
        line = line.replace(f"localhost:{usual}", f"localhost:{port}")
    return re.sub(r"--port \d+", lambda _: f"--port {free_port()}", line)


def plain(text: str) -> str:
    """A text without what differs from run to run: ids, numbers, people and hosts, spaces."""
    for pattern, stand_in in ((_ID, "ID"), (r"\S+@\S+", "@"), (r"[0-9]+", "0"), (r"\s+", "")):
        text = re.sub(pattern, stand_in, text)
    return text


def is_shown(command: Command, output: str) -> bool:
    """Whether this is what the page promises; `…` is anything."""
    if command.is_by_chance:
        return True
    parts = (re.escape(part) for part in plain(command.shown).split("…"))
    return re.search(".*".join(parts), plain(output), re.DOTALL) is not None


async def set_the_scene(system: System, scene: str) -> None:
    """Forget what other pages left, and make what this page needs."""
    redis = connect(system.redis_url, limit_s=SLACK_S)
    controls = Controls(redis)
    await controls.resume(ANA)
    await controls.select_automatically(ANA)
    await configure(system, failure=False, delay=0, faults=None)

    async def none_is_in_flight() -> bool:
        return not await redis.zcard(keys.IN_FLIGHT)

    async def both_are_known_to_be_healthy() -> bool:
        cached = await redis.get(keys.SELECTION)
        return cached is not None and orjson.loads(cached)["reason"].count(" ms") == 2

    async def default_is_used() -> bool:
        payment = await system.pay(1)
        await system.settled(payment)
        record = await read_record(redis, payment)
        return isinstance(record, Record) and record.processor == "default"

    await eventually(both_are_known_to_be_healthy, what="the health check finds both healthy")
    # The failures of another page may have opened the worker's breaker.
    await eventually(default_is_used, what="the worker pays through default")
    # A processor records after its delay, and after a purge, what it has been sent before.
    await eventually(none_is_in_flight, what="what another page left is paid")
    await redis.aclose(close_connection_pool=True)
    async with httpx.AsyncClient(timeout=SLACK_S, headers=TOKEN) as http:
        for url in (system.default_url, system.fallback_url):
            await http.post(f"{url}/admin/purge-payments")
        assert (await http.post(f"{system.endpoint}/purge-payments")).status_code == 200
    if scene == "a payment":
        await system.settled(await system.pay(1990, PAID))
    if scene == "unpaid payments":
        await configure(system, faults={"payments": {"500": 1}})
        for _ in range(2):
            await system.pay(1990)
    if scene == "a dead letter":
        await configure(system, faults={"payments": {"422-unknown": 1}})
        await system.pay(1990, PAID)
        await eventually(partial(is_dead, system), what="a dead letter")
        await configure(system, faults=None)


async def configure(system: System, **configurations: Any) -> None:
    """Set both simulated processors."""
    async with httpx.AsyncClient(timeout=SLACK_S, headers=TOKEN) as http:
        for url in (system.default_url, system.fallback_url):
            for name, value in configurations.items():
                body = value or {} if name == "faults" else {name: value}
                answer = await http.put(f"{url}/admin/configurations/{name}", json=body)
                assert answer.status_code == 200


async def answers(port: int) -> None:
    """Wait until somebody speaks HTTP at a port."""

    async def does() -> bool:
        return await Port("", HOST, port, "").status("/healthz") is not None

    await eventually(does, what=f"port {port} answers")


async def is_dead(system: System) -> bool:
    return await system.state_of(PAID) == "dead"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] * (page in SLOW)) for page in SCENES],
)
def test_every_command_of_the_page_does_what_it_says(page: str, shell: Shell) -> None:
    asyncio.run(set_the_scene(shell.system, SCENES[page]))
    missing = set()
    for command in commands(page):
        if command.reason is not None:
            continue
        if not shell.has(command):
            missing.add(command.line.split()[0])
            continue
        for start, ready in READY.items():
            if re.match(rf"(?:\w+=\S* )*{start}\b", command.line):
                shell.start_and_stop(command, ready)
                break
        else:
            assert_does(shell, command)
    if missing:
        pytest.skip(f"all but the commands that need {', '.join(sorted(missing))}")


def assert_does(shell: Shell, command: Command) -> None:
    """Run a command that ends by itself; one that only looks, until it shows what the page says."""
    deadline = monotonic() + SLACK_S
    code, output = shell.run(command)
    while LOOKS.match(command.line) and not is_shown(command, output) and monotonic() < deadline:
        sleep(0.05)
        code, output = shell.run(command)
    assert code == 0, f"{command.line}\n{output}"
    assert is_shown(command, output), f"{command.line}\n{output}"

"""The supervisor of `payswitch up` with parts of a few lines: what a signal does to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

SOURCE = """
import asyncio, os, sys
from payswitch.local.screen import Screen
from payswitch.local.supervisor import Part, Supervisor

async def run(command, ready):
    async def is_ready():
        return ready
    screen = Screen(sys.stdout, ["part"])
    part = Part("part", ["sh", "-c", command], os.environ, is_ready)
    supervisor = Supervisor([[part]], screen, stop_limit_s=30)
    await supervisor.run(lambda: screen.say("all are ready"))

asyncio.run(run(sys.argv[1], sys.argv[2] == "ready"))
"""
WILLING = "echo pid $$ stands; exec sleep 60"
UNWILLING = f"trap '' TERM; {WILLING}"


class Supervised:
    """A supervisor's process and what it writes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def until(self, text: str) -> str:
        """The next line with this text."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            async for line in self.process.stdout:
                if text in line.decode():
                    return line.decode()
        raise AssertionError(f"it never said {text!r}")

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(30):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def supervised(command: str, ready: str = "ready") -> AsyncIterator[Supervised]:
    """A supervisor of one part, which stands; both have ended after the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SOURCE, command, ready), stdout=asyncio.subprocess.PIPE
    )
    supervisor = Supervised(process)
    try:
        line = await supervisor.until("stands")
        yield supervisor
        with pytest.raises(ProcessLookupError):
            os.killpg(int(line.split()[-2]), 0)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_each_signal_of_a_terminal_stops_it(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
    try:
        async with supervised(WILLING) as supervisor:
            supervisor.process.send_signal(number)
            await supervisor.until("stopped")
            assert await supervisor.ended() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_stop_before_all_is_ready_is_one() -> None:
    async with supervised(WILLING, "not ready") as supervisor:
        supervisor.process.terminate()
        await supervisor.until("stopped")
        assert await supervisor.ended() == 0


async def test_a_second_signal_kills_what_does_not_stop() -> None:
    async with supervised(UNWILLING) as supervisor:
        supervisor.process.send_signal(signal.SIGINT)
        await supervisor.until("stopping")
        supervisor.process.send_signal(signal.SIGINT)
        assert await supervisor.ended() == 0


STEPS = """
import asyncio, os, sys
from payswitch.local.screen import Screen
from payswitch.local.supervisor import Part, Supervisor

async def run(command, breaks):
    async def is_ready():
        return True
    async def tend():
        await ready.wait()
        screen.say("tending")
        if breaks:
            raise ArithmeticError("tend broke")
        await asyncio.Event().wait()
    ready = asyncio.Event()
    screen = Screen(sys.stdout, ["step", "part"])
    step = Part("step", ["sh", "-c", command], os.environ, None)
    part = Part("part", ["sh", "-c", "echo part; exec sleep 60"], os.environ, is_ready, ("step",))
    supervisor = Supervisor([[part], [step]], screen, stop_limit_s=30, tend=tend)
    await supervisor.run(ready.set)

asyncio.run(run(sys.argv[1], sys.argv[2] == "breaks"))
"""


@contextlib.asynccontextmanager
async def stepping(command: str, breaks: str = "") -> AsyncIterator[Supervised]:
    """A supervisor of a step and of a part that comes after it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STEPS, command, breaks),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Supervised(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_step_runs_until_it_ends_well_and_parts_start_after_it(tmp_path: Path) -> None:
    once = tmp_path / "once"
    async with stepping(f"echo step; test -e {once} && exit; touch {once}; exit 3") as supervisor:
        await supervisor.until("step ended with exit code 3; starts again")
        await supervisor.until("step runs again")
        await supervisor.until("tending")
        supervisor.process.terminate()
        await supervisor.until("stopped")
        assert await supervisor.ended() == 0


async def test_a_step_that_never_ends_well_ends_all() -> None:
    async with stepping("exit 1") as supervisor:
        await supervisor.until("step does not start: it ended with exit code 1, 5 times in a row")
        assert await supervisor.ended() == 1


async def test_a_failure_of_the_tending_ends_all() -> None:
    async with stepping("true", "breaks") as supervisor:
        await supervisor.until("tend broke")
        assert await supervisor.ended() == 1

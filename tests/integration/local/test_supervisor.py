"""The supervisor of `payswitch up` with parts of a few lines: what a signal does to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

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

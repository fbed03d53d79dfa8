"""The users' process as its parent sees it."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

import orjson

from bench.rinha import users
from bench.rinha.scenario import Scenario
from bench.rinha.stalls import SlowCall

_LONGEST_LINE = 16 * 1024 * 1024
_STOP_LIMIT_S = 5.0


class LoadError(RuntimeError):
    """The users' process failed."""


class Load:
    """What the users reported so far."""

    def __init__(self, process: Process) -> None:
        self.users = 0
        self.accepted = 0
        self.failed: dict[str, int] = {}
        self.answers: list[tuple[float, list[float]]] = []
        """When it was reported, and how long (ms) each successful call took since the last."""
        self.slow: list[SlowCall] = []
        self.cpu_s = 0.0
        """What the users' process has used since they began."""
        self.reported = asyncio.Event()
        """Set by every report."""
        self._process = process

    @property
    def pid(self) -> int:
        """The users' process."""
        return self._process.pid

    async def run(self, began: float) -> None:
        """Let the users begin at that instant of the monotonic clock; returns when all are done.

        Raises `LoadError`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{began}\n".encode())
        async for line in self._process.stdout:
            self._take(orjson.loads(line))
        if await self._process.wait():
            raise LoadError(f"the users' process ended with {self._process.returncode}")

    def milliseconds(self, since_s: float = 0.0) -> list[float]:
        """The times of all successful payments that were reported after that second."""
        found: list[float] = []
        for at_s, values in reversed(self.answers):
            if at_s <= since_s:
                break
            found += values
        return found

    def _take(self, report: dict[str, Any]) -> None:
        self.users = report["users"]
        self.accepted = report["accepted"]
        self.cpu_s = report["cpu_s"]
        self.failed = report["failed"]
        self.answers.append((report["at_s"], report["milliseconds"]))
        self.slow += [SlowCall(**each) for each in report["slow"]]
        self.reported.set()


@contextlib.asynccontextmanager
async def users_of(scenario: Scenario, endpoint: str) -> AsyncIterator[Load]:
    """The users' process, waiting for its beginning; it ends with the context.

    Raises `LoadError`.
    """
    command = users.command(users.Order.of(scenario, endpoint))
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, limit=_LONGEST_LINE
    )
    assert process.stdout is not None
    try:
        if (await process.stdout.readline()).decode().strip() != users.READY:
            raise LoadError("the users' process does not start")
        yield Load(process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            async with asyncio.timeout(_STOP_LIMIT_S):
                await process.wait()

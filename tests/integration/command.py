"""Runs `payswitch` as an operator does: a process of its own.

The process is forked from one that has loaded the commands already, as a new interpreter would
spend half a second of CPU on imports, some hundred times a run.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import orjson

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "payswitch.cli.main",
        *(f"payswitch.cli.commands.{name}" for name in ("dead", "payment", "reconcile", "status")),
        "tests.integration.command",
    ]
)


@dataclass
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, which must be one JSON document."""
        return orjson.loads(self.out)


@dataclass
class Payswitch:
    """Runs commands against one Redis."""

    redis_url: str
    environment: dict[str, str] = field(default_factory=dict)

    async def __call__(self, *arguments: str) -> Ended:
        environment = {**os.environ, "REDIS_URL": self.redis_url, **self.environment}
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            process = _FORKS.Process(target=_run, args=(arguments, environment, out, err))
            process.start()
            try:
                await _end_of(process.sentinel)
            finally:
                process.kill()
                process.join()
            assert process.exitcode is not None
            # Each wrote its own small file; nothing waits for a disk.
            return Ended(process.exitcode, out.read_text(), err.read_text())  # noqa: ASYNC240


def stop_forking() -> None:
    """End the process that commands are forked from, and its helper: else both would be there for
    an instant after pytest."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


async def _end_of(sentinel: int) -> None:
    """Return when the process with this sentinel has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(sentinel)


def _run(arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    """In the new process: be `python -m payswitch` with these arguments."""
    for file, descriptor in ((out, 1), (err, 2)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["payswitch", *arguments]
    runpy.run_module("payswitch", run_name="__main__", alter_sys=True)

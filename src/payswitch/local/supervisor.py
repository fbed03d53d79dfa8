"""Keeps processes running: starts them in order, restarts those that end, leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from payswitch.local.screen import LogPipe, Screen
from payswitch.process import death_signal
from payswitch.reasons import reason

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
STABLE_S = 10.0
START_TRIES = 5

_CHECK_PAUSE_S = 0.03
_CHECK_LIMIT_S = 2.0
_REPORT_EVERY_S = 5.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PartNotStartedError(RuntimeError):
    """A part can't be started; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Part:
    """A process to keep running: it starts when all parts named in `after` are ready.

    `environment` is its whole environment. `is_ready` is called until it returns True; without it
    the part is a step, which is ready when its process has ended well. `before_start` is called
    before each start of the process.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[], Awaitable[bool]] | None
    after: tuple[str, ...] = ()
    before_start: Callable[[], Awaitable[None]] | None = None


class Supervisor:
    """Runs parts until it is told to stop, by a signal or by `stop`; a second signal kills them.

    `groups` are stopped one after the other, the first one first; after `stop_limit_s` the rest of
    a group is killed. `tend` runs beside the parts until the stop; its failure ends them.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Part]],
        screen: Screen,
        *,
        stop_limit_s: float,
        tend: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._screen = screen
        self._tend = tend
        self._stop_limit_s = stop_limit_s
        self._groups = [[Keeper(part, screen) for part in group] for group in groups]
        self._keepers = {keeper.name: keeper for group in self._groups for keeper in group}
        self._over = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each part that runs now."""
        return {name: keeper.pid for name, keeper in self._keepers.items() if keeper.pid}

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop or can't go on."""
        return self._over.done()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Run the parts; call `on_ready` once all are ready. No process is left when this ends.

        Raises `PartNotStartedError` if a part fails again and again before it was ever ready.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, self._stop_or_kill)
        tasks = [asyncio.create_task(self._announce(on_ready))]
        if self._tend is not None:
            tasks.append(asyncio.create_task(self._tend()))
        for keeper in self._keepers.values():
            needs = [self._keepers[name].ready for name in keeper.part.after]
            tasks += [
                asyncio.create_task(keeper.keep(needs)),
                asyncio.create_task(keeper.watch_start()),
            ]
        for task in tasks:
            task.add_done_callback(self._end_on_failure)
        try:
            await self._over
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._stop_all()

    def stop(self) -> None:
        """Stop all in order."""
        if not self._over.done():
            self._over.set_result(None)
            self._screen.say("stopping; a second Ctrl-C kills")

    def _stop_or_kill(self) -> None:
        if not self._over.done():
            self.stop()
            return
        for keeper in self._keepers.values():
            keeper.kill()

    def _reap(self) -> None:
        for keeper in self._keepers.values():
            keeper.reap()

    def _end_on_failure(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._over.done():
            self._over.set_exception(error)

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        while True:
            try:
                async with asyncio.timeout(_REPORT_EVERY_S):
                    for keeper in self._keepers.values():
                        await keeper.ready.wait()
                break
            except TimeoutError:
                missing = [name for name, each in self._keepers.items() if not each.ready.is_set()]
                self._screen.say(f"waiting for {', '.join(missing)}")
        on_ready()

    async def _stop_all(self) -> None:
        for group in self._groups:
            running = [keeper for keeper in group if keeper.pid]
            for keeper in running:
                keeper.terminate()
            ends = [asyncio.ensure_future(keeper.ended.wait()) for keeper in running]
            if ends and (await asyncio.wait(ends, timeout=self._stop_limit_s))[1]:
                late = [keeper for keeper in running if keeper.pid]
                names = ", ".join(keeper.name for keeper in late)
                self._screen.say(f"not stopped after {self._stop_limit_s:g} s, so killed: {names}")
                for keeper in late:
                    keeper.kill()
                await asyncio.wait(ends)
            for keeper in group:
                keeper.close()
        self._screen.say("stopped")


class Keeper:
    """One part: its present process, and the next one when that ends."""

    def __init__(self, part: Part, screen: Screen) -> None:
        self.part = part
        self.ready = asyncio.Event()
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._screen = screen
        self._pipe = LogPipe(part.name, screen)
        self._process: subprocess.Popen[bytes] | None = None
        self._code: int | None = None

    @property
    def name(self) -> str:
        """The part's name."""
        return self.part.name

    @property
    def pid(self) -> int | None:
        """The process; None while there is none."""
        return self._process.pid if self._process else None

    async def keep(self, needs: Sequence[asyncio.Event]) -> None:
        """Once `needs` are all set, keep the process running until cancelled; a step until it has
        ended well.

        Raises `PartNotStartedError` if it has ended `START_TRIES` times and was never ready.
        """
        for need in needs:
            await need.wait()
        pause_s, failures = FIRST_PAUSE_S, 0
        while True:
            began = time.monotonic()
            how = await self._run_once()
            if self.part.is_ready is None and self._code == 0:
                self.ready.set()
                return
            failures = 0 if self.ready.is_set() else failures + 1
            if failures == START_TRIES:
                raise PartNotStartedError(
                    f"{self.name} does not start: it {how}, {failures} times in a row"
                )
            if time.monotonic() - began >= STABLE_S:
                pause_s = FIRST_PAUSE_S
            self._screen.say(f"{self.name} {how}; starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def watch_start(self) -> None:
        """Set `ready` when the part is ready for the first time."""
        await self.started.wait()
        is_ready = self.part.is_ready
        while is_ready is not None and not self.ready.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_LIMIT_S):
                    if await is_ready():
                        self.ready.set()
                        return
            await asyncio.sleep(_CHECK_PAUSE_S)

    def reap(self) -> None:
        """Note the end of the process, if it has ended, and end the rest of its group."""
        if self._process is None or self._process.poll() is None:
            return
        _kill_group(self._process.pid)
        self._pipe.drain()
        self._code = self._process.returncode
        self._process = None
        self.ended.set()

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process and its children."""
        if self._process is not None:
            _kill_group(self._process.pid)

    def close(self) -> None:
        """Give the pipe back; the process has ended."""
        self._pipe.close()

    async def _run_once(self) -> str:
        """Run the process to its end and say how it ended."""
        try:
            if self.part.before_start is not None:
                await self.part.before_start()
            self._start()
        except OSError as error:
            return f"can't be started: {reason(error)}"
        await self.ended.wait()
        assert self._code is not None
        return _describe(self._code)

    def _start(self) -> None:
        self.ended.clear()
        # A new session, so that only the supervisor gets the terminal's Ctrl-C. Redis and HAProxy
        # can't make one for themselves.
        self._process = subprocess.Popen(
            self.part.command,
            env=self.part.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._pipe.write_fd,
            stderr=self._pipe.write_fd,
            start_new_session=True,
            preexec_fn=death_signal(os.getpid()),
        )
        if self.started.is_set():
            self._screen.say(f"{self.name} runs again, pid {self.pid}")
        self.started.set()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only zombies
        os.killpg(leader, signal.SIGKILL)


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"

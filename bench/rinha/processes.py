"""The system as processes on ports of its own, without limits: what `payswitch up` starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from redis.exceptions import RedisError

from bench.rinha.site import Site, SiteError, Usage, Usages
from payswitch.chaos.system import ChaosSystem, running
from payswitch.durability import Durability
from payswitch.local.machine import MachineError
from payswitch.local.supervisor import PartNotStartedError
from payswitch.selection.selector import parse_selection
from payswitch.settings import SettingsError
from payswitch.store import keys
from payswitch.store.client import connect

SETTINGS = {
    "PAYSWITCH_DURABILITY": "process",
    "PAYSWITCH_FAST_ENOUGH_MS": "1400",
    "PAYSWITCH_FALLBACK_ADVANTAGE_MS": "1400",
    "PAYSWITCH_PATIENCE_MS": "75000",
    "PAYSWITCH_UNKNOWN_MEMBERS": "ignore",
}
"""What compose.yaml sets; the environment overrules it."""

_TICKS = os.sysconf("SC_CLK_TCK")
_REDIS_LIMIT_S = 1.0


@contextlib.asynccontextmanager
async def serving(
    folder: Path, *, workers: int = 2, durability: Durability | None = None
) -> AsyncIterator[Site]:
    """The running system, empty at first; `folder` gets its log. `durability` overrules all other
    settings of it. Raises `SiteError`."""
    environment = SETTINGS | dict(os.environ)
    if durability is not None:
        environment["PAYSWITCH_DURABILITY"] = durability
    async with contextlib.AsyncExitStack() as stack:
        try:
            system = await stack.enter_async_context(
                running(folder, workers=workers, clocks=False, environment=environment)
            )
        except (MachineError, SettingsError, PartNotStartedError) as error:
            raise SiteError(str(error)) from None
        redis = connect(system.settings.redis_url, limit_s=_REDIS_LIMIT_S)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)

        async def selection() -> str | None:
            try:
                content = await redis.get(keys.SELECTION)
            except (RedisError, OSError):
                return None
            chosen = parse_selection(content, list(system.settings.processor_urls))
            if chosen is None:
                return None
            return f"{chosen.processor}{'' if chosen.healthy else ' (none is healthy)'}"

        async def usages() -> Usages:
            return usages_of(system.supervisor.pids)

        yield Site(
            kind="processes",
            endpoint=system.endpoint,
            processors=system.processors,
            token=system.token,
            usages=usages,
            selection=selection,
            check=lambda: _check(system),
        )


def usages_of(pids: Mapping[str, int], proc: Path = Path("/proc")) -> Usages:
    """CPU and memory of processes and of those that they started; what has ended is left out."""
    found = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            found[name] = _usage(pid, proc)
    return found


def _usage(pid: int, proc: Path) -> Usage:
    folder = proc / str(pid)
    # The name of the program, in brackets, may hold spaces.
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    sizes = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    own = Usage(
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        memory_bytes=_bytes(sizes["VmRSS"]),
        memory_peak_bytes=_bytes(sizes["VmHWM"]),
    )
    family = [own, *(_usage(child, proc) for child in _children(folder, pid))]
    return Usage(
        cpu_s=sum(each.cpu_s or 0 for each in family),
        memory_bytes=sum(each.memory_bytes or 0 for each in family),
        memory_peak_bytes=sum(each.memory_peak_bytes or 0 for each in family),
        process=pid,
    )


def _children(folder: Path, pid: int) -> list[int]:
    try:
        text = (folder / "task" / str(pid) / "children").read_text()
    except OSError:  # not every kernel tells
        return []
    return [int(child) for child in text.split()]


def _bytes(size: str) -> int:
    return int(size.split(maxsplit=1)[0]) * 1024


def _check(system: ChaosSystem) -> None:
    if system.ended.done():
        system.ended.result()
        raise KeyboardInterrupt  # its supervisor was told to stop, as by Ctrl-C

"""Carries out a plan's faults on the running system, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.chaos.plan import TOGETHER, PlannedFault
from payswitch.chaos.redis_nodes import RedisNodes
from payswitch.chaos.system import ChaosSystem
from payswitch.local.machine import MachineError

logger = logging.getLogger(__name__)

_Way = Callable[[PlannedFault], Coroutine[Any, Any, None]]

_RETRY_S = 0.05
_LATE_ANSWER_S = 1.0
"""The time from the client's limit to a late answer."""
_SOONEST_MS, _SURVIVES_SHARE = 200, 0.6
"""The time until a payment is recorded whose client has hung up, in parts of a processor's longest
delay. Its ordinary delay comes before (at most 0.2 of it); the rest is for its queue. A payment is
pending for as long."""


class Injector:
    """Breaks things as the plan says. Processors get the sum of overlapping faults."""

    def __init__(self, system: ChaosSystem, plan: Sequence[PlannedFault], *, seed: int) -> None:
        self._system = system
        self._plan = plan
        self._seed = seed
        self._under_way: dict[str, list[PlannedFault]] = {name: [] for name in system.processors}
        self._changes = 0
        self._calls = {name: asyncio.Lock() for name in system.processors}
        self._redis = RedisNodes(system.settings, system.cluster)
        headers = {"X-Rinha-Token": system.token}
        self._http = httpx.AsyncClient(headers=headers, timeout=5, trust_env=False)
        self._ways: dict[str, _Way] = {
            "gone": self._make_gone,
            "kill": self._by_signal(signal.SIGKILL),
            "stop": self._by_signal(signal.SIGTERM),
            "freeze": self._freeze,
            "reload": self._by_signal(signal.SIGUSR2),
            "redis-kill": self._by_signal(signal.SIGKILL),
            "redis-pause": self._freeze,
            "redis-cut": self._on_redis(lambda redis: redis.client_kill_filter(_type="normal")),
            "redis-flush": self._on_redis(lambda redis: redis.script_flush()),
            "redis-memory": self._fill_memory,
            "node-wipe": self._wipe,
            "failover": self._fail_over,
            "cut-off": self._cut_off,
            "nodes-restart": self._by_signal(signal.SIGKILL),
            "shard-pause": self._freeze,
            "clock": self._set_clock,
        }

    async def prepare(self) -> None:
        """Set the processors up: without faults, with their journals on."""
        for name in self._system.processors:
            await self._configure(name)

    async def run(self) -> None:
        """Carry out the whole plan. At its return everything is whole again. Raises `MachineError`
        if the cluster doesn't become whole."""
        try:
            await self._carry_out()
        except ExceptionGroup as group:
            if (expected := group.subgroup(MachineError)) is not None:
                raise expected.exceptions[0] from None
            raise
        await self._heal()

    async def _carry_out(self) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for event in self._plan:
                await asyncio.sleep(began + event.at_s - time.monotonic())
                logger.info(
                    "%(target)s: %(kind)s for %(seconds).1f s %(details)s",
                    {
                        "target": event.target,
                        "kind": event.kind,
                        "seconds": event.lasts_s,
                        "details": event.details,
                    },
                )
                group.create_task(self._ways.get(event.kind, self._disturb)(event))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._redis.close()

    # Processors.

    async def _disturb(self, event: PlannedFault) -> None:
        """A fault of a processor's settings."""
        names = _processors_of(event)
        for name in names:
            self._under_way[name].append(event)
        await asyncio.gather(*map(self._configure, names))
        await asyncio.sleep(event.lasts_s)
        for name in names:
            self._under_way[name].remove(event)
        await asyncio.gather(*map(self._configure, names))

    async def _make_gone(self, event: PlannedFault) -> None:
        gone_ms = int(event.lasts_s * 1000)
        names = _processors_of(event)
        await asyncio.gather(*(self._configure(name, gone_ms=gone_ms) for name in names))
        await asyncio.sleep(event.lasts_s)

    async def _configure(self, name: str, *, gone_ms: int = 0) -> None:
        async with self._calls[name]:
            events = self._under_way[name]
            self._changes += 1
            failing = any(event.kind == "failing" for event in events)
            delays = [int(str(event.details.get("delay_ms", 0))) for event in events]
            await self._put(name, "failure", {"failure": failing})
            await self._put(name, "delay", {"delay": max(delays, default=0)})
            await self._put(name, "faults", self._faults(events, gone_ms))

    def _faults(self, events: Sequence[PlannedFault], gone_ms: int) -> dict[str, Any]:
        limit_ms = self._system.settings.processor_max_delay_ms
        faults: dict[str, Any] = {
            "seed": self._seed * 1000 + self._changes,
            "payments": _sum_of([event for event in events if event.kind != "health"]),
            "decisions": _sum_of(events, "decisions"),
            "health": _sum_of([event for event in events if event.kind == "health"]),
            "lateMs": int(limit_ms + _LATE_ANSWER_S * 1000),
            "laterMs": [_SOONEST_MS, int(limit_ms * _SURVIVES_SHARE)],
            "decideMs": [_SOONEST_MS, int(limit_ms * _SURVIVES_SHARE)],
            "journal": True,
            "silent": any(event.kind == "silent" for event in events),
        }
        if gone_ms:
            faults["goneMs"] = gone_ms
        return faults

    async def _put(self, name: str, setting: str, document: dict[str, Any]) -> None:
        """Configure a processor; while it is gone, try again and again."""
        url = f"{self._system.processors[name]}/admin/configurations/{setting}"
        while True:
            try:
                response = await self._http.put(url, json=document)
                response.raise_for_status()
                return
            except httpx.TransportError:
                await asyncio.sleep(_RETRY_S)

    # Processes.

    def _by_signal(self, number: signal.Signals) -> _Way:
        async def send(event: PlannedFault) -> None:
            async with self._redis.held(event.target):
                for part in await self._redis.parts(event.target):
                    self._signal(part, number)

        return send

    async def _freeze(self, event: PlannedFault) -> None:
        async with self._redis.held(event.target, away=event.kind == "shard-pause"):
            parts = await self._redis.parts(event.target)
            pids = [self._signal(part, signal.SIGSTOP) for part in parts]
            try:
                await asyncio.sleep(event.lasts_s)
            finally:
                for pid in pids:
                    if pid is not None:
                        self._system.signal(pid, signal.SIGCONT)

    def _signal(self, part: str, number: signal.Signals) -> int | None:
        pid = self._system.pid(part)
        if pid is not None:
            self._system.signal(pid, number)
        return pid

    async def _set_clock(self, event: PlannedFault) -> None:
        clocks = self._system.clocks
        if clocks is not None:
            clocks.set(event.target, float(str(event.details["offset_s"])))
            if clocks.is_set_at_start(event.target):
                self._signal(event.target, signal.SIGTERM)

    # Redis.

    def _on_redis(self, command: Callable[[Redis], Awaitable[object]]) -> _Way:
        async def send(event: PlannedFault) -> None:
            async with self._redis.held(event.target):
                for part in await self._redis.parts(event.target):
                    with contextlib.suppress(RedisError, OSError):  # it is broken already
                        await command(self._redis.clients[part])

        return send

    async def _fill_memory(self, event: PlannedFault) -> None:
        """Set `maxmemory` just below the memory in use."""
        async with self._redis.held(event.target):
            parts = await self._redis.parts(event.target)
            for part in parts:
                redis = self._redis.clients[part]
                with contextlib.suppress(RedisError, OSError):
                    used = (await redis.info("memory"))["used_memory"]
                    await redis.config_set("maxmemory", used * 9 // 10)
            await asyncio.sleep(event.lasts_s)
            await self._give_memory(parts)

    async def _give_memory(self, parts: Sequence[str]) -> None:
        for part in parts:
            while True:
                try:
                    await self._redis.clients[part].config_set("maxmemory", 0)
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(_RETRY_S)

    async def _wipe(self, event: PlannedFault) -> None:
        """Kill a primary and remove its files. Its shard's copies are in step before, and no other
        fault meets the other copy until they are again: they never lose their disks together."""
        async with self._redis.held(event.target, away=True):
            await self._redis.until_in_step(event.target)
            for part in await self._redis.parts(event.target):
                self._signal(part, signal.SIGSTOP)  # or it would write its files once more
                self._redis.forget_files(part)
                self._signal(part, signal.SIGKILL)
            await self._redis.until_in_step(event.target)

    async def _fail_over(self, event: PlannedFault) -> None:
        """Order a replica to take its primary's place, as before planned work on a host."""
        async with self._redis.held(event.target):
            await self._redis.until_in_step(event.target)
            for part in await self._redis.parts(event.target):
                with contextlib.suppress(RedisError, OSError):
                    await self._redis.clients[part].execute_command("CLUSTER", "FAILOVER")  # type: ignore[no-untyped-call]

    async def _cut_off(self, event: PlannedFault) -> None:
        """Part a node, a worker and an ingress from the other nodes."""
        island = self._system.island
        if island is not None:
            island.cut_off()
            try:
                await asyncio.sleep(event.lasts_s)
            finally:
                island.join()

    async def _heal(self) -> None:
        for name in self._system.processors:
            self._under_way[name].clear()
            await self._configure(name)
        if self._system.clocks is not None:
            self._system.clocks.set_all_right()
        await self._give_memory([*self._redis.clients])
        await self._redis.until_whole()


def _processors_of(event: PlannedFault) -> Sequence[str]:
    return event.target.split(TOGETHER)


def _sum_of(events: Sequence[PlannedFault], detail: str = "modes") -> dict[str, float]:
    """The summed probabilities of overlapping faults, at most 0.9 in all unless one alone is
    more."""
    total: dict[str, float] = {}
    most = 0.9
    for event in events:
        modes = event.details.get(detail, {})
        assert isinstance(modes, dict)
        most = max(most, sum(modes.values()))
        for mode, probability in modes.items():
            total[mode] = total.get(mode, 0.0) + probability
    excess = max(1.0, sum(total.values()) / most)
    # Cut off, not rounded: the simulator takes no sum above 1.
    return {mode: int(probability / excess * 10**5) / 10**5 for mode, probability in total.items()}

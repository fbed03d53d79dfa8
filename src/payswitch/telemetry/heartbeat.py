"""The heartbeat: once a second each process writes its name and its counts since its start.

A count costs the hot path one addition. While Redis is away, the heartbeat retries each second.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from redis.asyncio import Redis

from payswitch.clock import boottime_ms
from payswitch.durability import Durability
from payswitch.store import keys, scripts
from payswitch.store.periodic import Periodic
from payswitch.telemetry.histogram import LARGEST, Histogram

EVERY_S = 1.0
LIFE_MS = 5000
_AT_LEAST_EVERY_S = 3.0
"""The interval while nothing changes: each write costs Redis an `fsync`."""

Fields = Mapping[str, str | int]


class Heartbeat(Periodic):
    """Writes the fields from `collect`, with the process' name and start."""

    def __init__(self, redis: Redis, kind: str, collect: Callable[[], Fields]) -> None:
        super().__init__("heartbeat", EVERY_S)
        host, pid = socket.gethostname(), os.getpid()
        # Host and pid are for people: containers with the same host name may all be pid 1.
        name = f"{host}:{pid}:{secrets.token_hex(4)}"
        self.redis_ahead_ms: float | None = None
        """The lead of Redis' clock over this process' boot time; None until it is known."""
        self._script = scripts.load(redis, "vitals")
        self.key = self._script.partitions.common.key(keys.heartbeat(kind, name))
        self._collect = collect
        self._who: Fields = {
            "kind": kind,
            "name": name,
            "host": host,
            "pid": pid,
            "since": time.time_ns() // 1_000_000,
        }
        self._said: Fields = {}
        self._due = 0.0

    async def turn(self) -> None:
        """Write if something has changed or a write is due. Raises `RedisError` or `OSError`."""
        if time.monotonic() >= self._due or self._collect() != self._said:
            self._due = 0.0
            await self.write()
            self._due = time.monotonic() + _AT_LEAST_EVERY_S - EVERY_S / 2

    async def write(self) -> None:
        """Write once. Raises `RedisError` or `OSError`."""
        fields = self._collect()
        args = [part for pair in {**self._who, **fields}.items() for part in pair]
        now = await self._script(keys=[self.key], args=[LIFE_MS, *args])
        self.redis_ahead_ms = int(now) - boottime_ms()
        self._said = fields


@dataclass(frozen=True, slots=True)
class Process:
    """A living process, read from its heartbeat."""

    kind: str
    """`ingress`, `worker` or `health`."""
    name: str
    """Unique to this process; it changes with a restart."""
    host: str
    pid: int
    since: int
    """ms since the epoch, by its host's clock."""
    counts: Mapping[str, int]
    """Counts since the start, by name such as `accepted:new` or `tries:default:Paid`."""
    breakers: Mapping[str, str]
    """By processor: `closed`, `open` or `half-open`."""
    settle_times: Histogram
    breaker_reasons: Mapping[str, str] = field(default_factory=dict)
    """By processor: the reason why its breaker isn't closed."""
    durability: Durability | None = None
    """What an ingress promises by a 202."""

    def of(self, prefix: str) -> dict[str, int]:
        """The counts whose names begin with `prefix`, by the rest of their names."""
        return {
            name.removeprefix(prefix): count
            for name, count in self.counts.items()
            if name.startswith(prefix)
        }


def parse_heartbeat(fields: Mapping[str, str]) -> Process | None:
    """Read the fields that `Heartbeat` writes; None if they are anything else."""
    breakers: dict[str, str] = {}
    breaker_reasons: dict[str, str] = {}
    counts: dict[str, int] = {}
    try:
        for name, text in fields.items():
            if name.startswith("breaker:"):
                processor = name.removeprefix("breaker:")
                breakers[processor], _, breaker_reasons[processor] = text.partition(": ")
            elif ":" in name:
                counts[name] = _whole(text)
        return Process(
            kind=fields["kind"],
            name=fields.get("name") or f"{fields['host']}:{fields['pid']}:{fields['since']}",
            host=fields["host"],
            pid=_whole(fields["pid"]),
            since=_whole(fields["since"]),
            counts=counts,
            breakers=breakers,
            settle_times=Histogram.parse(fields.get("settle_times", "")),
            breaker_reasons=breaker_reasons,
            durability=_durability(fields.get("durability")),
        )
    except (KeyError, ValueError):
        return None


def _durability(text: str | None) -> Durability | None:
    """None for a value of another version."""
    return Durability(text) if text in list(Durability) else None


def _whole(text: str) -> int:
    """A number that JSON can hold. Raises `ValueError`."""
    number = int(text)
    if abs(number) > LARGEST:
        raise ValueError(f"too large: {text[:32]}")
    return number


REFUSES = "refuses payments"
"""The start of `Breaker.why` if the processor refuses payments for a fault of its own."""

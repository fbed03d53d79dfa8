"""What operators order: the processor that new tries go to, and that nothing is claimed.

An order is one key in Redis (`order.lua`). The workers read it with every claim, so it reaches all
of them at their next one, and it outlives their restart and that of Redis.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from payswitch.instants import LATEST_MS, format_instant
from payswitch.selection.selector import parse_override
from payswitch.store import keys, scripts
from payswitch.store.clock import redis_now_ms
from payswitch.store.notes import read_note

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Order:
    """An order that stands."""

    by: str
    """`UNKNOWN` where the key was written by other means."""
    at: str | None
    """When it was given, ISO-8601 by Redis' clock."""
    reason: str | None
    until_ms: int | None
    """When it ends by itself, ms since the epoch by Redis' clock; None for not at all."""
    processor: str | None = None
    """Where new tries go; None of an order to pause."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The backlog as an operator who pauses must know it. Instants are ms since the epoch."""

    payments: int
    in_flight: int
    first_deadline_ms: int | None
    """When the payment that waits longest reaches its deadline; a replayed one reaches it later."""
    overdue: int
    """Payments that have reached it (at most: of those, replayed ones may not have)."""


class Controls:
    """The orders in one Redis. Every method raises `RedisError` or `OSError` where Redis can't be
    asked."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._order = scripts.load(redis, "order")
        self._withdraw = scripts.load(redis, "withdraw")

    async def select(self, processor: str, *, life_ms: int, by: str, reason: str | None) -> Order:
        """New tries go to this processor for `life_ms`, whatever the health check says."""
        return await self._give(keys.OVERRIDE, processor, life_ms, by, reason)

    async def select_automatically(self) -> bool:
        """The health check's choice counts again; False if it did already."""
        return bool(await self._withdraw(keys=[keys.OVERRIDE]))

    async def override(self) -> Order | None:
        """The order of `select` that stands."""
        return standing_override(*await self._read(keys.OVERRIDE))

    async def pause(self, *, life_ms: int | None, by: str, reason: str | None) -> Order:
        """Nothing is claimed any more for `life_ms`, or until `resume`."""
        return await self._give(keys.PAUSED, None, life_ms, by, reason)

    async def resume(self) -> bool:
        """Workers claim again, at once; False if nothing was paused."""
        return bool(await self._withdraw(keys=[keys.PAUSED]))

    async def paused(self) -> Order | None:
        """The order to pause that stands."""
        return standing_pause(*await self._read(keys.PAUSED))

    async def health_checks_choice(self) -> bytes | None:
        """The selection that the health check has cached, as it stands in Redis."""
        found: list[bytes | None] = await self._redis.mget([keys.SELECTION])
        return found[0]

    async def waiting(self, deadline_ms: int) -> Waiting:
        """The backlog, `deadline_ms` being how long a payment may be unpaid."""
        now = await redis_now_ms(self._redis)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.OPEN)
            pipe.zcount(keys.IN_FLIGHT, now, "+inf")
            pipe.zrange(keys.OPEN, 0, 0, withscores=True)
            pipe.zcount(keys.OPEN, "-inf", f"({now - deadline_ms}")
            payments, in_flight, first, overdue = await pipe.execute()
        deadline = int(first[0][1]) + deadline_ms if first else None
        return Waiting(int(payments), int(in_flight), deadline, int(overdue))

    async def _give(
        self, key: str, processor: str | None, life_ms: int | None, by: str, reason: str | None
    ) -> Order:
        now = await redis_now_ms(self._redis)
        at = format_instant(now)
        document = {"by": by, "at": at, "reason": reason}
        if processor is not None:
            document["processor"] = processor
        await self._order(keys=[key], args=[orjson.dumps(document), life_ms or 0])
        until = None if life_ms is None else now + life_ms
        return Order(by, at, reason, until, processor)

    async def _read(self, key: str) -> tuple[bytes | None, int, int]:
        """What the key holds (None for what is no string), Redis' clock, and its life, both in
        ms."""
        now = await redis_now_ms(self._redis)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.mget([key])
            pipe.pttl(key)
            [raw], life_ms = await pipe.execute()
        return raw, now, life_ms


def standing_pause(raw: bytes | None, now_ms: int, life_ms: int) -> Order | None:
    """The order to pause, by what its key holds at this time of Redis' clock. The key counts,
    whatever that is; `life_ms` is as PTTL says it: -2 for no key, -1 for no end."""
    if life_ms == -2:
        return None
    document = read_note(raw)

    def text(name: str) -> str | None:
        value = document.get(name)
        return value if isinstance(value, str) else None

    until_ms = None if life_ms < 0 else min(now_ms + life_ms, LATEST_MS)
    return Order(text("by") or UNKNOWN, text("at"), text("reason"), until_ms, text("processor"))


def standing_override(raw: bytes | None, now_ms: int, life_ms: int) -> Order | None:
    """The order of `select` by its key, likewise. One that can't be read, the workers ignore."""
    return None if parse_override(raw) is None else standing_pause(raw, now_ms, life_ms)

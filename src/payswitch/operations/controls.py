"""Operators' orders: the processor for new tries, and a pause of all claims.

An order is one key in Redis (`order.lua`). The workers read it with every claim, so each follows it
from its next claim on. It outlives restarts of workers and Redis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from payswitch.instants import LATEST_MS, format_instant
from payswitch.payments.audit import Signature
from payswitch.selection.selector import parse_override
from payswitch.store import keys, scripts
from payswitch.store.notes import read_note
from payswitch.store.redis_clock import redis_now_ms

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Order:
    """An order in force."""

    by: str
    """`UNKNOWN` if another program wrote the key."""
    at: str | None
    """The instant of the order, ISO-8601 by Redis' clock."""
    reason: str | None
    until_ms: int | None
    """Its end, ms since the epoch by Redis' clock; None for an order without end."""
    processor: str | None = None
    """The processor for new tries; None for a pause."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The backlog, for an operator who pauses or resumes. Instants are ms since the epoch."""

    payments: int
    in_flight: int
    first_deadline_ms: int | None
    """The deadline of the oldest payment; a replayed one has a later deadline."""
    overdue: int
    """Payments past their deadline, at most: replayed ones have a later deadline."""


class Controls:
    """The orders in one Redis. Every method raises `RedisError` or `OSError`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._order = scripts.load(redis, "order")
        self._withdraw = scripts.load(redis, "withdraw")

    async def select(self, processor: str, *, life_ms: int, signature: Signature) -> Order:
        """Send new tries to this processor for `life_ms`, whatever the health check says."""
        return await self._give(keys.OVERRIDE, "select", processor, life_ms, signature)

    async def select_automatically(self, signature: Signature) -> bool:
        """End the order of `select`; False if there is none."""
        return await self._end(keys.OVERRIDE, "select", "auto", signature)

    async def override(self, processors: Sequence[str]) -> Order | None:
        """The order of `select` in force, if it names one of these."""
        return standing_override(processors, *await self._read(keys.OVERRIDE))

    async def pause(self, *, life_ms: int | None, signature: Signature) -> Order:
        """Stop all claims for `life_ms`, or until `resume`."""
        return await self._give(keys.PAUSED, "pause", None, life_ms, signature)

    async def resume(self, signature: Signature) -> bool:
        """Let workers claim again at once; False if they weren't paused."""
        return await self._end(keys.PAUSED, "resume", "", signature)

    async def paused(self) -> Order | None:
        """The order of `pause` in force."""
        return standing_pause(*await self._read(keys.PAUSED))

    async def health_checks_choice(self) -> bytes | None:
        """The health check's cached selection, as raw bytes."""
        found: list[bytes | None] = await self._redis.mget([keys.SELECTION])
        return found[0]

    async def waiting(self, deadline_ms: int) -> Waiting:
        """The backlog, for payments with this deadline after their acceptance."""
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
        self,
        key: str,
        act: str,
        processor: str | None,
        life_ms: int | None,
        signature: Signature,
    ) -> Order:
        now = await redis_now_ms(self._redis)
        at = format_instant(now)
        document = {"by": signature.by, "at": at, "reason": signature.reason}
        if processor is not None:
            document["processor"] = processor
        until = None if life_ms is None else now + life_ms
        ends = "" if until is None else f"until {format_instant(until)}"
        what = " ".join(filter(None, (processor, ends)))
        by, reason = signature.arguments()
        said = act, by, what, reason
        await self._order(keys=[key], args=[orjson.dumps(document), life_ms or 0, *said])
        return Order(signature.by, at, signature.reason, until, processor)

    async def _end(self, key: str, act: str, what: str, signature: Signature) -> bool:
        by, reason = signature.arguments()
        return bool(await self._withdraw(keys=[key], args=[act, by, what, reason]))

    async def _read(self, key: str) -> tuple[bytes | None, int, int]:
        """The key's string (None for other types), Redis' clock and the key's life, both in ms."""
        now = await redis_now_ms(self._redis)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.mget([key])
            pipe.pttl(key)
            [raw], life_ms = await pipe.execute()
        return raw, now, life_ms


def standing_pause(raw: bytes | None, now_ms: int, life_ms: int) -> Order | None:
    """Read the order of `pause` from its key at this time of Redis' clock. Any key pauses, whatever
    it holds. `life_ms` is PTTL's answer: -2 for no key, -1 for no end."""
    if life_ms == -2:
        return None
    document = read_note(raw)

    def text(name: str) -> str | None:
        value = document.get(name)
        return value if isinstance(value, str) else None

    until_ms = None if life_ms < 0 else min(now_ms + life_ms, LATEST_MS)
    return Order(text("by") or UNKNOWN, text("at"), text("reason"), until_ms, text("processor"))


def standing_override(
    processors: Sequence[str], raw: bytes | None, now_ms: int, life_ms: int
) -> Order | None:
    """Read the order of `select` the same way; an unreadable one is None, as workers ignore it."""
    return None if parse_override(raw, processors) is None else standing_pause(raw, now_ms, life_ms)

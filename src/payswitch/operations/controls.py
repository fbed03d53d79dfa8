"""Operators' orders: the processor for new tries, and a pause of all claims.

An order is one key in Redis (`order.lua`). The workers read it with every claim, so each follows it
from its next claim on. It outlives restarts of workers and Redis. In a cluster each partition has a
copy of the pause, as a claim reads no other partition's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.instants import LATEST_MS, format_instant
from payswitch.payments.audit import Signature
from payswitch.selection.selector import parse_override
from payswitch.store import keys, scripts
from payswitch.store.errors import in_words
from payswitch.store.notes import read_note
from payswitch.store.partitions import Argument, Partition
from payswitch.store.redis_clock import redis_now_ms
from payswitch.store.together import together

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


class UnfollowedOrderError(RedisError):
    """A pause or its end stands, but some partitions did not confirm their copies."""

    def __init__(self, numbers: Sequence[int], why: Exception) -> None:
        listed = ", ".join(map(str, numbers))
        super().__init__(
            f"the order stands, but partitions {listed} have not confirmed it; they follow once "
            f"their node is back: {in_words(why)}"
        )


class Controls:
    """The orders in one deployment. Every method raises `RedisError` or `OSError`."""

    def __init__(self, redis: Redis) -> None:
        self._order = scripts.load(redis, "order")
        self._withdraw = scripts.load(redis, "withdraw")
        self._partitions = self._order.partitions
        self._common = self._partitions.common

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
        """Stop all claims for `life_ms`, or until `resume`. Raises `UnfollowedOrderError`."""
        order = await self._give(keys.PAUSED, "pause", None, life_ms, signature)
        await self.spread_pause(self._copies())
        return order

    async def resume(self, signature: Signature) -> bool:
        """Let workers claim again at once; False if they weren't paused. Raises
        `UnfollowedOrderError`."""
        was_paused = await self._end(keys.PAUSED, "resume", "", signature)
        await self.spread_pause(self._copies())
        return was_paused

    async def spread_pause(self, numbers: Sequence[int]) -> None:
        """Let partitions follow the pause or its end: also those that were away when it was
        ordered. Raises `UnfollowedOrderError`."""
        if not numbers:
            return
        raw, _, life_ms = await self._read(keys.PAUSED)
        script = self._order
        order: list[Argument] = [raw or b"", max(life_ms, 0)]
        if life_ms == -2:
            script, order = self._withdraw, []
        args = [keys.PAUSED, *order, "", "", "", ""]
        calls = [(self._partitions[number], args) for number in numbers]
        answers = await script.call_each(calls, confirm=True)
        failed = {
            number: answer
            for number, answer in zip(numbers, answers, strict=True)
            if isinstance(answer, Exception)
        }
        if failed:
            raise UnfollowedOrderError(list(failed), next(iter(failed.values())))

    def _copies(self) -> list[int]:
        """The partitions that have a copy of the pause."""
        return [each.number for each in self._partitions if each is not self._common]

    async def paused(self) -> Order | None:
        """The order of `pause` in force."""
        return standing_pause(*await self._read(keys.PAUSED))

    async def health_checks_choice(self) -> bytes | None:
        """The health check's cached selection, as raw bytes."""
        key = self._common.key(keys.SELECTION)
        found: list[bytes | None] = await self._common.redis.mget([key])
        return found[0]

    async def waiting(self, deadline_ms: int) -> Waiting:
        """The backlog, for payments with this deadline after their acceptance."""
        found = await together(_waiting_in(each, deadline_ms) for each in self._partitions)
        deadlines = [each.first_deadline_ms for each in found]
        return Waiting(
            payments=sum(each.payments for each in found),
            in_flight=sum(each.in_flight for each in found),
            first_deadline_ms=min((each for each in deadlines if each is not None), default=None),
            overdue=sum(each.overdue for each in found),
        )

    async def _give(
        self,
        name: str,
        act: str,
        processor: str | None,
        life_ms: int | None,
        signature: Signature,
    ) -> Order:
        now = await redis_now_ms(self._common.redis)
        at = format_instant(now)
        document = {"by": signature.by, "at": at, "reason": signature.reason}
        if processor is not None:
            document["processor"] = processor
        until = None if life_ms is None else now + life_ms
        ends = "" if until is None else f"until {format_instant(until)}"
        what = " ".join(filter(None, (processor, ends)))
        by, reason = signature.arguments()
        said = act, by, what, reason
        args: list[Argument] = [name, orjson.dumps(document), life_ms or 0, *said]
        await self._order(args=args, confirm=True)
        return Order(signature.by, at, signature.reason, until, processor)

    async def _end(self, name: str, act: str, what: str, signature: Signature) -> bool:
        by, reason = signature.arguments()
        return bool(await self._withdraw(args=[name, act, by, what, reason], confirm=True))

    async def _read(self, name: str) -> tuple[bytes | None, int, int]:
        """An order's string (None for other types), Redis' clock and the order's life, both in
        ms."""
        key, redis = self._common.key(name), self._common.redis
        now = await redis_now_ms(redis)
        [raw] = await redis.mget([key])
        return raw, now, await redis.pttl(key)


async def _waiting_in(partition: Partition, deadline_ms: int) -> Waiting:
    now = await redis_now_ms(partition.redis)
    backlog = partition.key(keys.OPEN)
    async with partition.redis.pipeline(transaction=False) as pipe:
        pipe.zcard(backlog)
        pipe.zcount(partition.key(keys.IN_FLIGHT), now, "+inf")
        pipe.zrange(backlog, 0, 0, withscores=True)
        pipe.zcount(backlog, "-inf", f"({now - deadline_ms}")
        payments, in_flight, first, overdue = await pipe.execute()
    deadline = int(first[0][1]) + deadline_ms if first else None
    return Waiting(int(payments), int(in_flight), deadline, int(overdue))


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

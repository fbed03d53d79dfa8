"""Measures a payment's memory in Redis while it waits, while it is paid, and once it is settled.

Payments go through the real accepting, claiming, routing and settling scripts. The server is the
one that `payswitch up` would start, or, to compare versions, an empty one that runs already:

    python -m bench.memory
    python -m bench.memory --redis-url redis://localhost:6380
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import click
from redis.asyncio import Redis

from bench.local import running_redis
from payswitch.payments.accepting import Acceptance, AcceptQueue
from payswitch.payments.claims import Claim, Claims
from payswitch.payments.ledger import Ledger, Settlement
from payswitch.payments.payment import Payment
from payswitch.payments.tries import Findings, Tries
from payswitch.settings import Settings
from payswitch.store.client import connect

_BATCH = 1_000
_LIMIT_S = 30
_LEASE_MS = 3_600_000
_FIRST_MS = 1_767_225_600_000
"""An instant with as many digits as one of today."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of `used_memory` for each payment."""

    waiting: float
    in_hand: float
    """Claimed by a worker, with an open try."""
    settled: float
    """Record and ledger."""


async def weigh(
    redis: Redis, count: int, per_second: float, metadata: bytes | None = None
) -> Weights:
    """Accept, claim and settle this many payments, with `requestedAt` spread as at this rate.
    All have the same metadata.

    Raises `RedisError`, and `RuntimeError` if the server isn't empty or a payment isn't settled.
    """
    if await redis.dbsize():
        raise RuntimeError("this Redis is not empty")
    # Scripts and the first of each kind of command take memory of their own.
    await _pay(redis, range(1), per_second, metadata)
    used = [await _used(redis)]
    # As payments flow, so few at once that the tables grow by what is settled alone.
    for batch in _batches(count):
        await _pay(redis, batch, per_second, metadata)
    used.append(await _used(redis))
    for batch in _batches(count):
        await _accept(redis, batch, metadata)
    used.append(await _used(redis))
    await _claim(redis, count)
    used.append(await _used(redis))
    settled, waiting, in_hand = (
        (used[n] - used[before]) / count for n, before in ((1, 0), (2, 1), (3, 1))
    )
    return Weights(waiting, in_hand, settled)


async def _pay(redis: Redis, batch: range, per_second: float, metadata: bytes | None) -> None:
    await _accept(redis, batch, metadata)
    ledger = Ledger(redis, processors=["default"], retention_ms=Settings.retention_ms)
    settlements = await asyncio.gather(
        *(
            ledger.settle(claim, "default", _FIRST_MS + int(n / per_second * 1000))
            for n, claim in zip(batch, await _claim(redis, len(batch)), strict=True)
        )
    )
    _require(all(each is Settlement.SETTLED for each in settlements), "settled")


async def _accept(redis: Redis, batch: range, metadata: bytes | None) -> None:
    queue = AcceptQueue(redis, limit_ms=_LIMIT_S * 1000, max_backlog=10**9)
    payments = [Payment(str(uuid4()), 1000 + n, metadata) for n in batch]
    answers = await asyncio.gather(*map(queue.accept, payments))
    _require(all(answer is Acceptance.NEW for answer in answers), "accepted")


async def _claim(redis: Redis, count: int) -> list[Claim]:
    delay_ms = Settings.processor_max_delay_ms
    claims = Claims(redis, lease_ms=_LEASE_MS, deadline_ms=_LEASE_MS, max_delay_ms=delay_ms)
    tries = Tries(
        redis, max_delay_ms=delay_ms, lease_ms=_LEASE_MS, retention_ms=Settings.retention_ms
    )
    found: list[Claim] = []
    while len(found) < count:
        taken = [claimed.claim for claimed in (await claims.take(_BATCH)).taken]
        _require(bool(taken), "claimed")
        routed = await asyncio.gather(*(tries.open(each, "default", Findings()) for each in taken))
        _require(None not in routed, "routed")
        found += taken
    return found


def _batches(count: int) -> Iterator[range]:
    for first in range(0, count, _BATCH):
        yield range(first, min(first + _BATCH, count))


def _require(is_so: bool, what: str) -> None:
    if not is_so:
        raise RuntimeError(f"a payment was not {what}")


async def _used(redis: Redis) -> int:
    memory: dict[str, Any] = await redis.info("memory")
    return int(memory["used_memory"])


async def _version(redis: Redis) -> str:
    server: dict[str, Any] = await redis.info("server")
    if "valkey_version" in server:
        return f"Valkey {server['valkey_version']}"
    return f"Redis {server['redis_version']}"


async def _measure(
    url: str, count: int, per_second: float, metadata: bytes | None
) -> tuple[str, Weights]:
    redis = connect(url, limit_s=_LIMIT_S)
    try:
        return await _version(redis), await weigh(redis, count, per_second, metadata)
    finally:
        await redis.aclose(close_connection_pool=True)


@click.command()
@click.option("--payments", default=100_000, show_default=True, type=click.IntRange(1))
@click.option("--per-second", default=300.0, show_default=True, help="Spreads their requestedAt.")
@click.option("--metadata", type=click.IntRange(12, 1024), help="Bytes of metadata of each.")
@click.option("--redis-url", help="An empty Redis, instead of one of its own.")
def memory(payments: int, per_second: float, metadata: int | None, redis_url: str | None) -> None:
    """Print how many bytes of Redis' memory a payment takes.

    Example: python -m bench.memory --payments 1000000
    """
    own = b'{"order":"%s"}' % (b"x" * (metadata - 12)) if metadata is not None else None
    with contextlib.ExitStack() as stack:
        url = redis_url or stack.enter_context(running_redis())[0]
        try:
            version, weights = asyncio.run(_measure(url, payments, per_second, own))
        except RuntimeError as error:
            click.echo(f"memory: {error}", err=True)
            sys.exit(1)
    click.echo(f"{version}, {payments:,} payments, bytes of each:")
    click.echo(f"  waiting   {weights.waiting:,.0f}")
    click.echo(f"  in hand   {weights.in_hand:,.0f}")
    click.echo(f"  settled   {weights.settled:,.0f}")


if __name__ == "__main__":
    memory(prog_name="python -m bench.memory")

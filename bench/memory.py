"""What a payment takes of Redis' memory while it waits, while it is paid, and once it is settled.

Payments go through the real accepting, claiming, routing and settling scripts. The server is the one
that `payswitch up` would start, or, to compare versions, an empty one that runs already:

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
from payswitch.claims import Claims
from payswitch.ledger import Ledger, Settlement
from payswitch.payment import Payment
from payswitch.queue import Acceptance, AcceptQueue
from payswitch.redis_client import connect
from payswitch.settings import Settings
from payswitch.tries import Claim, Findings, Tries

_BATCH = 1_000
_LIMIT_S = 30
_LEASE_MS = 3_600_000
_FIRST_MS = 1_767_225_600_000
"""Any instant; as many digits as one of today."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of `used_memory` for each payment."""

    waiting: float
    in_hand: float
    """Claimed by a worker, with an open try."""
    settled: float
    """Record and ledger."""


async def weigh(redis: Redis, count: int, per_second: float) -> Weights:
    """Accept, claim and settle so many payments, their `requestedAt` spread as at that rate.

    Raises `RedisError`, and `RuntimeError` where the server holds something already or a payment
    doesn't come through.
    """
    if await redis.dbsize():
        raise RuntimeError("this Redis is not empty")
    # Scripts and the first of each kind of command take memory of their own.
    await _settle_all(redis, await _claim_all(redis, await _accept_all(redis, 1)), per_second)
    empty = await _used(redis)
    await _accept_all(redis, count)
    waiting = await _used(redis)
    claims = await _claim_all(redis, count)
    in_hand = await _used(redis)
    await _settle_all(redis, claims, per_second)
    settled = await _used(redis)
    return Weights(*((used - empty) / count for used in (waiting, in_hand, settled)))


async def _accept_all(redis: Redis, count: int) -> int:
    queue = AcceptQueue(redis, limit_ms=_LIMIT_S * 1000, max_backlog=count)
    for batch in _batches(count):
        payments = (Payment(str(uuid4()), 1000 + n) for n in batch)
        answers = await asyncio.gather(*(queue.accept(payment) for payment in payments))
        _require(all(answer is Acceptance.NEW for answer in answers), "accepted")
    return count


async def _claim_all(redis: Redis, count: int) -> list[Claim]:
    claims = Claims(redis, lease_ms=_LEASE_MS, deadline_ms=_LEASE_MS)
    tries = Tries(redis, max_delay_ms=Settings.processor_max_delay_ms, lease_ms=_LEASE_MS)
    found: list[Claim] = []
    while len(found) < count:
        taken = [claimed.claim for claimed in (await claims.take(_BATCH)).taken]
        _require(bool(taken), "claimed")
        routed = await asyncio.gather(*(tries.open(each, "default", Findings()) for each in taken))
        _require(None not in routed, "routed")
        found += taken
    return found


async def _settle_all(redis: Redis, claims: list[Claim], per_second: float) -> None:
    ledger = Ledger(redis, processors=["default"], retention_ms=Settings.retention_ms)
    for batch in _batches(len(claims)):
        settlements = await asyncio.gather(
            *(
                ledger.settle(claims[n], "default", _FIRST_MS + int(n / per_second * 1000))
                for n in batch
            )
        )
        _require(all(each is Settlement.SETTLED for each in settlements), "settled")


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


async def _measure(url: str, count: int, per_second: float) -> tuple[str, Weights]:
    redis = connect(url, limit_s=_LIMIT_S)
    try:
        return await _version(redis), await weigh(redis, count, per_second)
    finally:
        await redis.aclose(close_connection_pool=True)


@click.command()
@click.option("--payments", default=100_000, show_default=True, type=click.IntRange(1))
@click.option("--per-second", default=300.0, show_default=True, help="Spreads their requestedAt.")
@click.option("--redis-url", help="An empty Redis, instead of one of its own.")
def memory(payments: int, per_second: float, redis_url: str | None) -> None:
    """Print how many bytes of Redis' memory a payment takes.

    Example: python -m bench.memory --payments 1000000
    """
    with contextlib.ExitStack() as stack:
        url = redis_url or stack.enter_context(running_redis())[0]
        try:
            version, weights = asyncio.run(_measure(url, payments, per_second))
        except RuntimeError as error:
            click.echo(f"memory: {error}", err=True)
            sys.exit(1)
    click.echo(f"{version}, {payments:,} payments, bytes of each:")
    click.echo(f"  waiting   {weights.waiting:,.0f}")
    click.echo(f"  in hand   {weights.in_hand:,.0f}")
    click.echo(f"  settled   {weights.settled:,.0f}")


if __name__ == "__main__":
    memory(prog_name="python -m bench.memory")

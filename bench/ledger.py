"""What the ledger takes of Redis' memory a day at a rate: exact to the millisecond, and folded; and
for how long a step of the fold keeps Redis.

Payments are settled by the real script at random instants, four fifths of them by `default`. The
server is the one that `payswitch up` would start, or an empty one that runs already:

    python -m bench.ledger
    python -m bench.ledger --redis-url redis://localhost:6380 1 300
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import Any

import click
from redis.asyncio import Redis

from bench.local import running_redis
from payswitch.store import scripts
from payswitch.store.client import connect

_BATCH = 500
_MOST = 600_000
"""The most payments that are settled for one rate."""
_NODE_MS = 1_000_000
"""The span of a node of folded entries; a whole number of them is measured."""
_DAY_MS = 86_400_000
_FIRST_MS = 1_767_225_000_000
"""The start of a node, with as many digits as an instant of today."""
_LIMIT_S = 30


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth of the ledger in a day."""

    fine_keys: float
    fine_bytes: float
    """Of `used_memory`, while every millisecond is kept."""
    folded_keys: float
    folded_bytes: float
    """Of the keys themselves (`MEMORY USAGE`), folded to 10 s."""
    step_us: float
    """The mean time that a step of the fold keeps Redis."""


async def measure(redis: Redis, per_second: float) -> Growth:
    """Settle at this rate over some time, then fold it. Raises `RedisError`."""
    span_ms = max(1, min(20, int(_MOST / per_second / 1000))) * _NODE_MS
    days = span_ms / _DAY_MS
    await redis.flushall()
    await _settle(redis, 1, 1)
    used = await _used(redis)
    await _settle(redis, int(per_second * span_ms / 1000), span_ms)
    fine_bytes, fine_keys = await _used(redis) - used, await redis.dbsize()
    step_us = await _fold(redis, before=_FIRST_MS + span_ms)
    keys = [key async for key in redis.scan_iter("ledger:*:10000:*")]
    sizes = [int(await redis.memory_usage(key, samples=0) or 0) for key in keys]
    return Growth(fine_keys / days, fine_bytes / days, len(keys) / days, sum(sizes) / days, step_us)


async def _settle(redis: Redis, count: int, span_ms: int) -> None:
    chance = random.Random(1)
    script = scripts.load(redis, "settle")
    for first in range(0, count, _BATCH):
        names = [f"bench-{number}" for number in range(min(_BATCH, count - first))]
        args: list[str | int] = [1000]
        async with redis.pipeline(transaction=False) as pipe:
            for name in names:
                processor = "default" if chance.random() < 0.8 else "fallback"
                fields = {"generation": 0, "processor": processor, "cents": _cents(chance)}
                pipe.hset(f"payment:{name}", mapping=fields)
                args += (name, "0", processor, _FIRST_MS + chance.randrange(span_ms))
            await pipe.execute()
        await script(args=args)
        await redis.unlink(*(f"payment:{name}" for name in names))


def _cents(chance: random.Random) -> int:
    return chance.choice((990, 1990, 19_990, 123_456))


async def _fold(redis: Redis, *, before: int) -> float:
    script = scripts.load(redis, "fold")
    await redis.config_resetstat()
    while await script(args=[_now_ms() - before, _now_ms(), "default", "fallback"]):
        pass
    stats: dict[str, Any] = await redis.info("commandstats")
    return float(stats["cmdstat_evalsha"]["usec_per_call"])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _used(redis: Redis) -> int:
    memory: dict[str, Any] = await redis.info("memory")
    return int(memory["used_memory"])


_HEAD = ("payments a second", "exact: MB a day", "keys", "folded: MB a day", "keys", "µs a step")


async def _print(url: str, rates: tuple[float, ...]) -> None:
    redis = connect(url, limit_s=_LIMIT_S)
    try:
        if await redis.dbsize():
            raise click.ClickException("this Redis is not empty")
        click.echo(f"| {' | '.join(_HEAD)} |\n|{' ---: |' * len(_HEAD)}")
        for rate in rates:
            growth = await measure(redis, rate)
            click.echo(
                f"| {rate:g} | {growth.fine_bytes / 1e6:,.1f} | {growth.fine_keys:,.0f} "
                f"| {growth.folded_bytes / 1e6:,.2f} | {growth.folded_keys:,.0f} "
                f"| {growth.step_us:,.0f} |"
            )
        await redis.flushall()
    finally:
        await redis.aclose(close_connection_pool=True)


@click.command()
@click.argument("rates", nargs=-1, type=click.FloatRange(0.001))
@click.option("--redis-url", help="An empty Redis, instead of one of its own.")
def ledger(rates: tuple[float, ...], redis_url: str | None) -> None:
    """Print what the ledger takes of Redis' memory a day at each of the RATES (payments a second;
    1, 10, 100 and 300 if there are none).

    Example: python -m bench.ledger 5
    """
    with contextlib.ExitStack() as stack:
        url = redis_url or stack.enter_context(running_redis())[0]
        asyncio.run(_print(url, rates or (1, 10, 100, 300)))


if __name__ == "__main__":
    ledger(prog_name="python -m bench.ledger")

"""The bench of Redis' memory weighs payments that came through."""

from __future__ import annotations

import pytest
from arq.connections import ArqRedis

from bench.memory import weigh


async def test_a_payment_weighs_most_in_hand_and_least_once_it_is_settled(redis: ArqRedis) -> None:
    weights = await weigh(redis, 2_000, per_second=300)
    assert 100 < weights.settled < weights.waiting < weights.in_hand < 3_000
    assert await redis.hget("ledger:default:0:total", "count") == b"2001"  # type: ignore[misc]


async def test_a_redis_that_holds_something_is_left_alone(redis: ArqRedis) -> None:
    await redis.set("mine", "1")
    with pytest.raises(RuntimeError, match="not empty"):
        await weigh(redis, 1, per_second=300)
    assert await redis.keys() == [b"mine"]

"""The selection as a worker follows it in a cluster."""

from __future__ import annotations

import asyncio

import pytest
from fakeredis import FakeAsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from payswitch.selection.standing import Standing, StandingWatch
from payswitch.store import keys
from tests.support import SLACK_S


async def test_the_first_reading_is_awaited_and_the_last_one_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis = FakeAsyncRedis()
    seen: list[Standing] = []
    watch = StandingWatch(redis, seen.append)
    first = asyncio.create_task(watch.until_known())
    await asyncio.sleep(0)
    assert not first.done()
    await redis.set(keys.SELECTION, "chosen")
    await watch.turn()
    async with asyncio.timeout(SLACK_S):
        await first

    async def away(*_: object) -> None:
        raise RedisConnectionError

    monkeypatch.setattr(redis, "mget", away)
    with pytest.raises(RedisConnectionError):
        await watch.turn()
    assert seen == [(None, b"chosen")]

"""The distributed lock: one holder, released by nobody else, given on when it expires."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import fakeredis
import pytest
from redis.asyncio import Redis

from payswitch.store.lock import Lock
from tests.support import SLACK_S

KEY = "healthcheck:lock"


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    """An empty Redis."""
    client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    yield client
    await client.aclose()


async def acquired_once_expired(lock: Lock) -> str:
    """Acquire a lock whose holder has but a few ms left."""
    async with asyncio.timeout(SLACK_S):
        while (token := await lock.acquire()) is None:
            await asyncio.sleep(0.001)
    return token


async def test_a_free_lock_is_acquired(redis: Redis) -> None:
    assert await Lock(redis, KEY, life_ms=4000).acquire()


async def test_a_held_lock_is_not_acquired(redis: Redis) -> None:
    await Lock(redis, KEY, life_ms=4000).acquire()
    assert await Lock(redis, KEY, life_ms=4000).acquire() is None


async def test_of_many_concurrent_attempts_one_acquires(redis: Redis) -> None:
    locks = [Lock(redis, KEY, life_ms=4000) for _ in range(20)]
    tokens = await asyncio.gather(*(lock.acquire() for lock in locks))
    assert sum(token is not None for token in tokens) == 1


async def test_locks_with_other_keys_are_held_at_the_same_time(redis: Redis) -> None:
    await Lock(redis, KEY, life_ms=4000).acquire()
    assert await Lock(redis, "payments:probe", life_ms=4000).acquire()


async def test_a_failed_attempt_does_not_prolong_the_lock(redis: Redis) -> None:
    await Lock(redis, KEY, life_ms=4000).acquire()
    await Lock(redis, KEY, life_ms=90_000).acquire()
    assert await redis.pttl(KEY) <= 4000


async def test_a_lock_lives_for_its_life(redis: Redis) -> None:
    await Lock(redis, KEY, life_ms=4000).acquire()
    assert 3000 < await redis.pttl(KEY) <= 4000


async def test_a_released_lock_is_free(redis: Redis) -> None:
    lock = Lock(redis, KEY, life_ms=4000)
    await lock.release(str(await lock.acquire()))
    assert await lock.acquire()


async def test_who_releases_its_lock_is_told_so(redis: Redis) -> None:
    lock = Lock(redis, KEY, life_ms=4000)
    assert await lock.release(str(await lock.acquire())) is True


@pytest.mark.parametrize("token", ["", "another's", "0" * 32])
async def test_a_foreign_token_releases_nothing(redis: Redis, token: str) -> None:
    lock = Lock(redis, KEY, life_ms=4000)
    held = await lock.acquire()
    await lock.release(token)
    assert await redis.get(KEY) == str(held).encode()


async def test_who_brings_a_foreign_token_is_told_so(redis: Redis) -> None:
    lock = Lock(redis, KEY, life_ms=4000)
    await lock.acquire()
    assert await lock.release("another's") is False


async def test_a_lock_that_nobody_holds_is_not_released(redis: Redis) -> None:
    assert await Lock(redis, KEY, life_ms=4000).release("0" * 32) is False


async def test_a_lock_is_released_once(redis: Redis) -> None:
    lock = Lock(redis, KEY, life_ms=4000)
    token = str(await lock.acquire())
    await lock.release(token)
    assert await lock.release(token) is False


async def test_every_lock_has_a_token_of_its_own(redis: Redis) -> None:
    tokens = [await Lock(redis, f"lock:{number}", life_ms=4000).acquire() for number in range(100)]
    assert len(set(tokens)) == 100


async def test_an_expired_lock_lets_the_next_one_in(redis: Redis) -> None:
    await Lock(redis, KEY, life_ms=5).acquire()
    assert await acquired_once_expired(Lock(redis, KEY, life_ms=4000))


async def test_who_held_an_expired_lock_cannot_release_the_next_ones(redis: Redis) -> None:
    expired = Lock(redis, KEY, life_ms=5)
    old = str(await expired.acquire())
    new = await acquired_once_expired(Lock(redis, KEY, life_ms=4000))
    assert (await expired.release(old), await redis.get(KEY)) == (False, new.encode())

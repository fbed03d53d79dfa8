"""Reading a key space or a set page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import fakeredis
import pytest
from redis.asyncio import Redis

from payswitch.store.scanning import pages

MANY = 2500


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    """An empty Redis."""
    client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    yield client
    await client.aclose()


async def test_the_pages_have_every_key(redis: Redis) -> None:
    await redis.mset({f"payment:{number}": 1 for number in range(MANY)})
    await redis.set("stranger", 1)
    found = [page async for page in pages(partial(redis.scan, match="payment:*", count=1000))]
    assert len(found) > 1
    assert len({key for page in found for key in page}) == MANY


async def test_the_pages_have_every_member_of_a_set(redis: Redis) -> None:
    await redis.zadd("set", {f"{number}": number for number in range(MANY)})
    found = [page async for page in pages(partial(redis.zscan, "set", count=1000))]
    assert len({member for page in found for member, _ in page}) == MANY


async def test_what_is_not_there_is_one_empty_page(redis: Redis) -> None:
    assert [page async for page in pages(partial(redis.zscan, "set", count=1000))] == [[]]

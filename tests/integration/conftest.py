"""A real Redis for the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from arq.connections import ArqRedis

from payswitch.redis_client import connect
from tests.support import RedisServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs against a Redis of the tests: CI runs it once for each server."""
    for item in items:
        if {"shared_redis", "own_redis"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.store)


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that leave it running."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """The shared Redis, empty."""
    shared_redis.flush()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[ArqRedis]:
    """A client of the shared Redis, which is empty."""
    client = connect(redis_server.url, limit_s=10)
    yield client
    await client.aclose(close_connection_pool=True)

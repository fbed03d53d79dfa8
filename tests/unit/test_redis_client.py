"""What a Redis may lose, said or refused; and URLs without their credentials."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import fakeredis
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from payswitch.redis_client import (
    UntrustworthyRedisError,
    check_trust,
    connect,
    judge,
    risks,
    shown,
)

TRUSTED = {
    "maxmemory": "268435456",
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "always",
}
LOSSY = TRUSTED | {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}


class ConfiguredRedis:
    """Stands for a Redis of which only the configuration is asked; fakeredis has none."""

    def __init__(self, config: dict[str, str], error: RedisError | None = None) -> None:
        self._config = config
        self._error = error

    async def config_get(self, pattern: str) -> dict[str, str]:
        """The entries that begin as the pattern does."""
        if self._error is not None:
            raise self._error
        start = pattern.removesuffix("*")
        return {name: value for name, value in self._config.items() if name.startswith(start)}


def configured(config: dict[str, str], error: RedisError | None = None) -> Redis:
    return cast(Redis, ConfiguredRedis(config, error))


@pytest.fixture
async def away() -> AsyncIterator[Redis]:
    """A Redis that can't be reached."""
    server = fakeredis.FakeServer()
    server.connected = False
    client: Redis = fakeredis.FakeAsyncRedis(server=server)
    yield client
    await client.aclose()


# Judging a configuration.


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, []),
        ({"maxmemory": "0"}, []),
        ({"maxmemory": "0", "maxmemory-policy": "allkeys-lru"}, []),
        ({"maxmemory-policy": "allkeys-lru"}, ["maxmemory-policy is allkeys-lru"]),
        ({"maxmemory-policy": "volatile-ttl"}, ["maxmemory-policy is volatile-ttl"]),
        ({"appendonly": "no"}, ["appendonly is off"]),
        ({"appendonly": "no", "appendfsync": "no"}, ["appendonly is off"]),
        ({"appendfsync": "everysec"}, ["appendfsync is everysec"]),
        ({"appendfsync": "no"}, ["appendfsync is no"]),
        (
            {"maxmemory-policy": "allkeys-lru", "appendonly": "no"},
            ["maxmemory-policy is allkeys-lru", "appendonly is off"],
        ),
        (
            {"maxmemory-policy": "allkeys-lru", "appendfsync": "everysec"},
            ["maxmemory-policy is allkeys-lru", "appendfsync is everysec"],
        ),
    ],
)
def test_each_risk_of_a_configuration_is_named(
    changes: dict[str, Any], sentences: list[str]
) -> None:
    assert [risk.partition(":")[0] for risk in judge(TRUSTED | changes)] == sentences


@pytest.mark.parametrize("remedy", ["noeviction", "appendonly yes", "appendfsync always"])
def test_each_risk_names_its_remedy(remedy: str) -> None:
    worst = [LOSSY, TRUSTED | {"appendfsync": "no"}]
    assert any(f"(set {remedy})" in risk for config in worst for risk in judge(config))


def test_a_configuration_that_tells_nothing_is_not_trusted() -> None:
    assert judge({})


# Asking.


async def test_a_redis_that_keeps_everything_has_no_risks() -> None:
    assert await risks(configured(TRUSTED)) == []


async def test_the_risks_of_a_redis_are_those_of_its_configuration() -> None:
    assert await risks(configured(LOSSY)) == judge(LOSSY)


async def test_a_redis_without_the_config_command_is_a_risk() -> None:
    redis: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    assert await risks(redis) == [
        "CONFIG is not allowed, so it can't be checked what Redis may lose"
    ]


@pytest.mark.parametrize(
    "error",
    [
        NoPermissionError("this user has no permissions to run the 'config|get' command"),
        ResponseError("NOPERM this user has no permissions"),
        ResponseError("unknown command 'CONFIG', with args beginning with: 'GET'"),
    ],
)
async def test_a_redis_that_forbids_the_config_command_is_a_risk(error: RedisError) -> None:
    [risk] = await risks(configured({}, error))
    assert risk.startswith("CONFIG is not allowed")


async def test_a_redis_that_is_away_has_no_known_risks(away: Redis) -> None:
    with pytest.raises(RedisConnectionError):
        await risks(away)


# Demanding trust.


async def test_a_lossy_redis_is_refused_where_trust_is_demanded() -> None:
    with pytest.raises(UntrustworthyRedisError, match=r"maxmemory-policy .*; appendonly is off"):
        await check_trust(configured(LOSSY), demand=True)


async def test_a_redis_that_tells_nothing_is_refused_where_trust_is_demanded() -> None:
    with pytest.raises(UntrustworthyRedisError, match="CONFIG is not allowed"):
        await check_trust(configured({}, ResponseError("NOPERM")), demand=True)


async def test_a_trusted_redis_is_taken_where_trust_is_demanded() -> None:
    await check_trust(configured(TRUSTED), demand=True)


async def test_a_lossy_redis_is_warned_of_where_trust_is_not_demanded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await check_trust(configured(LOSSY), demand=False)
    assert caplog.messages == [f"redis: {risk}" for risk in judge(LOSSY)]


def test_an_fsync_that_a_rewrite_suspends_is_a_risk() -> None:
    [risk] = judge(TRUSTED | {"no-appendfsync-on-rewrite": "yes"})
    assert "no-appendfsync-on-rewrite" in risk


async def test_a_trusted_redis_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    await check_trust(configured(TRUSTED), demand=False)
    assert caplog.messages == []


async def test_a_redis_that_is_away_is_not_judged(
    away: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await check_trust(away, demand=False)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_where_trust_is_demanded_a_redis_that_is_away_is_waited_for(
    away: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = asyncio.create_task(check_trust(away, demand=True))
    done, _ = await asyncio.wait([waiting], timeout=1.2)
    assert not done
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    waiting.cancel()


# URLs.


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:hunter2@redis:6379/0", "redis://redis:6379/0"),
        ("rediss://user:hunter2@redis/3", "rediss://redis/3"),
        ("redis://user@redis/3", "redis://redis/3"),
        ("redis://user:p@ss@redis/3", "redis://redis/3"),
        ("redis://:hunter2@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("unix://user:hunter2@/run/redis.sock", "unix:/run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url: str, text: str) -> None:
    assert shown(url) == text


@pytest.mark.parametrize("url", ["redis://redis/0?password=hunter2", "unix:/r?password=hunter2"])
def test_a_url_is_shown_without_a_password_in_its_query(url: str) -> None:
    assert "hunter2" not in shown(url)


# Connecting.


async def test_a_client_gives_a_command_up_after_its_limit() -> None:
    redis = connect("redis://127.0.0.1:1/0", limit_s=1.2)
    assert redis.connection_pool.connection_kwargs["socket_timeout"] == 1.2


@pytest.mark.parametrize(("limit_s", "connect_s"), [(0.3, 0.3), (1.2, 1.0), (10, 1.0)])
async def test_a_client_gives_connecting_up_after_a_second_at_most(
    limit_s: float, connect_s: float
) -> None:
    redis = connect("redis://127.0.0.1:1/0", limit_s=limit_s)
    assert redis.connection_pool.connection_kwargs["socket_connect_timeout"] == connect_s


async def test_jobs_go_through_a_client_as_json() -> None:
    redis = connect("redis://127.0.0.1:1/0", limit_s=1)
    assert redis.job_serializer is not None
    assert redis.job_serializer({"f": "pay"}) == b'{"f":"pay"}'

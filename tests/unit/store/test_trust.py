"""Whether a Redis can hold payments, and which of them it may lose."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from payswitch.durability import Durability
from payswitch.store.trust import (
    config_risks,
    judge_config,
    judge_node,
    judge_replicas,
    judge_server,
    parse_info,
    why_never,
)

TRUSTED = {
    "maxmemory": "268435456",
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "always",
}
LOSSY = TRUSTED | {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
ALONE = {
    "redis_version": "7.0.15",
    "role": "master",
    "connected_slaves": "0",
    "master_replid2": "0" * 40,
    "cluster_enabled": "0",
}


class ConfiguredRedis:
    """Stands for a Redis of which only the configuration is asked, and that may refuse."""

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


# Its settings.


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
        ({"no-appendfsync-on-rewrite": "yes"}, ["no-appendfsync-on-rewrite is on"]),
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
    risks = judge_config(TRUSTED | changes, Durability.DISK)
    assert [risk.partition(":")[0] for risk in risks] == sentences


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, []),
        ({"appendfsync": "no"}, []),
        ({"appendfsync": "no", "no-appendfsync-on-rewrite": "yes"}, []),
        ({"no-appendfsync-on-rewrite": "yes"}, []),
        ({"appendfsync": "everysec"}, ["appendfsync is everysec"]),
        ({"appendfsync": "no", "appendonly": "no"}, ["appendonly is off"]),
        (
            {"appendfsync": "no", "maxmemory-policy": "allkeys-lru"},
            ["maxmemory-policy is allkeys-lru"],
        ),
    ],
)
def test_without_a_promise_for_power_cuts_redis_need_not_sync(
    changes: dict[str, Any], sentences: list[str]
) -> None:
    risks = judge_config(TRUSTED | changes, Durability.PROCESS)
    assert [risk.partition(":")[0] for risk in risks] == sentences


@pytest.mark.parametrize(
    ("changes", "durability", "remedy"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, Durability.DISK, "(set noeviction)"),
        ({"appendonly": "no"}, Durability.DISK, "(set appendonly yes)"),
        ({"appendfsync": "everysec"}, Durability.DISK, "(set appendfsync always for "),
        ({"appendfsync": "everysec"}, Durability.PROCESS, "(set appendfsync no for "),
        ({"no-appendfsync-on-rewrite": "yes"}, Durability.DISK, "(set it to no)"),
    ],
)
def test_each_risk_names_its_remedy(
    changes: dict[str, str], durability: Durability, remedy: str
) -> None:
    [risk] = judge_config(TRUSTED | changes, durability)
    assert remedy in risk


@pytest.mark.parametrize(
    ("appendfsync", "failure"), [("no", "a power cut loses"), ("everysec", "a crash loses")]
)
def test_what_does_not_sync_is_lost_by_this(appendfsync: str, failure: str) -> None:
    [risk] = judge_config(TRUSTED | {"appendfsync": appendfsync}, Durability.DISK)
    assert failure in risk


@pytest.mark.parametrize("durability", Durability)
def test_a_configuration_that_tells_nothing_is_not_trusted(durability: Durability) -> None:
    assert judge_config({}, durability)


@pytest.mark.parametrize("durability", Durability)
async def test_the_risks_of_a_redis_are_those_of_its_configuration(durability: Durability) -> None:
    for config in (TRUSTED, LOSSY, TRUSTED | {"appendfsync": "no"}):
        risks = await config_risks(configured(config), durability)
        assert risks == judge_config(config, durability)


@pytest.mark.parametrize(
    "error",
    [
        NoPermissionError("this user has no permissions to run the 'config|get' command"),
        ResponseError("NOPERM this user has no permissions"),
        ResponseError("unknown command 'CONFIG', with args beginning with: 'GET'"),
    ],
)
async def test_a_redis_that_forbids_the_config_command_is_a_risk(error: RedisError) -> None:
    [risk] = await config_risks(configured({}, error), Durability.DISK)
    assert risk.startswith("CONFIG is not allowed")


async def test_a_redis_that_is_away_has_no_known_risks() -> None:
    away = configured({}, RedisConnectionError("nothing listens there"))
    with pytest.raises(RedisConnectionError):
        await config_risks(away, Durability.DISK)


# Its kind.


@pytest.mark.parametrize(
    ("changes", "risk"),
    [
        ({"redis_version": "6.2.14"}, "version 6.2.14 is not supported"),
        ({"redis_version": "7.2.4"}, None),
        ({"redis_version": "8.2.1"}, None),
        ({"redis_version": "?"}, "version ? is not supported"),
        ({"connected_slaves": "2"}, "it has 2 replica(s)"),
        ({"master_replid2": "1f" * 20}, "it was a replica until it was promoted"),
        ({"role": "slave"}, "it is a replica"),
        ({"cluster_enabled": "1"}, "it is a node of a cluster"),
    ],
)
def test_each_risk_of_a_kind_of_server_is_named(changes: dict[str, str], risk: str | None) -> None:
    found = judge_server(ALONE | changes)
    assert (found == []) if risk is None else (len(found) == 1 and found[0].startswith(risk))


def test_a_server_that_does_not_tell_its_kind_is_a_risk() -> None:
    [risk] = judge_server({})
    assert risk.startswith("INFO is not allowed")


@pytest.mark.parametrize(
    ("changes", "never"),
    [({}, False), ({"role": "slave"}, True), ({"cluster_enabled": "1"}, True)],
)
def test_a_replica_and_a_node_of_a_cluster_are_never_used(
    changes: dict[str, str], never: bool
) -> None:
    assert (why_never(ALONE | changes) is not None) is never
    assert why_never({}) is None


def test_the_fields_of_an_info_are_read_between_other_lines() -> None:
    text = "# Server\r\nredis_version:7.0.15\r\nos:Linux 6:x\r\n\r\n# Memory\r\nmaxmemory:0\r\n"
    assert parse_info(text) == {"redis_version": "7.0.15", "os": "Linux 6:x", "maxmemory": "0"}


# A node of a cluster.

NODE = {
    "cluster-require-full-coverage": "no",
    "cluster-allow-replica-migration": "no",
    "cluster-replica-validity-factor": "10",
}


def test_a_node_that_is_set_up_as_the_docs_say_is_no_risk() -> None:
    assert judge_node(NODE) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cluster-require-full-coverage", "yes"),
        ("cluster-allow-replica-migration", "yes"),
        ("cluster-replica-validity-factor", "0"),
    ],
)
def test_each_setting_that_lets_a_cluster_lose_payments_is_named(name: str, value: str) -> None:
    [risk] = judge_node(NODE | {name: value})
    assert risk.startswith(f"{name} is {value}: ")


@pytest.mark.parametrize(
    ("there", "demanded", "durability", "is_risk"),
    [
        (1, 1, Durability.REPLICAS, False),
        (0, 1, Durability.REPLICAS, True),
        (2, 1, Durability.REPLICAS, True),
        (0, 0, Durability.DISK, False),
        (1, 0, Durability.DISK, True),
        (1, 0, Durability.PROCESS, True),
    ],
)
def test_a_shard_has_exactly_the_replicas_that_confirm(
    there: int, demanded: int, durability: Durability, is_risk: bool
) -> None:
    assert bool(judge_replicas(there, demanded, durability)) is is_risk


def test_only_a_node_of_a_cluster_that_is_named_as_such_can_hold_payments() -> None:
    node = ALONE | {"cluster_enabled": "1"}
    assert why_never(node, in_cluster=True) is None
    assert "redis+cluster://" in str(why_never(node))

"""Whether a Redis can hold payments, and which acknowledged payments it may lose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.durability import Durability
from payswitch.errors import StartError
from payswitch.store.client import Client
from payswitch.store.errors import in_words
from payswitch.store.partitions import Partition
from payswitch.store.topology import Topology

_OLDEST = 7
_NO_REPLICATION = "0" * 40


class UntrustworthyRedisError(StartError):
    """Redis may keep less than the durability promises, and the settings require that it keep it
    all."""


def parse_info(text: str) -> dict[str, str]:
    """The fields of an answer to `INFO`."""
    return dict(re.findall(r"^([a-z0-9_]+):(.*?)\r?$", text, re.MULTILINE))


def why_never(info: Mapping[str, str], *, in_cluster: bool = False) -> str | None:
    """The reason why this server can't hold payments under any settings; None if it can."""
    if info.get("role", "master") != "master":
        return "it is a replica, which takes no writes: name its primary in REDIS_URL"
    if info.get("cluster_enabled") == "1" and not in_cluster:
        return "it is a node of a cluster: name the cluster in REDIS_URL, as redis+cluster://"
    return None


async def risks_of(
    redis: Client, partition: Partition, info: Mapping[str, str], durability: Durability
) -> list[str]:
    """The risks of the server of a partition, a sentence each. Raises `RedisError`."""
    topology = redis.nodes
    if not isinstance(topology, Topology):
        return [*judge_server(info), *await config_risks(redis, durability)]
    replicas = topology.replicas(partition.slot)
    found = [
        *judge_version(info),
        *judge_replicas(len(replicas), redis.deployment.replicas, durability),
        *await node_risks(partition.redis, durability),
    ]
    for replica in replicas:
        async with Redis(connection_pool=replica.pool) as of_replica:
            risks = await node_risks(of_replica, durability)
        found += [f"its replica {replica.address}: {risk}" for risk in risks]
    return found


def judge_replicas(there: int, demanded: int, durability: Durability) -> list[str]:
    """The risks of a shard with so many replicas."""
    if durability is Durability.REPLICAS and there != demanded:
        return [
            f"it has {there} replica(s) instead of {demanded}: after a failover acknowledged "
            "payments and pins may be lost (see PAYSWITCH_REPLICAS)"
        ]
    if durability is not Durability.REPLICAS and there:
        return [
            f"it has {there} replica(s): should one be promoted, acknowledged payments and pins "
            "are lost (use PAYSWITCH_DURABILITY=replicas)"
        ]
    return []


def judge_node(config: Mapping[str, Any]) -> list[str]:
    """The risks of a cluster's node with these settings, beside those of `judge_config`."""
    demanded = {
        "cluster-require-full-coverage": ("no", "one shard that is down stops all"),
        "cluster-allow-replica-migration": (
            "no",
            "a replica of another shard, not yet in step, may be promoted",
        ),
    }
    found = [
        f"{name} is {config[name]}: {why} (set it to {value})"
        for name, (value, why) in demanded.items()
        if config.get(name, value) != value
    ]
    if config.get("cluster-replica-validity-factor") == "0":
        found.append(
            "cluster-replica-validity-factor is 0: a replica that was cut off for long may be "
            "promoted (set it above 0)"
        )
    return found


async def node_risks(redis: Redis, durability: Durability) -> list[str]:
    """The risks of a cluster's node by its settings. Raises `RedisError`."""
    config = await _config(redis, "cluster-*")
    found = await config_risks(redis, durability)
    return found if config is None else [*found, *judge_node(config)]


def judge_version(info: Mapping[str, str]) -> list[str]:
    """The risk of a version that is too old, or unknown."""
    if not info:
        return ["INFO is not allowed, so its memory and its role can't be watched"]
    version = info.get("redis_version", "")
    major = re.match(r"\d+", version)
    if major is not None and int(major[0]) >= _OLDEST:
        return []
    return [
        f"version {version} is not supported, and the rights of its user can't be checked "
        f"(use Redis {_OLDEST}.0 or newer, or Valkey)"
    ]


def judge_server(info: Mapping[str, str]) -> list[str]:
    """The risks of a single server of this kind, a sentence each; `info` is empty if `INFO` is not
    allowed."""
    found = judge_version(info)
    if not info:
        return found
    if (never := why_never(info)) is not None:
        found.insert(0, never)
    if info.get("master_replid2", _NO_REPLICATION) != _NO_REPLICATION:
        found.append(
            "it was a replica until it was promoted: payments and pins that had not reached it by "
            "then are lost (failover is not supported)"
        )
    if info.get("connected_slaves", "0") != "0":
        found.append(
            f"it has {info['connected_slaves']} replica(s): should one be promoted, acknowledged "
            "payments and pins are lost (failover is not supported)"
        )
    return found


def judge_config(config: Mapping[str, Any], durability: Durability) -> list[str]:
    """The ways in which a Redis with these settings may break the promise, a sentence each."""
    found: list[str] = []
    if config.get("maxmemory", "0") != "0" and config.get("maxmemory-policy") != "noeviction":
        found.append(
            f"maxmemory-policy is {config.get('maxmemory-policy')}: short of memory, Redis throws "
            "away payments (set noeviction)"
        )
    if config.get("appendonly") != "yes":
        found.append(
            "appendonly is off: a restart of Redis loses every payment since the last snapshot "
            "(set appendonly yes)"
        )
    else:
        found.extend(_sync_risks(config, durability))
    return found


def _sync_risks(config: Mapping[str, Any], durability: Durability) -> Iterator[str]:
    appendfsync = config.get("appendfsync")
    if appendfsync not in durability.appendfsync:
        failure = "a power cut" if appendfsync == "no" else "a crash"
        yield (
            f"appendfsync is {appendfsync}: {failure} loses acknowledged payments and pins of the "
            f"last seconds (set appendfsync {durability.appendfsync[0]} for "
            f"PAYSWITCH_DURABILITY={durability})"
        )
    elif durability is Durability.DISK and config.get("no-appendfsync-on-rewrite", "no") != "no":
        yield (
            "no-appendfsync-on-rewrite is on: a power cut during a rewrite of the append-only file "
            "loses acknowledged payments and pins (set it to no)"
        )


async def config_risks(redis: Redis, durability: Durability) -> list[str]:
    """As `judge_config`, of this Redis. Raises `RedisError` if Redis can't be reached."""
    config = await _config(redis, "maxmemory*", "append*", "no-appendfsync-on-rewrite")
    if config is None:
        return ["CONFIG is not allowed, so the risks of its settings can't be checked"]
    return judge_config(config, durability)


async def _config(redis: Redis, *patterns: str) -> dict[str, Any] | None:
    """Redis' settings; None if it does not allow to ask for them."""
    config: dict[str, Any] = {}
    try:
        for pattern in patterns:
            config.update(await redis.config_get(pattern))
    except RedisError as error:
        if not re.search(
            "CONFIG|NOPERM|lacks a right", f"{error} {in_words(error)}", re.IGNORECASE
        ):
            raise
        return None
    return config

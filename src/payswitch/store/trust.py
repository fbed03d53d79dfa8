"""Whether a Redis can hold payments, and which acknowledged payments it may lose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.durability import Durability
from payswitch.errors import StartError
from payswitch.store.errors import in_words

_OLDEST = 7
_NO_REPLICATION = "0" * 40


class UntrustworthyRedisError(StartError):
    """Redis may keep less than the durability promises, and the settings require that it keep it
    all."""


def parse_info(text: str) -> dict[str, str]:
    """The fields of an answer to `INFO`."""
    return dict(re.findall(r"^([a-z0-9_]+):(.*?)\r?$", text, re.MULTILINE))


def why_never(info: Mapping[str, str]) -> str | None:
    """The reason why this server can't hold payments under any settings; None if it can."""
    if info.get("role", "master") != "master":
        return "it is a replica, which takes no writes: name its primary in REDIS_URL"
    if info.get("cluster_enabled") == "1":
        return "it is a node of a cluster, which is not supported: use a single Redis"
    return None


def judge_server(info: Mapping[str, str]) -> list[str]:
    """The risks of a server of this kind, a sentence each; `info` is empty if `INFO` is not
    allowed."""
    if not info:
        return ["INFO is not allowed, so its memory and its role can't be watched"]
    found = [] if (never := why_never(info)) is None else [never]
    version = info.get("redis_version", "")
    major = re.match(r"\d+", version)
    if major is None or int(major[0]) < _OLDEST:
        found.append(
            f"version {version} is not supported, and the rights of its user can't be checked "
            f"(use Redis {_OLDEST}.0 or newer, or Valkey)"
        )
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
    try:
        config: dict[str, Any] = {}
        for pattern in ("maxmemory*", "append*", "no-appendfsync-on-rewrite"):
            config.update(await redis.config_get(pattern))
    except RedisError as error:
        if not re.search(
            "CONFIG|NOPERM|lacks a right", f"{error} {in_words(error)}", re.IGNORECASE
        ):
            raise
        return ["CONFIG is not allowed, so the risks of its settings can't be checked"]
    return judge_config(config, durability)

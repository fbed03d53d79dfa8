"""The rights that Redis' user needs: every key and every command that some part uses.

All parts share one user, so each checks the rights of all: an ingress must not accept a payment
that no worker may take. `docs/how-to/redis-password-tls.md` has the same list as a line of an ACL,
and a test compares the list with the commands that the parts send.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache

from arq.constants import (
    abort_jobs_ss,
    in_progress_key_prefix,
    job_key_prefix,
    result_key_prefix,
    retry_key_prefix,
)

from payswitch.store import keys

KEY_PATTERNS = (
    "arq:*",
    f"{keys.RECORD_PREFIX}*",
    "payments:*",
    "ledger:*",
    "healthcheck:*",
    keys.SELECTION,
    "selection:*",
    "processors:*",
    "reconcile:*",
    keys.HEARTBEATS,
    f"{keys.HEARTBEATS}:*",
    "overview:*",
)
"""In the syntax of an ACL, without the `~`."""

_ID = "00000000-0000-0000-0000-000000000000"
_LOCK = "SET GET DEL"
_NOTE = "SET GET"

NEEDS: Mapping[str, str] = {
    # Commands without a key. `trust.py` handles INFO and CONFIG GET: payments go on without them.
    "": "EVAL EVALSHA PING TIME SCAN MULTI EXEC UNWATCH",
    keys.QUEUE: "ZADD ZREM ZRANGE ZRANGEBYSCORE ZSCORE ZCARD TYPE UNLINK",
    keys.sign_of_life(keys.QUEUE): "PSETEX SET DEL EXISTS",
    job_key_prefix + _ID: "SET MSET PSETEX GET MGET EXISTS WATCH DEL UNLINK",
    in_progress_key_prefix + _ID: "SET PSETEX EXISTS WATCH DEL UNLINK",
    retry_key_prefix + _ID: "INCR INCRBY MSET MGET EXPIRE DEL UNLINK",
    # arq's own, of the health check's cron.
    keys.HEALTH_QUEUE: "ZADD ZREM ZRANGEBYSCORE ZSCORE ZCARD",
    keys.sign_of_life(keys.HEALTH_QUEUE): "PSETEX SET DEL EXISTS",
    result_key_prefix + _ID: "EXISTS DEL",
    abort_jobs_ss: "ZREM",
    f"{keys.RECORD_PREFIX}{_ID}": "EXISTS HMGET HGETALL HSET HDEL PEXPIRE PERSIST DEL UNLINK",
    keys.OPEN: "ZADD ZREM ZRANGE ZSCORE ZMSCORE ZSCAN ZCARD ZCOUNT TYPE UNLINK",
    keys.IN_FLIGHT: "ZADD ZREM ZCARD ZCOUNT TYPE UNLINK",
    keys.DEAD: ("ZADD ZREM ZRANGE ZREVRANGEBYSCORE ZRANK ZSCORE ZMSCORE ZSCAN ZCARD TYPE UNLINK"),
    f"{keys.WAITING}:default": "ZADD ZREM ZRANGE ZRANK ZCARD ZPOPMIN UNLINK",
    keys.RESOLVED: "ZADD ZREM ZREVRANGEBYSCORE ZREMRANGEBYSCORE PEXPIRE TYPE UNLINK",
    keys.RESOLUTIONS: "INCRBY GET UNLINK",
    keys.DECLINES: "HINCRBY HMGET UNLINK",
    f"{keys.HELD}:default": "ZADD ZREM ZSCORE ZCARD ZPOPMIN UNLINK",
    keys.SAVED: "HINCRBY HGETALL UNLINK",
    keys.INCIDENTS: "RPUSH LREM LTRIM LRANGE LLEN TYPE UNLINK",
    keys.RESOLVED_INCIDENTS: (
        "ZADD ZREVRANGEBYSCORE ZREMRANGEBYRANK ZREMRANGEBYSCORE PEXPIRE TYPE UNLINK"
    ),
    keys.AUDIT: "XADD XREVRANGE TYPE",
    keys.GENERATION: "GET INCR",
    keys.WAKE: "LPUSH BLPOP EXISTS DEL TYPE UNLINK",
    keys.PAUSED: "SET GET MGET PTTL EXISTS DEL",
    keys.PURGING: "SET EXISTS UNLINK",
    keys.PROCESSORS: "HGETALL HSET DEL TYPE",
    keys.CURRENCY: "GET SET TYPE UNLINK",
    keys.LEFTOVERS: _LOCK,
    keys.PROBE: _LOCK,
    keys.SWEEP: "SET",
    keys.NOTHING: "DEL",
    keys.SELECTION: "SET GET MGET PTTL",
    keys.OVERRIDE: "SET GET MGET PTTL DEL",
    keys.HEALTH_THROTTLE: "SET",
    keys.HEALTH_LOCK: _LOCK,
    keys.REPORTS: _NOTE,
    keys.FEES: _NOTE,
    keys.RECONCILED: _NOTE,
    keys.LEDGER_TOTAL: "HINCRBY HDEL HMGET HGETALL UNLINK",
    keys.LEDGER_FOLDED: "HSET HMGET UNLINK",
    keys.LEDGER_FULL: "SET EXISTS UNLINK",
    keys.HEARTBEATS: "ZADD ZRANGE ZREMRANGEBYSCORE TYPE",
    keys.heartbeat("worker", _ID): "HSET HGETALL PEXPIRE DEL",
    keys.HISTORY: "RPUSH LTRIM LRANGE PEXPIRE",
    keys.BEAT: "SET",
}
"""Commands by key; one example stands for each family of keys."""

NEEDS_OF_CLUSTER: Mapping[str, str] = {
    "": f"{NEEDS['']} WAIT CLUSTER|SLOTS",
    keys.DEPLOYMENT: "GET SET",
    keys.CONFIRMED: "GET SET DEL INCRBY",
}
"""What a cluster needs besides."""


def arguments(*, in_cluster: bool = False) -> list[str]:
    """The arguments with which `look.lua` checks all rights."""
    needs = {**NEEDS, **NEEDS_OF_CLUSTER} if in_cluster else NEEDS
    return [part for pair in needs.items() for part in pair]


@cache
def pattern_of(key: str) -> str:
    """The first of `KEY_PATTERNS` for a key."""
    return next(pattern for pattern in KEY_PATTERNS if fnmatchcase(key, pattern))


def in_acl_words(missing: Sequence[tuple[str, str]]) -> str:
    """The missing rights in an ACL's syntax: key patterns of which no command is allowed, commands
    that are allowed on no key, and the other pairs. `missing` has pairs of key and command."""
    if not missing:  # as on each look; the rest takes milliseconds, in which nothing else is served
        return ""
    denied: dict[str, set[str]] = defaultdict(set)
    for key, command in missing:
        denied[key].add(command)
    closed = [
        pattern
        for pattern in KEY_PATTERNS
        if all(denied[key] == set(NEEDS[key].split()) for key in _keys(pattern))
    ]
    left = [(key, command) for key, command in missing if not key or pattern_of(key) not in closed]
    of_commands = {
        command
        for _, command in left
        if all(command in denied[key] for key, needed in NEEDS.items() if command in needed.split())
    }
    words = [f"~{pattern}" for pattern in closed]
    words += sorted(f"+{command.lower()}" for command in of_commands)
    words += sorted(
        {f"+{each.lower()} ~{pattern_of(key)}" for key, each in left if each not in of_commands}
    )
    return " ".join(words)


def _keys(pattern: str) -> list[str]:
    return [key for key in NEEDS if key and pattern_of(key) == pattern]

"""What the user of Redis must be allowed: every key and every command that some part uses.

All parts share one user, so each looks for the rights of all: an ingress must not accept what no
worker may take. `docs/how-to/redis-password-tls.md` has the same as a line of an ACL, and a test
holds what the parts do to this list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

KEY_PATTERNS = (
    "arq:*",
    "payment:*",
    "payments:*",
    "ledger:*",
    "healthcheck:*",
    "selected_payment_processor",
    "selection:override",
    "processors:fees",
    "reconcile:last",
    "vitals",
    "vitals:*",
    "overview:*",
)
"""As an ACL names them, each after a `~`."""

_ID = "00000000-0000-0000-0000-000000000000"
_LOCK = "SET GET DEL"
_NOTE = "SET GET"

NEEDS: Mapping[str, str] = {
    # Commands without a key. INFO and CONFIG GET are judged elsewhere: payments go on without them.
    "": "EVAL EVALSHA PING TIME SCAN MULTI EXEC UNWATCH",
    "arq:queue": "ZADD ZREM ZRANGE ZRANGEBYSCORE ZSCORE ZCARD TYPE UNLINK",
    "arq:queue:health-check": "PSETEX SET DEL EXISTS",
    f"arq:job:{_ID}": "SET PSETEX GET EXISTS WATCH DEL UNLINK",
    f"arq:in-progress:{_ID}": "SET PSETEX EXISTS WATCH DEL UNLINK",
    f"arq:retry:{_ID}": "INCR INCRBY EXPIRE DEL UNLINK",
    # arq's own, of the health check's cron.
    "arq:queue:health": "ZADD ZREM ZRANGEBYSCORE ZSCORE ZCARD",
    "arq:queue:health:health-check": "PSETEX SET DEL EXISTS",
    f"arq:result:{_ID}": "EXISTS DEL",
    "arq:abort": "ZREM",
    f"payment:{_ID}": "HMGET HGETALL HSET HDEL PEXPIRE DEL UNLINK",
    "payments:open": "ZADD ZREM ZRANGE ZSCORE ZMSCORE ZSCAN ZCARD ZCOUNT TYPE UNLINK",
    "payments:in-flight": "ZADD ZREM ZCARD ZCOUNT TYPE UNLINK",
    "payments:dead": "ZADD ZREM ZRANGE ZREVRANGE ZRANK ZSCORE ZMSCORE ZSCAN ZCARD TYPE UNLINK",
    "payments:waiting:default": "ZADD ZREM ZRANGE ZRANK ZCARD ZPOPMIN UNLINK",
    "payments:incidents": "RPUSH LTRIM LRANGE LLEN TYPE UNLINK",
    "payments:generation": "GET INCR",
    "payments:token": "INCR",
    "payments:wake": "LPUSH BLPOP EXISTS DEL TYPE UNLINK",
    "payments:paused": "SET GET MGET PTTL EXISTS DEL",
    "payments:purging": "SET EXISTS UNLINK",
    "payments:leftovers": _LOCK,
    "payments:probe": _LOCK,
    "payments:sweep": "SET",
    "payments:none": "DEL",
    "selected_payment_processor": "SET GET MGET PTTL",
    "selection:override": "SET GET MGET PTTL DEL",
    "healthcheck:throttle": "SET",
    "healthcheck:lock": _LOCK,
    "healthcheck:reports": _NOTE,
    "processors:fees": _NOTE,
    "reconcile:last": _NOTE,
    "ledger:default:0:total": "HINCRBY HDEL HMGET HGETALL UNLINK",
    "ledger:folded": "HSET HMGET UNLINK",
    "ledger:full": "SET EXISTS UNLINK",
    "vitals": "ZADD ZRANGE ZREMRANGEBYSCORE TYPE",
    f"vitals:{_ID}": "HSET HGETALL PEXPIRE DEL",
    "overview:history": "RPUSH LTRIM LRANGE PEXPIRE",
    "overview:beat": "SET",
}
"""Commands by key; a key that stands for many has some name in place of theirs."""


def arguments() -> list[str]:
    """What `look.lua` takes to look for all rights."""
    return [part for pair in NEEDS.items() for part in pair]


def pattern_of(key: str) -> str:
    """The first of `KEY_PATTERNS` for a key."""
    return next(pattern for pattern in KEY_PATTERNS if fnmatchcase(key, pattern))


def in_acl_words(missing: Sequence[tuple[str, str]]) -> str:
    """What an ACL must add so that nothing is missing: key patterns of which nothing is allowed,
    commands that are allowed on no key, and of all else the pairs. `missing` has keys and commands.
    """
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

"""The audit trail: every act of an operator, with who did it, when and why.

The scripts that carry an act out append it in the same step. The trail keeps the newest 10,000 acts
(`record_act` in `common.lua`) and survives a purge; in a cluster each partition has its own. It
keeps what an operator says of themselves;
the rights of Redis' user decide who may act at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from payswitch.instants import LATEST_MS, format_instant
from payswitch.store import keys
from payswitch.store.client import partitions_of
from payswitch.store.together import together


@dataclass(frozen=True, slots=True)
class Signature:
    """Who acts, and why."""

    by: str
    reason: str | None = None

    def arguments(self) -> tuple[str, str]:
        """Both as arguments of a script."""
        return self.by, self.reason or ""


@dataclass(frozen=True, slots=True)
class Resolution:
    """How an operator has settled a dead letter or an incident outside of Payswitch: paid by hand,
    refunded or written off, say."""

    at: int
    """ms since the epoch by Redis' clock."""
    by: str
    reason: str

    def __str__(self) -> str:
        return f"by {self.by}: {self.reason}"

    def as_json(self) -> dict[str, str]:
        """As the operators' commands print it."""
        return {"at": format_instant(self.at), "by": self.by, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Act:
    """One act of an operator."""

    at: int
    """ms since the epoch by Redis' clock."""
    act: str
    """`select`, `pause`, `resume`, `purge`, `replay`, `resolve`, `resolve incidents` or `moved`."""
    what: str
    """Its object: a payment's id, say."""
    signature: Signature

    def as_json(self) -> dict[str, str | None]:
        """As `payswitch audit` prints it."""
        return {
            "at": format_instant(self.at),
            "by": self.signature.by,
            "act": self.act,
            "what": self.what,
            "reason": self.signature.reason,
        }


async def read_acts(redis: Redis, limit: int) -> list[Act]:
    """The newest acts, the newest first. Raises `RedisError`."""
    found = await together(
        each.redis.xrevrange(each.key(keys.AUDIT), count=limit)
        for each in partitions_of(redis).with_common
    )
    acts = [_read(entry_id, fields) for entries in found for entry_id, fields in entries]
    return sorted(acts, key=lambda each: each.at, reverse=True)[:limit]


def _read(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Act:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="backslashreplace")

    return Act(
        at=min(int(entry_id.split(b"-")[0]), LATEST_MS),
        act=text(b"act"),
        what=text(b"what"),
        signature=Signature(text(b"by"), text(b"reason") or None),
    )

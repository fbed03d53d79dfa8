"""Incidents: proofs of payment that match no pin, for operators to list and resolve."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from payswitch.payments.audit import Resolution, Signature
from payswitch.store import keys, scripts
from payswitch.store.client import partitions_of
from payswitch.store.partitions import Partition
from payswitch.store.redis_clock import redis_now_ms

_PAGE = 500
_RESOLVED_AT_ONCE = 100
"""Redis serves no other client meanwhile: 60 ms if it has 10,000 incidents."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A proof of payment that matched no pin. Instants are ms since the epoch."""

    correlation_id: str
    """Or the text of an unreadable entry; then the other fields are None."""
    paid_by: str | None = None
    pinned: str | None = None
    requested_at: int | None = None
    at: int | None = None
    what: str | None = None
    state: str | None = None
    """The payment's state before; `resolved` for a dead letter that an operator had resolved."""
    resolution: Resolution | None = None

    def __str__(self) -> str:
        if self.pinned == self.paid_by:
            return f"{self.paid_by} has paid it, though it was {self.state}"
        return f"{self.paid_by} has it, though pinned to {self.pinned or 'nobody'}"


class Incidents:
    """The incidents of one Redis; a resolved one stays for `retention_ms`. Every method raises
    `RedisError` or `OSError`."""

    def __init__(self, redis: Redis, *, retention_ms: int) -> None:
        self._redis = redis
        self._retention_ms = retention_ms
        self._resolve = scripts.load(redis, "resolve_incidents")
        self._partitions = self._resolve.partitions

    async def unresolved(self) -> list[Incident]:
        """All that a person must still look at, the oldest first."""
        return await read_incidents(self._redis)

    async def resolved(self) -> list[Incident]:
        """Those resolved within the retention, in the order of their resolution."""
        first = await redis_now_ms(self._redis) - self._retention_ms
        found = await asyncio.gather(
            *(
                each.redis.zrevrangebyscore(
                    each.key(keys.RESOLVED_INCIDENTS), "+inf", first, withscores=True
                )
                for each in self._partitions
            )
        )
        entries = sorted((entry for own in found for entry in reversed(own)), key=_score)
        return [parse_incident(entry) for entry, _ in entries]

    async def resolve(self, correlation_ids: Sequence[str], signature: Signature) -> dict[str, int]:
        """Resolve all incidents of these payments; returns how many each had."""
        unique = list(dict.fromkeys(correlation_ids))
        counts: dict[str, int] = {}
        for first in range(0, len(unique), _RESOLVED_AT_ONCE):
            page = unique[first : first + _RESOLVED_AT_ONCE]
            items = [(self._partitions.of(each), each) for each in page]

            def arguments(_: Partition, own: list[str]) -> list[str | int]:
                return [self._retention_ms, *signature.arguments(), *own]

            found = await scripts.call_grouped(
                self._resolve, items, arguments, _counts, confirm=True
            )
            counts |= zip(page, scripts.require_all(found), strict=True)
        return counts


async def read_incidents(redis: Redis) -> list[Incident]:
    """All unresolved incidents, the oldest first. Raises `RedisError`."""
    found = await asyncio.gather(*map(_of_partition, partitions_of(redis)))
    incidents = [incident for own in found for incident in own]
    return sorted(incidents, key=_instant) if len(found) > 1 else incidents


async def _of_partition(partition: Partition) -> list[Incident]:
    found: list[Incident] = []
    first = 0
    key = partition.key(keys.INCIDENTS)
    while page := await partition.redis.lrange(key, first, first + _PAGE - 1):  # type: ignore[misc]
        found += map(parse_incident, page)
        first += len(page)
    return found


def _instant(incident: Incident) -> int:
    return incident.at or 0


def _score(entry: tuple[bytes, float]) -> float:
    return entry[1]


def _counts(_: list[str], answer: Any) -> list[int]:
    return list(answer)


def parse_incident(raw: bytes) -> Incident:
    """Read an incident as the scripts write it."""
    try:
        document = orjson.loads(raw)
        return Incident(
            correlation_id=str(document["correlationId"]),
            paid_by=str(document["paidBy"]),
            pinned=str(document["pinned"]),
            requested_at=int(document["requestedAt"]),
            at=int(document["at"]),
            what=str(document.get("what", "")),
            state=str(document.get("state", "")),
            resolution=_resolution(document),
        )
    except (ValueError, KeyError, TypeError):
        return Incident(raw.decode(errors="replace"))


def _resolution(document: dict[str, Any]) -> Resolution | None:
    """Raises `ValueError`, `KeyError` or `TypeError` for a spoilt one."""
    if "resolvedAt" not in document:
        return None
    return Resolution(
        at=int(document["resolvedAt"]),
        by=str(document["resolvedBy"]),
        reason=str(document["resolution"]),
    )

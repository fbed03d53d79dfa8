"""Everything that Redis knows of payments, many read at once, for the operators' commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from payswitch.records import GENERATION_KEY
from payswitch.tries import OpenTry, parse_open_tries


@dataclass(frozen=True, slots=True)
class FullRecord:
    """All that Redis knows of a payment. Instants are ms since the epoch by Redis' clock."""

    correlation_id: str
    state: str
    """`queued`, `processing`, `settled` or `dead`."""
    cents: int
    accepted_at: int
    processor: str | None
    """The pin, with `requested_at`."""
    requested_at: int | None
    tries: int
    open_tries: tuple[OpenTry, ...]
    horizon: int | None
    """When an open try can't be recorded any more."""
    quiet_ms: int | None
    """How long after a lease one still can."""
    lease_until: int | None
    last_error: str | None
    reason: str | None
    """Why it is a dead letter."""
    dead_at: int | None
    replayed_at: int | None
    settled_at: int | None


async def read_records(redis: Redis, ids: Sequence[str]) -> list[FullRecord | None]:
    """The record of each payment; None where it is unknown, purged, or no record of ours. Raises
    `RedisError`."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.get(GENERATION_KEY)
        for correlation_id in ids:
            pipe.hgetall(f"payment:{correlation_id}")
        # What is no hash is no payment of ours, and no reason to read nothing.
        generation, *records = await pipe.execute(raise_on_error=False)
    if isinstance(generation, Exception):
        raise generation
    current = generation or b"0"
    return [
        _parse(correlation_id, raw)
        if isinstance(raw, dict) and raw.get(b"generation") == current
        else None
        for correlation_id, raw in zip(ids, records, strict=True)
    ]


def _parse(correlation_id: str, raw: Mapping[bytes, bytes]) -> FullRecord | None:
    fields = {
        name.decode(errors="replace"): value.decode(errors="replace") for name, value in raw.items()
    }

    def whole(name: str) -> int | None:
        return int(fields[name]) if name in fields else None

    try:
        return FullRecord(
            correlation_id=correlation_id,
            state=fields["state"],
            cents=int(fields["cents"]),
            accepted_at=int(fields["accepted_at"]),
            processor=fields.get("processor"),
            requested_at=whole("requested_at"),
            tries=whole("tries") or 0,
            open_tries=parse_open_tries(fields.get("open", "")),
            horizon=whole("horizon"),
            quiet_ms=whole("quiet"),
            lease_until=whole("lease_until"),
            last_error=fields.get("last_error"),
            reason=fields.get("reason"),
            dead_at=whole("dead_at"),
            replayed_at=whole("replayed_at"),
            settled_at=whole("settled_at"),
        )
    except (KeyError, ValueError):
        return None

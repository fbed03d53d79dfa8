"""Reading one payment's record for people."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from payswitch.instants import format_instant
from payswitch.payment import format_cents

GENERATION_KEY = "payments:generation"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a payment. Instants are ms since the epoch."""

    correlation_id: str
    state: str
    """`queued`, `processing`, `settled` or `dead`."""
    cents: int
    accepted_at: int
    processor: str | None
    requested_at: int | None
    tries: int
    last_error: str | None
    settled_at: int | None

    def as_json(self) -> bytes:
        """The record as `GET /payments/{id}` answers it; the amount with exactly two decimals."""
        return orjson.dumps(
            {
                "correlationId": self.correlation_id,
                "state": self.state,
                "amount": orjson.Fragment(format_cents(self.cents)),
                "acceptedAt": format_instant(self.accepted_at),
                "processor": self.processor,
                "requestedAt": _instant(self.requested_at),
                "settledAt": _instant(self.settled_at),
                "tries": self.tries,
                "lastError": self.last_error,
            }
        )


async def read_record(redis: Redis, correlation_id: str) -> Record | None:
    """The payment's record, or None where it is unknown (or purged, or expired). Raises
    `RedisError`."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.get(GENERATION_KEY)
        pipe.hgetall(f"payment:{correlation_id}")
        generation, raw = await pipe.execute()
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    if fields.get("generation") != (generation or b"0").decode():
        return None
    return Record(
        correlation_id=correlation_id,
        state=fields["state"],
        cents=int(fields["cents"]),
        accepted_at=int(fields["accepted_at"]),
        processor=fields.get("processor"),
        requested_at=_whole(fields.get("requested_at")),
        settled_at=_whole(fields.get("settled_at")),
        tries=int(fields.get("tries", 0)),
        last_error=fields.get("reason") or fields.get("last_error"),
    )


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)


def _instant(ms: int | None) -> str | None:
    return None if ms is None else format_instant(ms)

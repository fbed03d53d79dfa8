"""Reading one payment's record for people."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from payswitch.instants import format_instant
from payswitch.money import format_cents
from payswitch.payments.full_records import Unreadable, read_records


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


class UnreadableRecordError(ValueError):
    """Somebody has spoilt the record; the message says what is wrong with it."""


async def read_record(redis: Redis, correlation_id: str) -> Record | None:
    """The payment's record, or None where it is unknown (or purged, or expired). Raises
    `RedisError` or `UnreadableRecordError`."""
    [found] = await read_records(redis, [correlation_id.encode()])
    if found is None:
        return None
    if isinstance(found, Unreadable):
        raise UnreadableRecordError(found.problem)
    return Record(
        correlation_id=correlation_id,
        state=found.state,
        cents=found.cents,
        accepted_at=found.accepted_at,
        processor=found.processor,
        requested_at=found.requested_at,
        settled_at=found.settled_at,
        tries=found.tries,
        last_error=found.reason or found.last_error,
    )


def _instant(ms: int | None) -> str | None:
    return None if ms is None else format_instant(ms)

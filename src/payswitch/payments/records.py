"""Reads the records of payments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from payswitch.instants import EARLIEST_MS, LATEST_MS, format_instant
from payswitch.money import Currency
from payswitch.payments.audit import Resolution
from payswitch.payments.claims import OpenTry, parse_open_tries
from payswitch.payments.history import Event, parse_history
from payswitch.payments.payment import InvalidPaymentError, parse_correlation_id
from payswitch.store import scripts
from payswitch.store.partitions import Partition

_STATES = frozenset({"queued", "processing", "settled", "dead", "declined"})
_MOST = 2**53
"""Redis' scripts and JSON represent amounts and counts up to here exactly."""
_PUBLIC = (
    *("correlationId", "state", "amount", "currency", "metadata", "acceptedAt"),
    *("processor", "requestedAt", "settledAt", "tries"),
)
_PUBLIC_IF_THERE = ("reference", "declined")
_LONGEST_VALUE = 64
"""An error message quotes so many characters of a value."""


@dataclass(frozen=True, slots=True)
class Record:
    """All that Redis knows of a payment. Instants are ms since the epoch by Redis' clock."""

    correlation_id: str
    state: str
    """`queued`, `processing`, `settled`, `declined` or `dead`."""
    cents: int
    accepted_at: int
    processor: str | None
    """The pin, with `requested_at`."""
    requested_at: int | None
    tries: int
    open_tries: tuple[OpenTry, ...]
    horizon: int | None
    """The instant after which an open try can't be recorded any more."""
    quiet_ms: int | None
    """How long after the end of its lease an open try can still be recorded."""
    lease_until: int | None
    last_error: str | None
    reason: str | None
    """Why it is a dead letter."""
    dead_at: int | None
    replayed_at: int | None
    settled_at: int | None
    reference: str | None = None
    """The processor's own id of a settled payment."""
    declined: str | None = None
    """The processor's code if it declined the payment."""
    declined_at: int | None = None
    metadata: bytes | None = field(default=None, repr=False)
    """The client's JSON object, in canonical form; logs never show it."""
    resolution: Resolution | None = None
    """How an operator settled the matter of a dead letter."""
    history: tuple[Event, ...] = ()
    """The outcomes of tries that did not pay, and operators' acts; the oldest first."""

    @property
    def why(self) -> str | None:
        """Why it is a dead letter, or why its last try failed."""
        return self.reason or self.last_error

    def as_json(self, currency: Currency) -> dict[str, Any]:
        """Every field, as the operators' commands print it; the amount has all decimals of the
        currency."""
        return {
            "correlationId": self.correlation_id,
            "state": self.state,
            "reason": self.reason,
            "lastError": self.last_error,
            "amount": orjson.Fragment(currency.format_cents(self.cents)),
            "currency": currency.code,
            "metadata": None if self.metadata is None else orjson.Fragment(self.metadata),
            "processor": self.processor,
            "requestedAt": _instant(self.requested_at),
            "tries": self.tries,
            "openTries": [
                {"id": each.id, "ended": each.ended, "pending": each.pending}
                for each in self.open_tries
            ],
            "horizon": _instant(self.horizon),
            "quietMs": self.quiet_ms,
            "leaseUntil": _instant(self.lease_until),
            "acceptedAt": _instant(self.accepted_at),
            "deadAt": _instant(self.dead_at),
            "replayedAt": _instant(self.replayed_at),
            "settledAt": _instant(self.settled_at),
            "reference": self.reference,
            "declined": self.declined,
            "declinedAt": _instant(self.declined_at),
            "resolution": self.resolution and self.resolution.as_json(),
        }

    def public_json(self, currency: Currency) -> bytes:
        """The body of `GET /payments/{id}`."""
        every = self.as_json(currency)
        told = {name: every[name] for name in _PUBLIC}
        told |= {name: every[name] for name in _PUBLIC_IF_THERE if every[name] is not None}
        return orjson.dumps({**told, "lastError": self.why})


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A payment whose record is gone or spoilt."""

    correlation_id: str
    """Bytes that aren't UTF-8 are escaped."""
    problem: str


async def read_record(
    redis: Redis, correlation_id: str, *, confirm: bool = False
) -> Record | Unreadable | None:
    """The record of one payment, as `read_records` gives it. Raises `RedisError`."""
    [record] = await read_records(redis, [correlation_id], confirm=confirm)
    return record


async def read_records(
    redis: Redis, ids: Sequence[str], *, confirm: bool = False
) -> list[Record | Unreadable | None]:
    """The record of each payment; None if there is none since the last purge. With `confirm`, no
    failover takes back what they tell. Raises `RedisError`."""
    script = scripts.load(redis, "records")
    items = [(script.partitions.of(each), each) for each in ids]
    found = await scripts.call_grouped(script, items, _job_ids, _read, confirm=confirm)
    return scripts.require_all(found)


def _job_ids(partition: Partition, ids: list[str]) -> list[str]:
    return [partition.job_id(each) for each in ids]


def _read(ids: list[str], answer: Any) -> list[Record | Unreadable | None]:
    generation, *records = answer
    return [_judge(each, raw, generation) for each, raw in zip(ids, records, strict=True)]


def _judge(
    correlation_id: str, raw: Sequence[bytes] | None, generation: bytes
) -> Record | Unreadable | None:
    if not _is_id(correlation_id):
        return None
    if raw is None:
        return Unreadable(correlation_id, "Redis holds something else under its key")
    fields = dict(zip(raw[::2], raw[1::2], strict=True))
    if fields.get(b"generation", b"") != generation:
        spoilt = bool(fields) and b"generation" not in fields
        return Unreadable(correlation_id, "generation missing") if spoilt else None
    try:
        return _parse(correlation_id, fields)
    except ValueError as error:
        return Unreadable(correlation_id, str(error))


def _is_id(text: str) -> bool:
    """Whether this is a correlation id in our form: other applications may use similar keys."""
    try:
        return parse_correlation_id(text) == text
    except InvalidPaymentError:
        return False


def _parse(correlation_id: str, raw: Mapping[bytes, bytes]) -> Record:
    """Raises `ValueError`, which names the fault."""
    fields = {
        name.decode(errors="replace"): value.decode(errors="replace") for name, value in raw.items()
    }

    def whole(name: str, first: int, last: int) -> int | None:
        text = fields.get(name)
        if text is None:
            return None
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not first <= number <= last:
            raise ValueError(f"{name} is {text[:_LONGEST_VALUE]!r}")
        return number

    def instant(name: str) -> int | None:
        return whole(name, EARLIEST_MS, LATEST_MS)

    state = fields.get("state")
    cents = whole("cents", 0, _MOST)
    accepted_at = instant("accepted_at")
    if state is None or cents is None or accepted_at is None:
        missing = [name for name in ("state", "cents", "accepted_at") if name not in fields]
        raise ValueError(f"{' and '.join(missing)} missing")
    if state not in _STATES:
        raise ValueError(f"state is {state[:_LONGEST_VALUE]!r}")
    return Record(
        correlation_id=correlation_id,
        state=state,
        cents=cents,
        accepted_at=accepted_at,
        processor=fields.get("processor"),
        requested_at=instant("requested_at"),
        tries=whole("tries", 0, _MOST) or 0,
        open_tries=_open_tries(fields.get("open", "")),
        horizon=instant("horizon"),
        quiet_ms=whole("quiet", 0, _MOST),
        lease_until=instant("lease_until"),
        last_error=fields.get("last_error"),
        reason=fields.get("reason"),
        dead_at=instant("dead_at"),
        replayed_at=instant("replayed_at"),
        settled_at=instant("settled_at"),
        reference=fields.get("reference"),
        declined=fields.get("declined"),
        declined_at=instant("declined_at"),
        metadata=_metadata(raw.get(b"metadata")),
        resolution=_resolution(instant("resolved_at"), fields),
        history=parse_history(fields),
    )


def _resolution(at: int | None, fields: Mapping[str, str]) -> Resolution | None:
    if at is None:
        return None
    return Resolution(at, fields.get("resolved_by", ""), fields.get("resolution", ""))


def _metadata(text: bytes | None) -> bytes | None:
    try:
        is_object = text is None or type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        is_object = False
    if not is_object:
        raise ValueError("metadata is no JSON object")
    return text


def _open_tries(text: str) -> tuple[OpenTry, ...]:
    found = parse_open_tries(text)
    if " ".join(each.text for each in found) != text:
        raise ValueError(f"open is {text[:_LONGEST_VALUE]!r}")
    return found


def _instant(ms: int | None) -> str | None:
    return None if ms is None else format_instant(ms)

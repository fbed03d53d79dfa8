"""A simulated processor's book, without any I/O: payments, their totals, and the windows that limit
calls for its health."""

from __future__ import annotations

import json
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from enum import Enum, auto
from itertools import accumulate
from operator import itemgetter, sub
from typing import Any, NamedTuple

import orjson

from payswitch.money import BRL, Currency, Total

MAX_AMOUNT = 10**13
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # the processor shows instants without a zone
_EARLIEST_US = (datetime.min - _NAIVE_EPOCH) // timedelta(microseconds=1)
_LATEST_US = (datetime.max - _NAIVE_EPOCH) // timedelta(microseconds=1)
_MICROSECOND = timedelta(microseconds=1)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class BookEntry(NamedTuple):
    """A payment as the book has it: the id in lower case, the instant in µs since 1970, UTC."""

    correlation_id: str
    cents: int
    requested_at_us: int


class Standing(Enum):
    """What a processor has decided about a payment."""

    SUCCEEDED = auto()
    PENDING = auto()
    FAILED = auto()


def parse_instant(text: str) -> int:
    """Read an ISO-8601 date, or date and time, in µs since 1970; without a zone it is UTC.

    Raises:
        ValueError: the text is no instant, or one before the year 1 or after 9999 in UTC.
    """
    if text[10:11] not in ("T", ""):
        raise ValueError("not an ISO-8601 instant")
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    microseconds = (instant - _EPOCH) // _MICROSECOND
    if not _EARLIEST_US <= microseconds <= _LATEST_US:
        raise ValueError("an instant out of range")
    return microseconds


def format_instant(microseconds: int) -> str:
    """Write an instant as the real processor does: UTC without `Z` and trailing zeros."""
    text = (_NAIVE_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    return text.rstrip("0") if "." in text else text


def parse_entry(body: bytes | bytearray, currency: Currency = BRL) -> BookEntry:
    """Read the body of a POST /payments. The amount is rounded half up, away from zero.

    The real processor's NUMERIC column rounds so, without binary fractions.

    Raises:
        ValueError: the body is no JSON object with a UUID, an amount above 0 and an instant.
    """
    fields = json_object(body)
    correlation_id = fields.get("correlationId")
    if not isinstance(correlation_id, str) or not _UUID.fullmatch(correlation_id):
        raise ValueError("correlationId is not a UUID")
    amount = fields.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise ValueError("amount is not a number")
    if not 0 < amount < MAX_AMOUNT:
        raise ValueError(f"amount is not above 0 and below {MAX_AMOUNT}")
    requested_at = fields.get("requestedAt")
    if not isinstance(requested_at, str):
        raise ValueError("requestedAt is not an ISO-8601 instant")
    cents = round(amount * currency.scale)
    if cents / currency.scale != amount:  # more decimals, or more than a float can tell
        exact = Decimal(json.loads(body, parse_float=Decimal)["amount"])
        cent = Decimal(1).scaleb(-currency.decimals)
        cents = int(exact.quantize(cent, ROUND_HALF_UP).scaleb(currency.decimals))
    return BookEntry(correlation_id.lower(), cents, parse_instant(requested_at))


def json_object(body: bytes | bytearray) -> dict[str, Any]:
    """A request's body, which must be a JSON object. Raises `ValueError`."""
    fields = orjson.loads(body)
    if not isinstance(fields, dict):
        raise ValueError("the body is not a JSON object")
    return fields


class Book:
    """The payments that a processor has recorded, and their totals over any window of instants.
    Pending and failed ones stand beside them: they can be looked up, and count nowhere.

    Payments arrive almost in the order of their instants. So `record` only appends, and the next
    `totals` merges the new payments into running sums, which changes only the few that overlap.

    Args:
        clock: wall clock, nanoseconds since 1970.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self.purge()

    def __len__(self) -> int:
        return len(self._payments)

    def purge(self) -> None:
        """Forget every payment."""
        self._payments: dict[str, tuple[int, int]] = {}
        self._unpaid: dict[str, tuple[BookEntry, Standing]] = {}
        self._committed_ns: list[int] = []  # in the order of _payments
        self._cents = 0
        self._unmerged: list[tuple[int, int]] = []
        self._instants: list[int] = []
        self._sums = [0]  # _sums[n] is the sum of the first n of _instants

    def record(self, entry: BookEntry, standing: Standing = Standing.SUCCEEDED) -> bool:
        """Enter a payment. If its id is known, nothing changes and this is False."""
        if entry.correlation_id in self._payments or entry.correlation_id in self._unpaid:
            return False
        if standing is Standing.SUCCEEDED:
            self._enter(entry)
        else:
            self._unpaid[entry.correlation_id] = entry, standing
        return True

    def decide(self, entry: BookEntry, standing: Standing) -> bool:
        """End a payment's being pending; False if it is not pending."""
        if self._unpaid.get(entry.correlation_id) != (entry, Standing.PENDING):
            return False
        if standing is Standing.SUCCEEDED:
            del self._unpaid[entry.correlation_id]
            self._enter(entry)
        else:
            self._unpaid[entry.correlation_id] = entry, standing
        return True

    def _enter(self, entry: BookEntry) -> None:
        payment = (entry.requested_at_us, entry.cents)
        self._payments[entry.correlation_id] = payment
        self._committed_ns.append(self._clock())
        self._unmerged.append(payment)
        self._cents += entry.cents

    def standing(self, correlation_id: str) -> Standing | None:
        """What is decided about a payment, its id in lower case; None if it is unknown."""
        if correlation_id in self._payments:
            return Standing.SUCCEEDED
        return self._unpaid[correlation_id][1] if correlation_id in self._unpaid else None

    def find(self, correlation_id: str) -> BookEntry | None:
        """Look a payment of any standing up by its id, in upper or lower case."""
        correlation_id = correlation_id.lower()
        if correlation_id in self._unpaid:
            return self._unpaid[correlation_id][0]
        payment = self._payments.get(correlation_id)
        if payment is None:
            return None
        requested_at_us, cents = payment
        return BookEntry(correlation_id, cents, requested_at_us)

    def commits(self) -> Iterator[tuple[BookEntry, int]]:
        """Every payment with the instant of its commit, in µs since 1970, in order of commit."""
        for (correlation_id, (requested_at_us, cents)), committed_ns in zip(
            self._payments.items(), self._committed_ns, strict=True
        ):
            yield BookEntry(correlation_id, cents, requested_at_us), committed_ns // 1000

    def totals(self, first_us: int | None = None, last_us: int | None = None) -> Total:
        """Sum up the payments requested from `first_us` to `last_us`, both included.

        If either bound is missing, it sums up all of them: the real processor's rule.
        """
        if first_us is None or last_us is None:
            return Total(len(self._payments), self._cents)
        self._merge()
        start = bisect_left(self._instants, first_us)
        stop = max(start, bisect_right(self._instants, last_us))
        return Total(stop - start, self._sums[stop] - self._sums[start])

    def _merge(self) -> None:
        if not self._unmerged:
            return
        keep = bisect_left(self._instants, min(self._unmerged)[0])
        cents = map(sub, self._sums[keep + 1 :], self._sums[keep:])
        tail = sorted([*zip(self._instants[keep:], cents, strict=True), *self._unmerged])
        self._instants[keep:] = map(itemgetter(0), tail)
        self._sums[keep:] = accumulate(map(itemgetter(1), tail), initial=self._sums[keep])
        self._unmerged.clear()


class HealthWindows:
    """Fixed windows of time, back to back from the first call on. Each has one answer.

    Args:
        length_s: seconds; 0 switches the limit off.
        clock: seconds, monotonic.
    """

    def __init__(self, length_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._length_s = length_s
        self._clock = clock
        self._next_at: float | None = None

    def take(self) -> bool:
        """Take the present window's answer; False if it is taken already."""
        now = self._clock()
        if self._next_at is None:
            self._next_at = now
        if now < self._next_at:
            return False
        if self._length_s:
            self._next_at += self._length_s * ((now - self._next_at) // self._length_s + 1)
        return True

    def wait_s(self) -> float:
        """Seconds until the next window opens."""
        return 0.0 if self._next_at is None else max(0.0, self._next_at - self._clock())

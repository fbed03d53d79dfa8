"""Puts made-up settled payments into Redis by the million, and measures their memory.

One script writes records as the accepting, claiming and routing scripts leave them; the real script
settles them. So Redis holds the same bytes as for real payments, after seconds per 100,000 instead
of minutes.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from redis import Redis

from payswitch.money import Total
from payswitch.store import keys, scripts

PROCESSORS = ("default", "fallback")
RETENTION_MS = 7 * 24 * 3600 * 1000

_FIRST_MS = 1_767_225_600_000
_FALLBACK_SHARE = 0.1
_MAX_CENTS = 5_000
_BATCH = 1_000

_BEFORE_SETTLING = """
for i = 1, #ARGV, 4 do
  local record, at = 'payment:' .. ARGV[i], ARGV[i + 3]
  redis.call('HSET', record, 'generation', '0', 'cents', ARGV[i + 1], 'accepted_at', at,
    'state', 'queued')
  redis.call('HSET', record, 'state', 'processing', 'token', '1', 'lease_until', at)
  redis.call('HSET', record, 'processor', ARGV[i + 2], 'requested_at', at, 'open', '1',
    'tries', '1', 'horizon', at, 'quiet', '35000', 'delay', '5000 1')
end
"""

_BARE = """
for i = 1, #ARGV, 4 do
  redis.call('HSET', 'payment:' .. ARGV[i], 'cents', ARGV[i + 1], 'processor', ARGV[i + 2],
    'requested_at', ARGV[i + 3])
end
"""

_IN_SORTED_SETS = """
for i = 1, #ARGV, 4 do
  redis.call('ZADD', 'settled:' .. ARGV[i + 2], ARGV[i + 3], ARGV[i + 1] .. ':' .. ARGV[i])
end
"""


class Payment(NamedTuple):
    """A payment that its processor has; `requested_at` in ms since the epoch."""

    correlation_id: str
    cents: int
    processor: str
    requested_at: int


def make_payments(count: int, per_second: float, *, seed: int = 1) -> list[Payment]:
    """Payments at random instants over the time that they take at this rate, ordered by
    `requested_at`; a tenth of them by the fallback."""
    lots = random.Random(seed)
    span_ms = count / per_second * 1000
    instants = sorted(_FIRST_MS + int(lots.random() * span_ms) for _ in range(count))
    return [
        Payment(
            _uuid(lots),
            lots.randint(1, _MAX_CENTS),
            PROCESSORS[lots.random() < _FALLBACK_SHARE],
            at,
        )
        for at in instants
    ]


def _uuid(lots: random.Random) -> str:
    digits = f"{lots.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


class Sums:
    """The right summary of any window over some payments."""

    def __init__(self, payments: Sequence[Payment]) -> None:
        self._instants: dict[str, list[int]] = {}
        self._cents: dict[str, list[int]] = {}
        for name in PROCESSORS:
            ours = sorted((each.requested_at, each.cents) for each in payments if each[2] == name)
            self._instants[name] = [at for at, _ in ours]
            self._cents[name] = [0, *accumulate(cents for _, cents in ours)]

    def window(self, first_ms: int, last_ms: int) -> dict[str, Total]:
        """The totals by processor, both bounds inclusive."""
        totals: dict[str, Total] = {}
        for name in PROCESSORS:
            first = bisect_left(self._instants[name], first_ms)
            past = bisect_right(self._instants[name], last_ms)
            cents = self._cents[name]
            totals[name] = Total(past - first, cents[past] - cents[first])
        return totals


def load_settled(redis: Redis, payments: Sequence[Payment]) -> Iterator[int]:
    """Settle the payments; yields how many are done, batch by batch."""
    prepare = redis.register_script(_BEFORE_SETTLING)
    settle = redis.register_script(scripts.source("settle"))
    for batch in _batches(payments):
        prepare(args=_flat(batch))
        args: list[str | int] = [RETENTION_MS]
        for payment in batch:
            args += (payment.correlation_id, "0", payment.processor, payment.requested_at, "", "")
        verdicts = set(settle(keys=[keys.GENERATION], args=args))
        if verdicts != {b"settled"}:
            raise RuntimeError(f"not settled: {verdicts}")
        yield len(batch)


def load_bare(redis: Redis, payments: Sequence[Payment]) -> Iterator[int]:
    """Put each payment into a plain hash only; yields like `load_settled`."""
    return _load(redis, _BARE, payments)


def load_sorted_sets(redis: Redis, payments: Sequence[Payment]) -> Iterator[int]:
    """Put the payments into a sorted set by `requested_at` for each processor, with members
    `cents:id`; yields like `load_settled`."""
    return _load(redis, _IN_SORTED_SETS, payments)


def _load(redis: Redis, text: str, payments: Sequence[Payment]) -> Iterator[int]:
    script = redis.register_script(text)
    for batch in _batches(payments):
        script(args=_flat(batch))
        yield len(batch)


def _batches(payments: Sequence[Payment]) -> Iterator[Sequence[Payment]]:
    for first in range(0, len(payments), _BATCH):
        yield payments[first : first + _BATCH]


def _flat(batch: Sequence[Payment]) -> list[str | int]:
    return [value for payment in batch for value in payment]


def used_bytes(redis: Redis) -> int:
    """The bytes that Redis has allocated for its data."""
    memory: dict[str, Any] = redis.info("memory")  # type: ignore[assignment]
    return int(memory["used_memory"])


def ledger_bytes(redis: Redis) -> int:
    """The ledger's part of it, without its share of the table of all keys."""
    keys = list(redis.scan_iter("ledger:*", count=10_000))
    total = 0
    for first in range(0, len(keys), _BATCH):
        pipe = redis.pipeline(transaction=False)
        for key in keys[first : first + _BATCH]:
            pipe.memory_usage(key, samples=0)
        total += sum(pipe.execute())
    return total

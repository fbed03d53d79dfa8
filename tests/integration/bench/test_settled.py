"""What the summary bench loads is what payments leave that were really paid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from bench.settled import (
    RETENTION_MS,
    Payment,
    Sums,
    ledger_bytes,
    load_settled,
    make_payments,
    used_bytes,
)
from payswitch.money import Total
from payswitch.store import keys, scripts
from tests.support import RedisServer

PAID = Payment("4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3", 1990, "fallback", 1_767_225_600_123)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = RedisServer(tmp_path)
    server.start()
    with Redis(port=server.port) as client:
        yield client
    server.kill()


def pay_for_real(redis: Redis, payment: Payment) -> None:
    name = payment.correlation_id
    call = {part: redis.register_script(scripts.source(part)) for part in ("accept", "claim")}
    call |= {part: redis.register_script(scripts.source(part)) for part in ("route", "settle")}
    own = [keys.GENERATION]
    call["accept"](keys=own, args=[10, name, payment.cents, 2**53, "{}", ""])
    call["claim"](keys=own, args=[10, 30_000, 5_000, "7", "", "", "", 0, 0])
    route: list[str | int] = [5_000, 30_000, name, "7", "0", payment.processor, "", "", "1"]
    call["route"](keys=own, args=route)
    settle: list[str | int] = [RETENTION_MS, name, "0", payment.processor]
    settle += (payment.requested_at, "", "")
    assert call["settle"](keys=own, args=settle) == [b"settled"]


def hash_of(redis: Redis, key: str) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = redis.hgetall(key)  # type: ignore[assignment]
    return found


def state_of(redis: Redis) -> dict[bytes, tuple[list[bytes], object]]:
    """Each hash' fields in Redis' own order, and what it weighs where that depends on nothing else:
    the C library's allocator gives what it happens to have."""
    memory: dict[str, str] = redis.info("memory")  # type: ignore[assignment]
    has_sizes = memory["mem_allocator"].startswith("jemalloc")
    return {
        key: (
            list(hash_of(redis, key.decode())),
            redis.memory_usage(key, samples=0) if has_sizes else redis.object("encoding", key),
        )
        for key in redis.scan_iter()
        if key.startswith((b"payment:", b"ledger:"))
    }


def test_a_loaded_payment_weighs_what_one_weighs_that_was_paid(redis: Redis) -> None:
    pay_for_real(redis, PAID)
    paid, record = state_of(redis), hash_of(redis, f"payment:{PAID.correlation_id}")
    redis.flushall()
    assert list(load_settled(redis, [PAID])) == [1]
    assert state_of(redis) == paid
    loaded = hash_of(redis, f"payment:{PAID.correlation_id}")
    for own in (b"accepted_at", b"settled_at"):
        assert len(loaded.pop(own)) == len(record.pop(own))
    assert loaded == record


def test_the_ledger_sums_what_was_loaded(redis: Redis) -> None:
    payments = make_payments(2_500, 1_000)
    assert sum(load_settled(redis, payments)) == 2_500
    first, last = payments[700].requested_at, payments[1_900].requested_at
    summary = redis.register_script(scripts.source("summary"))
    _, _, *counts = summary(keys=[keys.GENERATION], args=[first, last, "default", "fallback"])
    expected = Sums(payments).window(first, last)
    assert expected["default"] == Total(int(counts[0]), int(counts[1]) * 10**9 + int(counts[2]))
    assert expected["fallback"] == Total(int(counts[3]), int(counts[4]) * 10**9 + int(counts[5]))


def test_the_ledger_is_a_part_of_what_redis_uses(redis: Redis) -> None:
    empty = used_bytes(redis)
    assert ledger_bytes(redis) == 0
    assert sum(load_settled(redis, make_payments(3_000, 1_000))) == 3_000
    assert 0 < ledger_bytes(redis) < used_bytes(redis) - empty


def test_payments_spread_over_the_time_that_their_rate_says() -> None:
    payments = make_payments(10_000, 500)
    span_ms = payments[-1].requested_at - payments[0].requested_at
    assert 19_000 < span_ms <= 20_000
    assert 500 < sum(each.processor == "fallback" for each in payments) < 2_000
    assert len({each.correlation_id for each in payments}) == 10_000


def test_both_bounds_of_a_window_are_inclusive() -> None:
    sums = Sums([Payment("a", 5, "default", 10), Payment("b", 7, "default", 20)])
    assert sums.window(10, 20)["default"] == Total(2, 12)
    assert sums.window(11, 20)["default"] == Total(1, 7)
    assert sums.window(10, 19)["default"] == Total(1, 5)
    assert sums.window(11, 19)["default"] == Total()

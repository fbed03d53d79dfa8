"""Redis' memory: when it counts as short, and how a full Redis is recognised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ExecAbortError, OutOfMemoryError, ResponseError

from payswitch.store.errors import says_out_of_memory
from payswitch.store.memory import parse_memory

BYTES = st.integers(min_value=0, max_value=2**50)
PERCENT = st.integers(min_value=1, max_value=100)


def memory(used: int, limit: int, not_counted: int = 0) -> dict[str, str]:
    return {
        "used_memory": str(used),
        "maxmemory": str(limit),
        "mem_not_counted_for_evict": str(not_counted),
    }


@pytest.mark.parametrize(
    ("used", "was_short", "short"),
    [
        (850, False, False),
        (851, False, True),
        (851, True, True),
        (850, True, True),
        (808, True, True),
        (807, True, False),
        (0, True, False),
    ],
)
def test_it_is_short_above_the_mark_until_it_is_clearly_below(
    used: int, was_short: bool, short: bool
) -> None:
    assert parse_memory(memory(used, 1000)).is_short(max_percent=85, was_short=was_short) is short


@given(BYTES, PERCENT, st.booleans())
def test_without_a_limit_it_is_never_short(used: int, percent: int, was_short: bool) -> None:
    assert not parse_memory(memory(used, 0)).is_short(max_percent=percent, was_short=was_short)


@given(BYTES, BYTES, PERCENT)
def test_what_is_short_stays_short_at_the_same_level(used: int, limit: int, percent: int) -> None:
    reading = memory(used, limit)
    if parse_memory(reading).is_short(max_percent=percent, was_short=False):
        assert parse_memory(reading).is_short(max_percent=percent, was_short=True)


@given(BYTES, BYTES, PERCENT, st.booleans(), BYTES)
def test_more_in_use_is_never_less_short(
    used: int, limit: int, percent: int, was_short: bool, more: int
) -> None:
    if parse_memory(memory(used, limit)).is_short(max_percent=percent, was_short=was_short):
        assert parse_memory(memory(used + more, limit)).is_short(
            max_percent=percent, was_short=was_short
        )


def test_redis_buffers_do_not_count() -> None:
    assert not parse_memory(memory(950, 1000, 100)).is_short(max_percent=85, was_short=False)


@pytest.mark.parametrize(
    "answer", [{}, {"maxmemory": "1000"}, {"maxmemory": "?", "used_memory": "1"}]
)
def test_an_answer_without_the_numbers_is_not_short(answer: dict[str, str]) -> None:
    assert not parse_memory(answer).is_short(max_percent=85, was_short=True)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), True),
        (ResponseError("Error running script: -OOM … when used memory > 'maxmemory'."), True),
        (
            ExecAbortError("Transaction discarded because of: OOM … used memory > 'maxmemory'."),
            True,
        ),
        (ResponseError("payments:open holds a string, not a zset"), False),
        (RedisConnectionError("Connection refused"), False),
    ],
)
def test_a_full_redis_is_told_from_other_troubles(error: Exception, full: bool) -> None:
    assert says_out_of_memory(error) is full

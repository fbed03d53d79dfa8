"""Durations as operators write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.cli.durations import format_duration, parse_duration_ms


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("90s", 90_000),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("2d", 172_800_000),
        ("1d1h1m1s", 90_061_000),
        ("0s", 0),
        ("007s", 7000),
    ],
)
def test_a_duration_is_read(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    ["", "10", "m", "10 m", "1m1h", "1.5h", "-1s", "1s1s", "10M", "٣s", "1s\n", "9" * 10 + "s"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration_ms(text)


@pytest.mark.parametrize(("ms", "text"), [(0, "0s"), (1, "1s"), (1001, "2s"), (5_400_000, "1h30m")])
def test_a_duration_is_written(ms: int, text: str) -> None:
    assert format_duration(ms) == text


@given(st.integers(0, 10**10))
def test_what_is_written_is_read_as_the_same_whole_seconds(ms: int) -> None:
    assert parse_duration_ms(format_duration(ms)) == -(-ms // 1000) * 1000

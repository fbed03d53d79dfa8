"""Instants: ISO-8601 in and out, and never an error but ValueError."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.instants import format_instant, parse_instant_ms, parse_instant_us

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON_MS = 1_795_363_500_123
"""2026-11-22T16:05:00.123Z."""


def ms_of(year: int) -> int:
    return (datetime(year, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)


LAST_MS = ms_of(9999) + 365 * 86_400_000 - 1
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.integers(ms_of(1000), LAST_MS))
def test_an_instant_survives_being_written_and_read(ms: int) -> None:
    assert parse_instant_ms(format_instant(ms)) == ms


def test_an_instant_before_the_year_1000_survives_being_written_and_read() -> None:
    assert parse_instant_ms(format_instant(ms_of(999))) == ms_of(999)


@given(st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31), timezones=ZONES))
def test_an_instant_is_the_same_in_every_zone(instant: datetime) -> None:
    microseconds = (instant - EPOCH) // timedelta(microseconds=1)
    assert parse_instant_us(instant.isoformat()) == microseconds


@given(st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31)))
def test_an_instant_without_an_offset_is_utc(instant: datetime) -> None:
    assert parse_instant_us(instant.isoformat()) == parse_instant_us(instant.isoformat() + "Z")


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T16:05:00.123Z",
        "2026-11-22T16:05:00.123",
        "2026-11-22T16:05:00.123+00:00",
        "2026-11-22T16:05:00.123-00:00",
        "2026-11-22T13:05:00.123-03:00",
        "2026-11-22T13:05:00.123-0300",
        "2026-11-22T21:35:00.123+05:30",
        "2026-11-23T02:05:00.123+10",
        "2026-11-22T16:05:00,123Z",
        "2026-11-22T16:05:00.123000Z",
        "2026-11-22T16:05:00.1230000Z",
        "2026-11-22T16:05:00.123999999Z",
        "2026-11-22T16:05:00.1239999999999999999999+00:00",
        "2026-11-22T16:05:00.12345678",
        "20261122T160500.123Z",
        "2026-11-22t16:05:00.123Z",
        pytest.param(
            "2026-11-22t16:05:00.123z",
        ),
    ],
)
def test_every_spelling_of_an_instant_is_the_same_instant(text: str) -> None:
    assert parse_instant_ms(text) == NOON_MS


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.001Z", 1),
        ("1970-01-01T00:00:00.0019999Z", 1),
        ("1969-12-31T23:59:59.999Z", -1),
        ("1969-12-31T23:59:59.9999Z", -1),
        ("2026-11-22T16:05", NOON_MS - 123),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000),
        ("0001-01-01T00:00:00", -62_135_596_800_000),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000),
        ("9999-12-31T23:59:59.999-23:59", 253_402_387_139_999),
    ],
)
def test_an_instant_is_cut_to_whole_milliseconds(text: str, ms: int) -> None:
    assert parse_instant_ms(text) == ms


def test_microseconds_are_kept() -> None:
    assert parse_instant_us("2026-11-22T16:05:00.1234567Z") == NOON_MS * 1000 + 456


@pytest.mark.parametrize("text", ["2026-11-22", "20261122", "2026-W47-7", "2026-11-22 16:05:00Z"])
def test_a_date_without_a_time_behind_a_t_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a date and time"):
        parse_instant_ms(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "T",
        "now",
        "today",
        "1795363500123",
        "16:05:00Z",
        "T16:05:00Z",
        "2026-11-22T",
        "2026-11-22T16:05:00.123ZZ",
        "2026-11-22T16:05:00.123Z ",
        " 2026-11-22T16:05:00.123Z",
        "2026-11-22T16:05:00+99:00",
        "2026-11-22T24:00:01Z",
        "2026-11-22T16:60:00Z",
        "2016-12-31T23:59:60Z",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "12026-11-22T16:05:00Z",
        "-2026-11-22T16:05:00Z",
        "\ud800T",
    ],
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_instant_us(text)


@pytest.mark.parametrize(
    "text", ["2026-11-22T16:05:00xZ", "2026-11-22T16:05:00.Z", "2026-11-22\ufb0516:05:00Z"]
)
def test_an_instant_with_a_stray_character_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_instant_us(text)


@given(st.text(max_size=40) | st.text(alphabet="0123456789-+:.,TtZzW ", max_size=40))
def test_no_text_raises_anything_but_a_value_error(text: str) -> None:
    try:
        instant = parse_instant_us(text)
    except ValueError:
        return
    assert type(instant) is int


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (NOON_MS, "2026-11-22T16:05:00.123Z"),
        (NOON_MS - 123, "2026-11-22T16:05:00.000Z"),
        (LAST_MS, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_an_instant_is_written_with_three_decimals_and_z(ms: int, text: str) -> None:
    assert format_instant(ms) == text

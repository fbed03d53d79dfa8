"""What the simulator decides without I/O: amounts, instants, the book, the health windows."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.money import Currency, Total
from payswitch.simulator.book import (
    Book,
    BookEntry,
    HealthWindows,
    format_instant,
    parse_entry,
    parse_instant,
)
from payswitch.simulator.dialect import SimulatorConfig

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
INSTANTS = st.datetimes(
    min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31), timezones=ZONES
)


def body_of(amount: str, correlation_id: str = ID) -> bytes:
    fields = f'"amount":{amount},"requestedAt":"2025-07-15T12:34:56.001Z"'
    return f'{{"correlationId":"{correlation_id}",{fields}}}'.encode()


def entry_at(instant_us: int, cents: int) -> BookEntry:
    return BookEntry(str(uuid4()), cents, instant_us)


# Amounts.


@given(st.integers(min_value=1, max_value=10**15 - 1))
def test_an_amount_of_whole_cents_is_read_exactly(cents: int) -> None:
    assert parse_entry(body_of(f"{cents // 100}.{cents % 100:02d}")).cents == cents


@given(st.decimals(min_value=Decimal("1e-9"), max_value=10**12, allow_nan=False))
def test_any_amount_is_rounded_half_up_from_its_very_digits(amount: Decimal) -> None:
    expected = amount.quantize(Decimal("0.01"), ROUND_HALF_UP)
    assert parse_entry(body_of(str(amount))).cents == expected * 100


@pytest.mark.parametrize(
    ("amount", "cents"),
    [
        ("19.90", 1990),
        ("7", 700),
        ("1e2", 10_000),
        ("1.005", 101),
        ("1.015", 102),
        ("0.004", 0),
        ("0.00499999999999999999999999999999999999", 0),
        ("77.8299999999999982946974341757595539093017578125", 7783),
    ],
)
def test_an_amount_is_rounded_to_two_decimals(amount: str, cents: int) -> None:
    assert parse_entry(body_of(amount)).cents == cents


@pytest.mark.parametrize(
    "amount", ["0", "-1", "-0.5", '"19.90"', "true", "null", "[]", "NaN", "1e400", "10000000000000"]
)
def test_an_amount_that_is_no_number_above_zero_is_refused(amount: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_entry(body_of(amount))


# Ids and bodies.


def test_an_id_in_upper_case_is_that_in_lower_case() -> None:
    assert parse_entry(body_of("1", ID.upper())).correlation_id == ID


@pytest.mark.parametrize("text", ["", "1", ID.replace("-", ""), f"{{{ID}}}", ID + "\n", "é" * 36])
def test_an_id_that_is_no_uuid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="UUID"):
        parse_entry(orjson.dumps({"correlationId": text, "amount": 1, "requestedAt": "2025-07-15"}))


@pytest.mark.parametrize("field", ["correlationId", "amount", "requestedAt"])
@pytest.mark.parametrize("value", [None, [], {}, False])
def test_a_payment_needs_every_field(field: str, value: object) -> None:
    fields: dict[str, object] = {
        "correlationId": ID,
        "amount": 1,
        "requestedAt": "2025-07-15T12:34:56Z",
    }
    assert parse_entry(orjson.dumps(fields)).cents == 100
    with pytest.raises(ValueError, match=field):
        parse_entry(orjson.dumps(fields | {field: value}))
    del fields[field]
    with pytest.raises(ValueError, match=field):
        parse_entry(orjson.dumps(fields))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 5000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_entry(body)


# Instants.


@given(INSTANTS)
def test_an_instant_is_read_to_the_microsecond_whatever_its_zone(instant: datetime) -> None:
    assert parse_instant(instant.isoformat()) == (instant - EPOCH) // timedelta(microseconds=1)


@given(INSTANTS)
def test_an_instant_without_a_zone_is_utc(instant: datetime) -> None:
    text = instant.replace(tzinfo=None).isoformat()
    assert parse_instant(text) == parse_instant(text + "Z") == parse_instant(text + "+00:00")


@given(st.integers(min_value=parse_instant("0001-01-01"), max_value=parse_instant("9999-12-31")))
def test_an_instant_that_was_shown_is_read_as_itself(microseconds: int) -> None:
    assert parse_instant(format_instant(microseconds)) == microseconds


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2025-07-15T12:34:56.120Z", "2025-07-15T12:34:56.12"),
        ("2025-07-15T12:34:56.001Z", "2025-07-15T12:34:56.001"),
        ("2025-07-15T12:34:56.000001Z", "2025-07-15T12:34:56.000001"),
        ("2025-07-15T12:34:50.000Z", "2025-07-15T12:34:50"),
        ("2025-07-15T12:34:50Z", "2025-07-15T12:34:50"),
        ("2025-07-15T09:34:50.5-03:00", "2025-07-15T12:34:50.5"),
        ("2025-07-15T12:34", "2025-07-15T12:34:00"),
        ("2025-07-15", "2025-07-15T00:00:00"),
    ],
)
def test_an_instant_is_shown_in_utc_without_z_and_needless_zeros(sent: str, shown: str) -> None:
    assert format_instant(parse_instant(sent)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "12:34",
        "20250715T123456Z",
        "2025-07-15 12:34:56",
        "2025-13-15T12:34:56Z",
        "2025-07-15T12:34:56Q",
        "0001-01-01T00:00:00+10:00",
        "9999-12-31T23:59:59-10:00",
    ],
)
def test_a_text_that_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_instant(text)


# The book.


def test_a_known_id_changes_nothing() -> None:
    book = Book()
    assert book.record(BookEntry(ID, 1990, 5))
    assert not book.record(BookEntry(ID, 700, 6))
    assert book.find(ID.upper()) == BookEntry(ID, 1990, 5)
    assert book.totals() == book.totals(0, 9) == Total(1, 1990)


def test_a_purged_book_is_empty_and_takes_the_same_id_again() -> None:
    book = Book()
    book.record(BookEntry(ID, 1990, 5))
    book.totals(0, 9)
    book.record(entry_at(7, 100))
    book.purge()
    assert len(book) == 0
    assert book.find(ID) is None
    assert book.totals() == book.totals(0, 9) == Total(0, 0)
    assert book.record(BookEntry(ID, 700, 5))
    assert book.totals() == book.totals(5, 5) == Total(1, 700)


MOMENTS = st.integers(min_value=-20, max_value=20)
PAYMENTS = st.lists(st.tuples(MOMENTS, st.integers(min_value=0, max_value=10**14)))
WINDOWS = st.tuples(MOMENTS | st.none(), MOMENTS | st.none())


@given(st.lists(st.tuples(PAYMENTS, WINDOWS), max_size=8))
def test_the_totals_of_a_window_are_those_that_counting_gives(
    steps: list[tuple[list[tuple[int, int]], tuple[int | None, int | None]]],
) -> None:
    book = Book()
    recorded: list[tuple[int, int]] = []
    for payments, (first, last) in steps:
        for payment in payments:
            book.record(entry_at(*payment))
        recorded += payments
        everything = first is None or last is None
        cents = [c for at, c in recorded if everything or first <= at <= last]  # type: ignore[operator]
        assert book.totals(first, last) == Total(len(cents), sum(cents))
        assert len(book) == len(recorded)


def test_a_window_of_a_long_book_is_summed_without_walking_it() -> None:
    book = Book()
    started = time.process_time()
    for batch in range(1, 5001):
        for number in range(20):
            book.record(BookEntry(f"{batch}/{number}", 1990, batch * 20 - number * 37 % 100))
        assert book.totals(-100, 10**6) == Total(batch * 20, batch * 20 * 1990)
    assert time.process_time() - started < 4  # half a second; a walk for every window takes 10 s


# Health windows.


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_window_has_one_call() -> None:
    windows = HealthWindows(5, Clock())
    assert [windows.take() for _ in range(3)] == [True, False, False]


def test_windows_are_fixed_by_the_first_call() -> None:
    clock = Clock()
    windows = HealthWindows(5, clock)
    clock.now_s = 1003.0
    assert windows.take()
    clock.now_s = 1007.9
    assert not windows.take()
    assert windows.wait_s() == pytest.approx(0.1)
    clock.now_s = 1012.9  # the end of the second window: its call, late
    assert windows.take()
    clock.now_s = 1013.0  # the third begins
    assert windows.take()
    clock.now_s = 1013.1
    assert not windows.take()
    assert windows.wait_s() == pytest.approx(4.9)


def test_unused_windows_are_not_saved_up() -> None:
    clock = Clock()
    windows = HealthWindows(5, clock)
    assert windows.take()
    clock.now_s = 1101.0
    assert windows.take()
    assert not windows.take()
    assert windows.wait_s() == pytest.approx(4)


def test_windows_of_no_length_limit_nothing() -> None:
    windows = HealthWindows(0, Clock())
    assert all(windows.take() for _ in range(10))


# Settings.


def test_the_environment_sets_fee_token_and_limit() -> None:
    environment = {"TRANSACTION_FEE": "0.15", "INITIAL_TOKEN": "abc", "RATE_LIMIT_SECONDS": "0"}
    config = SimulatorConfig.from_environment("fallback", environment)
    assert config == SimulatorConfig("fallback", Decimal("0.15"), "abc", 0.0)
    yen = SimulatorConfig.from_environment("default", {"PAYSWITCH_CURRENCY": "JPY"})
    assert yen == SimulatorConfig("default", currency=Currency("JPY"))
    assert SimulatorConfig.from_environment("default", {}) == SimulatorConfig("default")


def test_an_environment_with_an_unknown_currency_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"PAYSWITCH_CURRENCY .* 'XAU'"):
        SimulatorConfig.from_environment("default", {"PAYSWITCH_CURRENCY": "XAU"})


@pytest.mark.parametrize(
    ("code", "text", "cents"),
    [("JPY", "19.5", 20), ("JPY", "19.49", 19), ("BHD", "0.0005", 1), ("BHD", "1.234", 1234)],
)
def test_an_amount_is_rounded_to_its_currency(code: str, text: str, cents: int) -> None:
    assert parse_entry(body_of(text), Currency(code)).cents == cents


@pytest.mark.parametrize("variable", ["TRANSACTION_FEE", "RATE_LIMIT_SECONDS"])
@pytest.mark.parametrize("text", ["", "five", "-1", "nan", "inf"])
def test_an_environment_that_is_no_number_is_refused_by_name(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=variable):
        SimulatorConfig.from_environment("default", {variable: text})

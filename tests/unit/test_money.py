"""Money: a currency's cents, written and read without loss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.money import BRL, MAX_CENTS, Currency

CURRENCIES = st.sampled_from(["BRL", "USD", "JPY", "BHD", "CLF"]).map(Currency)


@pytest.mark.parametrize(
    ("code", "decimals"),
    [
        ("BRL", 2),
        ("USD", 2),
        ("EUR", 2),
        ("JPY", 0),
        ("ISK", 0),
        ("BHD", 3),
        ("KWD", 3),
        ("UYW", 4),
    ],
)
def test_a_currency_has_the_decimals_of_iso_4217(code: str, decimals: int) -> None:
    assert (Currency(code).decimals, Currency(code).scale) == (decimals, 10**decimals)


@pytest.mark.parametrize("code", ["", "brl", "BR", "BRLL", "R$", "XAU", "XTS", "DEM", "986"])
def test_another_code_is_no_currency(code: str) -> None:
    with pytest.raises(ValueError, match=f"^{code.replace('$', '.')}$"):
        Currency(code)


@given(st.integers(-(10**20), 10**20), CURRENCIES)
def test_cents_survive_being_written_and_read(cents: int, currency: Currency) -> None:
    assert currency.exact_cents(currency.format_cents(cents)) == cents
    assert currency.nearest_cents(currency.format_cents(cents)) == cents


@given(st.integers(1, 10**12), CURRENCIES, st.integers(2, 1000))
def test_the_trace_of_a_binary_sum_does_not_matter(
    cents: int, currency: Currency, parts: int
) -> None:
    amount = cents / currency.scale
    assert currency.nearest_cents(sum([amount / parts] * parts)) in (cents, None)
    assert currency.nearest_cents(amount) == cents


@pytest.mark.parametrize(
    ("code", "text"), [("JPY", "-1990"), ("BRL", "-19.90"), ("BHD", "-1.990"), ("CLF", "-0.1990")]
)
def test_cents_are_written_with_the_currencys_decimals(code: str, text: str) -> None:
    assert Currency(code).format_cents(-1990) == text


@pytest.mark.parametrize(
    ("cents", "text"),
    [
        (0, "0.00"),
        (1, "0.01"),
        (10, "0.10"),
        (1990, "19.90"),
        (100_000, "1000.00"),
        (MAX_CENTS, "10000000000.00"),
        (2**63 + 1, "92233720368547758.09"),
        (-1, "-0.01"),
        (-1990, "-19.90"),
    ],
)
def test_cents_are_written_with_exactly_two_decimals(cents: int, text: str) -> None:
    assert BRL.format_cents(cents) == text


@pytest.mark.parametrize(
    ("text", "cents"),
    [
        ("19.9", 1990),
        ("19.90", 1990),
        ("19.900", 1990),
        ("7", 700),
        ("1e2", 10_000),
        ("0", 0),
        ("-0.01", -1),
        ("1e+16", 10**18),
        ("19.905", None),
        ("0.001", None),
        ("1e-3", None),
        ("NaN", None),
        ("sNaN", None),
        ("Infinity", None),
        ("-Infinity", None),
        ("", None),
        ("'19.90'", None),
        ("True", None),
        ("[1]", None),
    ],
)
def test_exact_cents_are_whole_or_none(text: str, cents: int | None) -> None:
    assert BRL.exact_cents(text) == cents


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "0.0100000000000000000000000000000001",
        ),
        pytest.param(
            "1e999999",
        ),
    ],
)
def test_exact_cents_of_a_number_beyond_the_decimal_context_are_none(text: str) -> None:
    assert BRL.exact_cents(text) is None

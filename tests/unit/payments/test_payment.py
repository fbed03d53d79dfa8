"""The payment: JSON to exact cents and a normalised id, everything else refused by two errors."""

from __future__ import annotations

import gzip
import json
import zlib
from decimal import Decimal
from random import Random
from uuid import UUID

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from payswitch.money import BRL, MAX_CENTS, Currency
from payswitch.payments.payment import (
    InvalidPaymentError,
    MalformedPaymentError,
    Payment,
    PaymentRules,
    parse_amount,
    parse_correlation_id,
    parse_payment,
)

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
CENTS = st.integers(1, MAX_CENTS)


def body_of(amount: str, correlation_id: str = f'"{ID}"') -> bytes:
    return f'{{"correlationId":{correlation_id},"amount":{amount}}}'.encode()


LENIENT = PaymentRules(ignores_unknown=True)


def body_with(members: str) -> bytes:
    return f'{{"correlationId":"{ID}","amount":19.90,{members}}}'.encode()


def parse_or_refuse(body: bytes) -> Payment | None:
    """None for a body that is refused as it should be; any other exception is a failure."""
    try:
        return parse_payment(body)
    except (MalformedPaymentError, InvalidPaymentError):
        return None


# Amounts that are taken.


@given(CENTS)
@example(1)
@example(MAX_CENTS)
@example(MAX_CENTS - 1)
def test_an_amount_with_two_decimals_is_taken_to_exactly_these_cents(cents: int) -> None:
    assert parse_payment(body_of(f"{cents // 100}.{cents % 100:02d}")).cents == cents


@given(st.integers(1, MAX_CENTS // 10))
def test_an_amount_with_one_decimal_is_taken_to_exactly_these_cents(tenths: int) -> None:
    assert parse_payment(body_of(f"{tenths // 10}.{tenths % 10}")).cents == tenths * 10


@given(st.integers(1, MAX_CENTS // 100))
def test_an_amount_without_decimals_is_taken_to_exactly_these_cents(whole: int) -> None:
    assert parse_payment(body_of(str(whole))).cents == whole * 100


@given(CENTS, st.integers(-4, 14), st.sampled_from(["e", "E"]), st.booleans())
def test_an_amount_with_an_exponent_is_taken_to_exactly_these_cents(
    cents: int, exponent: int, letter: str, signed: bool
) -> None:
    mantissa = format(Decimal(cents).scaleb(-2 - exponent), "f")
    sign = "+" if signed and exponent >= 0 else ""
    assert parse_payment(body_of(f"{mantissa}{letter}{sign}{exponent}")).cents == cents


@pytest.mark.parametrize(
    "amount",
    [
        b"0.00000000000000001e-99999999999999999999",
        b"1" * 17 + b',"x":' + b"[" * 1000 + b"]" * 1000,
    ],
)
def test_numbers_and_depths_beyond_all_bounds_are_refused(amount: bytes) -> None:
    body = b'{"correlationId":"4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3","amount":' + amount + b"}"
    with pytest.raises((InvalidPaymentError, MalformedPaymentError)):
        parse_payment(body)


@pytest.mark.parametrize(
    ("amount", "cents"),
    [
        ("19.90", 1990),
        ("19.9", 1990),
        ("19.900", 1990),
        ("0.01", 1),
        ("0.29", 29),
        ("1.15", 115),
        ("1.005e3", 100_500),
        ("1990e-2", 1990),
        ("1e2", 10_000),
        ("1E+10", MAX_CENTS),
        ("9999999999.99", MAX_CENTS - 1),
        ("10000000000", MAX_CENTS),
        ("10000000000.00", MAX_CENTS),
    ],
)
def test_an_amount_is_taken_as_it_is_written(amount: str, cents: int) -> None:
    assert parse_payment(body_of(amount)) == Payment(ID, cents)


# Amounts that are refused.


@given(st.integers(3, 10), st.data())
def test_an_amount_with_more_than_two_decimals_is_refused(
    decimals: int, data: st.DataObject
) -> None:
    highest = min(10**15 - 1, 10 ** (10 + decimals) - 1)
    beyond_cents = 10 ** (decimals - 2)
    digits = data.draw(st.integers(1, highest).filter(lambda number: number % beyond_cents))
    with pytest.raises(InvalidPaymentError, match="amount must have at most 2 decimals"):
        parse_payment(body_of(format(Decimal(digits).scaleb(-decimals), "f")))


@pytest.mark.parametrize(
    "amount", ["0.001", "19.905", "19.901", "1.999999999", "1e-3", "12345e-3", "0.015"]
)
def test_an_amount_with_three_decimals_is_refused(amount: str) -> None:
    with pytest.raises(InvalidPaymentError, match="amount must have at most 2 decimals"):
        parse_payment(body_of(amount))


@pytest.mark.parametrize(
    "amount",
    [
        "9999999999.9900001",
        "19.900000000000000001",
        "0.00999999999999999999",
        "10000000000.0000001",
    ],
)
def test_an_amount_with_more_decimals_than_a_double_tells_is_refused(amount: str) -> None:
    with pytest.raises(InvalidPaymentError):
        parse_payment(body_of(amount))


@pytest.mark.parametrize(
    "amount", ["0", "0.0", "-0", "-0.0", "0e5", "-1", "-0.01", "-1e300", "-1e308"]
)
def test_an_amount_that_is_not_above_zero_is_refused(amount: str) -> None:
    with pytest.raises(InvalidPaymentError, match="amount must be more than 0"):
        parse_payment(body_of(amount))


@pytest.mark.parametrize(
    "amount",
    [
        "10000000000.01",
        "10000000001",
        "1e11",
        "1e300",
        "1e308",
        "9223372036854775808",
        "1" + "0" * 100,
    ],
)
def test_an_amount_above_the_largest_is_refused(amount: str) -> None:
    with pytest.raises(InvalidPaymentError, match=r"amount must be at most 10000000000\.00"):
        parse_payment(body_of(amount))


@pytest.mark.parametrize(
    "amount",
    [
        *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1.5E+400"),
        pytest.param(
            "1" + "0" * 400,
            id="400 zeros",
        ),
    ],
)
def test_an_amount_that_is_not_finite_is_refused_as_invalid(amount: str) -> None:
    with pytest.raises(InvalidPaymentError, match="amount must be a finite number"):
        parse_payment(body_of(amount))


@pytest.mark.parametrize(
    ("amount", "kind"),
    [
        ('"19.90"', "a string: leave out the quotes"),
        ("true", "a boolean"),
        ("false", "a boolean"),
        ("[19.90]", "an array"),
        ('{"value":19.90}', "an object"),
    ],
)
def test_an_amount_that_is_no_number_is_refused_by_its_kind(amount: str, kind: str) -> None:
    with pytest.raises(InvalidPaymentError, match=f"^amount must be a number, not {kind}$"):
        parse_payment(body_of(amount))


@pytest.mark.parametrize("body", [body_of("null"), f'{{"correlationId":"{ID}"}}'.encode()])
def test_a_missing_amount_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidPaymentError, match="amount is missing"):
        parse_payment(body)


def test_a_boolean_is_not_taken_for_the_amount_one() -> None:
    with pytest.raises(InvalidPaymentError, match="a boolean"):
        parse_amount(True, BRL)


# Correlation ids.


@given(st.uuids(), st.sampled_from(["{}", "urn:uuid:{}"]), st.randoms(use_true_random=False))
def test_an_id_is_normalised_from_any_case(uuid: UUID, form: str, coin: Random) -> None:
    mixed = "".join(coin.choice((digit, digit.upper())) for digit in str(uuid))
    assert parse_correlation_id(form.format(mixed)) == str(uuid)


@pytest.mark.parametrize(
    ("spelling", "normalised"),
    [
        (ID, ID),
        (ID.upper(), ID),
        (f"urn:uuid:{ID}", ID),
        (f"urn:uuid:{ID.upper()}", ID),
        *(
            pytest.param(
                prefix + ID,
                ID,
            )
            for prefix in ("URN:UUID:", "urn:UUID:", "Urn:Uuid:")
        ),
        ("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000"),
        ("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    ],
)
def test_every_spelling_of_a_uuid_is_one_id(spelling: str, normalised: str) -> None:
    assert parse_payment(body_of("1", f'"{spelling}"')).correlation_id == normalised


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "abc",
        f"{{{ID}}}",
        ID.replace("-", ""),
        ID[:-1],
        ID + "0",
        f" {ID}",
        f"{ID} ",
        ID + "\\n",
        ID.replace("-", "_"),
        ID.replace("4", "g"),
        ID[1:] + "-",
        ID.replace("4", "\uff14"),
        ID.replace("4", "\u0664"),
        f"urn:uuid:urn:uuid:{ID}",
        f"uuid:{ID}",
        f"urn:uuid:{{{ID}}}",
        f"urn:uuid:{ID.replace('-', '')}",
    ],
)
def test_what_is_no_uuid_is_refused(spelling: str) -> None:
    with pytest.raises(InvalidPaymentError, match="correlationId must be a UUID"):
        parse_payment(body_of("1", f'"{spelling}"'))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1", "a number"),
        ("1.5", "a number"),
        ("true", "a boolean"),
        ("[]", "an array"),
        ("{}", "an object"),
    ],
)
def test_an_id_that_is_no_string_is_refused_by_its_kind(value: str, kind: str) -> None:
    with pytest.raises(InvalidPaymentError, match=f"^correlationId must be a string, not {kind}$"):
        parse_payment(body_of("1", value))


@pytest.mark.parametrize("body", [body_of("1", "null"), b'{"amount":1}', b"{}"])
def test_a_missing_id_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidPaymentError, match="correlationId is missing"):
        parse_payment(body)


# Bodies.

PAYMENT = f'{{"correlationId":"{ID}","amount":19.90}}'


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "it is empty"),
        (b" \r\n", "it is empty"),
        (gzip.compress(PAYMENT.encode(), mtime=0), r"it is compressed \(gzip\)"),
        (zlib.compress(PAYMENT.encode()), r"it is compressed \(zlib\)"),
        (b"\xef\xbb\xbf" + PAYMENT.encode(), r"a byte order mark \(BOM\)"),
        (PAYMENT.encode("utf-16"), "it is UTF-16 or UTF-32"),
        (PAYMENT.encode("utf-16-le"), "it is UTF-16 or UTF-32"),
        (PAYMENT.encode("utf-16-be"), "it is UTF-16 or UTF-32"),
        (PAYMENT.encode("utf-32"), "it is UTF-16 or UTF-32"),
        ('{"note":"\u00e9"}'.encode("latin-1"), r"it is not UTF-8 \(byte 10\)"),
        (f"correlationId={ID}&amount=19.90".encode(), "it is a form"),
        (PAYMENT.replace("19.90", "19,90").encode(), "a decimal point is needed"),
        (PAYMENT.replace('"', "'").encode(), "double quotes are needed, not single ones"),
        (PAYMENT.replace('"amount"', "amount").encode(), "needed, also around names"),
        (PAYMENT.replace("}", ",}").encode(), "trailing comma is not allowed"),
    ],
)
def test_a_body_that_is_not_json_is_named(body: bytes, cause: str) -> None:
    with pytest.raises(MalformedPaymentError, match=f"^the body is not valid JSON: .*{cause}"):
        parse_payment(body)


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({"correlation_id": ID, "amount": 1}, "correlationId is missing: it is spelt 'correlation"),
        ({"correlationId": ID, "Amount": 1}, "amount is missing: it is spelt 'Amount'"),
        ({"correlationId": ID, "amount": None}, "amount is missing: it is null"),
        ({"correlationId": ID, "sum": 1}, "amount is missing$"),
        ({"correlationId": f"{{{ID}}}", "amount": 1}, "four hyphens and nothing around it"),
        ({"correlationId": ID.replace("-", ""), "amount": 1}, "four hyphens and nothing around it"),
        ({"correlationId": "order-7", "amount": 1}, "must be a UUID, such as"),
        (PAYMENT, "not a string: it was made JSON twice"),
    ],
)
def test_a_common_mistake_is_told_by_its_cause(document: object, cause: str) -> None:
    with pytest.raises(InvalidPaymentError, match=cause):
        parse_payment(orjson.dumps(document))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_payment_or_told_why_not(body: bytes) -> None:
    with pytest.raises((InvalidPaymentError, MalformedPaymentError)):
        parse_payment(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b'{"amount":1',
        b'{"amount":1,}',
        b"{'amount':1}",
        b"{amount:1}",
        b'{"amount":01}',
        b'{"amount":1.}',
        b'{"amount":.5}',
        b'{"amount":+1}',
        b'{"amount":0x10}',
        b'{"amount":1_000}',
        b"{}{}",
        b"nul",
        b'\xef\xbb\xbf{"amount":1}',
        '{"amount":1}'.encode("utf-16"),
        b'{"note":"\xff"}',
        b'{"note":"\n"}',
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedPaymentError, match="the body is not valid JSON"):
        parse_payment(body)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[]", "an array"),
        (b'"payment"', "a string"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b"true", "a boolean"),
        (b"null", "null"),
    ],
)
def test_json_that_is_no_object_is_invalid(body: bytes, kind: str) -> None:
    with pytest.raises(InvalidPaymentError, match=f"^the body must be a JSON object, not {kind}$"):
        parse_payment(body)


TWICE = {
    "amount": f'{{"correlationId":"{ID}","amount":1,"amount":999}}',
    "the same amount": f'{{"correlationId":"{ID}","amount":1,"amount":1}}',
    "id": f'{{"correlationId":"{ID}","correlationId":"{ID}","amount":1}}',
    "escaped name": f'{{"correlationId":"{ID}","amount":1,"am\\u006funt":999}}',
    "both names escaped": f'{{"correlationId":"{ID}","\\u0061mount":1,"am\\u006funt":999}}',
    "null first": f'{{"correlationId":"{ID}","amount":null,"amount":1}}',
    "null last": f'{{"correlationId":"{ID}","amount":1,"amount":null}}',
    "with white space": f'{{ "correlationId": "{ID}", "amount" : 1, "amount" : 2 }}',
    "with many digits": f'{{"correlationId":"{ID}","amount":1,"amount":1.000000000000000000000}}',
    "id that is no string": '{"correlationId":1,"correlationId":2,"amount":1}',
    "id that is no string, amount": '{"correlationId":1,"amount":2,"amount":1}',
}


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE)
def test_a_field_that_is_given_twice_is_refused(body: str) -> None:
    says = "(amount|correlationId) must be (given once, not 2 times|a string, not a number)"
    with pytest.raises(InvalidPaymentError, match=says):
        parse_payment(body.encode())


def test_a_field_that_is_given_three_times_is_told() -> None:
    body = f'{{"amount":1,"amount":2,"amount":3,"correlationId":"{ID}"}}'.encode()
    with pytest.raises(InvalidPaymentError, match=r"^amount must be given once, not 3 times$"):
        parse_payment(body)


@pytest.mark.parametrize(
    "more",
    [
        '"note":1,"note":2',
        '"note":"amount","kind":"correlationId"',
        '"inner":{"amount":1,"amount":2}',
        '"items":[{"amount":1},{"amount":2}]',
        '"note":"\\"amount\\":5"',
        '"Amount":2',
    ],
)
def test_unknown_members_may_look_like_those_that_count_or_come_twice(more: str) -> None:
    body = f'{{"correlationId":"{ID}","amount":19.90,{more}}}'.encode()
    assert parse_payment(body, LENIENT) == Payment(ID, 1990)


_NAMES = ["amount", "am\\u006funt", "correlationId", "c\\u006frrelationId", "note"]
_VALUES = ["1", "2.50", "null", f'"{ID}"', '"amount"', '{"amount":1}', "19.900000000000000000"]


@given(st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES)), max_size=5))
def test_an_accepted_body_has_each_known_field_once(members: list[tuple[str, str]]) -> None:
    body = "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}"
    if parse_or_refuse(body.encode()) is not None:
        names = [json.loads(f'"{name}"') for name, _ in members]
        assert (names.count("amount"), names.count("correlationId")) == (1, 1)


def test_unknown_members_are_ignored_if_they_may_be() -> None:
    body = f'{{"note":[1,{{}}],"correlationId":"{ID}","amount":19.90,"requestedAt":7}}'.encode()
    assert parse_payment(body, LENIENT) == Payment(ID, 1990)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("note", r"^'note' is unknown: the members of a payment are correlationId, amount,"),
        ("", r"^'' is unknown"),
        ("Metadata", r"^'Metadata' is unknown; metadata is spelt so$"),
        ("curr_ency", r"^'curr_ency' is unknown; currency is spelt so$"),
        ("x" * 100, r"^'x{64}' is unknown"),
    ],
)
def test_an_unknown_member_is_refused_by_its_name(name: str, says: str) -> None:
    body = f'{{"correlationId":"{ID}","amount":19.90,"{name}":null}}'.encode()
    with pytest.raises(InvalidPaymentError, match=says):
        parse_payment(body)


# Currency.


def test_a_payment_may_name_the_deployments_currency() -> None:
    assert parse_payment(body_with('"currency":"BRL"')) == Payment(ID, 1990)
    rules = PaymentRules(Currency("JPY"))
    body = f'{{"correlationId":"{ID}","amount":1990,"currency":"JPY"}}'.encode()
    assert parse_payment(body, rules) == Payment(ID, 1990)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"USD"', "currency must be BRL, the only one here, not 'USD'"),
        ('"brl"', "currency must be BRL, the only one here, not 'brl'"),
        ('""', "currency must be BRL, the only one here, not ''"),
        ("null", "currency must be a string, not null"),
        ("986", "currency must be a string, not a number"),
        ('"BRL","currency":"BRL"', "currency must be given once, not 2 times"),
        ('"BRL","c\\u0075rrency":"USD"', "currency must be given once, not 2 times"),
    ],
)
@pytest.mark.parametrize("ignores_unknown", [True, False])
def test_another_currency_is_refused(value: str, says: str, ignores_unknown: bool) -> None:
    with pytest.raises(InvalidPaymentError, match=f"^{says}$"):
        parse_payment(body_with(f'"currency":{value}'), PaymentRules(BRL, ignores_unknown))


@given(CENTS, st.sampled_from(["BRL", "JPY", "BHD", "CLF"]))
def test_an_amount_has_the_decimals_of_its_currency(cents: int, code: str) -> None:
    currency = Currency(code)
    rules, amount = PaymentRules(currency), currency.format_cents(cents)
    assert parse_payment(body_of(amount), rules).cents == cents
    beyond = f"{amount}1" if currency.decimals else f"{amount}.1"
    few = f"at most {currency.decimals}" if currency.decimals else "no"
    with pytest.raises(InvalidPaymentError, match=f"^amount must (have {few} decimals|be at most)"):
        parse_payment(body_of(beyond), rules)


@pytest.mark.parametrize(
    ("code", "most"),
    [("JPY", "1000000000000"), ("BHD", "1000000000.000"), ("CLF", "100000000.0000")],
)
def test_the_largest_amount_of_a_currency_is_told(code: str, most: str) -> None:
    rules = PaymentRules(Currency(code))
    assert parse_payment(body_of(most), rules).cents == MAX_CENTS
    with pytest.raises(InvalidPaymentError, match=f"^amount must be at most {most}$"):
        parse_payment(body_of(str(int(float(most)) + 1)), rules)


# Metadata.


def metadata_of(text: str) -> bytes | None:
    return parse_payment(body_with(f'"metadata":{text}')).metadata


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("{}", "{}"),
        (
            ' { "b" : [ 1 , { "d":null, "c":true } ], "a" : "x y" } ',
            '{"a":"x y","b":[1,{"c":true,"d":null}]}',
        ),
        (
            '{"n":1.10,"big":123456789012345678901234567890,"zero":-0}',
            '{"big":123456789012345678901234567890,"n":1.10,"zero":-0}',
        ),
        (
            '{"n":0.1000000000000000055511151231257827,"tiny":1e-400}',
            '{"n":0.1000000000000000055511151231257827,"tiny":1E-400}',
        ),
        ('{"t":"caf\\u00e9 \\"\\/\\n","\\u0061":1}', '{"a":1,"t":"café \\"/\\n"}'),
        (
            '{"amount":7,"correlationId":"x","metadata":{"amount":1}}',
            '{"amount":7,"correlationId":"x","metadata":{"amount":1}}',
        ),
    ],
    ids=[
        "empty",
        "order and spaces",
        "numbers",
        "more digits than a double",
        "escapes",
        "our names",
    ],
)
def test_metadata_is_kept_in_one_form(text: str, canonical: str) -> None:
    assert metadata_of(text) == canonical.encode()


METADATA = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**30), 10**30)
        | st.decimals(-(10**20), 10**20, allow_nan=False, allow_infinity=False, places=9)
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


def written(value: object, rng: Random) -> str:
    """JSON with the members of each object in any order, and any spaces."""
    space = " " * rng.randint(0, 2)
    if isinstance(value, dict):
        members = [
            f"{json.dumps(name, ensure_ascii=rng.random() < 0.5)}:{space}{written(each, rng)}"
            for name, each in value.items()
        ]
        rng.shuffle(members)
        return f"{{{space}{f',{space}'.join(members)}}}"
    if isinstance(value, list):
        return f"[{space}{','.join(written(each, rng) for each in value)}]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


@given(METADATA, st.randoms(use_true_random=False))
def test_metadata_survives_exactly_and_however_it_is_written(
    metadata: dict[str, object], rng: Random
) -> None:
    kept = metadata_of(written(metadata, rng))
    assert kept is not None
    assert kept == metadata_of(written(metadata, rng))
    assert json.loads(kept, parse_float=Decimal) == metadata
    assert kept == metadata_of(kept.decode())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("null", "metadata must be an object, not null"),
        ("[]", "metadata must be an object, not an array"),
        ('"{}"', "metadata must be an object, not a string"),
        ("1.50", "metadata must be an object, not a number"),
        ("true", "metadata must be an object, not a boolean"),
        ('{},"metadata":{}', "metadata must be given once, not 2 times"),
        ('{},"m\\u0065tadata":{}', "metadata must be given once, not 2 times"),
        ('{"a":1,"b":{"c":1,"c":1}}', "c in metadata must be given once, not 2 times"),
        ('[{"a":1}]', "metadata must be an object, not an array"),
        ('{"a":1e400}', "amount must be a finite number, and so must each in metadata"),
        ('{"a":NaN}', "amount must be a finite number, and so must each in metadata"),
        (
            '{"a":"' + "x" * 1017 + '"}',
            "metadata must be at most 1024 bytes as JSON without spaces, not 1025",
        ),
        (
            '{"a":"' + "é" * 509 + '"}',
            "metadata must be at most 1024 bytes as JSON without spaces, not 1026",
        ),
        ('{"a":' * 17 + "1" + "}" * 17, "metadata must have at most 16 levels"),
        ('{"a":' + "[" * 16 + "]" * 16 + "}", "metadata must have at most 16 levels"),
        (
            '{"a":' + "[" * 1000 + "]" * 1000 + "}",
            "(metadata must have at most 16 levels|.*depth.*)",
        ),
    ],
)
def test_other_metadata_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidPaymentError, match=f"^{says}$"):
        metadata_of(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"' + "x" * 1016 + '"}',
        '{"a":"' + "\\u00e9" * 300 + '"}',
        '{"a":' * 16 + "1" + "}" * 16,
        '{"a":' + "[" * 15 + "]" * 15 + "}",
    ],
    ids=["1024 bytes", "shorter without escapes", "16 objects", "15 arrays in an object"],
)
def test_metadata_may_be_as_large_and_as_deep_as_that(text: str) -> None:
    assert metadata_of(text) is not None


def test_a_payments_text_does_not_show_its_metadata() -> None:
    assert "secret" not in repr(parse_payment(body_with('"metadata":{"a":"secret"}')))


def test_white_space_around_and_inside_is_no_matter() -> None:
    body = f' \r\n{{ "correlationId" :\t"{ID}" ,\n "amount" : 19.90 }}\n'.encode()
    assert parse_payment(body) == Payment(ID, 1990)


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_the_two_errors(body: bytes) -> None:
    assert parse_or_refuse(body) is None


@given(st.integers(0, 80), st.integers(0, 4), st.binary(max_size=4))
def test_a_damaged_payment_is_refused_or_still_a_payment(
    at: int, removed: int, inserted: bytes
) -> None:
    whole = body_of("19.90")
    payment = parse_or_refuse(whole[:at] + inserted + whole[at + removed :])
    assert payment is None or (0 < payment.cents <= MAX_CENTS and str(UUID(payment.correlation_id)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(JSON, JSON)
def test_no_json_values_raise_anything_but_the_two_errors(
    correlation_id: object, amount: object
) -> None:
    body = orjson.dumps({"correlationId": correlation_id, "amount": amount})
    assert parse_or_refuse(body) is None

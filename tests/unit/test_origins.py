"""Which requests are refused as another site's, by their headers alone."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from payswitch.origins import foreign_host, foreign_post, parse_host_names

NAMES = parse_host_names("pay.example, Payments.Example.")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"host": b"pay.example"},
        {b"sec-fetch-site": b"same-origin"},
        {b"sec-fetch-site": b"none"},
        {b"host": b"localhost:9999", b"origin": b"http://localhost:9999"},
        {b"host": b"Pay.Example", b"origin": b"https://pay.example"},
        {b"host": b"pay.example:443", b"origin": b"https://pay.example"},
        {b"host": b"[::1]:9999", b"origin": b"http://[::1]:9999"},
        {
            b"host": b"localhost:9999",
            b"origin": b"http://localhost:9999",
            b"sec-fetch-site": b"same-origin",
        },
    ],
)
def test_a_post_of_a_program_or_of_the_same_origin_passes(headers: dict[bytes, bytes]) -> None:
    assert foreign_post(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {b"sec-fetch-site": b"cross-site"},
        {b"sec-fetch-site": b"same-site"},
        {b"sec-fetch-site": b"whatever"},
        {b"sec-fetch-site": b""},
        {b"host": b"localhost:9999", b"origin": b"http://localhost:3000"},
        {b"host": b"localhost:9999", b"origin": b"http://localhost"},
        {b"host": b"localhost:9999", b"origin": b"http://127.0.0.1:9999"},
        {b"host": b"pay.example", b"origin": b"https://pay.example.evil.example"},
        {b"host": b"pay.example", b"origin": b"https://evil.example/pay.example"},
        {b"host": b"pay.example", b"origin": b"null"},
        {b"host": b"pay.example", b"origin": b""},
        {b"host": b"pay.example", b"origin": b"chrome-extension://pay.example"},
        {b"origin": b"http://"},
        {
            b"host": b"localhost:9999",
            b"origin": b"http://evil.example",
            b"sec-fetch-site": b"same-origin",
        },
        {
            b"host": b"localhost:9999",
            b"origin": b"http://localhost:9999",
            b"sec-fetch-site": b"cross-site",
        },
    ],
)
def test_a_post_for_another_site_is_forbidden(headers: dict[bytes, bytes]) -> None:
    refused = foreign_post(headers)
    assert refused is not None
    assert refused.status is HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "host",
    [
        *(
            b"pay.example",
            b"pay.example:9999",
            b"PAY.example",
            b"pay.example.",
            b"payments.example",
        ),
        *(b"localhost", b"localhost:9999", b"127.0.0.1:9999", b"10.1.2.3", b"[::1]:9999", b"[::1]"),
        b"",
    ],
)
def test_a_request_for_a_listed_host_or_an_address_passes(host: bytes) -> None:
    assert foreign_host({b"host": host}, NAMES) is None


def test_a_health_check_without_a_host_passes() -> None:
    assert foreign_host({}, NAMES) is None


@pytest.mark.parametrize(
    "host",
    [
        *(b"evil.example", b"evil.example:9999", b"a.pay.example", b"pay.example.evil.example"),
        *(b"127.0.0.1.evil.example", b"localhost.evil.example", b"pay.example@evil.example"),
        *(b"1.2.3.4.5", b"\xff"),
    ],
)
def test_a_request_for_another_host_is_misdirected(host: bytes) -> None:
    refused = foreign_host({b"host": host}, NAMES)
    assert refused is not None
    assert refused.status is HTTPStatus.MISDIRECTED_REQUEST


@pytest.mark.parametrize("text", [",", "a,,b", "a b", "http://a", "a:80", "*.a", "a/b", "é", "-a"])
def test_what_is_no_list_of_host_names_is_not_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_host_names(text)

from __future__ import annotations

from base64 import b64decode

import pytest

from payswitch.processor_url import parse_processor_url


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "https://pay.example:8443/base",
        "http://[::1]:8001",
        "http://payment_processor-1:8080",
        "http://b\u00fccher.example",
        "http://h/a;b=c",
        "http://h.",
    ],
)
def test_a_url_without_credentials_is_its_own_base(url: str) -> None:
    assert parse_processor_url(url) == (url, None)


def test_a_base_ends_without_a_slash() -> None:
    assert parse_processor_url("http://h/base//").base == "http://h/base"


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        ("user:pw", "user:pw"),
        ("user:", "user:"),
        ("user", "user:"),
        (":pw", ":pw"),
        ("user:p:w", "user:p:w"),
        ("user:p@w", "user:p@w"),
        ("us%40er:p%2Fw%3A%25", "us@er:p/w:%"),
        ("us%C3%A9r:p\u00e4ss", "us\u00e9r:p\u00e4ss"),
    ],
)
def test_credentials_are_basic_ones_in_utf_8(credentials: str, sent: str) -> None:
    place = parse_processor_url(f"http://{credentials}@h:1/base")
    assert place.base == "http://h:1/base"
    scheme, _, encoded = place.headers["authorization"].partition(" ")
    assert (scheme, b64decode(encoded).decode()) == ("Basic", sent)


@pytest.mark.parametrize("url", ["http://h", "http://@h", "http://:@h"])
def test_without_user_and_password_nothing_is_sent(url: str) -> None:
    assert parse_processor_url(url) == ("http://h", None)


@pytest.mark.parametrize(
    "url",
    [
        *("", "h", "ftp://h", "http://", "http://:1", "//h"),
        *("http://h?", "http://h?a=b", "http://h#", "http://h#a", "http://h/a b", "http://h\\a"),
        *("http://h:0", "http://h:65536", "http://h:-1", "http://h:x"),
        *(
            "http://[::1",
            "http://[::g]",
            "http://[fe80::1%25eth0]",
            "http://%41",
            "http://\u2178.x",
        ),
        *("http://us%3Aer:pw@h", "http://user:p%ff@h", "http://user:p%0Aw@h"),
    ],
)
def test_what_no_call_could_honour_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, a setting's message is another
        parse_processor_url(url)

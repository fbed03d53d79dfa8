from __future__ import annotations

import time
from email.utils import formatdate

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.processors.retry_after import asked_pause_ms

DATE = "Sun, 22 Nov 2026 16:05:00 GMT"


def answer(retry_after: str | None, *, status: int = 429, date: str = DATE) -> httpx.Response:
    headers = {"date": date}
    if retry_after is not None:
        headers["retry-after"] = retry_after
    return httpx.Response(status, headers=headers)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "retry_after",
    [
        "7",
        "Sun, 22 Nov 2026 16:05:07 GMT",
        "Sunday, 22-Nov-26 16:05:07 GMT",
        "Sun Nov 22 16:05:07 2026",
    ],
    ids=["seconds", "IMF-fixdate", "RFC 850", "asctime"],
)
def test_every_form_of_retry_after_is_read(retry_after: str, status: int) -> None:
    assert asked_pause_ms(answer(retry_after, status=status)) == 7000


@pytest.mark.parametrize("status", [200, 202, 301, 422, 500, 502])
def test_retry_after_is_no_matter_beside_429_and_503(status: int) -> None:
    assert asked_pause_ms(answer("7", status=status)) is None


@pytest.mark.parametrize(
    ("seconds", "ms"), [("0", 0), ("3600", 3_600_000), ("999999999", 999_999_999_000)]
)
def test_seconds_are_taken_as_milliseconds(seconds: str, ms: int) -> None:
    assert asked_pause_ms(answer(seconds)) == ms


@pytest.mark.parametrize(
    "retry_after",
    [
        None,
        *("", "-1", "+5", "1.5", "5s", "1e3", "9" * 10, "\u0665", "soon", "1 minute"),
        "Sun, 32 Nov 2026 16:05:07 GMT",
        "Sun, 22 Nov 2026 25:05:07 GMT",
        "Sun, 22 Nov 99999 16:05:07 GMT",
    ],
)
def test_what_is_neither_seconds_nor_a_date_counts_as_none(retry_after: str | None) -> None:
    if retry_after is not None and not retry_after.isascii():
        response = httpx.Response(429, headers={b"retry-after": retry_after.encode()})
    else:
        response = answer(retry_after)
    assert asked_pause_ms(response) is None


def test_an_instant_that_is_over_asks_for_no_pause() -> None:
    assert asked_pause_ms(answer("Sun, 22 Nov 2026 16:04:00 GMT")) == 0


@pytest.mark.parametrize("date", ["", "nonsense"])
def test_without_a_date_an_instant_counts_from_this_machines_clock(date: str) -> None:
    ms = asked_pause_ms(answer(formatdate(time.time() + 60, usegmt=True), date=date))
    assert ms is not None
    assert 50_000 < ms <= 60_000


@given(
    st.text(alphabet=st.characters(codec="latin-1")), st.text(alphabet="SunNov 0123456789,:-+GMT")
)
def test_no_header_makes_it_raise(retry_after: str, date: str) -> None:
    for value in (retry_after, date):
        headers = {b"retry-after": value.encode("latin-1"), b"date": date.encode()}
        ms = asked_pause_ms(httpx.Response(503, headers=headers))
        assert ms is None or ms >= 0

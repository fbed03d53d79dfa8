"""A processor's summary: its fields, and answers that are no summary."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.http.transport import Transport
from payswitch.instants import EARLIEST_MS, LATEST_MS
from payswitch.money import BRL, Total
from payswitch.processors.connector import ConnectorSettings, NotUnderstoodError, Response
from payswitch.processors.processor import CannotAskError, Processor
from payswitch.processors.rinha import RinhaConnector
from tests.support import Reply, ScriptedProcessor

RINHA = RinhaConnector(ConnectorSettings("default", token="123"))


def parse_total(body: bytes) -> Total | None:
    """The total in a summary; None if it is none."""
    try:
        return RINHA.read_total(Response(200, body))
    except NotUnderstoodError:
        return None


@given(st.integers(0, 10**12), st.integers(0, 10**24))
def test_an_amount_is_read_to_the_cent(count: int, cents: int) -> None:
    body = f'{{"totalRequests":{count},"totalAmount":{BRL.format_cents(cents)},"totalFee":0.1}}'
    assert parse_total(body.encode()) == Total(count, cents)


@pytest.mark.parametrize("amount", ["19.9", "19.900", "1.99e1", "19.90000"])
def test_any_spelling_of_a_number_is_read(amount: str) -> None:
    body = f'{{"totalRequests":1,"totalAmount":{amount}}}'
    assert parse_total(body.encode()) == Total(1, 1990)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        "[]",
        "null",
        "{}",
        '{"totalRequests":1}',
        '{"totalAmount":1}',
        '{"totalRequests":"1","totalAmount":1}',
        '{"totalRequests":true,"totalAmount":1}',
        '{"totalRequests":-1,"totalAmount":1}',
        '{"totalRequests":1.0,"totalAmount":1}',
        '{"totalRequests":1,"totalAmount":0.001}',
        '{"totalRequests":1,"totalAmount":null}',
        '{"totalRequests":1,"totalAmount":NaN}',
        '{"totalRequests":1,"totalAmount":[]}',
        '{"totalRequests":1,"totalAmount":1e400000}',
        '{"totalRequests":1,"totalAmount":1e999990}',
        '{"totalRequests":1,"totalAmount":-1e999990}',
        '{"totalRequests":1,"totalAmount":1e-999990}',
        '{"totalRequests":1,"totalAmount":1e99999999999999999999}',
        f'{{"totalRequests":1,"totalAmount":1{"0" * 1000}}}',
        f'{{"totalRequests":1,"totalAmount":1.{"0" * 100_000}}}',
        f'{{"totalRequests":1{"0" * 20},"totalAmount":1}}',
    ],
)
def test_any_other_answer_is_no_summary(body: str) -> None:
    assert parse_total(body.encode()) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_judged(body: bytes) -> None:
    parse_total(body)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(401), "refuses its token"),
        (Reply(500), "status 500 for its summary"),
        (Reply(302, headers=(("location", "http://elsewhere/"),)), "status 302 for its summary"),
        (Reply(200, b"{}"), "the answer is not a summary"),
        (Reply(200, b'{"totalRequests":1,"totalAmount":1e999990}'), "the answer is not a summary"),
        (Reply(hang_up=True), "the connection ended without an answer|connection reset by peer"),
        (Reply(silent=True), r"no complete answer within 0\.2 s"),
    ],
    ids=["401", "500", "302", "nonsense", "absurd", "reset", "silence"],
)
async def test_a_processor_without_a_summary_can_not_be_asked(reply: Reply, message: str) -> None:
    transport = Transport(max_connections_per_host=1)
    async with ScriptedProcessor(finds=[reply]).running() as processor:
        books = books_at(processor.url, transport, 200 if reply.silent else 10_000)
        with pytest.raises(CannotAskError, match=message):
            await books.total(EARLIEST_MS, LATEST_MS)
    await transport.aclose()


def books_at(url: str, transport: httpx.AsyncBaseTransport, limit_ms: int = 1000) -> Processor:
    return Processor(
        "default", url, RINHA, transport, pay_limit_ms=limit_ms, find_limit_ms=limit_ms
    )


async def test_the_urls_credentials_go_with_a_question_for_the_books() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=b'{"totalRequests":0,"totalAmount":0}')

    await books_at("http://user:pw@h", httpx.MockTransport(answer)).total(0, 1)
    assert asked[0].headers["authorization"] == "Basic dXNlcjpwdw=="
    assert asked[0].headers["x-rinha-token"] == "123"


async def test_no_credentials_are_told_of_a_processor_that_can_not_be_asked() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    books = books_at("http://user:pw@h", httpx.MockTransport(refuse))
    with pytest.raises(CannotAskError) as told:
        await books.fee()
    assert str(told.value) == (
        "default at http://h (PAYMENT_PROCESSOR_URL_DEFAULT) can't be asked: connection refused"
    )

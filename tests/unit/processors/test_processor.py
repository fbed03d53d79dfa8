"""The processor client: the meaning of every answer, and the exact requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.http.transport import NotSent
from payswitch.processors.connector import ConnectorSettings, Instruction, Response
from payswitch.processors.outcomes import (
    Ended,
    FindOutcome,
    Found,
    HealthReport,
    Missing,
    NotPaid,
    NotSentInTime,
    Outcome,
    Paid,
    PayOutcome,
    Refused,
    Unclear,
    Unknown,
    classify_error,
)
from payswitch.processors.processor import Processor
from payswitch.processors.rinha import RinhaConnector

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
AT_MS = 1_795_363_500_123
URL = "http://processor:8001"
DEEP = b"[" * 1000 + b"]" * 1000
"""As deep as JSON is read at all; Python's `repr` is not."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
BODIES = st.binary(max_size=100) | JSON.map(orjson.dumps)
STATUSES = st.integers(100, 599)
RINHA = RinhaConnector(ConnectorSettings("default"))
PAYMENT = Instruction(ID, 1990, AT_MS)


def classify(status: int, retry_after_ms: int | None, content: bytes) -> PayOutcome:
    return RINHA.read_payment(PAYMENT, Response(status, content, None, retry_after_ms))


def classify_finding(
    status: int, content: bytes, correlation_id: str = ID, retry_after_ms: int | None = None
) -> FindOutcome:
    asked = Instruction(correlation_id, 1990, AT_MS)
    return RINHA.read_finding(asked, Response(status, content, None, retry_after_ms))


def classify_health(status: int, content: bytes) -> HealthReport | None:
    return RINHA.read_health(Response(status, content))


# What a complete answer to a payment means.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"message":"ok"}', b"null", b'"ok"', b" 1 "])
def test_success_means_paid(status: int, content: bytes) -> None:
    assert classify(status, None, content) == Paid()


@pytest.mark.parametrize("status", [200, 201, 299])
@pytest.mark.parametrize("content", [b"<html>", b"ok", b"{", b" ", b"\xff", b"NaN", b"\x00"])
def test_success_with_nonsense_means_unknown(status: int, content: bytes) -> None:
    assert classify(status, None, content) == Unknown(
        f"status {status} with a body that is not JSON"
    )


@pytest.mark.parametrize(
    "status",
    [
        *(400, 402, 406, 407, 409, 410, 411, 413, 415, 418, 421, 422, 423, 424, 426, 428, 431),
        451,
    ],
)
@pytest.mark.parametrize("content", [b"", b'{"message":"exists"}', b"<html>"])
def test_a_4xx_that_is_not_about_us_means_refused(status: int, content: bytes) -> None:
    assert classify(status, None, content) == Refused(status)


@pytest.mark.parametrize("ms", [None, 0, 5000])
def test_429_means_ended_and_how_long_to_wait_and_nothing_against_the_processor(
    ms: int | None,
) -> None:
    assert classify(429, ms, b"") == Ended(429, ms)


@pytest.mark.parametrize("ms", [None, 5000])
@pytest.mark.parametrize(
    "status", [408, 499, 501, 502, 503, 504, 505, 507, 508, 511, 520, 524, 599, 999]
)
def test_an_answer_that_may_be_a_gateways_means_unknown_and_how_long_to_wait(
    status: int, ms: int | None
) -> None:
    assert classify(status, ms, b"anything") == Unknown(f"status {status}", ms)


@pytest.mark.parametrize(
    "status",
    [
        *(100, 101, 103),
        *(300, 301, 302, 303, 304, 307, 308, 399),
        *(401, 403, 404, 405, 425, 500),
    ],
)
def test_any_other_complete_answer_means_ended_and_speaks_against_the_processor(
    status: int,
) -> None:
    assert classify(status, 5000, b"anything") == Ended(status, 5000)


def test_a_question_that_is_answered_503_is_to_be_asked_again_after_its_pause() -> None:
    assert classify_finding(503, b"", ID, 5000) == Unclear("status 503", 5000)


@given(STATUSES, st.none() | st.integers(min_value=0), BODIES)
def test_no_answer_makes_classify_raise(
    status: int, retry_after_ms: int | None, content: bytes
) -> None:
    assert isinstance(classify(status, retry_after_ms, content), Outcome)


@given(STATUSES, BODIES)
def test_only_success_means_paid(status: int, content: bytes) -> None:
    assert 200 <= status < 300 or classify(status, None, content) != Paid()


@given(STATUSES, BODIES)
def test_no_answer_closes_a_try(status: int, content: bytes) -> None:
    assert not isinstance(classify(status, None, content), NotPaid | NotSentInTime)


@given(st.sampled_from([408]) | st.integers(501, 599), BODIES)
def test_what_may_be_recorded_after_its_answer_is_never_taken_as_ended(
    status: int, content: bytes
) -> None:
    assert isinstance(classify(status, None, content), Unknown)


# What the lack of an answer means.


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        # Certain: not a byte was written.
        (NotSent("refused"), NotSentInTime()),
        (httpx.ConnectError("refused"), NotPaid("refused", healthy=False)),
        (httpx.ConnectTimeout("slow"), NotPaid("slow", healthy=False)),
        (httpx.UnsupportedProtocol("ftp"), NotPaid("ftp", healthy=False)),
        (httpx.LocalProtocolError("header"), NotPaid("header", healthy=False)),
        (httpx.PoolTimeout("full"), NotPaid("full", healthy=True)),
        # Bytes may have left.
        (httpx.ReadTimeout("slow"), Unknown("slow")),
        (httpx.WriteTimeout("slow"), Unknown("slow")),
        (httpx.ReadError("reset"), Unknown("reset")),
        (httpx.WriteError("reset"), Unknown("reset")),
        (httpx.CloseError("reset"), Unknown("reset")),
        (httpx.RemoteProtocolError("nonsense"), Unknown("nonsense")),
        (httpx.ProxyError("nonsense"), Unknown("nonsense")),
        (httpx.TransportError("other"), Unknown("other")),
        (httpx.NetworkError("other"), Unknown("other")),
        (httpx.TimeoutException("other"), Unknown("other")),
        (httpx.ProtocolError("other"), Unknown("other")),
        (httpx.DecodingError("gzip"), Unknown("gzip")),
        (httpx.TooManyRedirects("loop"), Unknown("loop")),
        (httpx.RequestError("other"), Unknown("other")),
    ],
)
def test_an_error_means_not_paid_only_if_nothing_was_sent(
    error: httpx.RequestError, outcome: Outcome
) -> None:
    assert classify_error(error) == outcome


# What the answer to a question means.


def payment_json(**changes: object) -> bytes:
    """The processor's answer about a payment; None removes a field."""
    document = {"correlationId": ID, "amount": 19.9, "requestedAt": "2026-11-22T16:05:00.123"}
    return orjson.dumps({k: v for k, v in (document | changes).items() if v is not None})


@pytest.mark.parametrize(
    "content",
    [
        payment_json(),
        payment_json(correlationId=ID.upper()),
        payment_json(requestedAt="2026-11-22T16:05:00.123Z"),
        payment_json(requestedAt="2026-11-22T13:05:00.123-03:00"),
        payment_json(requestedAt="2026-11-22T16:05:00.1230000"),
        payment_json(note="other fields"),
        f'{{"correlationId":"{ID}","amount":1990e-2,'
        '"requestedAt":"2026-11-22T16:05:00.123"}'.encode(),
    ],
)
def test_a_payment_that_the_processor_has_is_found(content: bytes) -> None:
    assert classify_finding(200, content, ID) == Found(1990, AT_MS)


@pytest.mark.parametrize(
    "amount",
    [
        "19.90",
        "19.9",
        "19.900000",
        "1.99e1",
        19.900000001,
        19.899999999999999,
        19.9000009,
        19.8999991,
    ],
)
def test_an_amount_as_text_or_with_traces_of_a_binary_fraction_is_understood(
    amount: float | str,
) -> None:
    assert classify_finding(200, payment_json(amount=amount), ID) == Found(1990, AT_MS)


@pytest.mark.parametrize(
    ("amount", "cents"),
    [(19.9, 1990), (7, 700), (0.29, 29), (1e10, 10**12), (9999999999.99, 10**12 - 1), (-1, -100)],
)
def test_the_amount_that_the_processor_has_is_taken_exactly(amount: float, cents: int) -> None:
    assert classify_finding(200, payment_json(amount=amount), ID) == Found(cents, AT_MS)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-11-22T16:05:00.12", AT_MS - 3),
        ("2026-11-22T16:05:00", AT_MS - 123),
        ("2026-11-22T16:05:00.1239999", AT_MS),
    ],
)
def test_the_instant_that_the_processor_has_is_utc_in_whole_milliseconds(
    text: str, ms: int
) -> None:
    assert classify_finding(200, payment_json(requestedAt=text), ID) == Found(1990, ms)


@pytest.mark.parametrize("content", [b"", b"not found", b"{}", payment_json()])
def test_404_means_missing(content: bytes) -> None:
    assert classify_finding(404, content, ID) == Missing()


@given(STATUSES.filter(lambda status: status not in (200, 404)))
def test_an_answer_that_is_neither_200_nor_404_tells_nothing(status: int) -> None:
    assert classify_finding(status, payment_json(), ID) == Unclear(f"status {status}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ok",
        b"<html>",
        b"\xff",
        b"null",
        b"1",
        b'"payment"',
        b"[]",
        b"{}",
        b'["amount"]',
        payment_json(amount=None),
        payment_json(requestedAt=None),
        payment_json(correlationId=None),
        payment_json(requestedAt=AT_MS),
        payment_json(requestedAt=["2026-11-22T16:05:00"]),
        payment_json(requestedAt=""),
        payment_json(requestedAt="2026-11-22"),
        payment_json(requestedAt="yesterday"),
        payment_json(requestedAt=orjson.Fragment(DEEP)),
    ],
)
def test_a_200_that_is_no_payment_tells_nothing(content: bytes) -> None:
    assert classify_finding(200, content, ID) == Unclear("a body that is no payment")


@pytest.mark.parametrize(
    "changes",
    [
        {"correlationId": "00000000-0000-0000-0000-000000000001"},
        {"correlationId": ID[:-1]},
        {"correlationId": ""},
        {"correlationId": 7},
        {"correlationId": [ID]},
        {"amount": 19.905},
        {"amount": 1e-9},
        {"amount": "19,90"},
        {"amount": " 19.90"},
        {"amount": "1_9.90"},
        {"amount": "NaN"},
        {"amount": ""},
        {"amount": 19.90001},
        {"amount": True},
        {"amount": [19.9]},
        {"amount": {"value": 19.9}},
        {"amount": orjson.Fragment(DEEP)},
        {"correlationId": orjson.Fragment(DEEP)},
    ],
)
def test_a_200_that_is_another_payment_tells_nothing(changes: dict[str, object]) -> None:
    assert classify_finding(200, payment_json(**changes), ID) == Unclear(
        "a body that is another payment"
    )


@given(STATUSES, BODIES)
def test_no_answer_makes_classify_finding_raise(status: int, content: bytes) -> None:
    assert isinstance(classify_finding(status, content, ID), FindOutcome)


@given(JSON, JSON, JSON | st.datetimes().map(str) | st.text(alphabet="0123456789-+:.TZ"))
def test_no_fields_make_classify_finding_raise(
    correlation_id: object, amount: object, requested_at: object
) -> None:
    content = payment_json(correlationId=correlation_id, amount=amount, requestedAt=requested_at)
    assert isinstance(classify_finding(200, content, ID), FindOutcome)


# What an answer about health means.


@pytest.mark.parametrize(
    ("content", "report"),
    [
        (b'{"failing":false,"minResponseTime":100}', HealthReport(False, 100)),
        (b'{"failing":true,"minResponseTime":0}', HealthReport(True, 0)),
        (b'{"minResponseTime":7,"failing":false,"more":[]}', HealthReport(False, 7)),
    ],
)
def test_a_report_is_read(content: bytes, report: HealthReport) -> None:
    assert classify_health(200, content) == report


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ok",
        b"\xff",
        b"null",
        b"1",
        b"[]",
        b"{}",
        b'[{"failing":false,"minResponseTime":100}]',
        b'{"failing":false}',
        b'{"minResponseTime":100}',
        b'{"failing":null,"minResponseTime":100}',
        b'{"failing":"false","minResponseTime":100}',
        b'{"failing":0,"minResponseTime":100}',
        b'{"failing":false,"minResponseTime":-1}',
        b'{"failing":false,"minResponseTime":"100"}',
        b'{"failing":false,"minResponseTime":1.5}',
        b'{"failing":false,"minResponseTime":true}',
        b'{"failing":false,"minResponseTime":null}',
    ],
)
def test_an_answer_that_is_no_report_means_unknown_health(content: bytes) -> None:
    assert classify_health(200, content) is None


@pytest.mark.parametrize("status", [201, 204, 302, 400, 404, 429, 500, 503])
def test_a_report_with_another_status_means_unknown_health(status: int) -> None:
    assert classify_health(status, b'{"failing":false,"minResponseTime":100}') is None


@given(STATUSES, BODIES)
def test_no_answer_makes_classify_health_raise(status: int, content: bytes) -> None:
    assert isinstance(classify_health(status, content), HealthReport | None)


# What is sent.

Answer = Callable[[httpx.Request], httpx.Response]
AsyncAnswer = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


class Recorder:
    """Answers every request with the same response and remembers the last one."""

    def __init__(self, response: httpx.Response | httpx.RequestError) -> None:
        self.request = httpx.Request("GET", "http://none")
        self._response = response

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.request = request
        if isinstance(self._response, httpx.RequestError):
            raise self._response
        return self._response


def processor_at(answer: Answer | AsyncAnswer, url: str = URL) -> Processor:
    return Processor(
        "default",
        url,
        RINHA,
        httpx.MockTransport(answer),
        pay_limit_ms=10_500,
        find_limit_ms=5000,
        connect_limit_ms=250,
    )


async def pay(answer: Answer | AsyncAnswer, *, cents: int = 1990, url: str = URL) -> Outcome:
    return await processor_at(answer, url).pay(Instruction(ID, cents, AT_MS), lambda: True)


@pytest.mark.parametrize(
    ("cents", "amount"),
    [
        (1990, b"19.90"),
        (1, b"0.01"),
        (100, b"1.00"),
        (7_782_999, b"77829.99"),
        (10**12, b"10000000000.00"),
    ],
)
async def test_a_payment_is_sent_with_exactly_two_decimals(cents: int, amount: bytes) -> None:
    recorder = Recorder(httpx.Response(200))
    await pay(recorder, cents=cents)
    assert recorder.request.content == (
        b'{"correlationId":"4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3","amount":'
        + amount
        + b',"requestedAt":"2026-11-22T16:05:00.123Z"}'
    )


@pytest.mark.parametrize("url", [URL, "https://pay.example/base", "http://[::1]:8001"])
async def test_a_payment_is_posted_to_payments(url: str) -> None:
    recorder = Recorder(httpx.Response(200))
    await pay(recorder, url=url)
    assert (recorder.request.method, str(recorder.request.url)) == ("POST", f"{url}/payments")


@pytest.mark.parametrize(
    ("header", "value"), [("host", "processor:8001"), ("content-type", "application/json")]
)
async def test_a_payment_is_sent_with_its_headers(header: str, value: str) -> None:
    recorder = Recorder(httpx.Response(200))
    await pay(recorder)
    assert recorder.request.headers[header] == value


@pytest.mark.parametrize(
    "call",
    [
        lambda processor: processor.pay(PAYMENT, lambda: True),
        lambda processor: processor.find(PAYMENT),
        lambda processor: processor.health(1000),
    ],
    ids=["pay", "find", "health"],
)
async def test_the_urls_credentials_go_with_every_call_and_not_into_its_target(
    call: Callable[[Processor], Coroutine[None, None, object]],
) -> None:
    recorder = Recorder(httpx.Response(200))
    await call(processor_at(recorder, "http://user:pw@processor:8001/base"))
    assert recorder.request.headers["authorization"] == "Basic dXNlcjpwdw=="
    assert recorder.request.headers["host"] == "processor:8001"
    assert str(recorder.request.url).startswith("http://processor:8001/base/payments")


async def test_a_payment_is_sent_with_its_length() -> None:
    recorder = Recorder(httpx.Response(200))
    await pay(recorder)
    request = recorder.request
    assert request.headers.get_list("content-length") == [str(len(request.content))]


async def test_the_transport_asks_directly_before_the_payment_is_written() -> None:
    recorder = Recorder(httpx.Response(200))

    def may_send() -> bool:
        return True

    await processor_at(recorder).pay(PAYMENT, may_send)
    assert recorder.request.extensions["before_write"] is may_send


async def test_a_payment_has_the_limits_of_payments() -> None:
    recorder = Recorder(httpx.Response(200))
    await pay(recorder)
    limits = {"connect": 0.25, "pool": 0.25, "read": 10.5, "write": 10.5}
    assert recorder.request.extensions["timeout"] == limits


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (httpx.Response(200, json={"message": "ok"}), Paid()),
        (
            httpx.Response(200, content=b"<html>"),
            Unknown("status 200 with a body that is not JSON"),
        ),
        (httpx.Response(422), Refused(422)),
        (httpx.Response(429, headers={"Retry-After": "5"}), Ended(429, 5000)),
        (httpx.Response(429), Ended(429)),
        (httpx.Response(503, headers={"Retry-After": "5"}), Unknown("status 503", 5000)),
        (httpx.Response(500), Ended(500)),
        (httpx.Response(504), Unknown("status 504")),
        (httpx.Response(302, headers={"Location": "/elsewhere"}), Ended(302)),
        (httpx.ReadTimeout("slow"), Unknown("slow")),
        (httpx.ConnectError("refused"), NotPaid("refused", healthy=False)),
        (NotSent("refused"), NotSentInTime()),
    ],
)
async def test_paying_has_the_outcome_of_its_answer(
    response: httpx.Response | httpx.RequestError, outcome: Outcome
) -> None:
    assert await pay(Recorder(response)) == outcome


async def test_a_body_with_an_encoding_means_unknown() -> None:
    stream = httpx.ByteStream(b"no gzip")
    response = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=stream)
    assert isinstance(await pay(Recorder(response)), Unknown)


BAD_LOCATIONS = [
    "http://[::1",
    "http://host:port/",
    "\x00",
    "http://",
    "//",
    *(
        pytest.param(
            location,
        )
        for location in ("mailto:x", "http://xn--/")
    ),
]


@pytest.mark.parametrize("location", BAD_LOCATIONS)
async def test_no_redirect_makes_paying_raise(location: str) -> None:
    outcome = await pay(Recorder(httpx.Response(302, headers={"Location": location})))
    assert isinstance(outcome, Ended | Unknown)


@pytest.mark.parametrize("location", BAD_LOCATIONS)
async def test_no_redirect_makes_finding_raise(location: str) -> None:
    recorder = Recorder(httpx.Response(302, headers={"Location": location}))
    assert isinstance(await processor_at(recorder).find(PAYMENT), Unclear)


@pytest.mark.parametrize("location", BAD_LOCATIONS)
async def test_no_redirect_makes_asking_for_health_raise(location: str) -> None:
    recorder = Recorder(httpx.Response(302, headers={"Location": location}))
    assert await processor_at(recorder).health(2500) is None


# What is asked.


async def test_a_payment_is_asked_for_by_its_id() -> None:
    recorder = Recorder(httpx.Response(404))
    await processor_at(recorder).find(PAYMENT)
    request = recorder.request
    assert (request.method, str(request.url)) == ("GET", f"{URL}/payments/{ID}")


async def test_a_question_has_the_limits_of_questions() -> None:
    recorder = Recorder(httpx.Response(404))
    await processor_at(recorder).find(PAYMENT)
    limits = {"connect": 0.25, "pool": 0.25, "read": 5.0, "write": 5.0}
    assert recorder.request.extensions["timeout"] == limits


@pytest.mark.parametrize(
    ("response", "finding"),
    [
        (httpx.Response(200, content=payment_json()), Found(1990, AT_MS)),
        (httpx.Response(404), Missing()),
        (httpx.Response(500), Unclear("status 500")),
        (httpx.Response(429, headers={"Retry-After": "5"}), Unclear("status 429", 5000)),
        (httpx.ReadTimeout("slow"), Unclear("slow")),
        (httpx.ConnectError("refused"), Unclear("refused")),
        (httpx.DecodingError("gzip"), Unclear("gzip")),
    ],
)
async def test_asking_finds_what_its_answer_says(
    response: httpx.Response | httpx.RequestError, finding: FindOutcome
) -> None:
    assert await processor_at(Recorder(response)).find(PAYMENT) == finding


async def test_health_is_asked_for_at_service_health() -> None:
    recorder = Recorder(httpx.Response(200))
    await processor_at(recorder).health(2500)
    request = recorder.request
    assert (request.method, str(request.url)) == ("GET", f"{URL}/payments/service-health")


@pytest.mark.parametrize(
    ("response", "report"),
    [
        (
            httpx.Response(200, json={"failing": False, "minResponseTime": 9}),
            HealthReport(False, 9),
        ),
        (httpx.Response(429), None),
        (httpx.ReadTimeout("slow"), None),
        (httpx.ConnectError("refused"), None),
    ],
)
async def test_the_report_is_what_the_answer_says(
    response: httpx.Response | httpx.RequestError, report: HealthReport | None
) -> None:
    assert await processor_at(Recorder(response)).health(2500) == report


async def test_a_processor_that_does_not_answer_in_time_has_unknown_health() -> None:
    async def never(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        return httpx.Response(200, json={"failing": False, "minResponseTime": 9})

    assert await processor_at(never).health(1) is None


async def test_paying_can_be_cancelled() -> None:
    sent = asyncio.Event()

    async def never(request: httpx.Request) -> httpx.Response:
        sent.set()
        await asyncio.sleep(math.inf)
        return httpx.Response(200)

    task = asyncio.create_task(pay(never))
    await sent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("instant", ["1969-12-31T23:59:59", "2286-11-20T17:46:40"])
async def test_an_instant_beyond_the_ledgers_windows_tells_nothing(instant: str) -> None:
    payment = {"correlationId": ID, "amount": 19.9, "requestedAt": instant}
    recorder = Recorder(httpx.Response(200, json=payment))
    assert await processor_at(recorder).find(PAYMENT) == Unclear("an absurd instant")

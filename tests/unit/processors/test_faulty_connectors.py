"""A connector that breaks its contract: nothing that it does stops or loses a payment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from payswitch.processors.connector import (
    Connector,
    ConnectorSettings,
    Instruction,
    NotUnderstoodError,
    Request,
    Response,
)
from payswitch.processors.outcomes import (
    Declined,
    Ended,
    Found,
    HealthReport,
    Missing,
    NotPaid,
    Paid,
    Pending,
    Unclear,
    Unknown,
)
from payswitch.processors.processor import (
    CannotAskError,
    ConnectorFaultError,
    Processor,
    make_processors,
)
from payswitch.processors.rinha import RinhaConnector
from payswitch.settings import Settings, SettingsError

PAYMENT = Instruction("4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3", 1990, 1_795_363_500_123, b'{"a":1}')
BAD_TEXT = "two\nlines \ud800" + "x" * 1000


def fail(*_: object) -> Any:
    raise ValueError(f"no such card: {PAYMENT.metadata!r}")


def returns(value: object) -> Callable[..., Any]:
    return lambda *_: value


def processor(transport: httpx.AsyncBaseTransport | None = None, **methods: Any) -> Processor:
    """A processor whose connector is `rinha`, with some methods replaced."""
    connector = RinhaConnector(ConnectorSettings("acme"))
    for name, method in methods.items():
        setattr(connector, name, method)
    transport = transport or httpx.MockTransport(lambda _: httpx.Response(200))
    return Processor("acme", "http://acme", connector, transport, pay_limit_ms=1, find_limit_ms=1)


async def pay(**methods: Any) -> Any:
    return await processor(**methods).pay(PAYMENT, lambda: True)


async def find(**methods: Any) -> Any:
    return await processor(**methods).find(PAYMENT)


async def test_its_errors_are_told_by_type_and_place() -> None:
    """The message may hold data of a payment."""
    unsent = await pay(pay=fail)
    assert isinstance(unsent, NotPaid)
    unread, unfound = await pay(read_payment=fail), await find(read_finding=fail)
    assert isinstance(unread, Unknown)
    assert isinstance(unfound, Unclear)
    unprepared = await find(prepare=fail)
    assert isinstance(unprepared, Unclear)
    with pytest.raises(ConnectorFaultError) as ineligible:
        processor(eligible=fail).takes(PAYMENT)
    faults = [*(each.reason for each in (unsent, unread, unfound, unprepared))]
    for fault in (*faults, str(ineligible.value)):
        assert "ValueError at test_faulty_connectors.py:" in fault
        assert "card" not in fault


@pytest.mark.parametrize("nonsense", [None, "paid", True, {}, Missing(), Paid, Ended("429")])  # type: ignore[arg-type]
async def test_nonsense_for_a_payment_is_unknown(nonsense: object) -> None:
    assert isinstance(await pay(read_payment=returns(nonsense)), Unknown)


@pytest.mark.parametrize(
    "nonsense",
    [None, False, Paid(), Found("1990", 1), Found(1990, "1"), Found(1990, 1.5), Found(1990, -1)],  # type: ignore[arg-type]
)
async def test_nonsense_for_a_question_is_unclear(nonsense: object) -> None:
    assert isinstance(await find(read_finding=returns(nonsense)), Unclear)


@pytest.mark.parametrize(("reference", "kept"), [(None, ""), (12345, "12345"), ("ch_1", "ch_1")])
async def test_a_payment_is_paid_whatever_its_reference_is(reference: Any, kept: str) -> None:
    assert await pay(read_payment=returns(Paid(reference))) == Paid(kept)
    assert await find(read_finding=returns(Found(1990, 1, reference))) == Found(1990, 1, kept)


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (Paid(BAD_TEXT), "reference"),
        (Pending(BAD_TEXT), "reference"),
        (Declined(BAD_TEXT), "code"),
        (Unknown(BAD_TEXT), "reason"),
    ],
)
async def test_its_text_becomes_one_short_printable_line(outcome: Any, name: str) -> None:
    text = getattr(await pay(read_payment=returns(outcome)), name)
    assert text.isprintable()
    assert text.startswith(r"two\nlines \ud800xx")
    assert len(text) == 255


@pytest.mark.parametrize(("asked", "kept"), [(None, None), (-5, 0), (2.5, 2), (10**30, 2**31)])
async def test_a_pause_is_a_number_of_milliseconds(asked: Any, kept: int | None) -> None:
    assert await pay(read_payment=returns(Ended(429, asked))) == Ended(429, kept)


@pytest.mark.parametrize(
    "nonsense",
    [True, "up", HealthReport("no", 1), HealthReport(False, 1.5), HealthReport(False, 10**30)],  # type: ignore[arg-type]
)
async def test_a_nonsensical_report_is_unknown_health(nonsense: object) -> None:
    asked = processor(read_health=returns(nonsense))
    assert await asked.health(1000) is None


@pytest.mark.parametrize("method", [fail, returns(None), returns(0.05), returns(True)])
async def test_a_processor_whose_books_can_not_be_read_can_not_be_asked(method: Any) -> None:
    for asked in (processor(read_fee=method), processor(fee=fail)):
        with pytest.raises(CannotAskError, match=r"acme: the connector .*Error at"):
            await asked.fee()
    for asked in (processor(read_total=method), processor(total=fail)):
        with pytest.raises(CannotAskError, match=r"acme: the connector .*Error at"):
            await asked.total(0, 1)


async def test_a_fee_that_is_a_decimal_is_taken() -> None:
    assert await processor(read_fee=returns(Decimal("0.05"))).fee() == Decimal("0.05")


async def test_callers_at_the_same_time_share_one_preparation() -> None:
    """Else each of a worker's payments would wait for the time limits of all before it."""
    calls = 0
    answered = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        await answered.wait()
        return httpx.Response(503)

    def refuse(*_: object) -> None:
        raise NotUnderstoodError("no token\ncame")

    stalling = processor(
        httpx.MockTransport(answer),
        prepare=returns(Request("POST", "/token")),
        read_preparation=refuse,
    )
    waiting = [asyncio.create_task(stalling.prepare()) for _ in range(100)]
    given_up = asyncio.create_task(stalling.prepare())
    while not calls:
        await asyncio.sleep(0)
    given_up.cancel()
    answered.set()
    assert set(await asyncio.gather(*waiting)) == {"preparation: no token"}
    assert calls == 1
    await stalling.prepare()
    assert calls == 2


class Picky(RinhaConnector):
    """Looks at its token as soon as it is made."""

    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__(settings)
        raise ValueError(f"{settings.token} has no colon")


class Unfinished(Connector):
    """Lacks methods."""

    def pay(self, instruction: Instruction) -> Request:
        return Request("POST", "/")

    def read_finding(self, instruction: Instruction, response: Response) -> Unclear:
        return Unclear("")


@pytest.mark.parametrize(
    ("name", "why"), [("Picky", r"\*\*\* has no colon$"), ("Unfinished", "abstract")]
)
def test_a_connector_that_can_not_be_made_is_a_setting_to_mend(name: str, why: str) -> None:
    settings = Settings.from_environment(
        {
            "PAYSWITCH_CONNECTOR_DEFAULT": f"{__name__}:{name}",
            "PAYSWITCH_TOKEN_DEFAULT": "hush-hush",
        }
    )
    message = f"^PAYSWITCH_CONNECTOR_DEFAULT: connector '{__name__}:{name}' can't be made: .*{why}"
    with pytest.raises(SettingsError, match=message):
        make_processors(settings, httpx.MockTransport(lambda _: httpx.Response(200)))


@pytest.mark.parametrize("path", ["payments", "", "ftp://acme/payments", "httpayments"])
async def test_a_path_that_leads_nowhere_sends_nothing(path: str) -> None:
    asked: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    there = processor(httpx.MockTransport(note), pay=returns(Request("POST", path)))
    outcome = await there.pay(PAYMENT, lambda: True)
    assert isinstance(outcome, NotPaid)
    assert "the connector makes no request: ValueError" in outcome.reason
    assert asked == []


async def test_another_host_gets_no_credentials_of_the_processors_url() -> None:
    asked: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    connector = RinhaConnector(ConnectorSettings("acme"))
    setattr(connector, "prepare", returns(Request("GET", "https://auth.example/token")))  # noqa: B010
    setattr(connector, "read_preparation", returns(None))  # noqa: B010
    there = Processor(
        *("acme", "http://user:pw@acme", connector, httpx.MockTransport(note)),
        pay_limit_ms=1,
        find_limit_ms=1,
    )
    await there.find(PAYMENT)
    [token, question] = asked
    assert (token.url.host, token.headers["host"]) == ("auth.example", "auth.example")
    assert "authorization" not in token.headers
    assert question.headers["authorization"] == "Basic dXNlcjpwdw=="


async def test_a_connector_that_fails_on_totals_is_asked_and_then_told() -> None:
    there = processor(total=fail, health=fail)
    assert (there.tells_totals, there.tells_health) == (True, True)
    with pytest.raises(CannotAskError, match="acme: the connector makes no request: ValueError"):
        await there.total(0, 1)
    assert await there.health(1000) is None

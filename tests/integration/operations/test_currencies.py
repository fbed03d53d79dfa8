"""Other currencies than the real: a payment's whole way, with two real simulators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
from arq.connections import ArqRedis

from payswitch.money import Currency, Total
from payswitch.operations.history import HistoryWriter
from payswitch.operations.metrics import health_registry
from payswitch.payments.accepting import AcceptQueue
from payswitch.payments.payment import Payment
from tests.integration.books import Books, books
from tests.integration.command import Payswitch
from tests.support import PROCESSORS, RedisServer

CENTS = 1_234_567


@pytest.fixture(params=["JPY", "BHD"])
async def b(redis: ArqRedis, request: pytest.FixtureRequest) -> AsyncIterator[Books]:
    async with books(redis, Currency(request.param)) as made:
        yield made


@pytest.fixture
async def paid(b: Books, redis: ArqRedis) -> str:
    """A payment that the processor has recorded, then answered 500: so it was asked about it."""
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.put(
            b.settings.processor_urls["default"] + "/admin/configurations/faults",
            headers={"X-Rinha-Token": "123"},
            json={"payments": {"commit-500": 1}},
        )
    assert answer.status_code == 200
    payment = str(uuid4())
    await AcceptQueue(redis, limit_ms=5000, max_backlog=10).accept(Payment(payment, CENTS))
    await b.settle_with_a_worker()
    return payment


@pytest.fixture
def amount(b: Books) -> str:
    return {"JPY": "1234567", "BHD": "1234.567"}[b.settings.currency_code]


async def test_both_sides_book_the_same_minor_units(b: Books, paid: str) -> None:
    entry = b.simulators["default"].book.find(paid)
    assert entry is not None
    assert entry.cents == CENTS
    report = await b.reconcile(thorough=True)
    assert report.equal
    assert report.theirs["default"] == Total(1, CENTS)


async def test_commands_and_metrics_show_amounts_in_it(
    b: Books, paid: str, redis: ArqRedis, redis_server: RedisServer, amount: str
) -> None:
    payswitch = Payswitch(
        redis_server.url,
        {
            "PAYSWITCH_CURRENCY": b.settings.currency_code,
            "PAYMENT_PROCESSOR_URL_DEFAULT": b.settings.processor_urls["default"],
            "PAYMENT_PROCESSOR_URL_FALLBACK": b.settings.processor_urls["fallback"],
        },
    )
    shown = (await payswitch("payment", paid)).out.splitlines()
    assert f"{amount} {b.settings.currency_code}" in [" ".join(line.split()[1:]) for line in shown]
    for command in (["reconcile"], ["status"]):
        words = (await payswitch(*command)).out.split()
        assert amount in words
    for command in (["reconcile", "--json"], ["status", "--json"], ["payment", paid, "--json"]):
        assert f'mount": {amount},' in (await payswitch(*command)).out.replace("\n", ",")
    status = (await payswitch("status", "--json")).json()
    assert status["currency"] == {
        "code": b.settings.currency_code,
        "decimals": b.settings.currency.decimals,
    }
    history = HistoryWriter(redis, PROCESSORS)
    await history.write()
    labels = {"processor": "default"}
    registry = health_registry(history, b.settings.currency)
    assert registry.get_sample_value("payswitch_ledger_amount_total", labels) == float(amount)

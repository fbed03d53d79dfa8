"""The simulator's protocol `charges` over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from payswitch.money import Total
from payswitch.simulator.charges import ChargesDialect
from payswitch.simulator.dialect import SimulatorConfig
from payswitch.simulator.faults import PaymentFault
from payswitch.simulator.server import Simulator
from tests.support import SLACK_S, eventually

TOKEN = {"X-Rinha-Token": "123"}


class Provider:
    """A running simulator that speaks `charges`."""

    def __init__(self, simulator: Simulator, http: httpx.AsyncClient) -> None:
        self.simulator = simulator
        self.http = http

    async def charge(self, key: str | None = None, **fields: Any) -> httpx.Response:
        body = charge(**fields)
        headers = {"Idempotency-Key": str(body["reference"]) if key is None else key}
        return await self.http.post("/v1/charges", json=body, headers=headers)

    async def find(self, reference: str) -> list[dict[str, Any]]:
        response = await self.http.get("/v1/charges", params={"reference": reference})
        assert response.status_code == 200
        data: list[dict[str, Any]] = response.json()["data"]
        return data

    async def set_faults(self, **faults: Any) -> httpx.Response:
        path = "/admin/configurations/faults"
        return await self.http.put(path, json=faults, headers=TOKEN)

    @property
    def totals(self) -> Total:
        return self.simulator.book.totals()


@asynccontextmanager
async def running(**config: Any) -> AsyncIterator[Provider]:
    simulator = Simulator(SimulatorConfig("acme", rate_limit_s=0, **config), ChargesDialect)
    port = await simulator.start("127.0.0.1", 0)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        timeout=SLACK_S,
        headers={"Authorization": "Bearer 123"},
        trust_env=False,
    ) as http:
        yield Provider(simulator, http)
    await simulator.close()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running() as made:
        yield made


def charge(**fields: Any) -> dict[str, Any]:
    return {
        "amount": 1990,
        "currency": "BRL",
        "reference": str(uuid4()),
        "requested_at": "2026-07-15T12:34:56.120Z",
        "metadata": {},
    } | fields


async def test_a_charge_succeeds_and_is_found_and_counted(provider: Provider) -> None:
    response = await provider.charge(reference="order-1")
    assert response.status_code == 201
    assert response.json() == {
        "id": "ch_order-1",
        "status": "succeeded",
        "amount": 1990,
        "currency": "BRL",
        "reference": "order-1",
        "requested_at": "2026-07-15T12:34:56.12Z",
    }
    assert await provider.find("order-1") == [response.json()]
    window = {"from": "2026-07-15T12:34:56.120Z", "to": "2026-07-15T12:34:56.120Z"}
    totals = await provider.http.get("/v1/totals", params=window)
    assert totals.json() == {"count": 1, "amount": 1990}


async def test_an_unknown_reference_is_an_empty_list(provider: Provider) -> None:
    assert await provider.find("order-1") == []


async def test_the_same_key_with_the_same_charge_is_that_charge(provider: Provider) -> None:
    first = await provider.charge(reference="order-1")
    again = await provider.charge(reference="order-1")
    assert (again.status_code, again.json()) == (200, first.json())
    assert provider.totals == Total(1, 1990)


@pytest.mark.parametrize("other", [{"amount": 1}, {"requested_at": "2026-07-15T00:00:00Z"}])
async def test_the_same_key_with_another_charge_is_refused(
    provider: Provider, other: dict[str, Any]
) -> None:
    await provider.charge(reference="order-1")
    response = await provider.charge(reference="order-1", **other)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "key_reused")
    assert provider.totals == Total(1, 1990)


async def test_a_key_in_use_is_a_conflict_until_its_call_is_over(provider: Provider) -> None:
    provider.simulator.config.delay_ms = 300
    both = await asyncio.gather(*(provider.charge(reference="order-1") for _ in range(2)))
    assert sorted(each.status_code for each in both) == [201, 409]
    provider.simulator.config.delay_ms = 0
    assert (await provider.charge(reference="order-1")).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": 19.9},
        {"amount": 0},
        {"amount": True},
        {"amount": 10**15},
        {"currency": "EUR"},
        {"reference": ""},
        {"reference": "a/b"},
        {"reference": 5},
        {"requested_at": "soon"},
        {"requested_at": None},
        {"metadata": []},
        {"key": "another"},
        {"key": ""},
    ],
)
async def test_a_malformed_charge_is_refused(provider: Provider, fields: dict[str, Any]) -> None:
    response = await provider.charge(**fields)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid")
    assert provider.totals == Total(0, 0)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/charges"),
        ("GET", "/v1/charges?reference=x"),
        ("GET", "/v1/totals?from=2026-01-01&to=2026-01-02"),
        ("GET", "/v1/account"),
    ],
)
async def test_without_its_token_nothing_is_told_or_taken(
    provider: Provider, method: str, path: str
) -> None:
    headers = {"Authorization": "Bearer wrong", "Idempotency-Key": "x"}
    response = await provider.http.request(method, path, json=charge(), headers=headers)
    assert response.status_code == 401
    assert provider.totals == Total(0, 0)


async def test_health_and_fee_are_told(provider: Provider) -> None:
    provider.simulator.config.delay_ms = 7
    provider.simulator.config.failing = True
    report = (await provider.http.get("/v1/health")).json()
    assert report == {"status": "down", "latency_ms": 7}
    account = (await provider.http.get("/v1/account")).json()
    assert account == {"currency": "BRL", "fee": "0.05"}


@pytest.mark.parametrize("query", ["", "?from=2026-01-01", "?from=x&to=2026-01-01"])
async def test_totals_without_a_window_are_a_bad_request(provider: Provider, query: str) -> None:
    assert (await provider.http.get(f"/v1/totals{query}")).status_code == 400


async def test_a_declined_charge_stays_declined_and_counts_nowhere(provider: Provider) -> None:
    await provider.set_faults(decisions={"decline": 1})
    first = await provider.charge(reference="order-1")
    assert (first.status_code, first.json()["error"]["code"]) == (402, "card_declined")
    await provider.set_faults()
    again = await provider.charge(reference="order-1")
    assert (again.status_code, again.json()) == (402, first.json())
    assert [each["status"] for each in await provider.find("order-1")] == ["failed"]
    assert provider.totals == Total(0, 0)


async def test_a_pending_charge_is_decided_later(provider: Provider) -> None:
    await provider.set_faults(decisions={"pending": 1}, decideMs=[10, 20], journal=True)
    references = [str(uuid4()) for _ in range(20)]
    answers = [await provider.charge(reference=each) for each in references]
    assert {(each.status_code, each.json()["status"]) for each in answers} == {(202, "pending")}

    async def all_are_decided() -> bool:
        found = [(await provider.find(each))[0]["status"] for each in references]
        return "pending" not in found and {*found} == {"succeeded", "failed"}

    await eventually(all_are_decided, what="the provider decides")
    journal = await provider.http.get("/admin/journal", headers=TOKEN)
    assert journal.text.count('"committed"') == provider.totals.count
    assert journal.text.count('"declined"') == 20 - provider.totals.count


async def test_the_other_protocol_has_no_decisions() -> None:
    simulator = Simulator(SimulatorConfig("default"))
    port = await simulator.start("127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        provider = Provider(simulator, http)
        assert (await provider.set_faults(decisions={"decline": 1})).status_code == 400
    await simulator.close()


COMMITTING = {"commit-close", "commit-500", "commit-late", "gateway-commit", "commit-429"}


@pytest.mark.parametrize("mode", sorted(PaymentFault))
async def test_every_fault_is_one_of_this_protocol_too(provider: Provider, mode: str) -> None:
    """Afterwards the same charge is recorded once, whatever the fault did."""
    await provider.set_faults(payments={mode: 1}, lateMs=0, laterMs=[0, 1], journal=True)
    with_fault = asyncio.create_task(provider.charge(reference="order-1"))

    async def has_met_its_fault() -> bool:
        journal = provider.simulator.journal.lines()
        return b'"answered"' in journal or b'"hung-up"' in journal

    await eventually(has_met_its_fault, what="the charge meets its fault")
    with_fault.cancel()  # some answers never end
    await asyncio.gather(with_fault, return_exceptions=True)
    if mode in COMMITTING:
        assert provider.totals == Total(1, 1990)
    await provider.set_faults()
    assert (await provider.charge(reference="order-1")).status_code in (200, 201)
    assert provider.totals == Total(1, 1990)

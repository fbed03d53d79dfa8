"""What a payment may have beside its id and its amount, at both ways in: currency, metadata, and
members that nobody knows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from arq.connections import ArqRedis

from payswitch.ingress.app import create_app
from payswitch.settings import Settings
from tests.support import RedisServer, free_port

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
HOST = "127.0.0.1"


@dataclass
class Ingress:
    """One ingress: `pay` leads to one of its ways in, `ask` to all the rest."""

    pay: httpx.AsyncClient
    ask: httpx.AsyncClient

    async def post(self, members: str, amount: str = "19.90") -> httpx.Response:
        """Send a payment with these members beside id and amount."""
        body = f'{{"correlationId":"{ID}","amount":{amount}{members and f",{members}"}}}'
        return await self.pay.post("/payments", content=body)

    async def state(self) -> str:
        """The body of its `GET /payments/{id}`."""
        return (await self.ask.get(f"/payments/{ID}")).text


@contextlib.asynccontextmanager
async def serving(settings: Settings, way_in: str) -> AsyncIterator[Ingress]:
    port = free_port()
    app = create_app(settings, payments_at=(HOST, port))
    asgi = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress")
    at_port = httpx.AsyncClient(base_url=f"http://{HOST}:{port}", verify=False)
    async with app.router.lifespan_context(app), asgi, at_port:
        yield Ingress(asgi if way_in == "asgi" else at_port, asgi)


@pytest.fixture(params=["asgi", "payments port"])
def way_in(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
async def ingress(redis_server: RedisServer, way_in: str) -> AsyncIterator[Ingress]:
    async with serving(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000), way_in
    ) as ingress:
        yield ingress


async def test_metadata_is_shown_with_all_its_digits(ingress: Ingress) -> None:
    answer = await ingress.post('"metadata":{"b": 1.10, "a": 12345678901234567890123}')
    assert answer.status_code == 202
    state = await ingress.state()
    assert '"amount":19.90,"currency":"BRL"' in state
    assert '"metadata":{"a":12345678901234567890123,"b":1.10},' in state


async def test_a_payment_without_metadata_has_none(ingress: Ingress) -> None:
    await ingress.post("")
    assert '"metadata":null' in await ingress.state()


async def test_the_same_metadata_in_another_order_is_the_same_payment(ingress: Ingress) -> None:
    first = await ingress.post('"metadata":{"a":1,"b":{"c":"é","d":null}}')
    again = await ingress.post('"metadata": {"b": {"d": null, "c": "\\u00e9"}, "a": 1}')
    assert (first.status_code, again.status_code) == (202, 202)


@pytest.mark.parametrize(
    ("amount", "members", "says"),
    [
        ("19.90", '"metadata":{"a":2}', "other metadata"),
        ("19.90", '"metadata":{"a":1.0}', "other metadata"),
        ("19.90", '"metadata":{}', "other metadata"),
        ("19.90", "", "other metadata"),
        ("20", '"metadata":{"a":1}', "another amount"),
        ("20", '"metadata":{"a":2}', "another amount"),
    ],
)
async def test_a_conflict_says_what_differs(
    ingress: Ingress, amount: str, members: str, says: str
) -> None:
    await ingress.post('"metadata":{"a":1}')
    answer = await ingress.post(members, amount)
    assert answer.status_code == 409
    assert answer.json()["detail"] == f"payment {ID} was accepted with {says}"
    metrics = (await ingress.ask.get("/metrics")).text
    verdict = "metadata" if says == "other metadata" else "other"
    assert f'payswitch_acceptances_total{{verdict="{verdict}"}} 1.0' in metrics


async def test_an_unknown_member_is_refused_unless_it_may_be_ignored(
    ingress: Ingress, redis_server: RedisServer, way_in: str
) -> None:
    answer = await ingress.post('"note":1')
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("'note' is unknown")
    schema = (await ingress.ask.get("/openapi.json")).json()["components"]["schemas"]["Payment"]
    assert schema["additionalProperties"] is False
    settings = Settings(
        redis_url=redis_server.url, accept_limit_ms=60_000, unknown_members="ignore"
    )
    async with serving(settings, way_in) as lenient:
        assert (await lenient.post('"note":1,"metadata":{"a":1}')).status_code == 202
        assert '"metadata":{"a":1}' in await lenient.state()
        schema = (await lenient.ask.get("/openapi.json")).json()["components"]["schemas"]["Payment"]
        assert schema["additionalProperties"] is True


@pytest.mark.parametrize(
    ("code", "amount", "beyond", "says"),
    [
        ("JPY", "1990", "19.9", "amount must have no decimals"),
        ("BRL", "1990.50", "0.001", "amount must have at most 2 decimals"),
        ("BHD", "1990.005", "0.0001", "amount must have at most 3 decimals"),
    ],
)
async def test_amounts_have_the_decimals_of_the_currency(
    redis_server: RedisServer, way_in: str, code: str, amount: str, beyond: str, says: str
) -> None:
    settings = Settings(redis_url=redis_server.url, accept_limit_ms=60_000, currency_code=code)
    async with serving(settings, way_in) as ingress:
        refused = await ingress.post("", beyond)
        assert (refused.status_code, refused.json()["detail"]) == (422, says)
        other = await ingress.post('"currency":"EUR"', "1")
        assert other.status_code == 422
        assert other.json()["detail"] == f"currency must be {code}, the only one here, not 'EUR'"
        assert (await ingress.post(f'"currency":"{code}"', amount)).status_code == 202
        assert (await ingress.post("", amount)).status_code == 202  # the same payment
        assert f'"amount":{amount},"currency":"{code}"' in await ingress.state()
        nothing = settings.currency.format_cents(0)
        summary = (await ingress.ask.get("/payments-summary")).text
        assert f'"totalAmount":{nothing}}}' in summary
        schemas = (await ingress.ask.get("/openapi.json")).json()["components"]["schemas"]
        assert schemas["Currency"]["const"] == code
        assert schemas["Amount"]["multipleOf"] == {"JPY": 1, "BRL": 0.01, "BHD": 0.001}[code]


async def test_a_redis_with_payments_in_another_currency_is_not_used_until_a_purge(
    redis_server: RedisServer, way_in: str
) -> None:
    async with serving(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000), way_in
    ) as ingress:
        assert (await ingress.post("")).status_code == 202
    settings = Settings(
        redis_url=redis_server.url, accept_limit_ms=60_000, currency_code="JPY", purge="open"
    )
    why = "Redis can't be used: it holds payments in BRL, and PAYSWITCH_CURRENCY is JPY"
    async with serving(settings, way_in) as other:
        refused = await other.post("", "1990")
        assert refused.status_code == 503
        assert refused.json()["detail"] == f"the payment was not accepted: {why}"
        assert (await other.ask.get("/readyz")).json()["detail"] == why
        assert (await other.ask.post("/purge-payments")).status_code == 200
        assert (await other.ask.get("/readyz")).status_code == 200
        assert (await other.post("", "1990")).status_code == 202


async def test_no_log_line_shows_metadata(
    ingress: Ingress, redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = '"metadata":{"card":"4111111111111111"}'
    for members in (secret, secret, secret.replace("1", "2"), f"{secret},{secret}"):
        await ingress.post(members)
    await redis.hset(f"payment:{ID}", "metadata", "4111111111111111")  # type: ignore[misc]
    assert "metadata is no JSON object" in await ingress.state()
    await redis.set(f"payment:{ID}", "spoilt")
    assert (await ingress.post(secret)).status_code == 500
    assert "4111" not in caplog.text

"""The endpoints over ASGI, on a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from arq.connections import ArqRedis

from payswitch.durability import Durability
from payswitch.ingress.app import create_app
from payswitch.operations.overview import read_overview
from payswitch.payments.claims import Claim
from payswitch.payments.ledger import Ledger
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.client import Client, connect
from tests.integration.harness import Bench, bench
from tests.support import PROCESSORS, RedisServer, Reply, eventually

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            yield client


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(Settings(redis_url=redis_server.url, accept_limit_ms=60_000)) as client:
        yield client


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


def assert_problem(response: httpx.Response, status: int, *, says: str = "") -> None:
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["title"]
    assert says in problem["detail"]


async def test_a_payment_is_accepted_with_its_location(client: httpx.AsyncClient) -> None:
    response = await client.post("/payments", json={"correlationId": ID, "amount": 19.9})
    assert response.status_code == 202
    assert response.headers["location"] == f"/payments/{ID}"


async def test_where_the_ledger_has_reached_its_largest_sum_a_payment_is_not_accepted(
    client: httpx.AsyncClient, redis: ArqRedis
) -> None:
    await redis.set("ledger:full", "1")
    response = await client.post("/payments", json={"correlationId": ID, "amount": 1})
    assert_problem(response, 503, says="not accepted: the ledger has reached its largest sum")
    metrics = (await client.get("/metrics")).text
    assert 'payswitch_acceptances_total{verdict="sum"} 1.0' in metrics
    assert 'payswitch_unavailable_total{reason="ledger"} 1.0' in metrics


async def test_redis_memory_and_its_limit_are_metrics(
    client: httpx.AsyncClient, redis: ArqRedis
) -> None:
    await redis.config_set("maxmemory", 10**9)

    async def memory() -> dict[str, float]:
        await client.get("/readyz")  # it looks
        metrics = (await client.get("/metrics")).text
        found = re.findall(r"^payswitch_redis_memory_(\w+) (\S+)$", metrics, re.MULTILINE)
        return {name: float(value) for name, value in found}

    async def is_limited() -> bool:
        return (await memory())["limit_bytes"] == 10**9

    await eventually(is_limited, what="the limit is seen")
    await redis.config_set("maxmemory", 0)
    assert 10**5 < (await memory())["bytes"] < 10**9


async def test_an_id_in_another_spelling_is_the_same_payment(
    client: httpx.AsyncClient, redis: ArqRedis
) -> None:
    for spelling in (ID, ID.upper(), f"urn:uuid:{ID}"):
        response = await client.post("/payments", json={"correlationId": spelling, "amount": 1})
        assert (response.status_code, response.headers["location"]) == (202, f"/payments/{ID}")
    assert await redis.zcard("arq:queue") == 1


async def test_the_same_id_with_another_amount_is_a_conflict(client: httpx.AsyncClient) -> None:
    await client.post("/payments", json={"correlationId": ID, "amount": 1})
    response = await client.post("/payments", json={"correlationId": ID, "amount": 2})
    assert_problem(response, 409, says=ID)


async def test_a_settled_payment_again_is_acknowledged_and_not_queued(
    client: httpx.AsyncClient, b: Bench, redis: ArqRedis
) -> None:
    await client.post("/payments", json={"correlationId": ID, "amount": 19.9})
    await b.dispatch_until_done(ID)
    response = await client.post("/payments", json={"correlationId": ID, "amount": 19.9})
    assert response.status_code == 202
    assert await redis.zcard("arq:queue") == 0


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b"[]", 422, "must be a JSON object"),
        (b"null", 422, "must be a JSON object"),
        (b"{}", 422, "correlationId is missing"),
        (b'{"correlationId":7,"amount":1}', 422, "correlationId must be a string"),
        (b'{"correlationId":"7","amount":1}', 422, "correlationId must be a UUID"),
        (b'{"correlationId":"%s"}', 422, "amount is missing"),
        (b'{"correlationId":"%s","amount":"1"}', 422, "amount must be a number"),
        (b'{"correlationId":"%s","amount":true}', 422, "amount must be a number"),
        (b'{"correlationId":"%s","amount":0}', 422, "more than 0"),
        (b'{"correlationId":"%s","amount":-1}', 422, "more than 0"),
        (b'{"correlationId":"%s","amount":NaN}', 422, "finite"),
        (b'{"correlationId":"%s","amount":1e999}', 422, "finite"),
        (b'{"correlationId":"%s","amount":1.001}', 422, "2 decimals"),
        (b'{"correlationId":"%s","amount":1,"amount":999}', 422, "amount must be given once"),
        (b'{"correlationId":"%s","amount":1,"am\\u006funt":9}', 422, "amount must be given once"),
        (b'{"correlationId":"%s","amount":1e20}', 422, "at most"),
    ],
)
async def test_a_body_that_is_no_payment_is_refused_with_a_reason(
    client: httpx.AsyncClient, redis: ArqRedis, body: bytes, status: int, says: str
) -> None:
    content = body.replace(b"%s", ID.encode())
    response = await client.post("/payments", content=content)
    assert_problem(response, status, says=says)
    assert await redis.keys("payment:*") + await redis.keys("arq:*") == []


@pytest.mark.parametrize(("size", "status"), [(4096, 202), (4097, 413)])
async def test_a_body_over_4_kib_is_refused(
    client: httpx.AsyncClient, size: int, status: int
) -> None:
    body = b'{"correlationId":"%s","amount":1}' % ID.encode()
    response = await client.post("/payments", content=body.ljust(size))
    assert response.status_code == status
    if status == 413:
        assert_problem(response, 413, says="4096")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_another_content_type_is_refused(
    client: httpx.AsyncClient, content_type: str
) -> None:
    response = await client.post("/payments", content=b"{}", headers={"content-type": content_type})
    assert_problem(response, 415, says="application/json")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_is_taken_with_parameters_and_in_any_case(
    client: httpx.AsyncClient, content_type: str
) -> None:
    response = await client.post(
        "/payments",
        content=b'{"correlationId":"%s","amount":1}' % ID.encode(),
        headers={"content-type": content_type},
    )
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/payments", {"POST"}),
        ("DELETE", f"/payments/{ID}", {"GET", "HEAD"}),
        ("POST", "/payments-summary", {"GET", "HEAD"}),
        ("GET", "/purge-payments", {"POST"}),
        ("PUT", "/healthz", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    response = await client.request(method, path)
    assert_problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/nothing/here", "/payments/", "/payments-summary/"])
async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 404, says=path)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("cents", "many", "cents is 'many'"),
        ("state", b"\xff", "state is '\ufffd'"),
        ("accepted_at", "9" * 18, f"accepted_at is '{'9' * 18}'"),
        ("settled_at", "soon", "settled_at is 'soon'"),
    ],
)
async def test_a_record_that_somebody_spoilt_is_told_as_a_problem(
    client: httpx.AsyncClient, b: Bench, field: str, value: str, problem: str
) -> None:
    payment = await b.accept()
    await b.redis.hset(f"payment:{payment}", field, value)  # type: ignore[misc]
    says = f"the record of payment {payment} can't be read: {problem}"
    assert_problem(await client.get(f"/payments/{payment}"), 500, says=says)


async def test_a_record_of_another_type_is_told_as_a_problem(
    client: httpx.AsyncClient, redis: ArqRedis
) -> None:
    await redis.set(f"payment:{ID}", "x")
    says = "can't be read: Redis holds something else under its key"
    assert_problem(await client.get(f"/payments/{ID}"), 500, says=says)


async def test_a_bug_in_here_is_answered_as_a_problem(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_with_a_bug(redis: ArqRedis, correlation_id: str) -> None:
        raise KeyError(correlation_id)

    monkeypatch.setattr("payswitch.ingress.endpoints.read_record", read_with_a_bug)
    app = create_app(Settings(redis_url=redis_server.url, accept_limit_ms=60_000))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            assert_problem(await client.get(f"/payments/{ID}"), 500)


async def test_a_summary_of_nothing_names_both_processors(client: httpx.AsyncClient) -> None:
    response = await client.get("/payments-summary")
    zero = {"totalRequests": 0, "totalAmount": 0.0}
    assert response.json() == {"default": zero, "fallback": zero}


async def test_the_summary_writes_exact_amounts(client: httpx.AsyncClient, b: Bench) -> None:
    for cents in (1990, 10, 20):
        await b.dispatch_until_done(await b.accept(cents=cents))
    response = await client.get("/payments-summary")
    assert '"totalRequests":3,"totalAmount":20.20' in response.text


async def settle_at(b: Bench, requested_at: int) -> None:
    payment = await b.accept(cents=100)
    claim: Claim = await b.claim_when_due(payment)
    await b.redis.hset(f"payment:{payment}", "processor", "default")  # type: ignore[misc]
    await b.ledger.settle(claim, "default", requested_at)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 3),
        ({"from": "2026-01-01T00:00:00.000Z"}, 3),
        ({"from": "2026-01-01T00:00:00.001Z"}, 2),
        ({"from": "2026-01-01T00:00:00.0001Z"}, 2),
        ({"to": "2026-01-01T00:00:00.001Z"}, 2),
        ({"to": "2026-01-01T00:00:00.0009Z"}, 1),
        ({"from": "2026-01-01T00:00:00.001Z", "to": "2026-01-01T00:00:00.001Z"}, 1),
        ({"from": "2026-01-01T01:00:00.002+01:00"}, 1),
        ({"from": "2026-01-01T00:00:00.002"}, 1),
        ({"from": "1950-01-01T00:00:00Z", "to": "9999-12-31T23:59:59.999Z"}, 3),
        ({"to": "1950-01-01T00:00:00Z"}, 0),
        ({"from": "", "to": ""}, 3),
    ],
)
async def test_both_bounds_of_the_summary_are_inclusive(
    client: httpx.AsyncClient, b: Bench, query: dict[str, str], count: int
) -> None:
    for requested_at in (1767225600000, 1767225600001, 1767225600002):
        await settle_at(b, requested_at)
    response = await client.get("/payments-summary", params=query)
    assert response.json()["default"] == {"totalRequests": count, "totalAmount": float(count)}


@pytest.mark.parametrize(
    ("query", "window", "count"),
    [
        ({"from": "2026-01-01T00:00:05Z"}, "2026-01-01T00:00:00.000Z/..", 3),
        ({"to": "2026-01-01T00:00:00Z"}, "../2026-01-01T00:00:09.999Z", 2),
        (
            {"from": "2026-01-01T00:00:12Z", "to": "2026-01-01T00:00:13Z"},
            "2026-01-01T00:00:10.000Z/2026-01-01T00:00:19.999Z",
            1,
        ),
        ({"from": "2026-01-01T00:00:10Z"}, None, 1),
        ({"from": "2026-01-01T00:00:00.0001Z", "to": "2026-01-01T00:00:00.0009Z"}, None, 0),
        ({}, None, 3),
    ],
)
async def test_a_bound_within_a_folded_entry_moves_to_its_end_and_the_answer_says_so(
    client: httpx.AsyncClient, b: Bench, query: dict[str, str], window: str | None, count: int
) -> None:
    for seconds in (1, 2, 11):
        await settle_at(b, 1767225600000 + 1000 * seconds)
    ledger = Ledger(b.redis, processors=["default", "fallback"], retention_ms=600_000)
    while await ledger.fold():
        pass
    response = await client.get("/payments-summary", params=query)
    assert response.headers.get("payswitch-window") == window
    assert response.json()["default"]["totalRequests"] == count


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"from": "yesterday"}, "`from` must be an ISO-8601 instant"),
        ({"to": "2026-13-01T00:00:00Z"}, "`to` must be an ISO-8601 instant"),
        ({"from": "2026-01-01"}, "`from` must be an ISO-8601 instant"),
        ({"from": "1767225600000"}, "`from` must be an ISO-8601 instant"),
        ({"from": "2026-01-01 00:00:00"}, "not '2026-01-01 00:00:00'"),
        ({"from": ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]}, "`from` is given twice"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "after"),
    ],
)
async def test_a_window_that_is_none_is_refused(
    client: httpx.AsyncClient, query: dict[str, str | list[str]], says: str
) -> None:
    assert_problem(await client.get("/payments-summary", params=query), 422, says=says)


@pytest.mark.parametrize("offset", ["+01:00", "+0100", "+01", " 01:00", "%2B01:00"])
async def test_the_plus_of_an_offset_needs_no_encoding(
    client: httpx.AsyncClient, b: Bench, offset: str
) -> None:
    await settle_at(b, 1767225600000)
    for second, count in (("00", 1), ("01", 0)):
        query = f"from=2026-01-01T01:00:{second}{offset}"
        response = await client.get(f"/payments-summary?{query}")
        assert response.json()["default"]["totalRequests"] == count


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("POST", "/payments/", "/payments was meant"),
        ("GET", "/payments-summary/", "/payments-summary was meant"),
        ("GET", "//Payments-Summary", "/payments-summary was meant"),
        ("GET", "/payment", "there is nothing at /payment"),
    ],
)
async def test_a_path_that_is_nearly_right_is_told_so(
    client: httpx.AsyncClient, method: str, path: str, says: str
) -> None:
    answer = await client.request(method, f"http://ingress{path}")
    assert_problem(answer, 404, says=says)
    assert answer.json()["detail"].endswith(says)


async def test_another_method_than_the_paths_is_told_which_it_is(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/payments"), 405, says="GET is not allowed here, but POST")


async def test_a_payment_shows_its_states(
    client: httpx.AsyncClient, b: Bench, redis: ArqRedis
) -> None:
    await client.post("/payments", json={"correlationId": ID, "amount": 19.9})

    async def shown() -> dict[str, Any]:
        response = await client.get(f"/payments/{ID.upper()}")
        assert response.status_code == 200
        document: dict[str, Any] = response.json()
        return document

    queued = await shown()
    assert (queued["state"], queued["amount"], queued["tries"]) == ("queued", 19.9, 0)
    assert queued["processor"] is None
    claim = await b.claim_when_due(ID)
    assert (await shown())["state"] == "processing"
    b.default.script = [Reply(500)]
    await b.dispatcher.dispatch(claim)
    retried = await shown()
    assert (retried["state"], retried["lastError"]) == ("queued", "default: status 500")
    await b.dispatch_until_done(ID)
    settled = await shown()
    assert (settled["state"], settled["processor"], settled["tries"]) == ("settled", "default", 2)
    assert settled["requestedAt"] == b.default.posts[-1]["requestedAt"]


@pytest.mark.parametrize("path", [f"/payments/{ID}", "/payments/7"])
async def test_an_unknown_payment_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 404)


async def test_nobody_may_purge_by_default(client: httpx.AsyncClient, redis: ArqRedis) -> None:
    await client.post("/payments", json={"correlationId": ID, "amount": 1})
    assert_problem(await client.post("/purge-payments"), 403, says="PAYSWITCH_PURGE=off")
    assert await redis.exists(f"payment:{ID}")


async def test_anyone_may_purge_where_it_is_open(
    redis_server: RedisServer, redis: ArqRedis
) -> None:
    async with serving(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000, purge="open")
    ) as client:
        await client.post("/payments", json={"correlationId": ID, "amount": 1})
        assert (await client.post("/purge-payments")).status_code == 200
        assert await redis.zcard("arq:queue") == 0
        assert_problem(await client.get(f"/payments/{ID}"), 404)


async def test_a_purge_may_demand_a_token(redis_server: RedisServer) -> None:
    settings = Settings(
        redis_url=redis_server.url, accept_limit_ms=60_000, purge="token", purge_token="s3cret"
    )
    async with serving(settings) as client:
        assert_problem(await client.post("/purge-payments"), 401)
        wrong = {"authorization": "Bearer wrong"}
        assert_problem(await client.post("/purge-payments", headers=wrong), 401)
        right = {"authorization": "Bearer s3cret"}
        assert (await client.post("/purge-payments", headers=right)).status_code == 200


async def test_alive_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).json() == {
        "status": "ready",
        "durability": {"promise": "disk", "kept": True},
    }


@pytest.mark.parametrize(
    ("durability", "appendfsync", "kept"),
    [
        (Durability.PROCESS, "no", True),
        (Durability.PROCESS, "everysec", False),
        (Durability.DISK, "no", False),
    ],
)
async def test_what_a_202_stands_for_is_told_with_whether_redis_keeps_it(
    own_redis: RedisServer, durability: Durability, appendfsync: str, kept: bool
) -> None:
    redis = connect(own_redis.url, limit_s=5)
    await redis.config_set("appendfsync", appendfsync)
    async with serving(Settings(redis_url=own_redis.url, durability=durability)) as client:
        ready = (await client.get("/readyz")).json()
        assert ready["durability"] == {"promise": durability, "kept": kept}
        scrape = (await client.get("/metrics")).text
        assert f'payswitch_durability{{promise="{durability}"}} {float(kept)}\n' in scrape

        async def is_told() -> bool:
            overview = await read_overview(redis, PROCESSORS)
            return (overview.durability, overview.is_kept) == (durability, kept)

        await eventually(is_told, what="the status says the same")
    await redis.aclose(close_connection_pool=True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/payments"),
        ("GET", "/payments-summary"),
        ("GET", f"/payments/{ID}"),
        ("GET", "/readyz"),
        ("POST", "/purge-payments"),
    ],
)
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_redis_the_answer_is_503_with_retry_after(
    own_redis: RedisServer, method: str, path: str, how: str
) -> None:
    settings = Settings(redis_url=own_redis.url, accept_limit_ms=300, purge="open")
    body = {"correlationId": ID, "amount": 1} if path == "/payments" else None
    async with serving(settings) as client:
        if how == "killed":
            own_redis.kill()
        else:
            own_redis.signal(signal.SIGSTOP)
        began = time.monotonic()
        response = await client.request(method, path, json=body)
        took = time.monotonic() - began
        alive = await client.get("/healthz")
        if how == "killed":
            own_redis.start()
        else:
            own_redis.signal(signal.SIGCONT)
    assert_problem(response, 503)
    assert response.headers["retry-after"] == "1"
    assert took < 5
    assert alive.status_code == 200
    later = connect(own_redis.url, limit_s=10)
    found = {*await later.keys("payment*"), *await later.keys("arq:*")}
    assert found <= {b"payments:currency"}
    await later.aclose(close_connection_pool=True)


async def test_many_at_once_without_redis_are_all_answered_within_the_limit(
    own_redis: RedisServer,
) -> None:
    """Not one after another, as connections to a frozen Redis are opened."""
    settings = replace(Settings(), redis_url=own_redis.url, accept_limit_ms=500)
    async with serving(settings) as client:
        await asyncio.gather(*(client.get("/payments-summary") for _ in range(30)))
        own_redis.signal(signal.SIGSTOP)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(client.get("/payments-summary") for _ in range(30)))
        own_redis.signal(signal.SIGCONT)
    assert {answer.status_code for answer in answers} == {503}


async def test_with_a_full_backlog_the_answer_is_503(redis_server: RedisServer) -> None:
    async with serving(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000, max_backlog=1)
    ) as client:
        await client.post("/payments", json={"correlationId": ID, "amount": 1})
        other = {"correlationId": str(uuid4()), "amount": 1}
        assert_problem(await client.post("/payments", json=other), 503, says="too many")


# In a cluster.


@pytest.fixture
async def of_partitions(
    shared_node: RedisServer, partitioned: Client
) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(redis_url=shared_node.url, accept_limit_ms=60_000, purge="open")
    async with serving(settings) as client:
        yield client


async def test_payments_of_all_partitions_are_found_and_summed(
    of_partitions: httpx.AsyncClient, partitioned: Client
) -> None:
    async with bench(partitioned) as b:
        payments = await asyncio.gather(*(b.accept() for _ in range(20)))
        left = 20
        while left:
            claims = await b.claim(limit=left)
            left -= len(claims)
            await asyncio.gather(*map(b.dispatcher.dispatch, claims))
    summary = (await of_partitions.get("/payments-summary")).json()
    assert summary["default"] == {"totalRequests": 20, "totalAmount": 398.0}
    window = {"from": "2026-01-01T00:00:00Z", "to": "2126-01-01T00:00:00Z"}
    assert (await of_partitions.get("/payments-summary", params=window)).json() == summary
    for each in payments:
        assert (await of_partitions.get(f"/payments/{each}")).json()["state"] == "settled"


async def test_no_sum_of_a_part_of_the_partitions_is_told(
    of_partitions: httpx.AsyncClient, partitioned: Client
) -> None:
    own = partitioned.partitions[5]
    await own.redis.set(own.family("ledger", "default:0:total"), "spoilt")
    assert_problem(await of_partitions.get("/payments-summary"), 503)


async def test_a_purge_names_the_partitions_that_did_not_confirm_it_and_may_be_repeated(
    of_partitions: httpx.AsyncClient, partitioned: Client
) -> None:
    own = partitioned.partitions[5]
    await own.redis.set(own.key(keys.GENERATION), "spoilt")
    says = "partitions 5 did not confirm the purge"
    assert_problem(await of_partitions.post("/purge-payments"), 503, says=says)
    await own.redis.set(own.key(keys.GENERATION), "0")
    again = await of_partitions.post("/purge-payments")
    assert (again.status_code, again.json()) == (200, {"generation": 2})

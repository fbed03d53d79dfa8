"""Redis short of memory and out of it: new payments are refused, everything else goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.ingress.app import create_app
from payswitch.money import Total
from payswitch.payments.accepting import AcceptQueue, NotAcceptedError
from payswitch.payments.ledger import Settlement
from payswitch.payments.payment import Payment
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.client import connect
from payswitch.store.watch import RedisWatch
from tests.integration.harness import Bench, bench
from tests.support import SLACK_S, RedisServer, Reply, eventually

FULL = 1
"""A `maxmemory` (bytes) that is passed by an empty Redis, and still when all is paid."""


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made
    await redis.config_set("maxmemory", 0)


@contextlib.asynccontextmanager
async def serving(url: str) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(redis_url=url, purge="open"))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            yield client


async def pay(client: httpx.AsyncClient, correlation_id: str | None = None) -> httpx.Response:
    payment = {"correlationId": correlation_id or str(uuid4()), "amount": 19.9}
    return await client.post("/payments", json=payment)


async def answers(client: httpx.AsyncClient, status: int) -> None:
    """Wait until payments get this status."""

    async def does() -> bool:
        return (await pay(client)).status_code == status

    await eventually(does, what=f"payments are answered {status}")


async def set_used_share(redis: ArqRedis, share: float) -> None:
    """Let this share of Redis' memory be in use."""
    memory = await redis.info("memory")
    used = memory["used_memory"] - memory["mem_not_counted_for_evict"]
    await redis.config_set("maxmemory", int(used / share))


# Short of memory: the backpressure.


async def test_above_the_share_payments_are_refused_and_below_it_taken_again(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    async with serving(redis_server.url) as client:
        assert (await pay(client)).status_code == 202
        await set_used_share(redis, 0.9)
        await answers(client, 503)
        before = await redis.keys("*")
        response = await pay(client)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert "short of memory" in response.json()["detail"]
        assert await redis.keys("*") == before
        await set_used_share(redis, 0.5)
        await answers(client, 202)


async def test_as_soon_as_there_is_memory_the_next_payment_at_every_ingress_is_taken(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payswitch.store.watch._EVERY_S", 1000)
    monkeypatch.setattr("payswitch.store.watch._FRESH_S", 0)
    await set_used_share(redis, 0.9)
    async with serving(redis_server.url) as one, serving(redis_server.url) as other:
        assert [(await pay(client)).status_code for client in (one, other)] == [503, 503]
        await redis.config_set("maxmemory", 0)  # as after a purge
        assert [(await pay(client)).status_code for client in (one, other)] == [202, 202]


async def test_below_the_share_nothing_is_refused(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await set_used_share(redis, 0.6)
    caplog.set_level(logging.INFO)
    async with serving(redis_server.url) as client:
        looks = (await redis.info("commandstats"))["cmdstat_info"]["calls"]

        async def looked_twice() -> bool:
            # Each of these looks is one, too.
            nonlocal looks
            looks += 1
            calls = (await redis.info("commandstats"))["cmdstat_info"]["calls"]
            return bool(calls >= looks + 2)

        await eventually(looked_twice, what="two looks")
        assert (await pay(client)).status_code == 202
    assert "new payments" not in caplog.text


async def test_beginning_and_end_are_logged_once_each(
    b: Bench, redis: ArqRedis, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(redis_server.url) as client:
        await set_used_share(redis, 0.9)
        await answers(client, 503)
        await set_used_share(redis, 0.5)
        await answers(client, 202)
    assert caplog.text.count("new payments are refused") == 1
    assert caplog.text.count("new payments are taken") == 1


async def test_it_looks_again_after_redis_was_away(own_redis: RedisServer) -> None:
    async with serving(own_redis.url) as client:
        await answers(client, 202)
        own_redis.kill()
        assert (await pay(client)).status_code == 503
        own_redis.start()
        await answers(client, 202)
        redis = connect(own_redis.url, limit_s=5)
        await set_used_share(redis, 0.9)
        await redis.aclose(close_connection_pool=True)

        async def refused_for_its_memory() -> bool:
            return "short of memory" in (await pay(client)).text

        await eventually(refused_for_its_memory, what="payments are refused for Redis' memory")


async def test_while_redis_is_frozen_a_look_ends_and_the_last_one_stands(
    own_redis: RedisServer,
) -> None:
    redis = connect(own_redis.url, limit_s=30)
    watch = RedisWatch(redis, currency="BRL", demand=False, max_percent=85)
    await set_used_share(redis, 0.9)
    await watch.look()
    own_redis.signal(signal.SIGSTOP)
    await asyncio.wait_for(watch.look(), SLACK_S)
    assert watch.is_short
    own_redis.signal(signal.SIGCONT)
    await redis.config_set("maxmemory", 0)
    await watch.look()
    assert not watch.is_short
    await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def blind_url(redis: ArqRedis, redis_server: RedisServer) -> AsyncIterator[str]:
    """The URL of a user of Redis who may not ask for INFO."""
    await redis.acl_setuser(
        "blind",
        enabled=True,
        nopass=True,
        categories=["+@all"],
        commands=["-info"],
        keys=["*"],
        channels=["*"],
    )
    yield redis_server.url.replace("redis://", "redis://blind:any@")
    await redis.acl_deluser("blind")


async def test_where_info_is_not_allowed_payments_are_taken_and_that_is_said_once(
    b: Bench, redis: ArqRedis, blind_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await set_used_share(redis, 0.9)
    async with serving(blind_url) as client:
        for _ in range(2):
            assert (await client.get("/readyz")).status_code == 200  # each is a look
        assert (await pay(client)).status_code == 202
    assert caplog.text.count("can't be watched") == 1


# Out of memory: Redis itself refuses.


async def test_what_a_full_redis_refuses_is_answered_503_and_nothing_of_it_is_held(
    b: Bench, redis: ArqRedis, blind_url: str
) -> None:
    async with serving(blind_url) as client:
        assert (await pay(client)).status_code == 202
        before = sorted(await redis.keys("*"))
        await redis.config_set("maxmemory", FULL)
        ids = [str(uuid4()) for _ in range(50)]
        for response in await asyncio.gather(*(pay(client, each) for each in ids)):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            assert "Redis is full" in response.json()["detail"]
        assert sorted(await redis.keys("*")) == before
        await redis.config_set("maxmemory", 0)
        await asyncio.gather(*(pay(client, each) for each in ids))
        assert await redis.zcard("payments:open") == 51


async def test_a_full_redis_that_forgot_its_scripts_goes_on(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=5)
    async with bench(redis) as b:
        payments = [await b.accept() for _ in range(3)]
        await redis.config_set("maxmemory", FULL)
        b.default.script = [Reply(429), Reply(500), Reply(422)]

        async def all_done() -> bool:
            await redis.script_flush()
            claims = await b.claim()
            await redis.script_flush()
            await asyncio.gather(*map(b.dispatcher.dispatch, claims))
            return not await redis.zcard("payments:open")

        await eventually(all_done, what="all are settled or dead")
        assert await redis.zcard("payments:dead") == 1
        assert (await b.summary())["default"] == Total(2, 2 * 1990)
        await redis.script_flush()
        with pytest.raises(NotAcceptedError, match="Redis is full"):
            await AcceptQueue(redis, limit_ms=5000, max_backlog=10).accept(Payment("new", 1))
        await b.purge()
    assert not await redis.exists("payment:new", *(f"payment:{each}" for each in payments))
    await redis.aclose(close_connection_pool=True)


@contextlib.asynccontextmanager
async def process(b: Bench, url: str, command: str, **environment: str) -> AsyncIterator[None]:
    """`payswitch COMMAND` as a process of its own while the context is open."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "payswitch", command),
        env={
            **os.environ,
            "REDIS_URL": url,
            "PAYMENT_PROCESSOR_URL_DEFAULT": b.default.url,
            "PAYMENT_PROCESSOR_URL_FALLBACK": b.fallback.url,
            **environment,
        },
    )
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), 30) == 0


async def test_out_of_memory_the_backlog_drains_and_the_books_are_equal(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    cents = {str(uuid4()): 1000 + n for n in range(300)}
    for correlation_id, each in cents.items():
        await b.accept(correlation_id=correlation_id, cents=each)
    fallen_out = next(iter(cents))
    await redis.zrem("arq:queue", fallen_out)  # the sweep finds it
    b.default.script = [Reply(500), Reply(429), Reply(record=True, hang_up=True)] * 10
    await redis.config_set("maxmemory", FULL)
    async with process(b, redis_server.url, "worker", PAYSWITCH_SWEEP_MS="100"):

        async def all_paid() -> bool:
            return not await redis.zcard("payments:open")

        await eventually(all_paid, what="the backlog is empty")
        assert await redis.exists("arq:queue:health-check")
    books = {"default": b.default.books, "fallback": b.fallback.books}
    assert sorted([*books["default"], *books["fallback"]]) == sorted(cents)
    assert await b.summary() == {
        name: Total(len(book), sum(cents[each] for each in book)) for name, book in books.items()
    }


async def test_out_of_memory_all_but_new_payments_is_served(
    b: Bench, redis: ArqRedis, redis_server: RedisServer
) -> None:
    async with serving(redis_server.url) as client:
        payment = await b.accept()
        await redis.config_set("maxmemory", FULL)
        [claim] = await b.claim()
        await b.dispatcher.dispatch(claim)
        assert (await client.get(f"/payments/{payment}")).json()["state"] == "settled"
        summary = (await client.get("/payments-summary")).json()
        assert summary["default"] == {"totalRequests": 1, "totalAmount": 19.9}
        assert "short of memory" in (await client.get("/readyz")).json()["detail"]
        assert (await client.post("/purge-payments")).status_code == 200
        assert (await client.get(f"/payments/{payment}")).status_code == 404


@pytest.mark.parametrize("full_at_start", [False, True])
async def test_out_of_memory_a_health_worker_goes_on_selecting(
    redis: ArqRedis, redis_server: RedisServer, full_at_start: bool
) -> None:
    async with bench(redis) as b:

        async def selected(processor: str) -> None:
            async def is_selected() -> bool:
                await redis.delete(keys.HEALTH_THROTTLE)
                raw = await redis.get(keys.SELECTION)
                return raw is not None and orjson.loads(raw)["processor"] == processor

            await eventually(is_selected, what=f"{processor} is selected")

        if full_at_start:
            await redis.config_set("maxmemory", FULL)
        async with process(b, redis_server.url, "health"):
            await selected("default")
            await redis.config_set("maxmemory", FULL)
            for failing, other in ((b.default, "fallback"), (b.fallback, "default")):
                b.default.health = b.fallback.health = Reply(
                    200, b'{"failing":false,"minResponseTime":0}'
                )
                failing.health = Reply(200, b'{"failing":true,"minResponseTime":0}')
                await selected(other)
            assert await redis.exists("arq:queue:health:health-check")
            await redis.config_set("maxmemory", 0)
            b.default.health = failing.health
            b.fallback.health = Reply(200, b'{"failing":false,"minResponseTime":0}')
            await selected("fallback")


# Bounds.


async def test_of_the_incidents_the_newest_ten_thousand_are_kept(b: Bench, redis: ArqRedis) -> None:
    await redis.rpush("payments:incidents", *(str(n) for n in range(10_000)))  # type: ignore[misc]
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    assert await b.ledger.settle(claim, "fallback", 1) is Settlement.INCIDENT
    kept = await redis.lrange("payments:incidents", 0, -1)  # type: ignore[misc]
    assert len(kept) == 10_000
    assert kept[0] == b"1"
    assert orjson.loads(kept[-1])["correlationId"] == payment

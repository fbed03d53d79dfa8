"""The overview of a real Redis: exact where the ledger and the queues say it, robust to whatever
stands under its keys, alive while processes are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from functools import partial

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.dispatch.assembly import make_dispatcher, worker_heartbeat
from payswitch.dispatch.counts import SettleCounts
from payswitch.instants import format_instant
from payswitch.operations.controls import Controls, Order
from payswitch.operations.fees import FeeWatch
from payswitch.operations.history import (
    KEPT,
    Changes,
    HistoryWriter,
    parse_sample,
    read_history,
)
from payswitch.operations.overview import Overview, read_overview
from payswitch.payments.audit import Signature
from payswitch.payments.ledger import Ledger
from payswitch.processors.processor import make_processors
from payswitch.selection.health_check import make_health_check
from payswitch.store import keys
from payswitch.store.client import connect
from payswitch.store.notes import write_note
from payswitch.telemetry.heartbeat import Heartbeat
from tests.integration.harness import PATIENT, Bench, bench
from tests.support import ANA, PROCESSORS, RedisServer, Reply, eventually


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


async def look(redis: ArqRedis) -> Overview:
    return await read_overview(redis, PROCESSORS)


async def test_an_empty_redis_is_an_empty_overview(redis: ArqRedis) -> None:
    overview = await look(redis)
    assert (overview.accepted, overview.backlog, overview.dead, overview.incidents) == (0, 0, 0, 0)
    assert overview.oldest_age_ms is None
    found = (overview.choice, overview.override, overview.paused, overview.reconciled)
    assert found == (None, None, None, None)
    assert (overview.health, overview.fee_rates, overview.processes) == ({}, {}, [])
    assert overview.fees is None


async def test_every_payment_is_counted_in_whichever_state(b: Bench, redis: ArqRedis) -> None:
    paid, refused = await b.accept(cents=1990), await b.accept()
    await b.dispatcher.dispatch(await b.claim_when_due(paid))
    b.default.script = [Reply(422)]
    await b.dispatcher.dispatch(await b.claim_when_due(refused))
    await b.accept()
    await b.claim_when_due(await b.accept())
    overview = await look(redis)
    assert overview.accepted == 4
    assert (overview.settled["default"].count, overview.settled["default"].cents) == (1, 1990)
    assert (overview.dead, overview.backlog, overview.in_flight) == (1, 2, 1)
    assert overview.oldest_age_ms is not None
    assert 0 <= overview.oldest_age_ms < 60_000


async def test_the_health_check_leaves_choice_and_reports(b: Bench, redis: ArqRedis) -> None:
    b.default.health = Reply(200, b'{"failing":true,"minResponseTime":7}')
    b.fallback.health = Reply(500)
    await make_health_check(
        b.settings, redis, list(make_processors(b.settings, b.transport).values())
    ).check()
    overview = await look(redis)
    assert overview.choice is not None
    assert (overview.choice.processor, overview.choice.healthy) == ("default", False)
    assert 0 < overview.choice.expires_in_ms <= 10_000
    default, fallback = overview.health["default"], overview.health["fallback"]
    assert (default.known, default.failing, default.min_response_ms) == (True, True, 7)
    assert not fallback.known
    assert abs(overview.at - default.at) < 60_000


async def test_orders_are_seen_from_any_writer(redis: ArqRedis) -> None:
    order = {"by": "ann", "reason": "a test", "processor": "fallback"}
    await redis.set("selection:override", orjson.dumps(order), px=60_000)
    await redis.lpush("payments:paused", "the key counts, whatever it holds")  # type: ignore[misc]
    overview = await look(redis)
    assert overview.override is not None
    assert (overview.override.processor, overview.override.by) == ("fallback", "ann")
    assert overview.override.until_ms is not None
    assert 0 < overview.override.until_ms - overview.at <= 60_000
    assert overview.paused == Order("unknown", None, None, None)


async def test_an_order_without_a_foreseeable_end_ends_with_the_calendar(redis: ArqRedis) -> None:
    await redis.set("payments:paused", "{}", px=2**62)
    paused = (await look(redis)).paused
    assert paused is not None
    assert paused.until_ms is not None
    assert format_instant(paused.until_ms) == "9999-12-31T23:59:59.999Z"


async def test_what_controls_order_is_seen(redis: ArqRedis) -> None:
    controls = Controls(redis)
    chosen = await controls.select("fallback", life_ms=60_000, signature=Signature("ann", "a test"))
    paused = await controls.pause(life_ms=None, signature=Signature("bea"))
    overview = await look(redis)
    assert overview.override is not None
    assert replace(overview.override, until_ms=chosen.until_ms) == chosen
    assert overview.paused == paused
    await controls.resume(ANA)
    await controls.select_automatically(ANA)
    overview = await look(redis)
    assert (overview.override, overview.paused) == (None, None)


@pytest.mark.parametrize("value", [b"7", b"\xff", b"[]", b'{"processor":"third","at":9}'])
async def test_what_others_wrote_under_the_keys_reads_as_nothing(
    redis: ArqRedis, value: bytes
) -> None:
    for key in (
        *("selected_payment_processor", "selection:override"),
        *(keys.REPORTS, keys.FEES, keys.RECONCILED),
    ):
        await redis.set(key, value)
    await redis.hset("ledger:default:0:total", mapping={"count": value, "cents": "x"})  # type: ignore[misc]
    await redis.set("payments:dead", value)
    await redis.hset("vitals:x", mapping={"kind": value})  # type: ignore[misc]
    await redis.zadd("vitals", {"vitals:x": 1, "vitals:y": 2})
    overview = await look(redis)
    assert (overview.choice, overview.override, overview.reconciled) == (None, None, None)
    assert (overview.health, overview.fee_rates, overview.processes) == ({}, {}, [])
    assert (overview.settled["default"].cents, overview.dead) == (0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": "9" * 30},
        {"tries:default:NotPaid": "9" * 400},
        {"settle_times": "5:" + "9" * 400},
        {"since": "-" + "9" * 30},
    ],
)
async def test_numbers_beyond_all_measure_are_no_heartbeat_and_the_history_goes_on(
    redis: ArqRedis, fields: dict[str, str]
) -> None:
    who = {"kind": "worker", "host": "x", "pid": "1", "since": "0"}
    await redis.hset("vitals:x", mapping=who | fields)  # type: ignore[misc]
    await redis.zadd("vitals", {"vitals:x": 1})
    assert (await look(redis)).processes == []
    assert await HistoryWriter(redis, PROCESSORS).write()


@pytest.mark.parametrize("fee", ["1e999999", "-1", "NaN", "2"])
async def test_a_value_that_is_no_share_is_no_fee(redis: ArqRedis, fee: str) -> None:
    await write_note(redis, keys.FEES, {"default": fee})
    assert (await look(redis)).fee_rates == {}


async def test_a_fee_is_kept_to_nine_places(redis: ArqRedis) -> None:
    await write_note(redis, keys.FEES, {"default": "1e-999999", "fallback": "0.15"})
    rates = (await look(redis)).fee_rates
    assert [f"{rate:f}" for rate in rates.values()] == ["0.000000000", "0.150000000"]


async def test_a_process_lives_as_long_as_it_says_so(redis: ArqRedis) -> None:
    counts = {"accepted:new": 3}
    heartbeat = Heartbeat(redis, "ingress", lambda: counts)
    await heartbeat.write()
    counts["accepted:new"] = 5
    await heartbeat.write()
    [process] = (await look(redis)).processes
    assert (process.kind, process.counts) == ("ingress", {"accepted:new": 5})
    assert 0 < await redis.pttl(heartbeat.key) <= 5000
    await redis.delete(heartbeat.key)
    assert (await look(redis)).processes == []


async def test_processes_with_one_host_name_and_one_pid_are_two(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    workers = [
        Heartbeat(redis, "worker", partial(dict, {"tries:default:Unknown": count}))
        for count in (7, 120)
    ]
    changes = Changes()
    for _ in range(3):
        for worker in workers:
            await worker.write()
        sample = changes.sample(await read_overview(redis, PROCESSORS))
        assert sample.failed == {"default": 0, "fallback": 0}
    found = (await read_overview(redis, PROCESSORS)).processes
    assert sorted(
        (each.host, each.pid, each.of("tries:default:")["Unknown"]) for each in found
    ) == [
        ("host", 1, 7),
        ("host", 1, 120),
    ]
    assert len({each.name for each in found}) == 2


async def test_heartbeats_go_on_if_redis_is_full(redis: ArqRedis) -> None:
    await redis.config_set("maxmemory", 1)
    try:
        await Heartbeat(redis, "health", dict).write()
        assert await HistoryWriter(redis, PROCESSORS).write()
        await write_note(redis, keys.RECONCILED, {"at": 1, "differences": 2})
    finally:
        await redis.config_set("maxmemory", 0)
    overview = await look(redis)
    assert len(overview.processes) == 1
    assert overview.reconciled is not None
    assert overview.reconciled.differences == 2


async def test_heartbeats_go_on_when_redis_is_back(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=1)
    heartbeat = Heartbeat(redis, "health", dict)
    heartbeat.start()
    own_redis.kill()
    own_redis.start()

    async def is_there() -> bool:
        try:
            return bool(await redis.exists(heartbeat.key))
        except OSError:
            return False

    await eventually(is_there, what="the heartbeat is written again")
    await heartbeat.close()
    await redis.aclose(close_connection_pool=True)


async def test_a_worker_counts_what_it_settled_and_how_long_it_took(
    b: Bench, redis: ArqRedis
) -> None:
    settled = SettleCounts()
    dispatcher = make_dispatcher(b.settings, redis, b.transport, settled, b.limits)
    heartbeat = worker_heartbeat(redis, dispatcher, settled)
    await heartbeat.write()
    failed, paid = await b.accept(), await b.accept()
    b.default.script = [Reply(500)]
    await dispatcher.dispatch(await b.claim_when_due(failed))
    await dispatcher.dispatch(await b.claim_when_due(paid))
    await heartbeat.write()
    [process] = (await look(redis)).of_kind("worker")
    assert process.of("settled:") == {"default": 1}
    assert process.of("tries:") == {"default:Ended": 1, "default:Paid": 1}
    assert process.breakers == {"default": "closed", "fallback": "closed"}
    assert process.settle_times.total == 1
    assert (process.settle_times.quantile(1) or 0) < 60_000


async def test_a_worker_says_why_a_breaker_is_not_closed(b: Bench, redis: ArqRedis) -> None:
    b.use(limits=replace(PATIENT, failures=1, refusals=1))
    b.default.script = [Reply(429, headers=(("retry-after", "7"),))]
    b.fallback.script = [Reply(422)]
    for _ in range(2):
        await b.dispatcher.dispatch(await b.claim_when_due(await b.accept()))
    await worker_heartbeat(redis, b.dispatcher, SettleCounts()).write()
    [process] = (await look(redis)).of_kind("worker")
    assert process.breakers == {"default": "open", "fallback": "open"}
    assert process.breaker_reasons == {
        "default": "status 429, Retry-After 7 s",
        "fallback": "refuses payments: refused with status 422",
    }


async def test_a_settlement_said_again_counts_once(b: Bench, redis: ArqRedis) -> None:
    settled = SettleCounts()
    ledger = Ledger(redis, processors=["default"], retention_ms=60_000, on_settled=settled.add)
    await b.accept()
    [claim] = await b.claim()
    await b.dispatcher.dispatch(claim)
    await ledger.settle(claim, "default", 1)
    assert settled.by_processor == {}


async def test_fees_are_those_that_the_processors_say(b: Bench, redis: ArqRedis) -> None:
    watch = FeeWatch(redis, make_processors(b.settings, b.transport))
    b.default.finds = [Reply(200, b'{"totalRequests":0,"totalAmount":0,"feePerTransaction":0.05}')]
    b.fallback.finds = [Reply(200, b'{"feePerTransaction":"free"}')]
    await watch.turn()
    assert watch.every_s == 15
    assert (await look(redis)).fee_rates == {"default": Decimal("0.05")}
    b.default.finds = [Reply(401)]
    b.fallback.finds = [Reply(200, b'{"feePerTransaction":0.15}')]
    await watch.turn()
    assert watch.every_s == 15
    known = {"default": Decimal("0.05"), "fallback": Decimal("0.15")}
    assert (await look(redis)).fee_rates == known
    b.default.finds = [Reply(200, b'{"feePerTransaction":0.05}')]
    b.fallback.finds = [Reply(200, b'{"feePerTransaction":0.15}')]
    await watch.turn()
    assert watch.every_s == 600


async def test_one_sample_a_second_is_kept_from_any_writer(redis: ArqRedis) -> None:
    first, second = HistoryWriter(redis, PROCESSORS), HistoryWriter(redis, PROCESSORS)
    assert await first.write()
    assert not await second.write()
    await redis.delete("overview:beat")
    assert await second.write()
    samples = [parse_sample(raw) for raw in await read_history(redis)]
    assert len(samples) == 2
    assert None not in samples


async def test_the_history_has_its_length_and_goes_with_its_writers(redis: ArqRedis) -> None:
    await redis.rpush(keys.HISTORY, *range(2 * KEPT))  # type: ignore[misc]
    await HistoryWriter(redis, PROCESSORS).write()
    assert await redis.llen(keys.HISTORY) == KEPT  # type: ignore[misc]
    assert 0 < await redis.pttl(keys.HISTORY) <= KEPT * 1000

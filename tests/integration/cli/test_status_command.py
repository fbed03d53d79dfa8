"""`payswitch status` as an operator runs it: a process of its own, against a real Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.durability import Durability
from payswitch.operations.history import HistoryWriter
from payswitch.telemetry.heartbeat import Heartbeat
from tests.integration.command import Payswitch
from tests.integration.harness import bench
from tests.support import PROCESSORS, SLACK_S, RedisServer, free_port


@pytest.fixture
def payswitch(redis_server: RedisServer) -> Payswitch:
    return Payswitch(redis_server.url)


async def live_parts(redis: ArqRedis) -> None:
    """One process of each kind says that it lives."""
    await Heartbeat(redis, "ingress", lambda: {"durability": Durability.PROCESS}).write()
    for kind in ("worker", "health"):
        await Heartbeat(redis, kind, dict).write()


async def test_it_shows_the_numbers_and_what_is_wrong(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await live_parts(redis)
    async with bench(redis) as b:
        await b.dispatch_until_done(await b.accept(cents=123456))
    ended = await payswitch("status")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (0, "")
    assert lines[0] == "Nothing to pay"
    assert "No selection is cached: payments go to default" in lines
    assert "settled 1" in lines
    assert any(line.startswith("default 1 1234.56") for line in lines)
    assert sum(line.startswith(("ingress", "worker", "health")) for line in lines) == 3
    assert "\x1b" not in ended.out


async def test_it_says_what_a_202_stands_for(redis: ArqRedis, payswitch: Payswitch) -> None:
    fields: dict[str, str | int] = {"durability": "process", "redis:may_lose_payments": 0}
    ingress = Heartbeat(redis, "ingress", lambda: fields)
    await ingress.write()
    survives = f"durability process survives {Durability.PROCESS.survives}"
    assert survives in " ".join((await payswitch("status")).out.split())
    fields["redis:may_lose_payments"] = 1
    await ingress.write()
    out = " ".join((await payswitch("status")).out.split())
    assert "survives" not in out
    assert "Redis may keep less than PAYSWITCH_DURABILITY=process promises" in out
    fields["durability"] = "of a later version"
    await ingress.write()
    assert "No ingress lives" not in (await payswitch("status")).out


async def test_what_stops_money_ends_with_1(redis: ArqRedis, payswitch: Payswitch) -> None:
    ended = await payswitch("status")
    assert ended.code == 1
    assert "No worker lives: no payment is paid" in ended.out


async def test_in_a_narrow_terminal_names_are_folded_and_health_is_not(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await live_parts(redis)
    report = {"failing": False, "minResponseTime": 100}
    reports = {"at": 1, "reports": {"default": report, "fallback": report}}
    await redis.set("healthcheck:reports", orjson.dumps(reports))
    chosen = {"processor": "default", "healthy": True, "reason": "", "at": "2026-01-01T00:00:00Z"}
    await redis.set("selected_payment_processor", orjson.dumps(chosen))
    payswitch.environment["COLUMNS"] = "70"
    out = (await payswitch("status")).out
    assert out.count("healthy, 100 ms") == 2
    assert "…" not in out


async def test_where_nothing_lives_it_says_which_redis_was_asked(
    redis: ArqRedis, redis_server: RedisServer, payswitch: Payswitch
) -> None:
    said = f"So says Redis at {redis_server.url} (REDIS_URL)"
    assert said in (await payswitch("status")).out
    await live_parts(redis)
    assert said not in (await payswitch("status")).out


async def test_json_is_what_the_page_gets(redis: ArqRedis, payswitch: Payswitch) -> None:
    await live_parts(redis)
    for _ in range(2):
        await redis.delete("overview:beat")
        assert await HistoryWriter(redis, PROCESSORS).write()
    status = (await payswitch("status", "--json")).json()
    assert status["level"] == "warning"
    assert status["accepted"] == {"total": 0, "perSecond": 0, "unavailable": 0}
    assert [each["kind"] for each in status["processes"]] == ["ingress", "worker", "health"]
    assert status["settled"]["amount"] == 0
    assert status["durability"]["promise"] == "process"


@pytest.mark.parametrize("names", [["acme"], ["acme", "globex", "initech"]], ids=["one", "three"])
async def test_any_number_of_processors_is_shown_in_the_order_of_preference(
    redis: ArqRedis, payswitch: Payswitch, names: list[str]
) -> None:
    await live_parts(redis)
    await redis.set("processors:fees", orjson.dumps({"acme": "0.05"}))
    for name in names:
        payswitch.environment[f"PAYMENT_PROCESSOR_URL_{name.upper()}"] = f"http://{name}.test"
    payswitch.environment["PAYSWITCH_PROCESSORS"] = ",".join(names)
    lines = [line.split() for line in (await payswitch("status")).out.splitlines()]
    assert [line[0] for line in lines if line[1:3] == ["0", "0.00"]] == names
    assert "more than all by acme" in " ".join(word for line in lines for word in line)
    status = (await payswitch("status", "--json")).json()
    assert list(status["processors"]) == names
    assert status["fees"]["allPreferred"] == 0


async def test_watching_prints_until_it_is_interrupted(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "status", "--watch", "--json"),
        env={**os.environ, "REDIS_URL": redis_server.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(SLACK_S):
        first = orjson.loads(await process.stdout.readline())
        await redis.zadd("payments:dead", {"x": 1})
        while orjson.loads(await process.stdout.readline())["deadLetters"] == 0:
            continue
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (first["deadLetters"], process.returncode, err) == (0, 0, b"")


async def test_a_redis_that_is_away_is_one_line_and_2() -> None:
    ended = await Payswitch(f"redis://127.0.0.1:{free_port()}/0")("status")
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1

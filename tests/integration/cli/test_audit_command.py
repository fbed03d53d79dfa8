"""`payswitch audit` and `payswitch incidents` as an operator runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis

from payswitch.instants import parse_instant_ms
from payswitch.payments.ledger import Settlement
from tests.integration.command import Ended, Payswitch
from tests.integration.harness import Bench, bench
from tests.support import RedisServer

UNKNOWN_ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


@pytest.fixture
def payswitch(redis_server: RedisServer) -> Payswitch:
    return Payswitch(redis_server.url)


async def test_the_audit_trail_tells_who_did_what_when_and_why(
    b: Bench, payswitch: Payswitch
) -> None:
    assert await payswitch("audit") == Ended(0, "No operator has done anything yet.\n", "")
    await payswitch("pause", "--by", "ana", "--reason", "lunch [bold]\N{SNOWMAN}")
    await payswitch("resume", "--by", "bea")
    await b.purge()
    acts = (await payswitch("audit", "--json")).json()["acts"]
    assert [(each["act"], each["by"]) for each in acts] == [
        ("purge", "ana"),
        ("resume", "bea"),
        ("pause", "ana"),
    ]
    assert acts[2]["reason"] == "lunch [bold]\N{SNOWMAN}"
    assert parse_instant_ms(acts[0]["at"]) >= parse_instant_ms(acts[2]["at"])
    ended = await payswitch("audit", "--limit", "1")
    assert "generation 1 begins" in ended.out
    assert "resume" not in ended.out


async def test_incidents_are_listed_resolved_and_then_listed_apart(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    assert await payswitch("incidents", "list") == Ended(0, "There are no incidents.\n", "")
    payment = await b.accept()
    [claim] = await b.claim()
    assert await b.ledger.settle(claim, "fallback", 1_800_000_000_000) is Settlement.INCIDENT
    await redis.rpush("payments:incidents", "nonsense \x1b[2J")  # type: ignore[misc]
    shown = (await payswitch("incidents", "list")).out
    assert payment in shown
    assert r"nonsense \x1b[2J" in shown
    by_ana = ("--by", "ana", "--reason", "fallback has paid it back")
    ended = await payswitch("incidents", "resolve", payment, UNKNOWN_ID, *by_ana)
    assert ended == Ended(1, "1 resolved\n", f"payswitch: {UNKNOWN_ID}: it has no incident\n")
    left = (await payswitch("incidents", "list", "--json")).json()["incidents"]
    assert [each["paidBy"] for each in left] == [None]
    [resolved] = (await payswitch("incidents", "list", "--resolved", "--json")).json()["incidents"]
    assert (resolved["correlationId"], resolved["paidBy"]) == (payment, "fallback")
    assert resolved["resolution"]["reason"] == "fallback has paid it back"
    history = (await payswitch("payment", payment)).out.splitlines()[-2:]
    assert history[0].endswith("incident: fallback has it, though pinned to nobody")
    assert history[1].endswith("incident resolved by ana: fallback has paid it back")

"""Operators' commands on a real cluster of three shards: payments in many partitions of each node,
and the right values of all of them together."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from payswitch.durability import Deployment, Durability
from payswitch.money import Total
from payswitch.payments.ledger import Settlement
from payswitch.payments.purge import Purge
from payswitch.store import keys
from payswitch.store.beginning import begin
from payswitch.store.client import Client, connect
from tests.cluster import ClusterServer
from tests.integration.books import AT, Books, books
from tests.integration.command import Payswitch
from tests.support import ANA, PROCESSORS, SLACK_S

COUNT = 40
"""Payments: each node has several partitions with some."""
SUM = sum(100 + number for number in range(COUNT))

pytestmark = [pytest.mark.long]


@pytest.fixture
async def redis(cluster: ClusterServer) -> AsyncIterator[Client]:
    client = connect(
        cluster.url, limit_s=SLACK_S, deployment=Deployment(16, Durability.REPLICAS, 1)
    )
    await begin(client)
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
async def b(redis: Client) -> AsyncIterator[Books]:
    async with books(redis) as made:
        yield made


@pytest.fixture
async def paid(b: Books, redis: Client) -> list[str]:
    """Payments of 1.00, 1.01 … that are in both books."""
    paid = [await b.pay(at=AT + number, cents=100 + number) for number in range(COUNT)]
    homes = [redis.partitions.of(each).home for each in paid]
    assert len({*homes}) == 3
    return paid


@pytest.fixture
def payswitch(b: Books, cluster: ClusterServer) -> Payswitch:
    urls = b.settings.processor_urls
    names = {f"PAYMENT_PROCESSOR_URL_{name.upper()}": url for name, url in urls.items()}
    names |= {"PAYSWITCH_DURABILITY": "replicas", "PAYSWITCH_REPLICAS": "1"}
    return Payswitch(cluster.url, names)


async def dead_letters(b: Books, count: int = 12) -> list[str]:
    """Dead letters of both processors."""
    return [
        await b.leave_unpaid("dead", at=AT + 1000 + number, processor=PROCESSORS[number % 2])
        for number in range(count)
    ]


async def test_reconcile_compares_all_partitions_with_the_books(
    b: Books, paid: list[str], payswitch: Payswitch
) -> None:
    for options in ((), ("--thorough",)):
        ended = await payswitch("reconcile", *options)
        assert (ended.code, ended.err) == (0, "")
        lines = [" ".join(line.split()) for line in ended.out.splitlines()]
        assert f"default ours {COUNT} {SUM / 100:.2f}" in lines
        assert f"theirs {COUNT} {SUM / 100:.2f}" in lines

    only_here = [await b.settle_here(at=AT + 2000 + number, cents=7) for number in range(10)]
    dead = await dead_letters(b)
    for number, each in enumerate(dead[:6]):
        b.record_there(each, at=AT + 1000 + number, processor=PROCESSORS[number % 2])
    ended = await payswitch("reconcile", "--json")
    found = ended.json()
    assert (ended.code, found["equal"]) == (1, False)
    kinds = {each["correlationId"]: each["difference"] for each in found["payments"]}
    assert kinds == {
        **dict.fromkeys(only_here, "settled here, unknown there"),
        **dict.fromkeys(dead[:6], "recorded there, not settled here"),
    }
    ours = found["totals"]["default"]["ours"]
    assert ours == {"totalRequests": COUNT + 10, "totalAmount": (SUM + 70) / 100}
    assert (found["unexplained"], found["unreadable"]) == ([], [])


async def test_incidents_of_all_partitions_are_listed_and_resolved(
    b: Books, redis: Client, paid: list[str], payswitch: Payswitch
) -> None:
    waiting = [await b.leave_unpaid("processing", at=AT + number) for number in range(12)]
    for each in waiting:
        assert await b.prove(each, "fallback") is Settlement.INCIDENT
    listed = (await payswitch("incidents", "list", "--json")).json()["incidents"]
    assert sorted(each["correlationId"] for each in listed) == sorted(waiting)
    compared = (await payswitch("reconcile", "--json")).json()["incidents"]
    assert sorted(each["correlationId"] for each in compared) == sorted(waiting)

    ended = await payswitch("incidents", "resolve", *waiting[:5], "--reason", "paid back")
    assert (ended.code, ended.out) == (0, "5 resolved\n")
    left = (await payswitch("incidents", "list", "--json")).json()["incidents"]
    assert {each["correlationId"] for each in left} == {*waiting[5:]}
    gone = (await payswitch("incidents", "list", "--resolved", "--json")).json()["incidents"]
    assert {each["correlationId"] for each in gone} == {*waiting[:5]}
    assert (await payswitch("status", "--json")).json()["incidents"] == 7


async def test_dead_letters_of_all_partitions_are_listed_resolved_and_replayed(
    b: Books, redis: Client, payswitch: Payswitch
) -> None:
    dead = await dead_letters(b)
    listed = (await payswitch("dead", "list", "--json")).json()["deadLetters"]
    assert {each["correlationId"] for each in listed} == {*dead}
    of_one = await payswitch("dead", "list", "--processor", "fallback", "--json")
    assert {each["correlationId"] for each in of_one.json()["deadLetters"]} == {*dead[1::2]}
    known = (await payswitch("processors", "list", "--json")).json()["processors"]
    assert [(each["name"], each["deadLetters"]) for each in known] == [
        ("default", 6),
        ("fallback", 6),
    ]

    ended = await payswitch("dead", "resolve", *dead[:4], "--reason", "refunded")
    assert (ended.code, ended.out) == (0, "4 resolved\n")
    gone = (await payswitch("dead", "list", "--resolved", "--json")).json()["deadLetters"]
    assert {each["correlationId"] for each in gone} == {*dead[:4]}
    ended = await payswitch("dead", "replay", dead[4], dead[5])
    assert (ended.code, ended.out) == (0, "2 replayed\n")
    ended = await payswitch("dead", "replay", "--all", "--processor", "fallback")
    assert (ended.code, ended.out) == (0, "3 replayed\n")  # of six, two resolved and one replayed
    status = (await payswitch("status", "--json")).json()
    assert (status["backlog"]["payments"], status["deadLetters"]) == (5, 3)
    place = redis.partitions.of(dead[4])
    shown = (await payswitch("payment", dead[4], "--json")).json()
    assert (shown["state"], shown["node"]) == ("queued", place.home)
    assert shown["key"] == place.record(dead[4])
    assert await redis.partitions.of(dead[4]).redis.exists(shown["key"])


async def test_orders_reach_every_partition_and_are_remembered(
    redis: Client, payswitch: Payswitch
) -> None:
    async def paused() -> set[int]:
        counts = [
            await each.redis.exists(each.key(keys.PAUSED)) for each in redis.partitions.with_common
        ]
        return set(counts)

    assert (await payswitch("pause", "--for", "1h", "--by", "ana")).code == 0
    assert await paused() == {1}
    assert (await payswitch("status", "--json")).json()["paused"]["by"] == "ana"
    assert (await payswitch("resume", "--by", "bea")).code == 0
    assert await paused() == {0}
    chosen = await payswitch("select", "fallback", "--for", "1h", "--by", "bea", "--json")
    assert chosen.json()["processor"] == "fallback"
    assert (await payswitch("status", "--json")).json()["override"]["processor"] == "fallback"
    acts = (await payswitch("audit", "--json")).json()["acts"]
    assert [(each["act"], each["by"]) for each in acts] == [
        ("select", "bea"),
        ("resume", "bea"),
        ("pause", "ana"),
    ]


async def test_a_purge_leaves_nothing_of_any_partition(
    b: Books, redis: Client, paid: list[str], payswitch: Payswitch
) -> None:
    assert (await b.ledger.window(AT + 10, AT + 19)).totals["default"] == Total(
        10, sum(110 + number for number in range(10))
    )
    await dead_letters(b)
    await Purge(redis, PROCESSORS).run(ANA)
    status = (await payswitch("status", "--json")).json()
    assert (status["settled"]["total"], status["deadLetters"]) == (0, 0)
    assert (await payswitch("dead", "list")).out == "There are no dead letters.\n"
    for each in (paid[0], paid[-1]):
        assert (await payswitch("payment", each)).code == 1
    assert (await b.ledger.window(None, None)).totals["default"] == Total()
    assert {each["act"] for each in (await payswitch("audit", "--json")).json()["acts"]} == {
        "purge"
    }

"""Operators' commands on a cluster: on one node that has all partitions, and on one with nodes that
are away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
from prometheus_client import generate_latest
from redis.exceptions import RedisError

from payswitch.money import BRL
from payswitch.operations.controls import Controls, UnfollowedOrderError
from payswitch.operations.history import HistoryWriter
from payswitch.operations.metrics import health_registry
from payswitch.operations.overview import read_overview
from payswitch.operations.shards import read_shards
from payswitch.payments.audit import read_acts
from payswitch.payments.purge import Purge, PurgeError
from payswitch.store import keys
from payswitch.store.client import Client, connect
from tests.cluster import SAFE, ClusterServer, begun
from tests.integration.command import Payswitch
from tests.integration.harness import Bench, bench
from tests.metrics import value
from tests.support import ANA, PROCESSORS, RedisServer, eventually


@pytest.fixture
async def b(partitioned: Client) -> AsyncIterator[Bench]:
    async with bench(partitioned) as made:
        yield made


@pytest.fixture
def payswitch(shared_node: RedisServer, b: Bench) -> Payswitch:
    urls = b.settings.processor_urls
    names = {f"PAYMENT_PROCESSOR_URL_{name.upper()}": url for name, url in urls.items()}
    return Payswitch(shared_node.url, names)


async def test_every_command_works_on_partitions(
    b: Bench, partitioned: Client, payswitch: Payswitch
) -> None:
    payments = await asyncio.gather(*(b.accept() for _ in range(20)))
    b.default.refuses = set(payments)
    left = 20
    while left:
        claims = await b.claim(limit=left)
        left -= len(claims)
        await asyncio.gather(*map(b.dispatcher.dispatch, claims))
    listed = (await payswitch("dead", "list", "--json")).json()
    assert {each["correlationId"] for each in listed["deadLetters"]} == {*payments}
    shown = (await payswitch("payment", payments[0], "--json")).json()
    assert (shown["state"], shown["key"]) == (
        "dead",
        partitioned.partitions.of(payments[0]).record(payments[0]),
    )
    resolved = await payswitch("dead", "resolve", *payments[:5], "--reason", "refunded")
    assert (resolved.code, resolved.out) == (0, "5 resolved\n")
    paused = await payswitch("pause", "--for", "1h")
    assert (paused.code, paused.err) == (0, "")
    replayed = await payswitch("dead", "replay", "--all")
    assert (replayed.code, replayed.out) == (0, "15 replayed\n")
    status = (await payswitch("status", "--json")).json()
    assert (status["backlog"]["payments"], status["accepted"]["total"]) == (15, 20)
    [node] = status["cluster"]["nodes"]
    assert (node["partitions"], node["problem"]) == ([*range(16)], None)
    assert node["address"] in (await payswitch("status")).out
    resumed = await payswitch("resume")
    assert (resumed.code, resumed.out) == (0, "Resumed: 15 unpaid payments.\n")
    selected = (await payswitch("select", "fallback", "--json")).json()
    assert selected["processor"] == "fallback"
    known = (await payswitch("processors", "list", "--json")).json()["processors"]
    assert [each["name"] for each in known] == [*PROCESSORS]
    assert (await payswitch("incidents", "list")).out == "There are no incidents.\n"
    acts = (await payswitch("audit", "--json")).json()["acts"]
    assert {each["act"] for each in acts} == {"resolve", "pause", "replay", "resume", "select"}


@pytest.fixture
async def redis(cluster: ClusterServer) -> AsyncIterator[Client]:
    async with begun(cluster) as client:
        yield client


@pytest.mark.long
async def test_while_a_shard_is_away_no_part_of_a_sum_is_told_and_orders_reach_it_later(
    redis: Client, cluster: ClusterServer
) -> None:
    common = redis.partitions.common
    shards = await read_shards(redis)
    assert [(each.replicas, each.trouble) for each in shards] == [(1, None)] * 3
    lost = next(each for each in shards if each.address != common.home and each.partitions)
    numbers = ", ".join(map(str, lost.partitions))
    slot = redis.partitions[lost.partitions[0]].slot
    own = {await cluster.primary_of(slot), await cluster.replica_of(slot)}
    hasty = connect(cluster.url, limit_s=1, deployment=SAFE)
    await read_shards(hasty)  # as a part that runs, it knows the nodes
    for address in own:
        cluster.signal(address, signal.SIGSTOP)
    payswitch = Payswitch(
        cluster.url,
        {
            "PAYSWITCH_PARTITIONS": "8",
            "PAYSWITCH_DURABILITY": "replicas",
            "PAYSWITCH_REPLICAS": "1",
        },
    )
    try:
        with pytest.raises(PurgeError, match=rf"partitions .*{numbers}.* did not confirm"):
            await Purge(hasty, PROCESSORS).run(ANA)
        with pytest.raises(UnfollowedOrderError, match=rf"partitions .*{numbers}.* have not"):
            await Controls(hasty).pause(life_ms=None, signature=ANA)
        ended = await payswitch("status")
        assert ended.code == 2
        assert ended.out == ""
        assert f"{lost.address} is away: " in ended.err
        assert f"(partitions {numbers})" in ended.err
        assert ended.err.count("\n") == 1
        writer = HistoryWriter(hasty, PROCESSORS)
        with pytest.raises((RedisError, OSError)):
            await writer.turn()
        assert writer.latest is None
        text = generate_latest(health_registry(writer, BRL)).decode()
        assert value(text, "payswitch_redis_node_up", node=lost.address) == 0
        assert (value(text, "payswitch_partitions_closed") or 0) >= len(lost.partitions)
    finally:
        await hasty.aclose(close_connection_pool=True)
        for address in own:
            cluster.signal(address, signal.SIGCONT)
    await cluster.whole()

    async def follows() -> bool:
        try:
            await HistoryWriter(redis, PROCESSORS).write()
            return not (await read_overview(redis, PROCESSORS)).astray
        except (RedisError, OSError):
            return False

    await eventually(follows, what="every partition is paused")
    for each in redis.partitions:
        assert await each.redis.exists(each.key(keys.PAUSED))
    await Purge(redis, PROCESSORS).run(ANA)
    assert {each.act for each in await read_acts(redis, 10)} == {"pause", "purge"}

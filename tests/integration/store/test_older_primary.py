"""A primary that restarts so soon that nobody is promoted: with all its files, or older ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
from redis.exceptions import RedisError

from payswitch.durability import Durability
from payswitch.ingress.app import create_app
from payswitch.operations.shards import read_shards
from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.payment import Payment
from payswitch.settings import Settings
from payswitch.store.beginning import OtherDeploymentFoundError, begin
from payswitch.store.client import Client, connect
from payswitch.store.errors import OtherDeploymentError, UnconfirmedError
from payswitch.store.partitions import Partition
from payswitch.store.scripts import load
from payswitch.store.watch import RedisWatch
from tests.cluster import SAFE, ClusterServer, begun
from tests.integration.command import Payswitch
from tests.support import SLACK_S, eventually

ENVIRONMENT = {
    "PAYSWITCH_PARTITIONS": "8",
    "PAYSWITCH_DURABILITY": "replicas",
    "PAYSWITCH_REPLICAS": "1",
}


@pytest.fixture
async def redis(cluster: ClusterServer) -> AsyncIterator[Client]:
    async with begun(cluster) as client:
        yield client


def watch_of(redis: Client) -> RedisWatch:
    return RedisWatch(redis, currency="BRL", demand=True, durability=Durability.REPLICAS)


async def accept(redis: Client, partition: int) -> Acceptance:
    """Accept a new payment of a partition."""
    while True:
        payment = Payment(str(uuid4()), 100)
        if redis.partitions.of(payment.correlation_id).number == partition:
            queue = AcceptQueue(redis, limit_ms=SLACK_S * 1000, max_backlog=1000)
            return await queue.accept(payment)


async def until_accepted(redis: Client, partition: int) -> None:
    async def is_accepted() -> bool:
        try:
            return await accept(redis, partition) is Acceptance.NEW
        except NotAcceptedError:
            return False

    await eventually(is_accepted, what="payments are accepted again")


async def test_a_primary_that_comes_back_older_is_stopped_for_all_until_an_operator_accepts_that(
    redis: Client, cluster: ClusterServer
) -> None:
    first = redis.partitions[0]
    common = redis.partitions.common
    assert first.home != common.home
    other = next(each.number for each in redis.partitions if each.home != first.home)
    address = await cluster.primary_of(first.slot)
    other_process = connect(cluster.url, limit_s=SLACK_S, deployment=SAFE)
    stranger = connect(cluster.url, limit_s=SLACK_S, deployment=SAFE)  # neither knows the payment
    try:
        await until_marks_grow(other_process, first)
        await until_marks_grow(redis, first)
        with cluster.older(address):
            assert await accept(redis, 0) is Acceptance.NEW
        watch = watch_of(redis)
        await first_calls(other_process, first)
        await calls_of_others(stranger, first)

        async def is_stopped() -> bool:
            await watch.look()
            return "came back without payments" in str(watch.at(first).unusable)

        await eventually(is_stopped, what="the watch notices")
        assert await accept(stranger, other) is Acceptance.NEW
        with pytest.raises(NotAcceptedError, match="came back without payments") as caught:
            await accept(stranger, 0)
        assert caught.value.refused
        for each in redis.partitions:
            if each.home == first.home:
                with pytest.raises(OtherDeploymentError):
                    await load(stranger, "ping")(at=each)
        assert (watch.unusable, watch.refusal) == (None, None)
        with pytest.raises(OtherDeploymentFoundError, match="partitions 0, 1, 2 came back"):
            await begin(stranger)
        troubles = [each.trouble for each in await read_shards(stranger)]
        assert f"{first.home} can't be used: it came back without payments that" in str(troubles)
        await until_released(cluster)
        await until_accepted(stranger, 0)
        await until_accepted(redis, 0)

        async def is_usable() -> bool:
            await watch.look()
            return watch.at(first).unusable is None

        await eventually(is_usable, what="the watch trusts it again")
    finally:
        await stranger.aclose(close_connection_pool=True)
        await other_process.aclose(close_connection_pool=True)


async def until_marks_grow(redis: Client, first: Partition) -> None:
    """Wait until this process has known the node for long enough to count what is confirmed."""
    ping, first = load(redis, "ping"), redis.partitions[first.number]
    before = redis.marks.known(first)

    async def have_grown() -> bool:
        await ping(at=first, confirm=True)
        return before < redis.marks.known(first) - 1

    await eventually(have_grown, what="marks grow")


async def first_calls(redis: Client, first: Partition) -> None:
    """Calls of a process that has known the node for long, just after its restart: they lift no
    mark, though each opens a connection."""
    ping, own = load(redis, "ping"), redis.partitions[first.number]

    async def are_executed() -> bool:
        calls = (ping(at=own, confirm=True) for _ in range(10))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return any(isinstance(each, UnconfirmedError) for each in answers)

    await eventually(are_executed, what="a process meets the node again")


async def calls_of_others(stranger: Client, first: Partition) -> None:
    """Confirmed calls of a process that knows of no payment: they lift no mark."""
    ping = load(stranger, "ping")
    answered = 0

    async def has_answered_often() -> bool:
        nonlocal answered
        with contextlib.suppress(RedisError, OSError):
            await ping(at=stranger.partitions[first.number], confirm=True)
            answered += 1
        return answered >= 10

    await eventually(has_answered_often, what="others use the node")


async def until_released(cluster: ClusterServer) -> None:
    """Accept the loss, as an operator does."""
    await cluster.whole()
    payswitch = Payswitch(cluster.url, ENVIRONMENT)
    refused = await payswitch("init")
    assert refused.code == 1
    assert "--accept-loss" in refused.err
    released = await payswitch("init", "--accept-loss")
    assert (released.code, released.err) == (0, "")


async def test_a_primary_that_comes_back_whole_goes_on_by_itself_once_all_have_compared(
    redis: Client, cluster: ClusterServer
) -> None:
    first = redis.partitions[0]
    assert await accept(redis, 0) is Acceptance.NEW
    loop = asyncio.get_running_loop()
    cluster.restart(await cluster.primary_of(first.slot))
    began = loop.time()
    ping = load(redis, "ping")
    reasons = set()
    while True:
        try:
            await ping(at=first, confirm=True)
            break
        except UnconfirmedError as error:
            reasons.add(str(error))
        except (RedisError, OSError):  # it still starts
            pass
    assert "it has just restarted: first it must turn out to have everything" in reasons
    assert loop.time() - began >= 1.9  # others look twice a second
    watch = watch_of(redis)
    await watch.look()
    assert [each.unusable for each in watch.servers] == [None] * 3
    await until_accepted(redis, 0)


async def test_a_failover_needs_no_comparison(redis: Client, cluster: ClusterServer) -> None:
    first = redis.partitions[0]
    assert await accept(redis, 0) is Acceptance.NEW
    old = await cluster.primary_of(first.slot)
    cluster.kill(old)
    await cluster.promoted(old, first.slot)
    await cluster.start_node(old)
    await cluster.whole()
    await until_accepted(redis, 0)
    watch = watch_of(redis)

    async def is_usable() -> bool:
        await watch.look()
        return [each.unusable for each in watch.servers] == [None] * 3

    await eventually(is_usable, what="all nodes are trusted")  # they tell a replica late


async def test_an_ingress_says_which_node_refuses(redis: Client, cluster: ClusterServer) -> None:
    first = redis.partitions[0]
    app = create_app(Settings.from_environment({"REDIS_URL": cluster.url, **ENVIRONMENT}))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            assert "refusals" not in (await client.get("/readyz")).json()
            await load(redis, "stop")(at=first)

            async def is_said() -> bool:
                answer = await client.get("/readyz")
                said = answer.json().get("refusals", [""])[0]
                return (answer.status_code, said.startswith(f"{first.home}: Redis can't be")) == (
                    200,
                    True,
                )

            await eventually(is_said, what="the node is named")

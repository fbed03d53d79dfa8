"""Scripts on a real Redis Cluster: three primaries with a replica each."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from payswitch.durability import Deployment, Durability
from payswitch.local.cluster_topology import Address
from payswitch.money import Total
from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.audit import read_acts
from payswitch.payments.claims import Claim, Claims
from payswitch.payments.incidents import Incidents, read_incidents
from payswitch.payments.ledger import Ledger, Settlement
from payswitch.payments.payment import Payment
from payswitch.payments.purge import Purge
from payswitch.payments.records import read_record, read_records
from payswitch.payments.tries import Findings, Tries
from payswitch.store import keys
from payswitch.store.beginning import OtherDeploymentFoundError, begin
from payswitch.store.client import Client, connect
from payswitch.store.errors import OtherDeploymentError, UnconfirmedError, WrongNodeError
from payswitch.store.scripts import Script, load, source
from payswitch.store.watch import RedisWatch
from tests.cluster import SAFE, ClusterServer, begun
from tests.model.stepped import replace_once
from tests.support import ANA, PROCESSORS, SLACK_S, eventually


@pytest.fixture
async def redis(cluster: ClusterServer) -> AsyncIterator[Client]:
    async with begun(cluster) as client:
        yield client


def queue_of(redis: Client, *, limit_ms: int = SLACK_S * 1000) -> AcceptQueue:
    return AcceptQueue(redis, limit_ms=limit_ms, max_backlog=1000)


def tries_of(redis: Client) -> Tries:
    return Tries(redis, max_delay_ms=300, lease_ms=60_000, retention_ms=600_000)


async def claim_all(redis: Client, count: int) -> list[Claim]:
    claims = Claims(redis, lease_ms=60_000, deadline_ms=10**9, max_delay_ms=300)
    found: list[Claim] = []
    async with asyncio.timeout(SLACK_S):
        while len(found) < count:
            found += [each.claim for each in (await claims.take(64)).taken]
    return found


async def test_payments_of_all_partitions_are_accepted_claimed_settled_and_summed(
    redis: Client,
) -> None:
    payments = [Payment(str(uuid4()), 100 + number) for number in range(100)]
    queue = queue_of(redis)
    assert await asyncio.gather(*map(queue.accept, payments)) == [Acceptance.NEW] * 100
    assert await asyncio.gather(*map(queue.accept, payments)) == [Acceptance.SAME] * 100
    claims = await claim_all(redis, 100)
    assert {each.correlation_id for each in claims} == {each.correlation_id for each in payments}
    assert Counter(each.partition for each in claims).keys() == {*range(8)}
    tries, ledger = tries_of(redis), Ledger(redis, processors=PROCESSORS, retention_ms=600_000)
    routed = await asyncio.gather(*(tries.open(each, "default", Findings()) for each in claims))
    settled = await asyncio.gather(
        *(
            ledger.settle(claim, "default", each.requested_at)
            for claim, each in zip(claims, routed, strict=True)
            if each is not None
        )
    )
    assert settled == [Settlement.SETTLED] * 100
    total = Total(100, sum(each.cents for each in payments))
    assert (await ledger.window(None, None)).totals["default"] == total
    first = min(each.requested_at for each in routed if each is not None)
    assert (await ledger.window(first, first + 60_000)).totals["default"] == total


async def test_where_payments_crowd_a_claim_asks_few_partitions_and_the_others_for_the_rest(
    redis: Client,
) -> None:
    payments = [payment for n in range(8) for payment in own_payments(redis, n, 40)]
    assert await accepted(queue_of(redis), payments) == [Acceptance.NEW] * 320
    claims = Claims(redis, lease_ms=60_000, deadline_ms=10**9, max_delay_ms=300)

    async def take(*, crowded: bool) -> Counter[int]:
        batch = await claims.take(64, crowded=crowded)
        return Counter(each.claim.partition for each in batch.taken)

    taken = await take(crowded=False)
    assert taken == dict.fromkeys(range(8), 8)
    first = await take(crowded=True)
    assert sorted(first.values()) == [32, 32]
    taken += first
    while taken.total() < 320:  # those that are asked first have less and less left
        left = {n for n in range(8) if taken[n] < 40}
        found = await take(crowded=True)
        assert found.keys() <= left
        assert found.total() == 64 or found.keys() == left
        taken += found


async def test_a_partition_that_was_failed_over_is_found_at_its_new_node(
    redis: Client, cluster: ClusterServer
) -> None:
    queue = queue_of(redis)
    payments = [Payment(str(uuid4()), 100) for _ in range(40)]
    assert await accepted(queue, payments) == [Acceptance.NEW] * 40
    slot = redis.partitions[0].slot
    old = await cluster.primary_of(slot)
    await ordered_failover(cluster, slot)
    assert await accepted(queue, payments) == [Acceptance.SAME] * 40
    assert redis.partitions[0].home != f"{old.host}:{old.port}"
    assert len(await claim_all(redis, 40)) == 40


async def test_a_node_gets_scripts_that_it_does_not_know(
    redis: Client, cluster: ClusterServer
) -> None:
    for slot in (0, 8000, 16_000):
        await command(await cluster.primary_of(slot), "SCRIPT", "FLUSH")
    payments = [Payment(str(uuid4()), 100) for _ in range(20)]
    assert await accepted(queue_of(redis), payments) == [Acceptance.NEW] * 20
    assert len(await read_records(redis, [each.correlation_id for each in payments])) == 20


async def test_a_slot_that_moves_refuses_and_nothing_is_half_done(
    redis: Client, cluster: ClusterServer
) -> None:
    queue = queue_of(redis, limit_ms=2000)
    partition = redis.partitions[0]
    known, new = own_payments(redis, 0, 2)
    assert await queue.accept(known) is Acceptance.NEW
    await begin_move(cluster, partition.slot)
    for payment in (known, new):
        with pytest.raises(NotAcceptedError, match="moved"):
            await queue.accept(payment)
    with pytest.raises(WrongNodeError):
        await Claims(redis, lease_ms=60_000, deadline_ms=10**9, max_delay_ms=300).take(
            10, partitions=[partition]
        )
    half = f"redis.call('ZADD', QUEUE, 1, '{known.correlation_id}')"
    text = f"{source('note', str(SAFE))} {half} redis.call('SET', 'payments:new' .. SUFFIX, 1)"
    text = replace_once(text, "write_even_out_of_memory()\nredis.call('SET', KEYS[2], ARGV[1])", "")
    queued = await partition.redis.zrange(partition.key(keys.QUEUE), 0, -1, withscores=True)
    with pytest.raises(WrongNodeError):
        await Script(redis, text)(at=partition)
    found = await partition.redis.zrange(partition.key(keys.QUEUE), 0, -1, withscores=True)
    assert found == queued  # though that key is still there, and only the next one is not
    await end_move(cluster, partition.slot)
    assert await queue.accept(known) is Acceptance.SAME
    assert await queue.accept(new) is Acceptance.NEW
    assert len(await claim_all(redis, 2)) == 2


@pytest.mark.parametrize(
    "other",
    [
        Deployment(4, Durability.REPLICAS, 1),
        Deployment(8, Durability.DISK, 0),
        Deployment(8, Durability.REPLICAS, 2),
    ],
)
async def test_a_part_of_another_deployment_does_nothing(
    redis: Client, cluster: ClusterServer, other: Deployment
) -> None:
    stranger = connect(cluster.url, limit_s=SLACK_S, deployment=other)
    try:
        with pytest.raises(NotAcceptedError, match="deployment") as caught:
            await queue_of(stranger).accept(Payment(str(uuid4()), 1))
        assert caught.value.refused
        with pytest.raises(OtherDeploymentFoundError):
            await begin(stranger)
    finally:
        await stranger.aclose(close_connection_pool=True)


async def test_an_empty_shard_does_not_pass_for_a_new_one(
    redis: Client, cluster: ClusterServer
) -> None:
    payments = [Payment(str(uuid4()), 100) for _ in range(40)]
    assert await accepted(queue_of(redis), payments) == [Acceptance.NEW] * 40
    node = await cluster.primary_of(redis.partitions[0].slot)
    async with Redis(host=node.host, port=node.port) as admin:
        await admin.flushall()
    [lost] = own_payments(redis, 0, 1)
    with pytest.raises(NotAcceptedError, match="payswitch init"):
        await queue_of(redis).accept(lost)
    with pytest.raises(OtherDeploymentError):
        await read_record(redis, lost.correlation_id)
    with pytest.raises(OtherDeploymentError):
        await Ledger(redis, processors=PROCESSORS, retention_ms=1000).window(None, None)
    with pytest.raises(OtherDeploymentFoundError, match="empty"):
        await begin(redis)


async def test_what_too_few_replicas_confirm_is_not_known(
    redis: Client, cluster: ClusterServer
) -> None:
    partition = redis.partitions[0]
    first, second = own_payments(redis, 0, 2)
    hasty = connect(cluster.url, limit_s=SLACK_S, deployment=SAFE)
    try:
        assert await queue_of(hasty).accept(first) is Acceptance.NEW
        [claim] = await claim_all(redis, 1)
        async with replica_frozen(cluster, partition.slot):
            with pytest.raises(NotAcceptedError, match="confirmation") as caught:
                await queue_of(hasty).accept(second)
            assert not caught.value.refused
            with pytest.raises(UnconfirmedError):
                await read_record(hasty, second.correlation_id, confirm=True)
            with pytest.raises(UnconfirmedError):
                await tries_of(hasty).open(claim, "default", Findings())
        assert await queue_of(hasty).accept(second) is Acceptance.SAME
    finally:
        await hasty.aclose(close_connection_pool=True)


async def test_what_a_purge_removes_is_of_its_own_partition_alone(redis: Client) -> None:
    payments = [Payment(str(uuid4()), 100) for _ in range(80)]
    await accepted(queue_of(redis), payments)
    first, *_ = redis.partitions
    others = [each for each in payments if redis.partitions.of(each.correlation_id) is not first]
    assert await load(redis, "purge")([10**15, "", "", ""], at=first) == 1
    cursor = b"0"
    while True:
        cursor, _ = await load(redis, "forget")([cursor, 1000], at=first)
        if cursor == b"0":
            break
    assert await first.redis.keys(f"payment:{first.tag}*") == []
    assert await load(redis, "sweep")([0, 500, *PROCESSORS], at=first) == [0, [], [], []]
    claimed = await claim_all(redis, len(others))
    assert {each.correlation_id for each in claimed} == {each.correlation_id for each in others}


async def test_a_purge_of_all_partitions_leaves_nothing(redis: Client) -> None:
    payments = [Payment(str(uuid4()), 100) for _ in range(40)]
    await accepted(queue_of(redis), payments)
    assert await Purge(redis, PROCESSORS, limit_ms=SLACK_S * 1000).run(ANA) == 1
    await Purge(redis, PROCESSORS).remove_leftovers()
    ids = [each.correlation_id for each in payments]
    assert await read_records(redis, ids) == [None] * 40
    for partition in redis.partitions:
        assert await partition.redis.keys(f"*{partition.tag}????????-*") == []
    assert {each.act for each in await read_acts(redis, 100)} == {"purge"}


async def test_a_command_follows_its_keys_to_another_node(
    redis: Client, cluster: ClusterServer
) -> None:
    first = redis.partitions[0]
    await first.redis.set(first.key("payments:test"), "x")
    await ordered_failover(cluster, first.slot)
    assert await first.redis.get(first.key("payments:test")) == b"x"


@pytest.mark.parametrize("is_transaction", [True, False])
async def test_a_pipeline_follows_its_keys_to_another_node(
    redis: Client, cluster: ClusterServer, is_transaction: bool
) -> None:
    first = redis.partitions[0]
    key = first.key("payments:test")
    await first.redis.set(key, "7")
    await ordered_failover(cluster, first.slot)
    async with first.redis.pipeline(transaction=is_transaction) as pipe:
        pipe.get(key)
        pipe.exists(key)
        assert await pipe.execute() == [b"7", 1]


async def test_a_job_of_the_health_check_follows_its_queue_to_another_node(
    redis: Client, cluster: ClusterServer
) -> None:
    queue = redis.partitions.common.key(keys.HEALTH_QUEUE)

    async def enqueue(name: str) -> bool:
        return await redis.enqueue_job("check", _job_id=name, _queue_name=queue) is not None

    assert await enqueue("one")
    await ordered_failover(cluster, redis.partitions.common.slot)
    assert await enqueue("two")


async def test_a_proof_that_is_brought_again_is_one_incident(redis: Client) -> None:
    [payment] = own_payments(redis, 0, 1)
    await queue_of(redis).accept(payment)
    [claim] = await claim_all(redis, 1)
    ledger = Ledger(redis, processors=PROCESSORS, retention_ms=600_000)
    for _ in range(3):
        assert await ledger.settle(claim, "fallback", 7) is Settlement.INCIDENT
    [incident] = await read_incidents(redis)
    assert incident.correlation_id == payment.correlation_id
    assert await Incidents(redis, retention_ms=10**6).resolve([incident.correlation_id], ANA) == {
        incident.correlation_id: 1
    }


async def test_an_interrupted_beginning_is_ended(cluster: ClusterServer) -> None:
    client = connect(cluster.url, limit_s=SLACK_S, deployment=SAFE)
    try:
        common, first = client.partitions.common, client.partitions[0]
        text = client.partitions.deployment
        await common.redis.set(common.key(keys.DEPLOYMENT), f"beginning {text}")
        await first.redis.set(first.key(keys.DEPLOYMENT), text)
        with pytest.raises(OtherDeploymentError):
            await load(client, "take")(["1", 1000], [common.key(keys.SWEEP)])
        assert await begin(client)
        assert not await begin(client)
        assert await load(client, "take")(["1", 1000], [common.key(keys.SWEEP)]) == 1
    finally:
        await client.aclose(close_connection_pool=True)


async def test_what_a_call_only_reads_is_confirmed_as_well(
    redis: Client, cluster: ClusterServer
) -> None:
    [payment] = own_payments(redis, 0, 1)
    hasty, reader = (connect(cluster.url, limit_s=SLACK_S, deployment=SAFE) for _ in range(2))
    try:
        async with replica_frozen(cluster, redis.partitions[0].slot):
            with pytest.raises(NotAcceptedError, match="confirmation"):
                await queue_of(hasty).accept(payment)
            with pytest.raises(UnconfirmedError):
                await read_record(reader, payment.correlation_id, confirm=True)
    finally:
        await hasty.aclose(close_connection_pool=True)
        await reader.aclose(close_connection_pool=True)


async def test_a_shard_is_trusted_again_once_it_has_its_replica_again(
    redis: Client, cluster: ClusterServer
) -> None:
    first = redis.partitions[0]
    watch = RedisWatch(redis, currency="BRL", demand=True, durability=Durability.REPLICAS)
    await watch.look()
    old = await cluster.primary_of(first.slot)
    cluster.kill(old)
    await cluster.promoted(old, first.slot)

    async def lacks_it() -> bool:
        await watch.look()
        return watch.at(first).unusable is not None

    await eventually(lacks_it, what="the shard lacks its replica")
    await cluster.start_node(old)

    async def has_it() -> bool:
        return not await lacks_it()

    await eventually(has_it, what="the shard has its replica")
    assert watch.at(first).risks == []


async def accepted(queue: AcceptQueue, payments: list[Payment]) -> list[Acceptance]:
    return await asyncio.gather(*map(queue.accept, payments))


def own_payments(redis: Client, partition: int, count: int) -> list[Payment]:
    """New payments of one partition."""
    found: list[Payment] = []
    while len(found) < count:
        payment = Payment(str(uuid4()), 100)
        if redis.partitions.of(payment.correlation_id).number == partition:
            found.append(payment)
    return found


async def ordered_failover(cluster: ClusterServer, slot: int) -> None:
    """Let the slot's replica take its primary's place, as an operator orders it."""
    old = await cluster.primary_of(slot)
    while await cluster.primary_of(slot) == old:
        await command(await cluster.replica_of(slot), "CLUSTER", "FAILOVER")
        # The others don't vote if they did for the same shard a moment ago: then it ends after 5 s.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6):
                await cluster.promoted(old, slot)
    await cluster.whole()


@contextlib.asynccontextmanager
async def replica_frozen(cluster: ClusterServer, slot: int) -> AsyncIterator[None]:
    """The slot's replica stands still; for less than the node time-out it counts as there."""
    address = await cluster.replica_of(slot)
    cluster.signal(address, signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.signal(address, signal.SIGCONT)


async def begin_move(cluster: ClusterServer, slot: int) -> None:
    """Begin to move a slot to another node; all its keys are still there."""
    source, target = await ends_of_move(cluster, slot)
    await command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await node_id(source))
    await command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await node_id(target))


async def end_move(cluster: ClusterServer, slot: int) -> None:
    """Give the move up."""
    for each in await ends_of_move(cluster, slot):
        await command(each, "CLUSTER", "SETSLOT", slot, "STABLE")


async def ends_of_move(cluster: ClusterServer, slot: int) -> tuple[Address, Address]:
    source = await cluster.primary_of(slot)
    others = [await cluster.primary_of(each) for each in (0, 8000, 16_000)]
    return source, next(each for each in others if each != source)


async def node_id(address: Address) -> str:
    return str((await command(address, "CLUSTER", "MYID")).decode())


async def command(address: Address, *words: str | int) -> Any:
    async with Redis(host=address.host, port=address.port) as node:
        return await node.execute_command(*words)  # type: ignore[no-untyped-call]

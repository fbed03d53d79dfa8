"""Accepting payments on a real Redis."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from uuid import uuid4

import orjson
import pytest
from arq.connections import ArqRedis
from arq.jobs import Job, JobStatus

from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.payment import Payment
from payswitch.store.client import connect
from tests.support import RedisServer


def accept_queue(
    redis: ArqRedis,
    *,
    limit_ms: int = 5000,
    max_backlog: int = 10**6,
    on_verdicts: Callable[[Sequence[str]], None] | None = None,
) -> AcceptQueue:
    return AcceptQueue(redis, limit_ms=limit_ms, max_backlog=max_backlog, on_verdicts=on_verdicts)


def new_payment(cents: int = 1990) -> Payment:
    return Payment(str(uuid4()), cents)


async def test_an_accepted_payment_is_a_job_that_arq_can_read(redis: ArqRedis) -> None:
    payment = new_payment()
    await accept_queue(redis).accept(payment)
    job = Job(payment.correlation_id, redis, _deserializer=orjson.loads)
    info = await job.info()
    assert info is not None
    assert (info.function, list(info.args), info.kwargs) == ("pay", [payment.correlation_id], {})
    assert await job.status() is JobStatus.queued


async def test_the_job_bytes_are_those_of_arqs_own_enqueue(redis: ArqRedis) -> None:
    payment = new_payment()
    await accept_queue(redis).accept(payment)
    ours = orjson.loads(await redis.get(f"arq:job:{payment.correlation_id}") or b"")
    await redis.enqueue_job("pay", payment.correlation_id, _job_id="stock")
    stock = orjson.loads(await redis.get("arq:job:stock") or b"")
    del ours["et"], stock["et"]
    assert ours == stock


async def test_the_same_payment_again_is_acknowledged_and_queued_once(redis: ArqRedis) -> None:
    queue = accept_queue(redis)
    payment = new_payment()
    answers = [await queue.accept(payment) for _ in range(3)]
    assert answers == [Acceptance.NEW, Acceptance.SAME, Acceptance.SAME]
    assert await redis.zcard("arq:queue") == 1


async def test_the_same_id_with_another_amount_is_refused(redis: ArqRedis) -> None:
    queue = accept_queue(redis)
    payment = new_payment(100)
    await queue.accept(payment)
    other = Payment(payment.correlation_id, 101)
    assert await queue.accept(other) is Acceptance.OTHER_AMOUNT
    assert await redis.hget(f"payment:{payment.correlation_id}", "cents") == b"100"  # type: ignore[misc]


@pytest.mark.parametrize("metadata", [None, b'{"order":1}'])
async def test_the_same_id_with_other_metadata_is_refused(
    redis: ArqRedis, metadata: bytes | None
) -> None:
    queue = accept_queue(redis)
    payment = new_payment()._replace(metadata=metadata)
    other = payment._replace(metadata=b'{"order":2}')
    verdicts = await asyncio.gather(*map(queue.accept, (payment, other, payment)))  # in one call
    assert verdicts == [Acceptance.NEW, Acceptance.OTHER_METADATA, Acceptance.SAME]
    assert [await queue.accept(each) for each in (other, payment)] == verdicts[1:]
    without = payment._replace(metadata=None)
    known = Acceptance.SAME if metadata is None else Acceptance.OTHER_METADATA
    assert await queue.accept(without) is known
    both = other._replace(cents=other.cents + 1)
    assert await queue.accept(both) is Acceptance.OTHER_AMOUNT
    assert await redis.hget(f"payment:{payment.correlation_id}", "metadata") == metadata  # type: ignore[misc]


async def test_fifty_at_the_same_time_on_two_instances_queue_it_once(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    second = connect(redis_server.url, limit_s=5)
    queues = [accept_queue(redis), accept_queue(second)]
    payment = new_payment()
    answers = await asyncio.gather(*(queues[i % 2].accept(payment) for i in range(50)))
    assert answers.count(Acceptance.NEW) == 1
    assert answers.count(Acceptance.SAME) == 49
    assert await redis.zcard("arq:queue") == 1
    await second.aclose(close_connection_pool=True)


async def test_a_full_backlog_refuses_new_payments_and_knows_the_old(redis: ArqRedis) -> None:
    queue = accept_queue(redis, max_backlog=2)
    first, second, third = (new_payment() for _ in range(3))
    answers = [await queue.accept(payment) for payment in (first, second, third, first)]
    assert answers == [
        Acceptance.NEW,
        Acceptance.NEW,
        Acceptance.BACKLOG_FULL,
        Acceptance.SAME,
    ]


async def test_many_payments_share_a_round_trip(redis: ArqRedis) -> None:
    queue = accept_queue(redis)
    await queue.accept(new_payment())
    calls = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await asyncio.gather(*(queue.accept(new_payment()) for _ in range(200)))
    more = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] - calls
    assert more <= 2


async def test_what_was_given_up_is_not_executed_when_redis_goes_on(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=1.0)
    queue = accept_queue(redis, limit_ms=1000)
    await queue.accept(new_payment())
    own_redis.signal(signal.SIGSTOP)
    refused = [new_payment() for _ in range(5)]
    answers = await asyncio.gather(
        *(queue.accept(payment) for payment in refused), return_exceptions=True
    )
    own_redis.signal(signal.SIGCONT)
    assert all(isinstance(answer, NotAcceptedError) for answer in answers)
    later = connect(own_redis.url, limit_s=10)
    await later.ping()
    for payment in refused:
        assert not await later.exists(f"payment:{payment.correlation_id}")
    await redis.aclose(close_connection_pool=True)
    await later.aclose(close_connection_pool=True)


async def test_accepting_goes_on_after_redis_was_restarted(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url, limit_s=5)
    queue = accept_queue(redis)
    before = new_payment()
    await queue.accept(before)
    own_redis.kill()
    with pytest.raises(NotAcceptedError):
        await queue.accept(new_payment())
    own_redis.start()
    assert await queue.accept(before) is Acceptance.SAME
    assert await queue.accept(new_payment()) is Acceptance.NEW
    await redis.aclose(close_connection_pool=True)


async def test_a_forgotten_script_is_loaded_again(redis: ArqRedis) -> None:
    queue = accept_queue(redis)
    await queue.accept(new_payment())
    await redis.script_flush()
    assert await queue.accept(new_payment()) is Acceptance.NEW


async def test_out_of_memory_refuses_and_leaves_nothing_behind(redis: ArqRedis) -> None:
    queue = accept_queue(redis)
    payment = new_payment()
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(NotAcceptedError):
            await queue.accept(payment)
    finally:
        await redis.config_set("maxmemory", 0)
    assert await redis.keys("*") == []


async def test_a_payment_is_told_that_redis_is_away_or_frozen_or_back(
    own_redis: RedisServer,
) -> None:
    redis = connect(own_redis.url, limit_s=1.0)
    queue = accept_queue(redis, limit_ms=1000)
    payment = new_payment()
    assert await queue.accept(payment) is Acceptance.NEW
    own_redis.signal(signal.SIGSTOP)
    with pytest.raises(NotAcceptedError) as frozen:
        await queue.accept(new_payment())
    assert not frozen.value.refused
    own_redis.kill()
    with pytest.raises(NotAcceptedError):
        await queue.accept(new_payment())
    own_redis.start()
    assert await queue.accept(payment) is Acceptance.SAME
    assert await queue.accept(new_payment()) is Acceptance.NEW
    await redis.aclose(close_connection_pool=True)


async def test_a_clock_that_was_set_refuses_no_payment(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts: Counter[str] = Counter()
    queue = accept_queue(redis, on_verdicts=verdicts.update)
    await queue.accept(new_payment())
    # As if Redis' clock had been set an hour ahead since the last answer.
    [(node, ahead_ms)] = queue._ahead_ms.items()
    monkeypatch.setitem(queue._ahead_ms, node, ahead_ms - 3.6e6)
    payments = [new_payment() for _ in range(3)]
    assert await asyncio.gather(*map(queue.accept, payments)) == [Acceptance.NEW] * 3
    assert await redis.zcard("arq:queue") == 4
    assert verdicts["late"] == 3


async def test_a_new_connection_asks_for_the_clock_as_it_may_be_anothers(
    redis: ArqRedis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = accept_queue(redis)
    await queue.accept(new_payment())
    fresh = connect(redis_server.url, limit_s=5)
    verdicts: Counter[str] = Counter()
    other = accept_queue(fresh, on_verdicts=verdicts.update)
    [(node, ahead_ms)] = queue._ahead_ms.items()
    monkeypatch.setitem(other._ahead_ms, node, ahead_ms - 3.6e6)
    assert await other.accept(new_payment()) is Acceptance.NEW
    assert verdicts == {"new": 1}
    await fresh.aclose(close_connection_pool=True)


async def test_a_payment_is_told_of_a_bug_and_the_next_is_accepted(redis: ArqRedis) -> None:
    bugs = [ZeroDivisionError()]

    def fail(verdicts: object) -> None:
        if bugs:
            raise bugs.pop()

    queue = AcceptQueue(redis, limit_ms=5000, max_backlog=10, on_verdicts=fail)
    with pytest.raises(ZeroDivisionError):
        await queue.accept(new_payment())
    assert await queue.accept(new_payment()) is Acceptance.NEW

"""What others put into Redis: it must not lose, double or stop anybody's payment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ResponseError

from payswitch.money import Total
from payswitch.payments.accepting import Acceptance, AcceptQueue
from payswitch.payments.claims import Claims
from payswitch.payments.dead_letters import DeadLetters, Handling
from payswitch.payments.ledger import Settlement
from payswitch.payments.payment import Payment
from payswitch.payments.purge import Purge
from payswitch.payments.tries import Findings, Tries
from payswitch.processors.outcomes import HealthReport
from payswitch.selection.selector import Limits, Selector
from payswitch.store.lock import Lock
from payswitch.telemetry.tracing import Traces
from tests.integration.harness import Bench, bench
from tests.support import ANA, PROCESSORS, Reply
from workers.payments import pay

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


@pytest.fixture
async def full(redis: ArqRedis) -> AsyncIterator[ArqRedis]:
    """A Redis that has no memory left."""
    await redis.config_set("maxmemory", 1)
    yield redis
    await redis.config_set("maxmemory", 0)


def accept_queue(redis: ArqRedis) -> AcceptQueue:
    return AcceptQueue(redis, limit_ms=5000, max_backlog=10**6)


async def test_a_foreign_key_in_a_payments_place_is_said_and_left(
    b: Bench, redis: ArqRedis
) -> None:
    await redis.set(f"payment:{ID}", "foreign")
    assert await accept_queue(redis).accept(Payment(ID, 1)) is Acceptance.BROKEN
    assert await redis.get(f"payment:{ID}") == b"foreign"
    assert await redis.zcard("arq:queue") == 0


@pytest.mark.parametrize("key", ["arq:queue", "payments:open"])
async def test_a_foreign_key_in_the_queues_place_accepts_nothing_halfway(
    redis: ArqRedis, key: str
) -> None:
    await redis.set(key, "foreign")
    with pytest.raises(Exception, match=f"{key} holds a string"):
        await accept_queue(redis).accept(Payment(ID, 1))
    assert await redis.keys("*") == [key.encode()]


@pytest.mark.parametrize(
    "key", ["payments:dead", "payments:in-flight", "payments:incidents", "payments:wake"]
)
async def test_a_foreign_key_where_nothing_is_accepted_keeps_no_payment_out(
    redis: ArqRedis, key: str
) -> None:
    await redis.set(key, "foreign")
    assert await accept_queue(redis).accept(Payment(ID, 1)) is Acceptance.NEW


async def test_an_acknowledged_payment_that_fell_out_goes_back_when_it_is_sent_again(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await b.accept(cents=5)
    await redis.delete("arq:queue", "payments:open")
    assert await accept_queue(redis).accept(Payment(payment, 5)) is Acceptance.SAME
    assert (await b.dispatch_until_done(payment)).state == "settled"


async def test_the_same_payment_twice_in_one_call_is_queued_once(redis: ArqRedis) -> None:
    queue = accept_queue(redis)
    await queue.accept(Payment(str(uuid4()), 1))
    calls = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    entries = [Payment(ID, 1), Payment(ID, 1), Payment(ID, 2)]
    answers = await asyncio.gather(*(queue.accept(entry) for entry in entries))
    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == calls + 1
    assert await redis.zcard("arq:queue") == 2
    assert answers == [Acceptance.NEW, Acceptance.SAME, Acceptance.OTHER_AMOUNT]


@pytest.mark.parametrize("key", ["payments:dead", "payments:incidents"])
async def test_settling_does_all_or_nothing(b: Bench, redis: ArqRedis, key: str) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    await redis.hset(f"payment:{payment}", "processor", "default")  # type: ignore[misc]
    await redis.set(key, "foreign")
    with pytest.raises(ResponseError, match=f"{key} holds a string"):
        await b.ledger.settle(claim, "default", 1)
    await redis.delete(key)
    assert await b.summary() == {"default": Total(), "fallback": Total()}
    assert await b.ledger.settle(claim, "default", 1) is Settlement.SETTLED
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


SPOILT = {
    "near 2^63": {"4": "9223372036854775000"},
    "no number": {"4": "many"},
    "a count that is none": {"4#": "1.5"},
    "a leading zero": {"4": "007"},
}


@pytest.mark.parametrize("fields", SPOILT.values(), ids=SPOILT)
async def test_a_sum_that_can_not_grow_is_said_and_changes_nothing(
    b: Bench, redis: ArqRedis, fields: dict[str, str]
) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    await redis.hset(f"payment:{payment}", "processor", "default")  # type: ignore[misc]
    await redis.hset("ledger:default:0:10000:1795363", mapping=fields)  # type: ignore[misc]
    at = 1_795_363_040_000
    assert await b.ledger.settle(claim, "default", at) is Settlement.UNADDABLE
    assert await redis.keys("ledger:*") == [b"ledger:default:0:10000:1795363"]
    await redis.delete("ledger:default:0:10000:1795363")
    assert await b.ledger.settle(claim, "default", at) is Settlement.SETTLED
    assert await b.summary() == {"default": Total(1, 1990), "fallback": Total()}


async def test_a_foreign_key_in_the_ledger_keeps_only_its_own_payments_out(
    b: Bench, redis: ArqRedis
) -> None:
    payments = [await b.accept(cents=cents) for cents in (1, 2)]
    claims = [await b.claim_when_due(payment) for payment in payments]
    for payment in payments:
        await redis.hset(f"payment:{payment}", "processor", "default")  # type: ignore[misc]
    await redis.set("ledger:default:0:1:5", "foreign")
    settled = await asyncio.gather(
        *(b.ledger.settle(each, "default", at) for each, at in zip(claims, (550, 650), strict=True))
    )
    assert settled == [Settlement.UNADDABLE, Settlement.SETTLED]
    assert (await b.summary())["default"] == Total(1, 2)


async def test_a_payment_that_the_ledger_can_not_add_is_settled_once_it_can(
    b: Bench, redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    payment = await b.accept()
    await redis.hset("ledger:default:0:total", "cents", "9223372036854775000")  # type: ignore[misc]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    record = await b.record(payment)
    assert (record.state, record.why) == (
        "queued",
        "paid by default; the ledger can't add it",
    )
    assert "a sum of the ledger can't take it" in caplog.text
    await redis.delete("ledger:default:0:total")
    assert (await b.dispatch_until_done(payment)).state == "settled"
    assert len(b.default.posts) == 1


async def test_where_the_ledger_nears_its_largest_sum_nothing_new_is_accepted_until_a_purge(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await b.accept()
    await redis.hset("ledger:default:0:total", "cents", "3999999999999999999")  # type: ignore[misc]
    assert (await b.dispatch_until_done(payment)).state == "settled"
    assert await accept_queue(redis).accept(Payment(ID, 1)) is Acceptance.LEDGER_FULL
    assert await accept_queue(redis).accept(Payment(payment, 1990)) is Acceptance.SAME
    await b.purge()
    assert await accept_queue(redis).accept(Payment(ID, 1)) is Acceptance.NEW


async def test_what_redis_refuses_to_settle_is_in_the_log_once(
    b: Bench, redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    claim = await b.claim_when_due(await b.accept())
    await redis.set("payments:dead", "foreign")
    for _ in range(2):
        with pytest.raises(ResponseError):
            await b.ledger.settle(claim, "default", 1)
    assert caplog.text.count("redis refuses to settle") == 1


@pytest.mark.parametrize("key", ["payments:in-flight", "payments:dead"])
async def test_a_payment_is_given_back_or_buried_as_a_whole_or_not_at_all(
    b: Bench, redis: ArqRedis, key: str
) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    before = await redis.hgetall(f"payment:{payment}")  # type: ignore[misc]
    await redis.set(key, "foreign")
    with pytest.raises(ResponseError, match=f"{key} holds a string"):
        await b.dispatcher.give_back(claim, delay_ms=0)
    tries = Tries(redis, max_delay_ms=500, lease_ms=1000, retention_ms=600_000)
    with pytest.raises(ResponseError, match=f"{key} holds a string"):
        await tries.bury(claim, "no reason", Findings(), horizon_passed=True)
    assert await redis.hgetall(f"payment:{payment}") == before  # type: ignore[misc]
    assert await redis.zcard("arq:queue") == 1


@pytest.mark.parametrize("field", ["tries", "lease_until", "horizon", "quiet"])
async def test_a_spoilt_record_keeps_no_other_payment_of_its_call_from_being_routed(
    b: Bench, redis: ArqRedis, field: str
) -> None:
    claims = [await b.claim_when_due(await b.accept()) for _ in range(2)]
    await redis.hset(f"payment:{claims[0].correlation_id}", field, "x")  # type: ignore[misc]
    tries = Tries(redis, max_delay_ms=500, lease_ms=1000, retention_ms=600_000)
    spoilt, good = await asyncio.gather(
        *(tries.open(claim, "default", Findings()) for claim in claims)
    )
    assert spoilt is None
    assert good is not None


@pytest.mark.parametrize("number", ["x", "007", "9223372036854775807"])
async def test_a_purge_that_can_not_begin_a_generation_takes_nothing(
    b: Bench, redis: ArqRedis, number: str
) -> None:
    await redis.set("payments:generation", number)
    await b.accept()
    with pytest.raises(ResponseError, match="payments:generation holds no number"):
        await Purge(redis, PROCESSORS).run(ANA)
    assert await redis.zcard("arq:queue") == 1


@pytest.mark.parametrize("reply", [Reply(record=True), Reply(422)], ids=["settled", "dead"])
async def test_what_is_settled_or_dead_is_not_paid_because_somebody_queues_it(
    b: Bench, redis: ArqRedis, reply: Reply
) -> None:
    payment = await b.accept()
    b.default.script = [reply]
    state = (await b.dispatch_until_done(payment)).state
    await redis.zadd("arq:queue", {payment: 0})
    assert await b.claim() == []
    assert await redis.zcard("arq:queue") == 0
    assert (await b.record(payment)).state == state
    assert len(b.default.posts) == 1


async def test_a_foreign_key_on_the_queue_stops_nobody(b: Bench, redis: ArqRedis) -> None:
    await redis.set("payment:foreign", "x")
    await redis.set("arq:job:foreign", "x")
    await redis.zadd("arq:queue", {"foreign": 0})
    payment = await b.accept()
    batch = await Claims(redis, lease_ms=5000, deadline_ms=60_000, max_delay_ms=300).take(10)
    assert [claimed.claim.correlation_id for claimed in batch.taken] == [payment]
    assert batch.strays == ["foreign"]


async def test_a_foreign_key_stops_no_purge(b: Bench, redis: ArqRedis) -> None:
    await redis.set("payment:foreign", "x")
    payment = await b.accept()
    await b.purge()
    assert not await redis.exists(f"payment:{payment}", "payments:leftovers")
    assert await redis.get("payment:foreign") == b"x"


async def test_out_of_memory_locks_are_taken_and_selections_written(full: ArqRedis) -> None:
    lock = Lock(full, "a:lock", life_ms=5000)
    token = await lock.acquire()
    assert token is not None
    selector = Selector(full, Limits())
    reports = {"default": HealthReport(False, 0), "fallback": None}
    assert await selector.select(reports, lock_key="a:lock", token=token, at_ms=0)
    assert await lock.acquire() is None


async def test_out_of_memory_a_purge_frees_it(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    await redis.config_set("maxmemory", 1)
    purge = Purge(redis, PROCESSORS)
    try:
        assert await purge.run(ANA) == 1
        await purge.remove_leftovers()
    finally:
        await redis.config_set("maxmemory", 0)
    assert not await redis.exists(f"payment:{payment}")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("another", 2, 3), {}),
        ((), {"correlation_id": "another", "later": 1}),
        ((), {"ctx": {}}),
    ],
)
async def test_arguments_that_nobody_knows_keep_no_payment_from_being_paid(
    b: Bench, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    payment = await b.accept()
    claim = await b.claim_when_due(payment)
    ctx = {
        "dispatcher": b.dispatcher,
        "claim": claim,
        "traces": Traces(),
        "score": 0,
        "probe": None,
    }
    await pay(ctx, *args, **kwargs)
    assert (await b.record(payment)).state == "settled"


@pytest.mark.parametrize(
    ("field", "value"), [("cents", "many"), ("accepted_at", ""), ("horizon", "x"), ("tries", "1.5")]
)
async def test_a_record_that_somebody_spoilt_stops_no_other_payment(
    b: Bench, redis: ArqRedis, field: str, value: str
) -> None:
    spoilt, good = await b.accept(), await b.accept()
    await redis.hset(f"payment:{spoilt}", field, value)  # type: ignore[misc]
    assert [claim.correlation_id for claim in await b.claim()] == [good]
    assert await redis.hget(f"payment:{spoilt}", field) == value.encode()  # type: ignore[misc]


async def test_a_spoilt_dead_letter_is_not_put_back(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    b.choose("default")
    b.default.script.append(Reply(422))
    await b.dispatch_until_done(payment)
    await redis.hset(f"payment:{payment}", "cents", "many")  # type: ignore[misc]
    [verdicts] = [page async for page in DeadLetters(redis).replay([payment], ANA)]
    assert verdicts == {payment: Handling.BROKEN}
    assert await redis.zcard("arq:queue") == 0

"""Dead letters on a real Redis: what is shown of them, and that a replay is as safe as a first
try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
from arq.connections import ArqRedis
from arq.jobs import deserialize_job_raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import OutOfMemoryError, ResponseError

from payswitch.money import Total
from payswitch.payments.audit import Signature
from payswitch.payments.dead_letters import DeadLetters, Handling
from payswitch.payments.ledger import Settlement
from payswitch.payments.records import Record, Unreadable
from tests.integration.harness import FAST, Bench, bench
from tests.support import ANA, LOST_REPLY, PAID, Reply

UNKNOWN_ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
NOTHING = {"default": Total(), "fallback": Total()}
BY_DEFAULT = {"default": Total(1, 1990), "fallback": Total()}
BY_FALLBACK = {"default": Total(), "fallback": Total(1, 1990)}


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


# The dead letters that the dispatcher makes.


async def refused(b: Bench) -> str:
    payment = await b.accept()
    b.default.script = [Reply(422)]
    assert (await b.dispatch_until_done(payment)).why == "default: refused with status 422"
    return payment


async def other_amount(b: Bench) -> str:
    payment = await b.accept()
    b.default.books[payment] = {
        "correlationId": payment,
        "amount": 1.0,
        "requestedAt": "2026-01-02T03:04:05Z",
    }
    assert (await b.dispatch_until_done(payment)).why == "default has it with another amount"
    return payment


async def never_sent(b: Bench) -> str:
    payment = await b.accept()
    await let_its_deadline_pass(b, payment)
    record = await b.dispatch_until_done(payment, times=1)
    assert (record.why, record.processor) == ("unpaid at its deadline", None)
    return payment


async def tried_and_unpaid(b: Bench) -> str:
    payment = await b.accept()
    b.default.script = [Reply(429)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    await let_its_deadline_pass(b, payment)
    record = await b.dispatch_until_done(payment, times=1)
    assert (record.why, record.processor) == ("unpaid at its deadline", "default")
    return payment


async def unpaid_after_its_horizon(b: Bench) -> str:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    await let_its_deadline_pass(b, payment)
    record = await b.dispatch_until_done(payment, times=100_000)
    assert (record.why, record.processor) == ("unpaid at its deadline", "default")
    return payment


async def cannot_tell(b: Bench) -> str:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    await let_its_deadline_pass(b, payment)
    b.default.finds = [Reply(500)] * 100_000
    record = await b.dispatch_until_done(payment, times=100_000)
    assert record.why == "unpaid at its deadline; default can't tell"
    b.default.finds = []
    return payment


async def let_its_deadline_pass(b: Bench, payment: str) -> None:
    await b.redis.hset(f"payment:{payment}", "accepted_at", "1")  # type: ignore[misc]


DYING = [
    refused,
    other_amount,
    never_sent,
    tried_and_unpaid,
    unpaid_after_its_horizon,
    cannot_tell,
]
PINNED = [refused, tried_and_unpaid, unpaid_after_its_horizon, cannot_tell]
Die = Callable[[Bench], Awaitable[str]]


async def replay(b: Bench, *payments: str) -> list[Handling]:
    verdicts: list[Handling] = []
    async for page in DeadLetters(b.redis).replay(payments, ANA):
        verdicts += page.values()
    return verdicts


async def replay_all(b: Bench) -> list[Handling]:
    return [
        verdict async for page in DeadLetters(b.redis).replay_all(ANA) for verdict in page.values()
    ]


async def everything(redis: ArqRedis) -> dict[bytes, object]:
    async def value(key: bytes) -> object:
        if await redis.type(key) == b"hash":  # two dumps of one may differ in order
            return await redis.hgetall(key.decode())  # type: ignore[misc]
        return await redis.dump(key)

    return {key: await value(key) for key in sorted(await redis.keys("*"))}


async def read_job(redis: ArqRedis, payment: str) -> tuple[object, ...]:
    raw = await redis.get(f"arq:job:{payment}")
    assert raw is not None
    return deserialize_job_raw(raw, deserializer=redis.job_deserializer)


async def make_many(b: Bench, count: int) -> list[str]:
    payments = await asyncio.gather(*(b.accept() for _ in range(count)))
    claims = await b.claim(limit=count)
    for start in range(0, count, 50):  # each takes a connection
        some = (replace(claim, overdue=True) for claim in claims[start : start + 50])
        await asyncio.gather(*map(b.dispatcher.dispatch, some))
    assert await DeadLetters(b.redis).count() == count
    return list(payments)


# A replay is as safe as a first try.


@pytest.mark.parametrize("die", [die for die in DYING if die is not other_amount])
async def test_a_replayed_dead_letter_is_paid_once(b: Bench, die: Die) -> None:
    payment = await die(b)
    assert await replay(b, payment) == [Handling.DONE]
    record = await b.dispatch_until_done(payment, times=100_000)
    assert record.state == "settled"
    assert await b.summary() == BY_DEFAULT
    assert list(b.default.books) == [payment]


@pytest.mark.parametrize("die", PINNED)
async def test_what_its_processor_has_after_all_is_settled_and_never_sent_elsewhere(
    b: Bench, die: Die
) -> None:
    payment = await die(b)
    b.default.books[payment] = b.default.posts[0]
    sent = len(b.default.posts)
    b.choose("fallback")
    await replay(b, payment)
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.processor) == ("settled", "default")
    assert await b.summary() == BY_DEFAULT
    assert (len(b.default.posts), b.fallback.posts) == (sent, [])


@pytest.mark.parametrize("die", [refused, tried_and_unpaid, never_sent])
async def test_what_its_processor_does_not_have_goes_at_once_to_whom_is_chosen_now(
    b: Bench, die: Die
) -> None:
    payment = await die(b)
    b.choose("fallback")
    await replay(b, payment)
    record = await b.dispatch_until_done(payment, times=1)
    assert (record.state, record.processor) == ("settled", "fallback")
    assert await b.summary() == BY_FALLBACK


async def test_while_its_processor_can_not_be_asked_nothing_is_sent(b: Bench) -> None:
    payment = await refused(b)
    sent = len(b.default.posts)
    b.choose("fallback")
    b.default.finds = [Reply(500)] * 3
    await replay(b, payment)
    for _ in range(3):
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert (len(b.default.posts), b.fallback.posts) == (sent, [])
    assert (await b.record(payment)).state == "queued"


async def test_another_amount_over_there_buries_it_again(b: Bench) -> None:
    payment = await other_amount(b)
    sent = len(b.default.posts)
    b.choose("fallback")
    await replay(b, payment)
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.why) == ("dead", "default has it with another amount")
    assert (len(b.default.posts), b.fallback.posts) == (sent, [])
    assert await b.summary() == NOTHING


async def test_a_try_that_may_be_recorded_stays_open_as_it_was(b: Bench) -> None:
    payment = await cannot_tell(b)
    before = {name: await b.field(payment, name) for name in ("open", "tries", "horizon", "quiet")}
    await replay(b, payment)
    after = {name: await b.field(payment, name) for name in before}
    assert await b.open_tries(payment) == ["open"]
    assert after == before


async def test_its_deadline_counts_from_the_replay(b: Bench, redis: ArqRedis) -> None:
    payment = await never_sent(b)
    await replay(b, payment)
    assert not (await b.claim_when_due(payment)).overdue
    await redis.hset(f"payment:{payment}", "replayed_at", "1")  # type: ignore[misc]
    assert (await b.claim_when_due(payment)).overdue


STEPS = st.sampled_from(["dispatch", "past its deadline", "replay", "default", "fallback"])
ANSWERS = st.sampled_from(
    [
        PAID,
        LOST_REPLY,
        Reply(hang_up=True),
        Reply(422),
        Reply(429),
        Reply(500),
        Reply(500, record=True),
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(STEPS, max_size=12),
    default=st.lists(ANSWERS, max_size=4),
    fallback=st.lists(ANSWERS, max_size=4),
    silent=st.integers(0, 2),
)
async def test_a_replayed_payment_is_paid_once_in_any_interleaving(
    redis: ArqRedis, steps: list[str], default: list[Reply], fallback: list[Reply], silent: int
) -> None:
    await redis.flushall()
    async with bench(redis, replace(FAST, lease_ms=400, processor_max_delay_ms=50)) as b:
        b.default.script, b.fallback.script = list(default), list(fallback)
        b.default.finds = [Reply(500)] * silent
        payment = await b.accept()
        for step in steps:
            await take(b, payment, step)
        async with asyncio.timeout(30):
            while (await b.record(payment)).state != "settled":
                await take(b, payment, "replay")
                await take(b, payment, "dispatch")
        books = {"default": b.default.books, "fallback": b.fallback.books}
        assert [payment in book for book in books.values()].count(True) == 1
        assert await b.summary() == {
            name: Total(len(book), 1990 * len(book)) for name, book in books.items()
        }
        assert not await redis.exists("payments:dead", "payments:open", "arq:queue")


async def take(b: Bench, payment: str, step: str) -> None:
    state = (await b.record(payment)).state
    if step in ("default", "fallback"):
        b.choose(step)
    elif step == "replay":
        [verdict] = await replay(b, payment)
        assert (verdict is Handling.DONE) is (state == "dead")
    elif state in ("queued", "processing"):
        claim = await b.claim_when_due(payment)
        await b.dispatcher.dispatch(replace(claim, overdue=step == "past its deadline"))


# What a replay does in Redis.


async def test_a_replayed_payment_is_in_the_backlog_and_due_as_when_it_was_accepted(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await refused(b)
    fresh = await b.accept()
    await redis.delete("payments:wake")
    await redis.set(f"arq:retry:{payment}", 7)
    await replay(b, payment)
    assert await redis.zscore("payments:open", payment) == float(
        await b.field(payment, "accepted_at") or 0
    )
    seconds, _ = await redis.time()
    due = await redis.zscore("arq:queue", payment)
    assert due is not None
    assert due / 1000 <= seconds + 1
    replayed_job, fresh_job = await read_job(redis, payment), await read_job(redis, fresh)
    assert (replayed_job[1], fresh_job[1]) == ([payment], [fresh])
    assert (replayed_job[0], *replayed_job[2:4]) == (fresh_job[0], *fresh_job[2:4])
    assert await redis.llen("payments:wake") == 1  # type: ignore[misc]
    assert await redis.zcard("payments:dead") == 0
    assert (await b.field(payment, "reason"), await b.field(payment, "dead_at")) == (None, None)
    assert (await b.claim_when_due(payment)).job_try == 1


async def test_a_second_replay_changes_nothing(b: Bench, redis: ArqRedis) -> None:
    payment = await refused(b)
    assert await replay(b, payment) == [Handling.DONE]
    before = await everything(redis)
    assert await replay(b, payment) == [Handling.QUEUED]
    await b.claim_when_due(payment)
    during = await everything(redis)
    assert await replay(b, payment) == [Handling.PROCESSING]
    assert await everything(redis) == during != before


async def test_what_is_settled_unknown_purged_or_foreign_stays_as_it_is(
    b: Bench, redis: ArqRedis
) -> None:
    purged = await refused(b)
    await redis.incr("payments:generation")
    paid = await b.accept()
    await b.dispatch_until_done(paid)
    foreign = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b4"
    await redis.set(f"payment:{foreign}", "x")
    before = await everything(redis)
    assert await replay(b, paid, UNKNOWN_ID, purged, foreign) == [
        Handling.SETTLED,
        Handling.UNKNOWN,
        Handling.UNKNOWN,
        Handling.BROKEN,
    ]
    assert await everything(redis) == before


async def test_proof_of_a_dead_letter_comes_before_its_replay(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(422)]
    claim = await b.claim_when_due(payment)
    await b.dispatcher.dispatch(claim)
    assert await b.ledger.settle(claim, "default", 1) is Settlement.SETTLED
    assert await replay(b, payment) == [Handling.SETTLED]
    assert await b.claim() == []
    assert await b.summary() == BY_DEFAULT


async def test_proof_of_a_dead_letter_comes_after_its_replay(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    b.default.script = [Reply(422)]
    claim = await b.claim_when_due(payment)
    await b.dispatcher.dispatch(claim)
    await replay(b, payment)
    assert await b.ledger.settle(claim, "default", 1) is Settlement.SETTLED
    assert await b.claim() == []
    assert await b.summary() == BY_DEFAULT
    assert not await redis.exists("payments:open", "payments:dead", f"arq:job:{payment}")


async def test_all_are_replayed_page_by_page(b: Bench, redis: ArqRedis) -> None:
    payments = await make_many(b, 1203)
    assert await replay_all(b) == [Handling.DONE] * 1203
    assert await redis.zcard("payments:dead") == 0
    assert await redis.zcard("payments:open") == 1203
    assert {claim.correlation_id for claim in await b.claim(limit=2000)} == set(payments)


async def test_what_dies_again_during_a_replay_of_all_is_not_replayed_again(b: Bench) -> None:
    await make_many(b, 501)
    seen = 0
    async for verdicts in DeadLetters(b.redis).replay_all(ANA):
        seen += len(verdicts)
        for claim in await b.claim(limit=1000):
            await b.dispatcher.dispatch(replace(claim, overdue=True))
    assert seen == 501
    assert await DeadLetters(b.redis).count() == 501


async def test_what_can_not_be_replayed_does_not_hold_up_the_others(
    b: Bench, redis: ArqRedis
) -> None:
    await make_many(b, 501)
    await redis.zadd("payments:dead", {f"ghost-{n}": 1 for n in range(600)})
    verdicts = await replay_all(b)
    assert (verdicts.count(Handling.DONE), verdicts.count(Handling.UNKNOWN)) == (501, 600)


async def test_what_is_settled_during_a_replay_of_all_keeps_no_other_from_it(
    b: Bench, redis: ArqRedis
) -> None:
    payments = await make_many(b, 1100)
    stuck = [f"ghost-{n}" for n in range(3)]
    for at, payment in enumerate([*stuck, *payments]):
        await redis.zadd("payments:dead", {payment: at})
    seen: list[str] = []
    async for verdicts in DeadLetters(redis).replay_all(ANA):
        seen += verdicts
        await redis.zrem("payments:dead", *stuck[1:], payments[900])
    assert seen == [*stuck, *payments[:900], *payments[901:]]


@pytest.mark.parametrize("leaves", ["settled", "dead anew"])
async def test_what_leaves_between_reading_a_page_and_replaying_it_keeps_no_other_from_it(
    b: Bench, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch, leaves: str
) -> None:
    """A proof or another operator comes between the two calls."""
    payments = await make_many(b, 502)
    for at, payment in enumerate(payments):
        await redis.zadd("payments:dead", {payment: at})
    letters = DeadLetters(redis)
    replay_page = letters._replay_page

    async def meanwhile(ids: Sequence[str], signature: Signature) -> dict[str, Handling]:
        if payments[499] in ids:
            await redis.hset(f"payment:{payments[499]}", "state", "settled")  # type: ignore[misc]
            await redis.zrem("payments:dead", payments[499])
        verdicts = await replay_page(ids, signature)
        if payments[499] in ids and leaves == "dead anew":
            await redis.zadd("payments:dead", {payments[499]: 10**6})
        return verdicts

    monkeypatch.setattr(letters, "_replay_page", meanwhile)
    seen = [payment async for verdicts in letters.replay_all(ANA) for payment in verdicts]
    assert seen == payments


async def test_out_of_memory_a_replay_is_refused_and_changes_nothing(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await refused(b)
    before = await everything(redis)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            await replay(b, payment)
    finally:
        await redis.config_set("maxmemory", 0)
    assert await everything(redis) == before
    assert await replay(b, payment) == [Handling.DONE]


@pytest.mark.parametrize("key", ["arq:queue", "payments:open", "payments:wake"])
async def test_a_foreign_key_in_the_queues_place_replays_nothing_halfway(
    b: Bench, redis: ArqRedis, key: str
) -> None:
    payment = await refused(b)
    await redis.delete(key)
    await redis.set(key, "foreign")
    before = await everything(redis)
    with pytest.raises(ResponseError, match=f"{key} holds a string"):
        await replay(b, payment)
    assert await everything(redis) == before


# What is shown.


async def test_the_newest_are_listed_first(b: Bench, redis: ArqRedis) -> None:
    payments = await make_many(b, 3)
    for at, payment in enumerate(payments, 1):
        await redis.zadd("payments:dead", {payment: at})
    listed = await DeadLetters(redis).newest(2)
    assert [letter.correlation_id for letter in listed] == [payments[2], payments[1]]


async def test_a_list_longer_than_a_page_is_whole(b: Bench, redis: ArqRedis) -> None:
    payments = await make_many(b, 702)
    listed = await DeadLetters(redis).newest(10_000)
    assert {letter.correlation_id for letter in listed} == set(payments)
    assert len(await DeadLetters(redis).newest(601)) == 601


@pytest.mark.parametrize("die", DYING)
async def test_everything_known_of_a_dead_letter_is_found(b: Bench, die: Die) -> None:
    payment = await die(b)
    found = await DeadLetters(b.redis).find(payment)
    record = await b.record(payment)
    assert isinstance(found, Record)
    assert (found.state, found.reason, found.cents) == ("dead", record.why, 1990)
    assert (found.processor, found.requested_at) == (record.processor, record.requested_at)
    assert found.dead_at is not None
    assert found.dead_at > found.accepted_at
    assert found.replayed_at is None
    assert bool(found.open_tries) is (die in (other_amount, cannot_tell))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("cents", "x1990", "cents is 'x1990'"),
        ("cents", "-1", "cents is '-1'"),
        ("state", "lost", "state is 'lost'"),
        ("dead_at", "9" * 18, f"dead_at is '{'9' * 18}'"),
        ("accepted_at", "9" * 5000, f"accepted_at is '{'9' * 64}'"),
        ("tries", "9" * 20, f"tries is '{'9' * 20}'"),
        ("open", "9f", "open is '9f'"),
        ("open", "nonsense", "open is 'nonsense'"),
        ("metadata", "nonsense", "metadata is no JSON object"),
        ("metadata", "[1]", "metadata is no JSON object"),
        ("metadata", "", "metadata is no JSON object"),
    ],
)
async def test_a_spoilt_record_is_listed_as_such(
    b: Bench, redis: ArqRedis, field: str, value: str, problem: str
) -> None:
    other, spoilt = await refused(b), await refused(b)
    await redis.hset(f"payment:{spoilt}", field, value)  # type: ignore[misc]
    letters = DeadLetters(redis)
    listed = await letters.newest(10)
    assert listed[0] == await letters.find(spoilt) == Unreadable(spoilt, problem)
    assert listed[1].correlation_id == other


@pytest.mark.parametrize("field", ["state", "cents", "accepted_at", "generation"])
async def test_a_record_without_a_field_that_it_must_have_is_listed_as_spoilt(
    b: Bench, redis: ArqRedis, field: str
) -> None:
    payment = await refused(b)
    await redis.hdel(f"payment:{payment}", field)  # type: ignore[misc]
    assert await DeadLetters(redis).newest(10) == [Unreadable(payment, f"{field} missing")]


async def test_a_dead_letter_without_a_record_is_listed_as_such(redis: ArqRedis) -> None:
    await redis.zadd("payments:dead", {UNKNOWN_ID: 1})
    letters = DeadLetters(redis)
    lost = Unreadable(UNKNOWN_ID, "it has no record")
    assert (await letters.newest(10), await letters.find(UNKNOWN_ID)) == ([lost], lost)


async def test_a_foreign_value_in_a_dead_letters_place_is_listed_as_such(redis: ArqRedis) -> None:
    await redis.zadd("payments:dead", {UNKNOWN_ID: 1})
    await redis.set(f"payment:{UNKNOWN_ID}", "x")
    assert await DeadLetters(redis).newest(10) == [
        Unreadable(UNKNOWN_ID, "Redis holds something else under its key")
    ]

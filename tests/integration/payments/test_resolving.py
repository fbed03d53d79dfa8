"""Dead letters and incidents that an operator resolves, the history that survives it all, and the
audit trail; on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.money import Total
from payswitch.operations.controls import Controls
from payswitch.operations.overview import read_overview
from payswitch.payments.audit import Signature, read_acts
from payswitch.payments.dead_letters import DeadLetters, Filter, Handling
from payswitch.payments.incidents import Incidents
from payswitch.payments.ledger import Settlement
from payswitch.payments.records import Record, Unreadable
from payswitch.payments.tries import Burial, Findings, Tried, Tries
from tests.integration.harness import Bench, bench
from tests.support import ANA, PROCESSORS, Reply

RETENTION_MS = 60_000
UNKNOWN_ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
BEA = Signature("bea", "refunded")


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


async def refused(b: Bench) -> str:
    payment = await b.accept()
    b.default.script = [Reply(422)]
    assert (await b.dispatch_until_done(payment)).state == "dead"
    return payment


async def resolve(b: Bench, *payments: str) -> list[Handling]:
    verdicts = await DeadLetters(b.redis).resolve(payments, BEA, retention_ms=RETENTION_MS)
    return list(verdicts.values())


async def replay(b: Bench, payment: str, *, even_resolved: bool = False) -> Handling:
    pages = DeadLetters(b.redis).replay([payment], ANA, even_resolved=even_resolved)
    [verdicts] = [page async for page in pages]
    return verdicts[payment]


async def events(b: Bench, payment: str) -> list[str]:
    return [event.what for event in (await b.record(payment)).history]


# Dead letters.


async def test_a_resolved_dead_letter_counts_no_longer_and_tells_who_resolved_it_and_how(
    b: Bench, redis: ArqRedis
) -> None:
    payment, other = await refused(b), await refused(b)
    before = await read_overview(redis, PROCESSORS)
    assert await resolve(b, payment) == [Handling.DONE]
    letters = DeadLetters(redis)
    assert [each.correlation_id for each in await letters.newest(10)] == [other]
    overview = await read_overview(redis, PROCESSORS)
    assert (before.dead, overview.dead) == (2, 1)
    assert overview.accepted == before.accepted
    record = await b.record(payment)
    assert record.state == "dead"
    assert record.resolution is not None
    assert (record.resolution.by, record.resolution.reason) == ("bea", "refunded")
    [resolved] = await letters.resolved(10, RETENTION_MS)
    assert resolved == record


async def test_a_resolved_dead_letter_leaves_after_the_retention(b: Bench, redis: ArqRedis) -> None:
    first, second = await refused(b), await refused(b)
    await resolve(b, first)
    for key in (f"payment:{first}", "payments:resolved"):
        assert 0 < await redis.pttl(key) <= RETENTION_MS
    await redis.zadd("payments:resolved", {first: 1})
    assert await DeadLetters(redis).resolved(10, RETENTION_MS) == []
    await resolve(b, second)
    assert await redis.zrange("payments:resolved", 0, -1) == [second.encode()]


async def test_a_resolved_dead_letter_is_replayed_only_if_that_is_said(
    b: Bench, redis: ArqRedis
) -> None:
    payment = await refused(b)
    await resolve(b, payment)
    assert await replay(b, payment) is Handling.RESOLVED
    assert [page async for page in DeadLetters(redis).replay_all(ANA)] == []
    assert (await b.record(payment)).state == "dead"
    assert await replay(b, payment, even_resolved=True) is Handling.DONE
    assert await redis.pttl(f"payment:{payment}") == -1
    assert (await b.dispatch_until_done(payment)).state == "settled"
    assert await events(b, payment) == [
        "try 1 at default: refused with status 422; closed, as default doesn't have the payment",
        "dead letter: default: refused with status 422",
        "resolved by bea: refunded",
        "put back by ana",
        "an earlier try: closed, as default doesn't have the payment",
    ]
    overview = await read_overview(redis, PROCESSORS)
    assert (overview.accepted, overview.resolved, overview.incidents) == (1, 0, 0)


async def test_only_a_dead_letter_can_be_resolved_and_only_once(b: Bench, redis: ArqRedis) -> None:
    dead, queued, paid = await refused(b), await b.accept(), await b.accept()
    await b.dispatch_until_done(paid)
    assert await resolve(b, dead, queued, paid, UNKNOWN_ID) == [
        Handling.DONE,
        Handling.QUEUED,
        Handling.SETTLED,
        Handling.UNKNOWN,
    ]
    assert await resolve(b, dead) == [Handling.RESOLVED]
    assert (await read_overview(redis, PROCESSORS)).resolved == 1
    assert (await b.dispatch_until_done(queued)).state == "settled"


@pytest.mark.parametrize("spoil", ["delete", "overwrite"])
async def test_a_dead_letter_without_a_sound_record_can_leave_the_list(
    b: Bench, redis: ArqRedis, spoil: str
) -> None:
    payment = await refused(b)
    await redis.delete(f"payment:{payment}")
    if spoil == "overwrite":
        await redis.set(f"payment:{payment}", "x")
    assert isinstance(await DeadLetters(redis).find(payment), Unreadable)
    assert await resolve(b, payment) == [Handling.DONE]
    assert await redis.zcard("payments:dead") == 0
    [act] = await read_acts(redis, 10)
    assert (act.act, act.what, act.signature) == ("resolve", payment, BEA)


async def test_proof_of_payment_for_a_resolved_dead_letter_settles_it_and_is_an_incident(
    b: Bench, redis: ArqRedis
) -> None:
    """Somebody refunded it, and the processor has it after all."""
    payment = await b.accept()
    b.default.script = [Reply(422)]
    claim = await b.claim_when_due(payment)
    await b.dispatcher.dispatch(claim)
    await resolve(b, payment)
    assert await b.ledger.settle(claim, "default", 1_800_000_000_000) is Settlement.SETTLED
    assert (await b.record(payment)).state == "settled"
    assert await redis.zcard("payments:resolved") == 0
    [incident] = await Incidents(redis, retention_ms=RETENTION_MS).unresolved()
    assert incident.correlation_id == payment
    assert str(incident) == "default has paid it, though it was resolved"
    overview = await read_overview(redis, PROCESSORS)
    assert (overview.accepted, overview.resolved, overview.incidents) == (1, 0, 1)


# Filters.


async def of_two_kinds(b: Bench) -> tuple[str, str]:
    """A dead letter that default refused an hour ago, and one that was never sent."""
    old = await refused(b)
    young = await b.accept()
    await b.redis.hset(f"payment:{young}", "accepted_at", "1")  # type: ignore[misc]
    assert (await b.dispatch_until_done(young)).reason == "unpaid at its deadline"
    seconds, _ = await b.redis.time()
    await b.redis.zadd("payments:dead", {old: seconds * 1000 - 3_600_000})
    return old, young


@pytest.mark.parametrize(
    ("wanted", "fitting"),
    [
        (Filter(reason="STATUS 422"), "old"),
        (Filter(reason="deadline"), "young"),
        (Filter(processor="default"), "old"),
        (Filter(processor="none"), "young"),
        (Filter(older_than_ms=1_800_000), "old"),
        (Filter(younger_than_ms=1_800_000), "young"),
        (Filter(older_than_ms=1_800_000, processor="none"), ""),
        (Filter(reason="", younger_than_ms=7_200_000), "old young"),
    ],
    ids=lambda given: "+".join(sorted(given)) if isinstance(given, set) else str(given),
)
async def test_a_filter_chooses_what_is_listed_and_replayed(
    b: Bench, redis: ArqRedis, wanted: Filter, fitting: str
) -> None:
    expected = set(fitting.split())
    old, young = await of_two_kinds(b)
    names = {old: "old", young: "young"}
    letters = DeadLetters(redis)
    assert {names[each.correlation_id] for each in await letters.newest(10, wanted)} == expected
    verdicts = [page async for page in letters.replay_all(ANA, wanted)]
    replayed = {payment for page in verdicts for payment in page}
    assert {names[payment] for payment in replayed} == expected
    left = {names[each.correlation_id] for each in await letters.newest(10)}
    assert left == {"old", "young"} - expected


async def test_a_filter_finds_what_lies_behind_a_page_of_others(b: Bench, redis: ArqRedis) -> None:
    payment = await refused(b)
    await redis.zadd("payments:dead", {f"ghost-{n}": n for n in range(1, 1100)})
    letters = DeadLetters(redis)
    wanted = Filter(processor="default")
    assert [each.correlation_id for each in await letters.newest(1, wanted)] == [payment]
    await redis.zadd("payments:dead", {payment: 0})
    assert [each.correlation_id for each in await letters.newest(1, wanted)] == [payment]
    await redis.zadd("payments:dead", {payment: 10**13})
    [page] = [page async for page in letters.replay_all(ANA, wanted) if page]
    assert page == {payment: Handling.DONE}


# A payment's history.


async def test_each_try_that_did_not_pay_is_in_the_history_and_a_first_success_is_not(
    b: Bench, redis: ArqRedis
) -> None:
    easy, hard = await b.accept(), await b.accept()
    assert (await b.dispatch_until_done(easy)).history == ()
    assert not await redis.hexists(f"payment:{easy}", "history")  # type: ignore[misc]
    b.default.script = [Reply(500), Reply(429), Reply(hang_up=True)]
    assert (await b.dispatch_until_done(hard)).state == "settled"
    assert await events(b, hard) == [
        "try 1 at default: status 500; closed, as default doesn't have the payment",
        "try 2 at default: status 429; open: it may have been recorded",
        "try 3 at default: the connection ended without an answer; open: it may still be recorded",
        "an earlier try: closed, as default doesn't have the payment",
    ]


async def test_a_try_that_the_processor_denied_but_had_recorded_is_in_the_history(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(500, record=True)]
    record = await b.dispatch_until_done(payment)
    assert (record.state, record.tries) == ("settled", 1)
    assert await events(b, payment) == [
        "try 1 at default: status 500; open: it may have been recorded"
    ]


async def test_a_try_that_is_brought_twice_is_in_the_history_once(b: Bench) -> None:
    """It can't be buried while an earlier one may be recorded, so it is given back."""
    payment = await b.accept()
    other = {"correlationId": payment, "amount": 1.0, "requestedAt": "2026-01-02T03:04:05Z"}
    b.default.script = [Reply(hang_up=True), Reply(500)]
    b.default.finds = [Reply(404), Reply(body=orjson.dumps(other))]
    for _ in range(2):
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    record = await b.record(payment)
    assert (record.state, record.last_error) == ("queued", "default has it with another amount")
    assert [event.what.split(";")[0] for event in record.history] == [
        "try 1 at default: the connection ended without an answer",
        "try 2 at default: status 500",
    ]


async def test_a_decline_is_what_closed_the_tries_before_it(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(429)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    claim = await b.claim_when_due(payment)
    tries = Tries(b.redis, max_delay_ms=300, lease_ms=1500, retention_ms=RETENTION_MS)
    routed = await tries.open(claim, "default", Findings())
    assert routed is not None
    closed = {routed.id, *(each.id for each in claim.open_tries)}
    findings = Findings(closed=closed, tried=Tried(routed, "status 500"))
    burial = await tries.bury(claim, "no funds", findings, horizon_passed=False, declined=True)
    assert burial is Burial.BURIED
    assert await events(b, payment) == [
        "try 1 at default: status 429; open: it may have been recorded",
        "an earlier try: closed, as default will not take the payment",
        "try 2 at default: status 500; closed, as default will not take the payment",
    ]
    assert await resolve(b, payment) == [Handling.DECLINED]


async def test_tries_that_end_alike_share_an_entry(b: Bench) -> None:
    payment = await b.accept()
    b.default.script = [Reply(500)] * 30
    await b.dispatch_until_done(payment)
    [event] = await events(b, payment)
    assert event.startswith("tries 1 to 30 at default: status 500; closed, as default doesn't have")


async def test_an_outcome_is_entered_once_however_often_it_is_brought(b: Bench) -> None:
    claim = await b.claim_when_due(await b.accept())
    tries = Tries(b.redis, max_delay_ms=300, lease_ms=1500, retention_ms=RETENTION_MS)
    first = await tries.open(claim, "default", Findings())
    await b.redis.hset(f"payment:{claim.correlation_id}", "tries", "0")  # type: ignore[misc]
    second = await tries.open(claim, "default", Findings())
    assert first is not None
    assert second is not None
    for routed in (first, first, second, second):  # two of one number, as after a failover
        findings = Findings(tried=Tried(routed, "status 500"))
        await tries.release(claim, delay_ms=0, findings=findings, error="")
    expected = "try 1 at default: status 500; open: it may still be recorded"
    assert await events(b, claim.correlation_id) == [expected, expected]


async def test_of_the_history_the_newest_64_entries_stay(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    entries = {f"history:{n}": f'[1795363500123,"dead","number {n}"]' for n in range(1, 64)}
    await redis.hset(f"payment:{payment}", mapping={"history": 63, **entries})  # type: ignore[misc]
    b.default.script = [Reply(500), Reply(404)]
    history = (await b.dispatch_until_done(payment)).history
    assert len(history) == 64
    assert history[0].what == "dead letter: number 2"
    assert history[-1].what.startswith("try 2 at default: status 404")
    assert not await redis.hexists(f"payment:{payment}", "history:1")  # type: ignore[misc]


async def test_a_history_that_somebody_spoilt_stops_no_payment(b: Bench, redis: ArqRedis) -> None:
    payment = await b.accept()
    await redis.hset(  # type: ignore[misc]
        f"payment:{payment}", mapping={"history": "7", "history:7": "{"}
    )
    b.default.script = [Reply(500)]
    record = await b.dispatch_until_done(payment)
    assert (record.state, len(record.history)) == ("settled", 1)


@pytest.mark.parametrize("spoilt", [{"dead_at": "1e400"}, {"resolved_at": "nan"}])
async def test_a_record_that_somebody_spoilt_enters_the_ledger_once(
    b: Bench, redis: ArqRedis, spoilt: dict[str, str]
) -> None:
    """A script that stops after it has written its sums would write them again each time."""
    payment = await b.accept()
    b.default.script = [Reply(422)]
    claim = await b.claim_when_due(payment)
    await b.dispatcher.dispatch(claim)
    await redis.hset(f"payment:{payment}", mapping=spoilt)  # type: ignore[misc]
    await b.ledger.settle(claim, "default", 1_800_000_000_000)
    assert (await b.summary())["default"] == Total(1, 1990)
    assert (await b.record(payment)).state == "settled"


# Incidents.


async def test_resolved_incidents_count_no_longer_and_stay_for_the_retention(
    b: Bench, redis: ArqRedis
) -> None:
    [first, second] = [await b.accept(), await b.accept()]
    for claim in await b.claim():
        assert await b.ledger.settle(claim, "fallback", 1) is Settlement.INCIDENT
    incidents = Incidents(redis, retention_ms=RETENTION_MS)
    assert await incidents.resolve([first, UNKNOWN_ID], BEA) == {first: 1, UNKNOWN_ID: 0}
    assert [each.correlation_id for each in await incidents.unresolved()] == [second]
    assert (await read_overview(redis, PROCESSORS)).incidents == 1
    [resolved] = await incidents.resolved()
    assert resolved.correlation_id == first
    assert resolved.resolution is not None
    assert (resolved.resolution.by, resolved.resolution.reason) == ("bea", "refunded")
    assert 0 < await redis.pttl("payments:incidents:resolved") <= RETENTION_MS
    await redis.zadd("payments:incidents:resolved", {"old": 1})
    assert len(await incidents.resolved()) == 1
    assert await incidents.resolve([second], BEA) == {second: 1}
    assert await redis.zcard("payments:incidents:resolved") == 2


async def test_incidents_of_many_payments_are_resolved_together(redis: ArqRedis) -> None:
    ids = [f"4a7901b8-7d26-4d9d-aa19-{n:012d}" for n in range(250)]
    entry = {"at": 1, "pinned": "", "paidBy": "x", "requestedAt": 1}
    twice = [orjson.dumps({"correlationId": each, **entry}) for each in (*ids, ids[0])]
    await redis.rpush("payments:incidents", *twice, "nonsense")  # type: ignore[misc]
    incidents = Incidents(redis, retention_ms=RETENTION_MS)
    assert await incidents.resolve(ids[1:], BEA) == dict.fromkeys(ids[1:], 1)
    assert await incidents.resolve([ids[0]], BEA) == {ids[0]: 2}
    assert [each.correlation_id for each in await incidents.unresolved()] == ["nonsense"]
    acts = await read_acts(redis, 1000)
    assert sorted(act.what for act in acts) == ids


async def test_of_the_resolved_incidents_the_newest_ten_thousand_are_kept(
    b: Bench, redis: ArqRedis
) -> None:
    seconds, _ = await redis.time()
    many = {str(n): seconds * 1000 + n - 20_000 for n in range(10_000)}
    await redis.zadd("payments:incidents:resolved", many)
    entry = {"correlationId": UNKNOWN_ID, "at": 1, "pinned": "", "paidBy": "x", "requestedAt": 1}
    await redis.rpush("payments:incidents", orjson.dumps(entry))  # type: ignore[misc]
    incidents = Incidents(redis, retention_ms=RETENTION_MS)
    assert await incidents.resolve([UNKNOWN_ID], BEA) == {UNKNOWN_ID: 1}
    assert await redis.zcard("payments:incidents:resolved") == 10_000
    assert await redis.zscore("payments:incidents:resolved", "0") is None


# The audit trail.


async def test_every_act_is_in_the_audit_trail_and_a_purge_keeps_it(
    b: Bench, redis: ArqRedis
) -> None:
    payment, other = await refused(b), await refused(b)
    controls = Controls(redis)
    await controls.select("fallback", life_ms=60_000, signature=ANA)
    await controls.select_automatically(ANA)
    assert not await controls.select_automatically(ANA)  # an act that changes nothing is none
    await controls.pause(life_ms=None, signature=Signature("ana", "lunch"))
    await controls.resume(BEA)
    await replay(b, payment)
    await resolve(b, other)
    await b.purge()
    acts = await read_acts(redis, 100)
    assert [(each.act, each.signature) for each in acts] == [
        ("purge", ANA),
        ("resolve", BEA),
        ("replay", ANA),
        ("resume", BEA),
        ("pause", Signature("ana", "lunch")),
        ("select", ANA),
        ("select", ANA),
    ]
    assert [each.what for each in acts[1:3]] == [other, payment]
    assert acts[-1].what.startswith("fallback until 2")
    assert [each.at for each in acts] == sorted((each.at for each in acts), reverse=True)


async def test_of_the_acts_the_newest_ten_thousand_are_kept(redis: ArqRedis) -> None:
    async with redis.pipeline(transaction=False) as pipe:
        for _ in range(10_000):
            pipe.xadd("payments:audit", {"act": "pause", "by": "x"})
        await pipe.execute()
    await Controls(redis).pause(life_ms=None, signature=ANA)
    assert await redis.xlen("payments:audit") == 10_000
    [newest] = await read_acts(redis, 1)
    assert newest.signature == ANA


async def test_no_act_happens_that_the_audit_trail_can_not_take(b: Bench, redis: ArqRedis) -> None:
    payment = await refused(b)
    await redis.set("payments:audit", "foreign")
    controls = Controls(redis)
    for act in (
        controls.pause(life_ms=None, signature=ANA),
        controls.resume(ANA),
        resolve(b, payment),
        replay(b, payment),
        b.purge(),
    ):
        with pytest.raises(Exception, match="payments:audit holds a string, not a stream"):
            await act
    assert await controls.paused() is None
    record = await b.record(payment)
    assert isinstance(record, Record)
    assert (record.state, record.resolution) == ("dead", None)


async def test_acts_are_recorded_out_of_memory(b: Bench, redis: ArqRedis) -> None:
    payment = await refused(b)
    await redis.config_set("maxmemory", 1)
    try:
        await Controls(redis).pause(life_ms=None, signature=ANA)
        assert await resolve(b, payment) == [Handling.DONE]
    finally:
        await redis.config_set("maxmemory", 0)
    assert [each.act for each in await read_acts(redis, 10)] == ["resolve", "pause"]

"""The ledger: settled once, summed exactly over any window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import cast
from uuid import UUID

import fakeredis
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from payswitch.money import BRL, MAX_CENTS, Total
from payswitch.payments.accepting import AcceptQueue
from payswitch.payments.claims import Claim
from payswitch.payments.ledger import Ledger, Settlement, summary_json
from payswitch.payments.payment import Payment

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
AT_MS = 1_795_363_500_123
RETENTION_MS = 600_000
PROCESSORS = ("default", "fallback")

Paid = tuple[str, int, int]
"""A settled payment: processor, requestedAt in ms, cents."""


def new_redis() -> Redis:
    client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    return client


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    """An empty Redis."""
    client = new_redis()
    yield client
    await client.aclose()


def ledger_on(redis: Redis) -> Ledger:
    return Ledger(redis, processors=PROCESSORS, retention_ms=RETENTION_MS)


def claim_of(correlation_id: str = ID, *, generation: str = "0") -> Claim:
    return Claim(correlation_id, 1990, "1", generation, 0.0)


async def write(redis: Redis, correlation_id: str, **fields: str) -> None:
    """Set fields of a payment's record."""
    await cast(Awaitable[int], redis.hset(f"payment:{correlation_id}", mapping=fields))


async def record_of(redis: Redis, correlation_id: str = ID) -> dict[str, str]:
    """All fields of a payment's record."""
    raw = await cast(Awaitable[dict[bytes, bytes]], redis.hgetall(f"payment:{correlation_id}"))
    return {name.decode(): value.decode() for name, value in raw.items()}


async def pin(
    redis: Redis,
    correlation_id: str = ID,
    *,
    processor: str = "default",
    cents: int = 1990,
    state: str = "processing",
) -> None:
    """Make the record of a payment that was sent to a processor."""
    await write(
        redis, correlation_id, generation="0", state=state, processor=processor, cents=str(cents)
    )


async def settle_all(redis: Redis, ledger: Ledger, payments: Iterable[Paid]) -> None:
    """Settle all of them, many in one flush."""
    numbered = list(enumerate(payments))
    for number, (processor, _, cents) in numbered:
        await pin(redis, str(UUID(int=number)), processor=processor, cents=cents)
    await asyncio.gather(
        *(
            ledger.settle(claim_of(str(UUID(int=number))), processor, at)
            for number, (processor, at, _) in numbered
        )
    )


async def summary_of(payments: Iterable[Paid], first: int | None, last: int | None) -> object:
    redis = new_redis()
    ledger = ledger_on(redis)
    await settle_all(redis, ledger, payments)
    return (await ledger.window(first, last)).totals


# Settling.


async def test_a_proof_of_payment_settles_it(redis: Redis) -> None:
    await pin(redis)
    assert await ledger_on(redis).settle(claim_of(), "default", AT_MS) is Settlement.SETTLED


async def test_a_settled_payment_is_in_the_summary(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis)
    await ledger.settle(claim_of(), "default", AT_MS)
    totals = (await ledger.window(None, None)).totals
    assert totals == {"default": Total(1, 1990), "fallback": Total()}


async def test_a_settled_payment_says_so_in_its_record(redis: Redis) -> None:
    await pin(redis)
    await ledger_on(redis).settle(claim_of(), "default", AT_MS)
    record = await record_of(redis)
    assert (record["state"], record["requested_at"]) == ("settled", str(AT_MS))


async def test_the_cents_are_those_of_the_record(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis, cents=7)
    await ledger.settle(claim_of(), "default", AT_MS)
    assert (await ledger.window(None, None)).totals["default"] == Total(1, 7)


async def test_a_settled_record_is_kept_for_the_retention_time(redis: Redis) -> None:
    await pin(redis)
    await ledger_on(redis).settle(claim_of(), "default", AT_MS)
    assert RETENTION_MS - 5000 < await redis.pttl(f"payment:{ID}") <= RETENTION_MS


async def test_nothing_of_its_lease_and_tries_is_left_in_a_settled_record(redis: Redis) -> None:
    await pin(redis)
    await write(redis, ID, token="1", lease_until="2", open="1 2e", horizon="3", quiet="4")
    await ledger_on(redis).settle(claim_of(), "default", AT_MS)
    assert set(await record_of(redis)) == {
        *("generation", "state", "processor", "cents", "requested_at", "settled_at")
    }


async def test_a_settled_payment_leaves_queue_and_backlog(redis: Redis) -> None:
    queue = AcceptQueue(redis, limit_ms=5000, max_backlog=10)
    await queue.accept(Payment(ID, 1990))
    await redis.zadd("payments:in-flight", {ID: AT_MS})
    await redis.set(f"arq:in-progress:{ID}", "1")
    await redis.set(f"arq:retry:{ID}", "1")
    await pin(redis)
    await ledger_on(redis).settle(claim_of(), "default", AT_MS)
    left = {key.decode() for key in await redis.keys()} - {"payments:wake"}
    assert {key for key in left if not key.startswith("ledger:")} == {f"payment:{ID}"}


async def test_a_dead_letter_that_proves_to_be_paid_is_dead_no_longer(redis: Redis) -> None:
    await pin(redis, state="dead")
    await redis.zadd("payments:dead", {ID: AT_MS})
    await ledger_on(redis).settle(claim_of(), "default", AT_MS)
    assert await redis.zcard("payments:dead") == 0


# Settling again.


@pytest.mark.parametrize("at_ms", [AT_MS, AT_MS + 1])
async def test_a_payment_that_is_settled_twice_counts_once(redis: Redis, at_ms: int) -> None:
    ledger = ledger_on(redis)
    await pin(redis)
    await ledger.settle(claim_of(), "default", AT_MS)
    await ledger.settle(claim_of(), "default", at_ms)
    assert (await ledger.window(None, None)).totals["default"] == Total(1, 1990)


async def test_who_settles_again_is_told_that_it_is_known(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis)
    await ledger.settle(claim_of(), "default", AT_MS)
    assert await ledger.settle(claim_of(), "default", AT_MS) is Settlement.KNOWN


async def test_of_two_proofs_in_one_flush_one_settles(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis)
    both = await asyncio.gather(*(ledger.settle(claim_of(), "default", AT_MS) for _ in range(2)))
    assert both == [Settlement.SETTLED, Settlement.KNOWN]


async def test_two_proofs_in_one_flush_count_once(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis)
    await asyncio.gather(*(ledger.settle(claim_of(), "default", AT_MS) for _ in range(2)))
    assert (await ledger.window(AT_MS, AT_MS)).totals["default"] == Total(1, 1990)


# Proofs that match nothing.


async def test_a_proof_from_another_processor_is_an_incident(redis: Redis) -> None:
    await pin(redis, processor="default")
    assert await ledger_on(redis).settle(claim_of(), "fallback", AT_MS) is Settlement.INCIDENT


async def test_an_incident_is_kept_with_all_that_is_known(redis: Redis) -> None:
    await pin(redis, processor="default")
    await ledger_on(redis).settle(claim_of(), "fallback", AT_MS)
    [raw] = await cast(Awaitable[list[bytes]], redis.lrange("payments:incidents", 0, -1))
    incident = orjson.loads(raw)
    incident.pop("at")
    assert incident == {
        "correlationId": ID,
        "state": "processing",
        "pinned": "default",
        "paidBy": "fallback",
        "requestedAt": str(AT_MS),
        "what": "proof of payment that matches no pin or no record",
    }


@pytest.mark.parametrize("state", ["processing", "settled", "dead", "queued"])
async def test_an_incident_does_not_count(redis: Redis, state: str) -> None:
    ledger = ledger_on(redis)
    await pin(redis, processor="default", state=state)
    await ledger.settle(claim_of(), "fallback", AT_MS)
    assert set((await ledger.window(None, None)).totals.values()) == {Total()}


async def test_an_incident_leaves_the_record_as_it_was(redis: Redis) -> None:
    await pin(redis, processor="default")
    before = await record_of(redis)
    await ledger_on(redis).settle(claim_of(), "fallback", AT_MS)
    assert await record_of(redis) == before


async def test_a_proof_for_a_payment_that_was_never_pinned_is_an_incident(redis: Redis) -> None:
    await write(redis, ID, generation="0", state="queued", cents="1990")
    assert await ledger_on(redis).settle(claim_of(), "default", AT_MS) is Settlement.INCIDENT


async def test_an_incident_disturbs_no_other_proof_of_its_flush(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis, "a")
    await pin(redis, "b")
    outcomes = await asyncio.gather(
        ledger.settle(claim_of("a"), "fallback", AT_MS),
        ledger.settle(claim_of("missing"), "default", AT_MS),
        ledger.settle(claim_of("b"), "default", AT_MS),
    )
    assert list(outcomes) == [Settlement.INCIDENT, Settlement.INCIDENT, Settlement.SETTLED]


async def test_a_proof_without_a_record_is_an_incident(redis: Redis) -> None:
    """After a Redis that forgot, it is the only trace of the payment."""
    assert await ledger_on(redis).settle(claim_of(), "default", AT_MS) is Settlement.INCIDENT
    assert await redis.llen("payments:incidents") == 1  # type: ignore[misc]


async def test_a_spoilt_record_is_an_incident_and_hinders_no_other(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis, "a")
    await pin(redis, "b")
    await redis.hset("payment:a", "cents", "many")  # type: ignore[misc]
    outcomes = await asyncio.gather(
        ledger.settle(claim_of("a"), "default", AT_MS),
        ledger.settle(claim_of("b"), "default", AT_MS),
    )
    assert list(outcomes) == [Settlement.INCIDENT, Settlement.SETTLED]


async def test_a_proof_of_a_purged_generation_is_gone(redis: Redis) -> None:
    await pin(redis)
    await redis.set("payments:generation", "1")
    assert await ledger_on(redis).settle(claim_of(), "default", AT_MS) is Settlement.GONE


async def test_a_proof_of_an_older_generation_does_not_settle_the_payment_of_the_same_id(
    redis: Redis,
) -> None:
    await pin(redis)
    await redis.set("payments:generation", "1")
    await write(redis, ID, generation="1")
    assert await ledger_on(redis).settle(claim_of(), "default", AT_MS) is Settlement.GONE


async def test_what_is_gone_does_not_count(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis)
    await redis.set("payments:generation", "1")
    await ledger.settle(claim_of(), "default", AT_MS)
    await redis.set("payments:generation", "0")
    assert (await ledger.window(None, None)).totals["default"] == Total()


async def test_a_purge_empties_the_summary(redis: Redis) -> None:
    ledger = ledger_on(redis)
    await pin(redis)
    await ledger.settle(claim_of(), "default", AT_MS)
    await redis.set("payments:generation", "1")
    windows = [(None, None), (0, None), (None, AT_MS), (AT_MS, AT_MS)]
    assert [(await ledger.window(*window)).totals["default"] for window in windows] == [Total()] * 4


# The summary.

END_MS = 10**13
EDGES = st.builds(
    lambda power, factor, step: min(END_MS - 1, max(0, factor * 100**power + step)),
    st.integers(0, 6),
    st.integers(0, 9),
    st.integers(-1, 1),
)
INSTANTS = EDGES | st.integers(0, END_MS - 1) | st.integers(AT_MS, AT_MS + 2000)
CENTS = st.sampled_from([1, 10**9 - 1, 10**9, 10**9 + 1, MAX_CENTS]) | st.integers(1, MAX_CENTS)
PAYMENTS = st.lists(st.tuples(st.sampled_from(PROCESSORS), INSTANTS, CENTS), max_size=12)
NEAR = st.sampled_from([-1, 0, 1])
BOUNDS = st.none() | INSTANTS | st.sampled_from([-1, END_MS, 253_402_300_799_999])


def brute_force(payments: list[Paid], first: int | None, last: int | None) -> dict[str, Total]:
    """The summary as the contract says it: both bounds inclusive, None being none."""
    totals = {}
    for name in PROCESSORS:
        inside = [
            cents
            for processor, at, cents in payments
            if processor == name and (first is None or first <= at) and (last is None or at <= last)
        ]
        totals[name] = Total(len(inside), sum(inside))
    return totals


@given(PAYMENTS, st.data())
async def test_the_summary_of_any_window_is_that_of_walking_every_payment(
    payments: list[Paid], data: st.DataObject
) -> None:
    redis = new_redis()
    ledger = ledger_on(redis)
    await settle_all(redis, ledger, payments)
    bounds = BOUNDS
    if payments:
        near = st.builds(int.__add__, st.sampled_from([at for _, at, _ in payments]), NEAR)
        bounds = near | BOUNDS
    for first, last in data.draw(st.lists(st.tuples(bounds, bounds), min_size=4, max_size=4)):
        assert (await ledger.window(first, last)).totals == brute_force(payments, first, last)


@pytest.mark.parametrize("power", range(7))
@pytest.mark.parametrize("step", [-1, 0, 1])
async def test_both_bounds_are_inclusive_at_every_level_of_the_tree(power: int, step: int) -> None:
    at = max(0, 3 * 100**power + step)
    payments = [("default", at + offset, 10**offset) for offset in (0, 1, 2)]
    assert await summary_of(payments, at, at + 1) == brute_force(payments, at, at + 1)


async def test_an_empty_ledger_has_empty_totals(redis: Redis) -> None:
    assert (await ledger_on(redis).window(None, None)).totals == {
        "default": Total(),
        "fallback": Total(),
    }


@pytest.mark.parametrize(
    ("first", "last"), [(AT_MS + 1, AT_MS - 1), (AT_MS, AT_MS - 1), (AT_MS + 1, None), (0, -1)]
)
async def test_an_inverted_window_is_empty(first: int, last: int | None) -> None:
    assert await summary_of([("default", AT_MS, 1)], first, last) == brute_force([], None, None)


async def test_payments_of_the_same_instant_add_up() -> None:
    payments = [("default", AT_MS, 1), ("default", AT_MS, 10), ("fallback", AT_MS, 100)]
    totals = {"default": Total(2, 11), "fallback": Total(1, 100)}
    assert await summary_of(payments, AT_MS, AT_MS) == totals


async def test_a_full_flush_of_the_largest_amounts_is_summed_exactly() -> None:
    payments = [("default", AT_MS, MAX_CENTS - 1)] * 256
    totals = {"default": Total(256, 256 * (MAX_CENTS - 1)), "fallback": Total()}
    assert await summary_of(payments, AT_MS, AT_MS) == totals


@pytest.mark.parametrize(
    ("first", "last"), [(None, None), (AT_MS, None), (None, AT_MS + 9), (AT_MS, AT_MS + 9)]
)
async def test_a_sum_beyond_what_a_double_tells_is_exact(
    redis: Redis, first: int | None, last: int | None
) -> None:
    """Amounts beyond the largest that is accepted stand for very many payments."""
    ledger = ledger_on(redis)
    cents = 2**52 + 1
    for number in range(10):
        await pin(redis, str(number), cents=cents)
        await ledger.settle(claim_of(str(number)), "default", AT_MS + number)
    assert (await ledger.window(first, last)).totals["default"] == Total(10, 10 * cents)


# The summary as JSON.


@pytest.mark.parametrize(
    ("cents", "amount"),
    [
        (0, b"0.00"),
        (1, b"0.01"),
        (1990, b"19.90"),
        (100_000, b"1000.00"),
        (2**53 + 1, b"90071992547409.93"),
        (10**20 + 7, b"1000000000000000000.07"),
    ],
)
def test_a_sum_is_written_with_exactly_two_decimals(cents: int, amount: bytes) -> None:
    assert summary_json({"default": Total(3, cents)}, BRL) == (
        b'{"default":{"totalRequests":3,"totalAmount":' + amount + b"}}"
    )


def test_the_summary_names_every_processor() -> None:
    assert summary_json({"default": Total(1, 1990), "fallback": Total()}, BRL) == (
        b'{"default":{"totalRequests":1,"totalAmount":19.90},'
        b'"fallback":{"totalRequests":0,"totalAmount":0.00}}'
    )

"""The ledger's old spans fold into coarser sums that lose nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from payswitch.money import Total
from payswitch.payments.ledger import Summary
from payswitch.store import scripts
from tests.unit.payments.test_ledger import (
    BOUNDS,
    CENTS,
    INSTANTS,
    NEAR,
    PROCESSORS,
    Paid,
    brute_force,
    claim_of,
    ledger_on,
    new_redis,
    pin,
)

START_MS = 1_700_000_000_000
"""A whole number of entries of 1,000 s."""
TEN_S, THOUSAND_S = 10_000, 1_000_000


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    """An empty Redis."""
    client = new_redis()
    yield client
    await client.aclose()


async def settle(redis: Redis, *payments: Paid) -> None:
    """Settle each of them."""
    ledger = ledger_on(redis)
    for processor, at, cents in payments:
        payment = str(uuid4())
        await pin(redis, payment, processor=processor, cents=cents)
        await ledger.settle(claim_of(payment), processor, at)


async def fold(redis: Redis, fine: int, coarse: int = 0, *, steps: int = 10**6) -> int:
    """Fold what is before `fine` to 10 s and what is before `coarse` to 1,000 s (both ms), in at
    most so many steps; returns how many that took."""
    script = scripts.load(redis, "fold")
    for step in range(1, steps + 1):
        now = time.time_ns() // 1_000_000
        if not await script(args=[now - fine, now - coarse, *PROCESSORS]):
            return step
    return steps


async def node_names(redis: Redis) -> set[str]:
    """The nodes of default's tree."""
    keys = await redis.keys("ledger:default:*")
    return {key.decode().split(":", 3)[3] for key in keys} - {"total", "top"}


async def whole_entries(redis: Redis, first: int | None, last: int | None) -> Summary:
    """The window that a summary is expected to be of (without totals)."""
    kept: list[bytes | None] = await redis.hmget("ledger:folded", ["10000", "1000000"])  # type: ignore[misc]
    fine, coarse = (int(each or 0) for each in kept)

    def grain(at: int) -> int:
        return THOUSAND_S if at < coarse else TEN_S if at < fine else 1

    if last is not None and (last < 0 or max(first or 0, 0) > last):
        return Summary({}, first, last)
    if first is not None and first >= 0:
        first -= first % grain(first)
    if last is not None:
        last += -(last + 1) % grain(last)
    return Summary({}, first, last)


Fold = tuple[int, int, int]
"""Where 10 s and where 1,000 s are enough (ms), and the number of steps."""

STEPPED = INSTANTS | st.integers(START_MS, START_MS + 3 * THOUSAND_S)
STEPS = st.lists(
    st.tuples(st.sampled_from(PROCESSORS), STEPPED, CENTS)
    | st.tuples(STEPPED, STEPPED, st.integers(1, 40)),
    min_size=2,
    max_size=14,
)
"""Settlements and folds in any order, at instants that lie together."""


@given(STEPS, st.data())
async def test_a_summary_after_any_folds_equals_a_walk_over_every_payment(
    sequence: list[Paid | Fold], data: st.DataObject
) -> None:
    redis = new_redis()
    ledger = ledger_on(redis)
    paid: list[Paid] = []
    for step in sequence:
        match step:
            case (str() as processor, at, cents):
                paid.append((processor, at, cents))
                await settle(redis, paid[-1])
            case (int() as fine, coarse, steps):
                await fold(redis, fine, coarse, steps=steps)
    near = st.builds(int.__add__, st.sampled_from([at for _, at, _ in paid] or [0]), NEAR)
    for first, last in data.draw(
        st.lists(st.tuples(near | BOUNDS, near | BOUNDS), min_size=6, max_size=6)
    ):
        found = await ledger.window(first, last)
        expected = await whole_entries(redis, first, last)
        if first is None or last is None or first <= last:
            assert (found.first, found.last) == (expected.first, expected.last)
        assert found.totals == brute_force(paid, found.first, found.last)


async def test_no_node_finer_than_its_entries_is_left_before_the_folded_instant(
    redis: Redis,
) -> None:
    await settle(redis, *(("default", START_MS + 700 * n, 1) for n in range(60)))
    await settle(redis, ("default", START_MS + TEN_S - 1, 1), ("default", START_MS + 50, 1))
    await fold(redis, START_MS + 25_000)
    assert (
        min(int(name[2:]) for name in await node_names(redis) if name[:2] == "1:")
        == (START_MS + 20_000) // 100 + 3
    )
    assert {name for name in await node_names(redis) if name[:4] == "100:"} == {
        f"100:{START_MS // TEN_S + n}" for n in (2, 3, 4)
    }


async def test_what_is_very_old_folds_to_entries_of_1000_s(redis: Redis) -> None:
    await settle(redis, *(("default", START_MS + 900_000 * n, 1) for n in range(4)))
    await fold(redis, START_MS + 3 * THOUSAND_S, START_MS + 2 * THOUSAND_S)
    fine = {name for name in await node_names(redis) if name.startswith("10000:")}
    assert fine == {f"10000:{START_MS // THOUSAND_S + 2}"}


async def test_what_is_very_old_waits_until_its_finer_nodes_are_gone(redis: Redis) -> None:
    """They are found through the entries above them."""
    await settle(redis, *(("default", START_MS + TEN_S * n, 1) for n in (1, 2)))
    await fold(redis, START_MS, START_MS + THOUSAND_S)
    await fold(redis, START_MS + THOUSAND_S, START_MS)
    assert not {name for name in await node_names(redis) if name.split(":")[0] in ("1", "100")}


async def test_a_late_settlement_counts_in_a_folded_entry_and_leaves_no_finer_node(
    redis: Redis,
) -> None:
    await fold(redis, START_MS + TEN_S)
    await settle(redis, ("default", START_MS + 5, 7))
    names = {name for name in await node_names(redis) if name.split(":")[0] in ("1", "100")}
    assert names == set()
    totals = (await ledger_on(redis).window(START_MS, START_MS + TEN_S - 1)).totals["default"]
    assert totals == Total(1, 7)


async def test_a_window_of_whole_entries_is_answered_as_it_was_asked_for(redis: Redis) -> None:
    await fold(redis, START_MS + 10 * TEN_S)
    found = await ledger_on(redis).window(START_MS, START_MS + TEN_S - 1)
    assert (found.first, found.last) == (START_MS, START_MS + TEN_S - 1)


async def test_an_empty_stretch_of_decades_folds_in_one_step(redis: Redis) -> None:
    await settle(redis, ("default", 12_345, 1), ("fallback", START_MS, 2))
    assert await fold(redis, START_MS + TEN_S) == 3


async def test_folding_again_changes_nothing(redis: Redis) -> None:
    await settle(redis, ("default", START_MS, 1))
    await fold(redis, START_MS + TEN_S, START_MS)
    before = await node_names(redis), await redis.hgetall("ledger:folded")  # type: ignore[misc]
    assert await fold(redis, START_MS + TEN_S, START_MS) == 1
    assert (await node_names(redis), await redis.hgetall("ledger:folded")) == before  # type: ignore[misc]


async def test_an_earlier_instant_than_the_folded_one_takes_nothing_back(redis: Redis) -> None:
    await fold(redis, START_MS + TEN_S)
    await fold(redis, START_MS)
    assert await redis.hget("ledger:folded", "10000") == b"%d" % (START_MS + TEN_S)  # type: ignore[misc]


async def test_after_a_purge_everything_is_exact_to_the_millisecond_again(redis: Redis) -> None:
    await fold(redis, START_MS + TEN_S)
    await scripts.load(redis, "purge")(args=[10**15, "purge", "ana", ""])
    found = await ledger_on(redis).window(START_MS + 1, START_MS + 2)
    assert (found.first, found.last) == (START_MS + 1, START_MS + 2)


async def test_folding_takes_nothing_of_another_generation(redis: Redis) -> None:
    await settle(redis, ("default", START_MS, 1))
    await redis.set("payments:generation", "1")
    await fold(redis, START_MS + TEN_S)
    assert f"1:{START_MS // 100}" in await node_names(redis)


async def test_the_ledger_folds_what_is_older_than_the_retention(redis: Redis) -> None:
    old, new = START_MS, time.time_ns() // 1_000_000
    await settle(redis, ("default", old, 1), ("default", new, 2))
    ledger = ledger_on(redis)
    while await ledger.fold():
        pass
    names = {name for name in await node_names(redis) if name.startswith("1:")}
    assert names == {f"1:{new // 100}"}

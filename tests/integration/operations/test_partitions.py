"""Operations over the partitions of a cluster: one node that has them all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from payswitch.money import Total
from payswitch.operations.controls import Controls
from payswitch.operations.history import HistoryWriter, parse_sample, read_history
from payswitch.operations.overview import read_overview
from payswitch.operations.reconcile import Reconciliation
from payswitch.payments.audit import read_acts
from payswitch.payments.claims import Claim
from payswitch.payments.dead_letters import DeadLetters, Filter, Handling
from payswitch.payments.incidents import Incidents
from payswitch.payments.known_processors import KnownProcessors
from payswitch.payments.purge import Purge
from payswitch.payments.records import Record, read_records
from payswitch.payments.sweeper import Sweeper
from payswitch.processors.processor import Processor, make_processors
from payswitch.selection.health_check import Times, make_health_check
from payswitch.store import keys
from payswitch.store.client import Client
from payswitch.store.notes import write_note
from payswitch.telemetry.heartbeat import Heartbeat
from tests.integration.harness import Bench, bench
from tests.support import ANA, PROCESSORS, Reply

COUNT = 60
"""Payments: of 16 partitions some have one, most have several."""


@pytest.fixture
async def b(partitioned: Client) -> AsyncIterator[Bench]:
    async with bench(partitioned) as made:
        yield made


async def accepted(b: Bench, count: int = COUNT) -> list[str]:
    """Payments of 1.00, 1.01 … in whatever partitions."""
    return await asyncio.gather(*(b.accept(cents=100 + number) for number in range(count)))


async def dead(b: Bench, count: int = COUNT) -> list[str]:
    """As many dead letters."""
    payments = await accepted(b, count)
    b.default.refuses = set(payments)
    await dispatched(b, count)
    return payments


async def dispatched(b: Bench, count: int) -> None:
    """Dispatch so many payments once."""
    while count > 0:
        claims = await b.claim(limit=count)
        count -= len(claims)
        await asyncio.gather(*map(b.dispatcher.dispatch, claims))


def partitions_used(redis: Client, payments: list[str]) -> int:
    return len({redis.partitions.of(each).number for each in payments})


async def test_the_overview_sums_all_partitions(b: Bench, partitioned: Client) -> None:
    payments = await accepted(b)
    b.default.refuses = set(payments[:10])
    await dispatched(b, COUNT)
    waiting = await accepted(b, 20)
    overview = await read_overview(partitioned, PROCESSORS)
    assert partitions_used(partitioned, payments) > 8
    settled = sum(100 + number for number in range(10, COUNT))
    assert overview.settled == {"default": Total(COUNT - 10, settled), "fallback": Total()}
    assert (overview.dead, overview.backlog, overview.accepted) == (10, 20, COUNT + 20)
    first = min(
        each.accepted_at
        for each in await read_records(partitioned, waiting)
        if isinstance(each, Record)
    )
    assert overview.oldest_accepted_at is not None
    assert abs(overview.oldest_accepted_at - first) < 1000
    [node] = overview.shards
    assert (node.partitions, node.replicas, node.trouble) == ([*range(16)], 0, None)


async def test_processes_fees_and_history_are_the_deployments(partitioned: Client) -> None:
    await Heartbeat(partitioned, "worker", lambda: {"settled:default": 3}).write()
    await write_note(partitioned, keys.FEES, {"default": "0.05", "fallback": "0.15"})
    assert await HistoryWriter(partitioned, PROCESSORS).write()
    overview = await read_overview(partitioned, PROCESSORS)
    [process] = overview.processes
    assert (process.kind, process.counts) == ("worker", {"settled:default": 3})
    assert overview.fee_rates.keys() == {*PROCESSORS}
    [raw] = await read_history(partitioned)
    assert parse_sample(raw) is not None


async def test_dead_letters_of_all_partitions_are_listed_the_newest_first(
    b: Bench, partitioned: Client
) -> None:
    payments = await dead(b)
    letters = DeadLetters(partitioned)
    assert await letters.count() == COUNT
    listed = [each for each in await letters.newest(1000) if isinstance(each, Record)]
    assert {each.correlation_id for each in listed} == {*payments}
    deaths = [each.dead_at or 0 for each in listed]
    assert all(newer >= older for newer, older in pairwise(deaths))
    assert await letters.newest(7) == listed[:7]
    assert await letters.newest(7, Filter(reason="422")) == listed[:7]


async def test_dead_letters_of_all_partitions_are_replayed_and_resolved(
    b: Bench, partitioned: Client
) -> None:
    payments = await dead(b)
    letters = DeadLetters(partitioned)
    some = payments[:20]
    verdicts = [page async for page in letters.replay(some, ANA)]
    assert verdicts == [dict.fromkeys(some, Handling.DONE)]
    resolved = payments[20:40]
    handled = await letters.resolve(resolved, ANA, retention_ms=60_000)
    assert handled == dict.fromkeys(resolved, Handling.DONE)
    shown = await letters.resolved(100, 60_000)
    assert {each.correlation_id for each in shown} == {*resolved}
    counts: Counter[Handling] = Counter()
    async for page in letters.replay_all(ANA):
        counts.update(page.values())
    assert counts == {Handling.DONE: COUNT - 40}
    b.default.refuses = set()
    await dispatched(b, COUNT - 20)
    overview = await read_overview(partitioned, PROCESSORS)
    assert (overview.settled["default"].count, overview.resolved) == (COUNT - 20, 20)
    assert len({record["correlationId"] for record in b.default.posts}) == COUNT


async def test_incidents_of_all_partitions_are_listed_and_resolved(
    b: Bench, partitioned: Client
) -> None:
    payments = await accepted(b, 10)
    claims = [claim for _ in payments for claim in await b.claim(limit=16)]
    await asyncio.gather(*(b.ledger.settle(each, "fallback", 1) for each in claims))
    incidents = Incidents(partitioned, retention_ms=60_000)
    assert {each.correlation_id for each in await incidents.unresolved()} == {*payments}
    assert await incidents.resolve(payments, ANA) == dict.fromkeys(payments, 1)
    assert await incidents.unresolved() == []
    assert {each.correlation_id for each in await incidents.resolved()} == {*payments}


async def test_a_purge_forgets_every_partition_and_is_one_act(
    b: Bench, partitioned: Client
) -> None:
    payments = await accepted(b)
    await dispatched(b, COUNT // 2)
    assert await Purge(partitioned, PROCESSORS).run(ANA) == 1
    assert await read_records(partitioned, payments) == [None] * COUNT
    left = [key for key in await partitioned.keys("*") if b"payment:" in key or b"ledger" in key]
    assert left == []
    assert (await b.ledger.window(None, None)).totals["default"] == Total()
    assert [each.act for each in await read_acts(partitioned, 10)] == ["purge"]
    assert await Purge(partitioned, PROCESSORS).run(ANA) == 2


async def test_a_pause_reaches_every_partition_and_is_one_act(
    b: Bench, partitioned: Client
) -> None:
    await accepted(b)
    controls = Controls(partitioned)
    await controls.pause(life_ms=None, signature=ANA)
    assert await b.claim(limit=COUNT) == []
    assert (await controls.waiting(86_400_000)).payments == COUNT
    assert await controls.resume(ANA)
    await dispatched(b, COUNT)
    assert [each.act for each in await read_acts(partitioned, 10)] == ["resume", "pause"]


async def test_a_partition_that_missed_a_pause_or_its_end_follows_within_a_turn(
    b: Bench, partitioned: Client
) -> None:
    controls, writer = Controls(partitioned), HistoryWriter(partitioned, PROCESSORS)
    own = partitioned.partitions[3]
    await controls.pause(life_ms=60_000, signature=ANA)
    await own.redis.delete(own.key(keys.PAUSED))
    assert (await read_overview(partitioned, PROCESSORS)).astray == [3]
    assert await writer.write()
    assert 0 < await own.redis.pttl(own.key(keys.PAUSED)) <= 60_000
    assert (await read_overview(partitioned, PROCESSORS)).astray == []
    await controls.resume(ANA)
    await own.redis.set(own.key(keys.PAUSED), b"stale")
    common = partitioned.partitions.common
    await common.redis.delete(common.key(keys.BEAT))
    assert await writer.write()
    assert await own.redis.exists(own.key(keys.PAUSED)) == 0


async def test_a_choice_of_the_operator_is_read_back(partitioned: Client) -> None:
    controls = Controls(partitioned)
    given = await controls.select("fallback", life_ms=60_000, signature=ANA)
    standing = await controls.override(PROCESSORS)
    assert standing is not None
    assert (standing.processor, standing.by) == (given.processor, "ana")
    assert await controls.select_automatically(ANA)
    assert await controls.override(PROCESSORS) is None


async def test_the_sweep_repairs_every_partition(b: Bench, partitioned: Client) -> None:
    payments = await accepted(b)
    for each in partitioned.partitions:
        await each.redis.delete(each.key(keys.QUEUE))
    assert await Sweeper(partitioned, PROCESSORS, every_ms=1000).sweep() == COUNT
    await dispatched(b, COUNT)
    assert {record["correlationId"] for record in b.default.posts} == {*payments}


async def test_books_of_all_partitions_are_compared(
    b: Bench, partitioned: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processor, "tells_totals", False)  # these tell single payments alone
    payments = await accepted(b)
    await dispatched(b, COUNT)
    del b.default.books[payments[0]]
    processors = make_processors(b.settings, b.transport)
    compared = Reconciliation(partitioned, b.ledger, processors, pause_s=0)
    report = await compared.run(None, None, thorough=True)
    assert [each.record.correlation_id for each in report.payments] == [payments[0]]


async def test_payments_pinned_in_any_partition_are_known(b: Bench, partitioned: Client) -> None:
    await accepted(b)
    b.default.script = [Reply(hang_up=True)] * COUNT
    claims: list[Claim] = []
    while len(claims) < COUNT:
        claims += await b.claim(limit=COUNT)
    await asyncio.gather(*map(b.dispatcher.dispatch, claims))
    known = KnownProcessors(partitioned, b.settings.processor_urls)
    await known.check()
    assert {each.name: each.known for each in await known.compare()} == {
        each.name: each.here for each in await known.compare()
    }
    assert (await known.pinned())["default"] == (COUNT, 0)


async def test_the_overview_has_what_the_health_check_was_told(
    b: Bench, partitioned: Client
) -> None:
    b.fallback.health = Reply(200, b'{"failing":true,"minResponseTime":7}')
    processors = list(make_processors(b.settings, b.transport).values())
    await make_health_check(b.settings, partitioned, processors, Times()).check()
    overview = await read_overview(partitioned, PROCESSORS)
    assert {name: each.failing for name, each in overview.health.items()} == {
        "default": False,
        "fallback": True,
    }
    assert all(each.known for each in overview.health.values())
    assert overview.choice is not None
    assert overview.choice.processor == "default"

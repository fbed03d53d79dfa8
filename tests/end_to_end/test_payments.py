"""Payments through the whole started system: none is lost, none is paid twice, and the summary
equals the processors' books."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from arq.connections import ArqRedis

from payswitch.store.client import connect
from tests.end_to_end.conftest import StartSystem, starting
from tests.end_to_end.harness import ENDPOINT, PATIENT_MS, System, client
from tests.end_to_end.load import (
    TOKEN,
    Load,
    all_settled,
    arrivals,
    assert_books_are_equal,
    configure,
    drive,
    keep_a_journal,
    ours,
    theirs,
)
from tests.support import SLACK_S, eventually


async def assert_paid_once(system: System, load: Load) -> None:
    """Every acknowledged payment is in the books, and nothing else is."""
    books = await theirs(system)
    assert sum(count for count, _ in books.values()) == len(load.accepted)
    assert sum(cents for _, cents in books.values()) == sum(load.accepted.values())
    await assert_books_are_equal(system)


async def wait_for_in_flight(system: System, least: int) -> None:
    redis = connect(system.redis_url, limit_s=5)

    async def enough() -> bool:
        return int(await redis.zcard("payments:in-flight")) > least

    await eventually(enough, what=f"over {least} payments are leased at once")
    await redis.aclose(close_connection_pool=True)


async def selection_is(redis: ArqRedis, processor: str) -> None:
    async def selected() -> bool:
        raw = await redis.get("selected_payment_processor")
        return raw is not None and f'"{processor}"'.encode() in raw

    await eventually(selected, what=f"{processor} is selected")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that recovers from anything within seconds; the tests of this module share it."""
    with starting(tmp_path_factory.mktemp("system")) as start:
        yield start(
            PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS,
            PAYSWITCH_LEASE_MS="3000",
            PAYSWITCH_PROCESSOR_MAX_DELAY_MS="1000",
        )


@pytest.fixture
async def system(started: System) -> System:
    """The shared system, without a payment, before healthy processors."""
    async with client(started.endpoint) as http:
        assert (await http.post("/purge-payments")).status_code == 200
    for url in (started.default_url, started.fallback_url):
        await configure(url, "delay", 0)
        await configure(url, "failure", False)
        async with client(url) as http:
            answer = await http.post("/admin/purge-payments", headers=TOKEN)
            assert answer.status_code == 200
    return started


async def test_a_load_is_paid_once_and_the_books_are_equal(system: System) -> None:
    load = await drive(system, rate=300, count=200)
    assert (len(load.accepted), load.refused) == (200, [])
    await all_settled(system, load)
    await assert_paid_once(system, load)


async def test_payments_move_to_the_fallback_and_back(system: System) -> None:
    await configure(system.default_url, "failure", True)
    async with asyncio.timeout(SLACK_S):
        while (await ours(system))["fallback"][0] == 0:
            await drive(system, rate=100, count=20)
    await configure(system.default_url, "failure", False)
    paid_by_default = (await ours(system))["default"][0]
    async with asyncio.timeout(SLACK_S):
        while (await ours(system))["default"][0] == paid_by_default:
            await drive(system, rate=100, count=20)

    async def all_paid() -> bool:
        return await ours(system) == await theirs(system)

    await eventually(all_paid, what="the books are equal")


async def test_while_both_fail_the_backlog_is_held_and_then_paid_once(system: System) -> None:
    for url in (system.default_url, system.fallback_url):
        await configure(url, "failure", True)
    load = await drive(system, rate=200, count=120)
    assert await ours(system) == {"default": (0, 0), "fallback": (0, 0)}
    for url in (system.default_url, system.fallback_url):
        await configure(url, "failure", False)
    await all_settled(system, load)
    await assert_paid_once(system, load)


async def test_fifty_at_the_same_time_pay_one_id_once(system: System) -> None:
    before = await theirs(system)
    payment = str(uuid4())
    body = {"correlationId": payment, "amount": 12.34}
    async with httpx.AsyncClient(verify=False, base_url=system.endpoint) as http:
        answers = await asyncio.gather(*(http.post("/payments", json=body) for _ in range(50)))
    assert Counter(answer.status_code for answer in answers) == {202: 50}
    await system.settled(payment)
    after = await theirs(system)
    paid = {name: after[name][0] - before[name][0] for name in after}
    assert sum(paid.values()) == 1


@pytest.mark.parametrize(
    "part",
    [
        *("worker-1", "redis"),
        *(pytest.param(part, marks=pytest.mark.long) for part in (ENDPOINT[-1], "health")),
    ],
)
async def test_a_part_killed_under_load_loses_nothing_and_doubles_nothing(
    system: System, part: str
) -> None:
    await configure(system.default_url, "delay", 30)
    driving = asyncio.create_task(drive(system, rate=100, count=150, again=True))

    async def some_paid() -> bool:
        return sum(count for count, _ in (await theirs(system)).values()) > 50

    await eventually(some_paid, what="the load is under way")
    pid = system.kill(part)
    await system.runs_again(part, pid)
    load = await driving
    assert len(load.accepted) == 150
    await all_settled(system, load)
    await assert_paid_once(system, load)


async def test_a_worker_frozen_beyond_its_leases_sends_nothing_when_it_goes_on(
    system: System,
) -> None:
    for url in (system.default_url, system.fallback_url):
        await configure(url, "delay", 700)
    await keep_a_journal(system)
    driving = asyncio.create_task(drive(system, rate=300, count=300, again=True))
    await wait_for_in_flight(system, 20)
    # Frozen while Redis is, so that it finds leases and opened tries when it wakes.
    system.kill("redis", signal.SIGSTOP)
    frozen = system.kill("worker-1", signal.SIGSTOP)
    system.kill("redis", signal.SIGCONT)
    load = await driving
    await all_settled(system, load)
    sent_before = len(await arrivals(system))
    awake = system.kill("worker-2", signal.SIGSTOP)
    os.kill(frozen, signal.SIGCONT)
    # It settles this one alone, so it has long woken to what it held.
    last = await system.pay(100)
    await system.settled(last)
    os.kill(awake, signal.SIGCONT)
    assert set((await arrivals(system))[sent_before:]) == {last}
    load.accepted[last] = 100
    await assert_paid_once(system, load)


async def test_a_purge_under_load_starts_the_summary_anew(system: System) -> None:
    await configure(system.default_url, "delay", 100)
    await drive(system, rate=200, count=100)
    async with httpx.AsyncClient(verify=False, base_url=system.endpoint) as http:
        assert (await http.post("/purge-payments")).status_code == 200
        response = await http.get("/payments-summary")
    assert response.text.count('"totalRequests":0') == 2
    redis = connect(system.redis_url, limit_s=5)
    assert await redis.zcard("arq:queue") == 0
    await redis.aclose(close_connection_pool=True)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_five_thousand_payments_at_300_a_second(start_system: StartSystem) -> None:
    system = start_system(PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS)
    load = await drive(system, rate=300, count=5000)
    assert (len(load.accepted), load.refused) == (5000, [])
    await all_settled(system, load)
    await assert_paid_once(system, load)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_both_failing_for_20_s_under_load_and_then_healthy(
    start_system: StartSystem,
) -> None:
    system = start_system(PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS)
    driving = asyncio.create_task(drive(system, rate=200, count=6000))
    for url in (system.default_url, system.fallback_url):
        await configure(url, "failure", True)
    await asyncio.sleep(20)  # the outage itself
    for url in (system.default_url, system.fallback_url):
        await configure(url, "failure", False)
    load = await driving
    await all_settled(system, load)
    await assert_paid_once(system, load)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_killed_workers_payments_are_paid_after_its_lease(
    start_system: StartSystem,
) -> None:
    """With the settings that users have: a lease of 15 s."""
    system = start_system("--workers=1", PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS)
    await configure(system.default_url, "delay", 1000)
    await configure(system.fallback_url, "delay", 1000)
    driving = asyncio.create_task(drive(system, rate=200, count=1000))
    await wait_for_in_flight(system, 100)
    system.kill("worker-1")
    load = await driving
    async with asyncio.timeout(25):
        await all_settled(system, load)
    await assert_paid_once(system, load)

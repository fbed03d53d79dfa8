"""Which ingress gets a payment from HAProxy."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from payswitch.machine import find_haproxy
from tests.end_to_end.harness import client
from tests.end_to_end.hostile import Edge, running_edge
from tests.metrics import value
from tests.support import eventually

pytestmark = pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed")

AT_ONCE = 32
"""So many payments may be under way at the ingress whose turn it is."""


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    """Where HAProxy has found both payments ports."""
    with running_edge(tmp_path) as edge:
        asyncio.run(eventually(partial(has_paid_at_both, edge), what="HAProxy has found both"))
        yield edge


async def has_paid_at_both(edge: Edge) -> bool:
    await edge.pay("haproxy")
    return min(await accepted(edge)) > 0 and min(connections(edge)) > 0


@pytest.fixture
def edge_without_payments_ports(tmp_path: Path) -> Iterator[Edge]:
    with running_edge(tmp_path, payments_ports=False) as edge:
        yield edge


async def accepted(edge: Edge) -> tuple[int, int]:
    """How many payments each ingress has answered with 202."""
    return await count(edge, "ingress"), await count(edge, "ingress-2")


async def count(edge: Edge, name: str) -> int:
    async with client(edge.url(name)) as http:
        scraped = (await http.get("/metrics")).text
    sample = "payswitch_accept_seconds_count"
    return int(value(scraped, sample, result="accepted") or 0)


async def pay(http: httpx.AsyncClient) -> int:
    payment = {"correlationId": str(uuid4()), "amount": 1}
    return (await http.post("/payments", json=payment)).status_code


async def test_ingress_take_turns_of_a_second(edge: Edge) -> None:
    began = time.monotonic()
    turns: list[int] = []
    before = await accepted(edge)
    async with client(edge.url("haproxy")) as http:
        while len(set(turns)) < 2 or len(turns) < 50:
            assert await pay(http) == 202
            after = await accepted(edge)
            turns.append(after[1] - before[1])
            assert sum(after) == sum(before) + 1
            before = after
    changes = sum(one != other for one, other in itertools.pairwise(turns))
    assert changes <= time.monotonic() - began + 1


async def test_more_at_once_than_one_ingress_takes_go_to_both(edge: Edge) -> None:
    edge.redis.signal(signal.SIGSTOP)  # nothing is answered meanwhile
    try:
        async with client(edge.url("haproxy")) as http:
            payments = [asyncio.create_task(pay(http)) for _ in range(3 * AT_ONCE)]

            async def under_way() -> bool:
                at_each = connections(edge)
                return sum(at_each) >= 3 * AT_ONCE and min(at_each) >= AT_ONCE - 2

            await eventually(under_way, what="both ingress have payments under way")
            edge.redis.signal(signal.SIGCONT)
            assert set(await asyncio.gather(*payments)) <= {202, 503}
    finally:
        edge.redis.signal(signal.SIGCONT)


def connections(edge: Edge) -> list[int]:
    """How many there are at each payments port."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    open_at = Counter(int(line[1].partition(":")[2], 16) for line in table if line[3] == "01")
    return [open_at[port] for port in edge.payments_ports]


async def test_a_payments_port_that_is_away_keeps_no_payment_out(
    edge_without_payments_ports: Edge,
) -> None:
    edge = edge_without_payments_ports
    async with client(edge.url("haproxy")) as http:

        async def is_accepted() -> bool:
            return await pay(http) == 202

        await eventually(is_accepted, what="HAProxy has found the other port")
        assert [await pay(http) for _ in range(100)] == [202] * 100
    assert sum(await accepted(edge)) == 101


async def test_the_ingress_whose_turn_it_is_may_die(edge: Edge) -> None:
    async with client(edge.url("haproxy")) as http:
        assert await pay(http) == 202
        edge.processes["ingress-2"].kill()
        edge.processes["ingress-2"].wait()
        began = time.monotonic()
        while time.monotonic() < began + 2:  # so long that it would have been its turn
            assert await pay(http) == 202

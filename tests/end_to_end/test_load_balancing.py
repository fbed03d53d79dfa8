"""Which ingress gets a payment from HAProxy, and by which port."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from payswitch.local.machine import find_haproxy
from tests.end_to_end.harness import PATIENT_MS, client
from tests.end_to_end.hostile import Edge, running_edge
from tests.metrics import value
from tests.support import eventually

pytestmark = pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed")


_ALL_ARE_OUT_S = 2.5
"""HAProxy takes an ingress out after three looks, half a second apart."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Where HAProxy has found both payments ports."""
    folder = tmp_path_factory.mktemp("edge")
    with running_edge(folder, PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS) as edge:
        asyncio.run(eventually(partial(has_paid_at_both, edge), what="HAProxy has found both"))
        yield edge


@pytest.fixture
def edge_without_payments_ports(tmp_path: Path) -> Iterator[Edge]:
    with running_edge(tmp_path, payments_ports=False) as edge:
        yield edge


async def has_paid_at_both(edge: Edge) -> bool:
    async with client(edge.url("haproxy")) as http:
        if await pay(http) != 202:
            return False
    return min(await accepted(edge)) > 0 and min(connections(edge)) > 0


def connections(edge: Edge) -> list[int]:
    """How many there are at each payments port."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    open_at = Counter(int(line[1].partition(":")[2], 16) for line in table if line[3] == "01")
    return [open_at[port] for port in edge.payments_ports]


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


async def test_both_ingress_get_as_many_payments(edge: Edge) -> None:
    before = await accepted(edge)
    async with client(edge.url("haproxy")) as http:
        assert [await pay(http) for _ in range(100)] == [202] * 100
    after = await accepted(edge)
    assert [new - old for new, old in zip(after, before, strict=True)] == [50, 50]


async def test_payments_ports_that_are_away_keep_no_payment_out(
    edge_without_payments_ports: Edge,
) -> None:
    edge = edge_without_payments_ports
    async with client(edge.url("haproxy")) as http:

        async def is_accepted() -> bool:
            return await pay(http) == 202

        await eventually(is_accepted, what="HAProxy has found the other port")
        assert [await pay(http) for _ in range(100)] == [202] * 100
    assert sum(await accepted(edge)) == 101


async def test_where_no_ingress_is_ready_the_reason_comes_through_and_reads_go_on(
    edge: Edge,
) -> None:
    with Redis(port=edge.redis.port) as redis:
        redis.config_set("maxmemory", 1)
    loop = asyncio.get_running_loop()
    ends = loop.time() + _ALL_ARE_OUT_S
    async with client(edge.url("haproxy")) as http:
        while loop.time() < ends:
            body = {"correlationId": str(uuid4()), "amount": 1}
            refused = await http.post("/payments", json=body)
            assert refused.status_code == 503
            # Full is what an ingress says that has not looked yet.
            assert refused.json()["detail"].endswith(("Redis is short of memory", "Redis is full"))
            assert (await http.get("/payments-summary")).status_code == 200
    with Redis(port=edge.redis.port) as redis:
        redis.config_set("maxmemory", 0)

    async def both_are_ready() -> bool:
        for door in ("ingress", "ingress-2"):
            async with client(edge.url(door)) as http:
                if (await http.get("/readyz")).status_code != 200:
                    return False
        return await has_paid_at_both(edge)

    await eventually(both_are_ready, what="both ingress are ready again")


async def test_an_ingress_that_died_keeps_no_payment_out(edge: Edge) -> None:
    """The last test of this module: the ingress stays away."""
    edge.processes["ingress-2"].kill()
    edge.processes["ingress-2"].wait()
    async with client(edge.url("haproxy")) as http:
        assert [await pay(http) for _ in range(100)] == [202] * 100

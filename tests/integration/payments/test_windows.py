"""A summary of any window is the sum of what lies in it, whichever nodes of the tree it takes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from itertools import product

import pytest
from redis import Redis

from bench.settled import PROCESSORS, RETENTION_MS, Payment, Sums, load_settled, make_payments
from payswitch.payments.ledger import Ledger
from payswitch.store.client import connect
from tests.support import SLACK_S, RedisServer

NEAR = (-100, -51, -50, -49, -16, -15, -1, 0, 1, 14, 15, 49, 50, 51, 100)


@pytest.fixture(scope="module")
def payments() -> list[Payment]:
    """Dense and sparse seconds; half of the sums are beyond 10^9 cents."""
    lots = random.Random(4)
    dense, sparse = make_payments(1500, 1000), make_payments(1500, 0.3, seed=2)
    return [each._replace(cents=each.cents * lots.choice((1, 10**9))) for each in (*dense, *sparse)]


@pytest.fixture
async def ledger(redis_server: RedisServer, payments: list[Payment]) -> AsyncIterator[Ledger]:
    with Redis(port=redis_server.port) as loading:
        list(load_settled(loading, payments))
    client = connect(redis_server.url, limit_s=SLACK_S)
    yield Ledger(client, processors=PROCESSORS, retention_ms=RETENTION_MS)
    await client.aclose(close_connection_pool=True)


async def test_any_window_has_the_sum_of_its_payments(
    ledger: Ledger, payments: list[Payment]
) -> None:
    sums, lots = Sums(payments), random.Random(5)
    first, last = (f(each.requested_at for each in payments) for f in (min, max))
    bounds = [lots.randint(first, last) for _ in range(100)]
    bounds += [first + lots.randint(0, 2000) for _ in range(100)]
    windows = [(min(pair), max(pair)) for pair in zip(bounds, reversed(bounds), strict=True)]
    for width, *around in product((100, 10_000, 1_000_000), NEAR, NEAR):
        border = first - first % width + width
        before, after = sorted(around)
        windows.append((border + before * width // 100, border + after * width // 100))
    for begin, end in windows:
        found = await ledger.window(begin, end)
        assert found.totals == sums.window(begin, end), (begin, end)


async def test_a_window_without_a_bound_goes_to_that_end(
    ledger: Ledger, payments: list[Payment]
) -> None:
    sums, middle = Sums(payments), payments[700].requested_at
    assert (await ledger.window(middle, None)).totals == sums.window(middle, 2**60)
    assert (await ledger.window(None, middle)).totals == sums.window(0, middle)
    assert (await ledger.window(None, None)).totals == sums.window(0, 2**60)

"""Measures the cost of a summary, and the memory of a settled payment in Redis.

The ledger and, as the baseline, a walk over a sorted set by `requestedAt` sum the same random
windows; each sum is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import ceil
from typing import Any

import click
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from rich import box
from rich.console import Console
from rich.table import Table

from bench.common import (
    ROUNDS,
    Line,
    Measure,
    Result,
    Spread,
    Values,
    draw_lines,
    print_table,
    progress_bar,
    take_turns,
    write_json,
)
from bench.local import BenchError, running_redis
from bench.settled import (
    PROCESSORS,
    RETENTION_MS,
    Payment,
    Sums,
    ledger_bytes,
    load_bare,
    load_settled,
    load_sorted_sets,
    make_payments,
    used_bytes,
)
from payswitch.money import Total
from payswitch.payments.ledger import Ledger
from payswitch.store.client import connect

WALK = "walk of a sorted set"
LEDGER = "ledger"

MEASURES = (
    Measure("redis_p50", "Redis, p50 (ms)", 3),
    Measure("redis_p99", "Redis, p99 (ms)", 3),
    Measure("trip_p50", "round trip, p50 (ms)", 3),
    Measure("trip_p99", "round trip, p99 (ms)", 3),
)

_NO_FILE = ("--appendonly", "no")
_LIMIT_S = 60.0
_WALKS = 5
"""Walked windows a round: enough for a median, as each takes up to a second."""

_WALK = """
local answer = {}
for i = 3, #ARGV do
  local cents, members = 0, redis.call('ZRANGEBYSCORE', 'settled:' .. ARGV[i], ARGV[1], ARGV[2])
  for _, member in ipairs(members) do
    cents = cents + tonumber(string.match(member, '^%d+'))
  end
  answer[#answer + 1] = #members
  answer[#answer + 1] = cents
end
return answer
"""

Summary = Callable[[int, int], Awaitable[dict[str, Total]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A number of payments, settled at a rate."""

    payments: int
    per_second: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.payments:,} payments at {self.per_second:,} a second"


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes of Redis' memory per payment."""

    case: Case
    total: float
    ledger: float
    bare: float

    def as_document(self) -> dict[str, float]:
        """For the JSON file."""
        return {
            "payments": self.case.payments,
            "perSecond": self.case.per_second,
            "recordAndLedger": self.total,
            "record": self.total - self.ledger,
            "ledger": self.ledger,
            "bareHash": self.bare,
        }


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of all, such as 0.99, does not exceed."""
    return sorted(values)[ceil(share * len(values)) - 1]


async def measure_windows(
    redis: AsyncRedis, summary: Summary, sums: Sums, windows: list[tuple[int, int]]
) -> Values:
    """Sum each window; the round trip is this process' waiting time, Redis' its scripts' own."""
    in_redis: list[float] = []
    trips: list[float] = []
    for first, last in windows:
        before = await _scripts_us(redis)
        began = time.perf_counter()
        totals = await summary(first, last)
        trips.append((time.perf_counter() - began) * 1000)
        in_redis.append((await _scripts_us(redis) - before) / 1000)
        if totals != sums.window(first, last):
            raise BenchError(f"the sum of the window from {first} to {last} is wrong")
    return {
        "redis_p50": percentile(in_redis, 0.5),
        "redis_p99": percentile(in_redis, 0.99),
        "trip_p50": percentile(trips, 0.5),
        "trip_p99": percentile(trips, 0.99),
    }


async def _scripts_us(redis: AsyncRedis) -> int:
    stats: dict[str, Any] = await redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"usec": 0})["usec"])


def summarizer(redis: AsyncRedis) -> Summary:
    """The ledger's own summary."""
    ledger = Ledger(redis, processors=PROCESSORS, retention_ms=RETENTION_MS)

    async def summary(first: int, last: int) -> dict[str, Total]:
        return (await ledger.window(first, last)).totals

    return summary


def walker(redis: AsyncRedis) -> Summary:
    """Sums a window without a ledger."""
    script = redis.register_script(_WALK)

    async def summary(first_ms: int, last_ms: int) -> dict[str, Total]:
        found = await script(args=[first_ms, last_ms, *PROCESSORS])
        pairs = zip(found[0::2], found[1::2], strict=True)
        return {name: Total(*map(int, each)) for name, each in zip(PROCESSORS, pairs, strict=True)}

    return summary


class Clients:
    """The ledger and the walk, each on its own Redis, and the windows for both."""

    def __init__(self, ledger: AsyncRedis, walk: AsyncRedis) -> None:
        self._redis = {LEDGER: ledger, WALK: walk}
        self._summaries: dict[str, Summary] = {
            LEDGER: summarizer(ledger),
            WALK: walker(walk),
        }
        self._lots = random.Random(2)

    async def measure(self, contender: str, payments: list[Payment], sums: Sums, n: int) -> Values:
        """Measure one contender over `n` random windows within the payments' time."""
        span = (payments[0].requested_at, payments[-1].requested_at)
        windows: list[tuple[int, int]] = []
        for _ in range(n):
            first, last = sorted(self._lots.randint(*span) for _ in range(2))
            windows.append((first, last))
        redis, summary = self._redis[contender], self._summaries[contender]
        await summary(*span)
        return await measure_windows(redis, summary, sums, windows)


@contextlib.asynccontextmanager
async def _clients(*urls: str) -> AsyncIterator[Clients]:
    ledger, walk = (connect(url, limit_s=_LIMIT_S) for url in urls)
    try:
        yield Clients(ledger, walk)
    finally:
        await ledger.aclose()
        await walk.aclose()


class Bench:
    """One run with its results so far."""

    def __init__(self, rounds: int, windows: int) -> None:
        self._rounds = rounds
        self._windows = windows
        self.results: dict[Case, Result] = {}
        self.weights: list[Weight] = []

    def run(self, cases: list[Case]) -> None:
        """Measure payments of one rate, from few to many in the same Redis."""
        payments = make_payments(cases[-1].payments, cases[-1].per_second)
        with (
            running_redis(*_NO_FILE) as (url, ledger),
            running_redis(*_NO_FILE) as (walk_url, walk),
            running_redis(*_NO_FILE) as (_, bare),
        ):
            nodes = {"ledger": ledger, "walk": walk, "bare": bare}
            # Redis keeps statistics of each kind of command: 20 kB when it first comes.
            _load(nodes, make_payments(1, 1), "warm up")
            for redis in nodes.values():
                redis.flushall()
            empty = {name: _quiet_bytes(redis) for name, redis in nodes.items()}
            done = 0
            for case in cases:
                _load(nodes, payments[done : case.payments], f"load {case.title}")
                done = case.payments
                took = {name: _quiet_bytes(nodes[name]) - empty[name] for name in nodes}
                self.weights.append(
                    Weight(
                        case,
                        took["ledger"] / done,
                        ledger_bytes(ledger) / done,
                        took["bare"] / done,
                    )
                )
                self._measure(case, payments[:done], (url, walk_url))

    def _measure(self, case: Case, payments: list[Payment], urls: tuple[str, str]) -> None:
        sums = Sums(payments)
        with asyncio.Runner() as runner:
            context = _clients(*urls)
            clients = runner.run(context.__aenter__())
            try:
                contenders: dict[str, Callable[[], Values]] = {
                    name: partial(_in, runner, clients, name, payments, sums, windows)
                    for name, windows in ((WALK, _WALKS), (LEDGER, self._windows))
                }
                rounds = take_turns(contenders, rounds=self._rounds, title=case.title)
            finally:
                runner.run(context.__aexit__(None, None, None))
        self.results[case] = Result(
            "summary", f"A random window over {case.title}", MEASURES, rounds
        )


def _in(runner: asyncio.Runner, clients: Clients, *what: Any) -> Values:
    return runner.run(clients.measure(*what))


def _quiet_bytes(redis: Redis) -> int:
    # What the loading connection has buffered is Redis' memory too, but not the payments'.
    redis.connection_pool.disconnect()
    return used_bytes(redis)


def _load(nodes: Mapping[str, Redis], payments: list[Payment], title: str) -> None:
    loaders: tuple[Iterator[int], ...] = (
        load_settled(nodes["ledger"], payments),
        load_sorted_sets(nodes["walk"], payments),
        load_bare(nodes["bare"], payments),
    )
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(payments))
        for done, *_ in zip(*loaders, strict=True):
            bar.advance(task, done)


def print_weights(weights: list[Weight]) -> None:
    """The table of bytes."""
    table = Table(title="Bytes of Redis' memory per settled payment", box=box.SIMPLE)
    table.title_justify = "left"
    columns = ("", "record and ledger", "record", "ledger", "a bare hash instead")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for each in weights:
        parts = (each.total, each.total - each.ledger, each.ledger, each.bare)
        table.add_row(each.case.title, *(f"{part:,.0f}" for part in parts))
    Console(width=120).print(table)


NOTES = (
    "Windows are random within the payments' time; both processors are summed. The ledger is asked "
    "through `payswitch.payments.ledger`.",
    f"The walk, the baseline, is asked for {_WALKS} windows a round only, so its p99 is its "
    "slowest.",
    "Redis' own time is what `INFO commandstats` counts for the script, whole microseconds.",
    "A tenth of the payments is the fallback's. Redis writes no append-only file meanwhile.",
    "Memory is `used_memory` more than empty; the ledger's part by `MEMORY USAGE`. The bare hash "
    "has cents, processor and requested_at, and never expires.",
)


def publish(bench: Bench) -> None:
    """Write, print and draw everything."""
    for result in bench.results.values():
        print_table(result)
    print_weights(bench.weights)
    for note in NOTES:
        Console(width=120).print(f"- {note}", markup=False, highlight=False)
    documents = {case: result.as_document() for case, result in bench.results.items()}
    cases = [
        {
            "payments": case.payments,
            "perSecond": case.per_second,
            "contenders": document["contenders"],
        }
        for case, document in documents.items()
    ]
    first = next(iter(documents.values()))
    write_json(
        "summary",
        {name: first[name] for name in ("bench", "at", "command", "machine", "baseline")}
        | {
            "title": "A random window, and bytes per settled payment",
            "notes": NOTES,
            "cases": cases,
            "bytesPerPayment": [each.as_document() for each in bench.weights],
        },
    )
    draw_lines(
        "summary",
        "Redis' time for a random window (median)",
        list(_lines(bench.results)),
        x="payments",
        y="ms",
        log_y=True,
    )


def _lines(results: Mapping[Case, Result]) -> Iterator[Line]:
    for contender in (WALK, LEDGER):
        for rate, cases in groupby(results, key=lambda case: case.per_second):
            points: list[tuple[float, Spread]] = []
            for case in cases:
                found = results[case].spread(contender, "redis_p50")
                assert found is not None
                points.append((case.payments, found))
            yield Line(f"{contender}, {rate:,} payments a second", points)


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1))
@click.option("--windows", default=200, show_default=True, help="By the ledger, each round.")
@click.option(
    "--payments",
    "sizes",
    multiple=True,
    default=(10_000, 100_000, 1_000_000),
    show_default=True,
    type=click.IntRange(100),
)
@click.option(
    "--per-second",
    "rates",
    multiple=True,
    default=(300, 10_000),
    show_default=True,
    type=click.IntRange(1),
)
def main(rounds: int, windows: int, sizes: tuple[int, ...], rates: tuple[int, ...]) -> None:
    """Latency of a random window, and bytes of memory per settled payment."""
    bench = Bench(rounds, windows)
    for rate in rates:
        bench.run([Case(size, rate) for size in sorted(sizes)])
    publish(bench)


if __name__ == "__main__":
    main()

"""Measures the cost of payments that wait for one processor, and their delay after its recovery.

All are pinned to `default` by calls with an unknown outcome, as if workers had died. `default`
hangs; then it answers questions but hangs on payments; then it recovers. `fallback` stays healthy
but may take none of them:

    python -m bench.waiting
    python -m bench.waiting --payments 1000
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, cast
from uuid import uuid4

import click
import httpx
from redis.asyncio import Redis
from rich import box
from rich.console import Console
from rich.table import Table

from bench.common import RESULTS, command, machine, new_figure, progress_bar, write_json
from bench.local import running, running_redis
from payswitch.payments.accepting import Acceptance, AcceptQueue
from payswitch.payments.claims import Claims
from payswitch.payments.payment import Payment
from payswitch.payments.tries import Findings, Tries
from payswitch.store.client import connect
from tests.support import NEVER, Reply, ScriptedProcessor, free_port

WORKERS = 2
_NAME = "waiting"
_BATCH = 500
_LIMIT_S = 30
_SAMPLE_S = 0.5
_BEGIN_S = 10.0
"""The time of a first look at each waiting payment; the means leave it out."""
_LEASE_MS = 70_000
_MAX_DELAY_MS = 15_000
"""No payment may go elsewhere before this and a lease have passed."""
_DRAINED_WITHIN_S = 300


@dataclass
class Processor(ScriptedProcessor):
    """A processor that hangs on payments, on questions, or not at all."""

    hangs: bool = False
    answers_questions: bool = True

    def answer(self, method: str, path: str, body: bytes) -> Reply:
        """As the phase wants it."""
        if self.hangs and (method == "POST" or not self.answers_questions):
            kept = self.posts if method == "POST" else self.questions
            kept.append(cast(Any, path))
            return NEVER
        return super().answer(method, path, body)


@dataclass(frozen=True, slots=True)
class Sample:
    """Totals at an instant."""

    at: float
    claims: float
    questions: int
    payments_sent: int
    written: int
    """Bytes that Redis appended to its file."""
    settled: int


@dataclass(frozen=True, slots=True)
class Phase:
    """Means a second of a phase, with or without its beginning."""

    claims: float
    questions: float
    payments_sent: float
    kilobytes: float


class Watch:
    """Takes a sample each half second."""

    def __init__(self, redis: Redis, default: Processor, metrics: Sequence[int]) -> None:
        self.samples: list[Sample] = []
        self._redis = redis
        self._default = default
        self._metrics = metrics
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    async def sample(self, client: httpx.AsyncClient) -> Sample:
        """Look once."""
        found = Sample(
            self.now,
            sum([await _claims(client, port) for port in self._metrics]),
            len(self._default.questions),
            len(self._default.posts),
            int((await self._redis.info("persistence"))["aof_current_size"]),
            await _settled(self._redis),
        )
        self.samples.append(found)
        return found

    async def until(self, client: httpx.AsyncClient, ends: float) -> None:
        """Go on sampling until this time."""
        while self.now < ends:
            await self.sample(client)
            await asyncio.sleep(_SAMPLE_S)

    def phase(self, begins: float, ends: float) -> Phase:
        """The means between two instants."""
        inside = [each for each in self.samples if begins <= each.at <= ends]
        first, last = inside[0], inside[-1]
        took = last.at - first.at
        return Phase(
            (last.claims - first.claims) / took,
            (last.questions - first.questions) / took,
            (last.payments_sent - first.payments_sent) / took,
            (last.written - first.written) / took / 1000,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results."""

    phases: Mapping[str, Phase]
    first_paid_s: float
    """The time from the recovery to the first settlement."""
    drained_s: float
    samples: Sequence[Sample]
    recovered_at: float


async def measure(url: str, count: int, seconds: float) -> Outcome:
    """Play all phases. Raises `RedisError` or `RuntimeError`."""
    redis = connect(url, limit_s=_LIMIT_S)
    default, fallback = Processor(hangs=True, answers_questions=False), Processor()
    default.health = NEVER
    metrics = [free_port() for _ in range(WORKERS)]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        await stack.enter_async_context(default.running())
        await stack.enter_async_context(fallback.running())
        await _pin(redis, count)
        environment = {
            "REDIS_URL": url,
            "PAYMENT_PROCESSOR_URL_DEFAULT": default.url,
            "PAYMENT_PROCESSOR_URL_FALLBACK": fallback.url,
            "PAYSWITCH_PROCESSOR_MAX_DELAY_MS": str(_MAX_DELAY_MS),
            "PAYSWITCH_LEASE_MS": str(_LEASE_MS),
        }
        for port in metrics:
            own = {**environment, "PAYSWITCH_METRICS_PORT": str(port)}
            stack.enter_context(running("-m", "payswitch", "worker", environment=own))
        stack.enter_context(running("-m", "payswitch", "health", environment=environment))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=_LIMIT_S))
        await _ready(client, metrics)
        watch = Watch(redis, default, metrics)
        with progress_bar() as bar:
            task = bar.add_task("hangs", total=None)
            await watch.until(client, seconds)
            bar.update(task, description="answers questions")
            default.answers_questions = True
            await watch.until(client, 2 * seconds)
            bar.update(task, description="is well")
            default.hangs = False
            default.health = fallback.health
            recovered = watch.now
            first, drained = await _drain(watch, client, redis, count)
            await watch.until(client, watch.now + 10)
        if fallback.posts:
            raise RuntimeError(f"{len(fallback.posts)} payments went to the other processor")
        begins = {"hangs": 0.0, "answers questions": seconds}
        phases = {name: watch.phase(at + _BEGIN_S, at + seconds) for name, at in begins.items()} | {
            "idle": watch.phase(drained + 2, watch.now)
        }
        return Outcome(phases, first - recovered, drained - recovered, watch.samples, recovered)


async def _drain(
    watch: Watch, client: httpx.AsyncClient, redis: Redis, count: int
) -> tuple[float, float]:
    """The instants of the first and the last settlement."""
    first = None
    async with asyncio.timeout(_DRAINED_WITHIN_S):
        while (settled := await _settled(redis)) < count:
            if settled and first is None:
                first = watch.now
            if watch.now - watch.samples[-1].at > _SAMPLE_S:
                await watch.sample(client)
            await asyncio.sleep(0.02)
    return first if first is not None else watch.now, watch.now


async def _pin(redis: Redis, count: int) -> None:
    """Accept this many, and give them back with an open try at `default`."""
    queue = AcceptQueue(redis, limit_ms=_LIMIT_S * 1000, max_backlog=10**9)
    claims = Claims(redis, lease_ms=_LEASE_MS, deadline_ms=10**9, max_delay_ms=_MAX_DELAY_MS)
    tries = Tries(redis, max_delay_ms=_MAX_DELAY_MS, lease_ms=_LEASE_MS, retention_ms=10**9)
    for first in range(0, count, _BATCH):
        batch = range(first, min(first + _BATCH, count))
        taken = await asyncio.gather(*(queue.accept(Payment(str(uuid4()), 1000)) for _ in batch))
        assert all(each is Acceptance.NEW for each in taken)
        claimed = [each.claim for each in (await claims.take(len(batch))).taken]
        await asyncio.gather(*(tries.open(each, "default", Findings()) for each in claimed))
    await redis.zadd("arq:queue", dict.fromkeys(await redis.zrange("arq:queue", 0, -1), 0))


async def _claims(client: httpx.AsyncClient, port: int) -> float:
    text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("payswitch_jobs_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def _settled(redis: Redis) -> int:
    total = await cast(Any, redis.hget("ledger:default:0:total", "count"))
    return int(total or 0)


async def _ready(client: httpx.AsyncClient, ports: Sequence[int]) -> None:
    async with asyncio.timeout(_LIMIT_S):
        for port in ports:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await _claims(client, port)
                    break
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _redis() -> AsyncIterator[str]:
    # Rewriting the file would hide what is appended to it.
    with running_redis("--auto-aof-rewrite-percentage", "0") as (url, _):
        yield url


def print_table(outcome: Outcome, count: int) -> None:
    """Print the means a second, and the recovery."""
    table = Table(title=f"{count:,} payments wait for one processor", box=box.SIMPLE)
    table.add_column("while it")
    for title in ("claims/s", "questions/s", "payments sent/s", "kB/s written"):
        table.add_column(title, justify="right")
    for name, phase in outcome.phases.items():
        table.add_row(name, *(f"{value:,.1f}" for value in astuple(phase)))
    Console().print(table)
    print(
        f"after the recovery: the first settled after {outcome.first_paid_s:.2f} s, "
        f"all after {outcome.drained_s:.1f} s"
    )


def draw(outcome: Outcome, count: int) -> None:
    """Draw `bench/results/waiting.png`: what happened a second, on a logarithmic axis."""
    figure = new_figure(9.0, 5.0)
    above, below = figure.subplots(2, 1, sharex=True)
    samples = outcome.samples
    at = [each.at for each in samples[1:]]
    curves: dict[str, list[float]] = {
        "claims": [each.claims for each in samples],
        "questions to the processor": [float(each.questions) for each in samples],
        "kB written by Redis": [each.written / 1000 for each in samples],
    }
    for name, values in curves.items():
        rates = [
            max(0.0, (after - before) / (late.at - early.at))
            for before, after, early, late in zip(
                values, values[1:], samples, samples[1:], strict=False
            )
        ]
        above.plot(at, rates, label=f"{name} a second", linewidth=1.3)
    above.set_yscale("symlog", linthresh=1)
    above.set_ylim(0)
    above.legend(loc="upper left", fontsize=8)
    below.plot([each.at for each in samples], [count - each.settled for each in samples])
    below.set_ylabel("waiting")
    below.set_ylim(0)
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.axvline(outcome.recovered_at, color="#999999", linestyle=":")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{count:,} payments wait for a processor that hangs, then only answers GET")
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{_NAME}.png", dpi=110)


@click.command()
@click.option("--payments", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(15))
def waiting(payments: int, seconds: float) -> None:
    """Let payments wait for a processor, and let it come back.

    Example: python -m bench.waiting --payments 1000
    """

    async def play() -> Outcome:
        async with _redis() as url:
            return await measure(url, payments, seconds)

    outcome = asyncio.run(play())
    print_table(outcome, payments)
    draw(outcome, payments)
    document = {
        "bench": _NAME,
        "command": command(),
        "machine": machine(),
        "payments": payments,
        "phases": {name: asdict(phase) for name, phase in outcome.phases.items()},
        "firstPaidSeconds": outcome.first_paid_s,
        "drainedSeconds": outcome.drained_s,
    }
    write_json(_NAME, document)


if __name__ == "__main__":
    waiting()

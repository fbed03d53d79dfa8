"""Measures our worker beside its jobs: idle, woken up, and before a long backlog."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

import redis
from redis.commands.core import Script

from bench.common import Spread, cpu_s, progress_bar, spread
from bench.local import BenchError, read_answer, running, running_redis
from payswitch.payments.accepting import Acceptance, AcceptQueue
from payswitch.payments.payment import Payment
from payswitch.store import keys, scripts
from payswitch.store.client import connect

_READY_WITHIN_S = 30
_SETTLES_S = 1.0
_LEASE_MS = 600_000
_DELAY_MS = 10_000


@dataclass(frozen=True, slots=True)
class Wake:
    """The time from the call that accepts a payment to its start in an idle worker."""

    samples: int
    median_ms: float
    p99_ms: float
    accepted_ms: float
    """The median until Redis had the payment on disk; the worker may start earlier."""

    def as_document(self) -> dict[str, float]:
        """For the JSON file."""
        return {
            "samples": self.samples,
            "medianMs": self.median_ms,
            "p99Ms": self.p99_ms,
            "acceptedMs": self.accepted_ms,
        }


@dataclass(frozen=True, slots=True)
class ClaimCost:
    """The cost of one claim call in Redis."""

    backlog: int
    limit: int
    redis_us: Spread

    def as_document(self) -> dict[str, Any]:
        """For the JSON file."""
        return {"backlog": self.backlog, "limit": self.limit, "redisUs": asdict(self.redis_us)}


def idle_percent(url: str, seconds: float) -> float:
    """The share of a core that an idle worker uses."""
    with running("-m", "bench.queue_workers", "payswitch", url, "1") as process:
        _wait_until_ready(url)
        time.sleep(_SETTLES_S)
        began, used = time.perf_counter(), cpu_s(process.pid)
        time.sleep(seconds)
        return (cpu_s(process.pid) - used) / (time.perf_counter() - began) * 100


def wake_latency(url: str, samples: int) -> Wake:
    """Accept single payments while a worker is idle, and return the times to their start."""
    with running("-m", "bench.queue_workers", "woken", url, str(samples)) as process:
        _wait_until_ready(url)
        handed_ns, accepted_ms = asyncio.run(_accept_singly(url, samples))
        began_ns = read_answer(process)
    waits = [(began_ns[each] - handed_ns[each]) / 1e6 for each in handed_ns]
    return Wake(samples, median(waits), quantiles(waits, n=100)[98], median(accepted_ms))


async def _accept_singly(url: str, samples: int) -> tuple[dict[str, int], list[float]]:
    client = connect(url, limit_s=10)
    queue = AcceptQueue(client, limit_ms=5000, max_backlog=samples)
    handed_ns: dict[str, int] = {}
    accepted_ms: list[float] = []
    with progress_bar() as bar:
        for _ in bar.track(range(samples), description="wake-up"):
            # Not in step with anything that the worker does by the clock.
            await asyncio.sleep(random.uniform(0.02, 0.07))
            payment = Payment(str(uuid4()), 1990)
            handed = time.monotonic_ns()
            handed_ns[payment.correlation_id] = handed
            if await queue.accept(payment) is not Acceptance.NEW:
                raise BenchError("a payment was not accepted")
            accepted_ms.append((time.monotonic_ns() - handed) / 1e6)
    await client.aclose(close_connection_pool=True)
    return handed_ns, accepted_ms


def _wait_until_ready(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.delete(keys.sign_of_life(keys.QUEUE))
        give_up = time.monotonic() + _READY_WITHIN_S
        while not client.exists(keys.sign_of_life(keys.QUEUE)):
            if time.monotonic() > give_up:
                raise BenchError("the worker does not start")
            time.sleep(0.05)


def claim_costs(
    short: int, long: int, rounds: int, put: Callable[[redis.Redis, int], None]
) -> list[ClaimCost]:
    """The cost in Redis of claims of one and of a hundred payments, before a short and a long
    backlog in turns. Nothing is written to disk, as this time excludes it."""
    found: dict[tuple[int, int], list[float]] = {}
    with ExitStack() as stack, progress_bar() as bar:
        task = bar.add_task(f"claims before {long:,} payments", total=rounds + 1)
        clients = {}
        for backlog in (short, long):
            _, client = stack.enter_context(running_redis("--appendonly", "no"))
            clients[backlog] = client
            put(client, backlog)
        bar.advance(task)
        for _ in range(rounds):
            for backlog, client in clients.items():
                for limit, times in ((1, 100), (100, 5)):
                    cost = _claim_cost(client, limit, times)
                    found.setdefault((limit, backlog), []).append(cost)
            clients[short].flushall()
            put(clients[short], short)
            bar.advance(task)
    return [ClaimCost(backlog, limit, spread(us)) for (limit, backlog), us in sorted(found.items())]


def _claim_cost(client: redis.Redis, limit: int, times: int) -> float:
    """Microseconds that Redis spends on one call, by its own count."""
    claim: Script = client.register_script(scripts.source("claim"))
    own = [keys.GENERATION]
    claim(keys=own, args=[1, _LEASE_MS, _DELAY_MS, "1"])  # loaded by now
    client.config_resetstat()
    for _ in range(times):
        answer = claim(keys=own, args=[limit, _LEASE_MS, _DELAY_MS, "1"])
        taken = scripts.named(answer)["payments"]
        if len(taken) != limit:
            raise BenchError(f"{len(taken)} payments were claimed instead of {limit}")
    stats: dict[str, Any] = client.info("commandstats")  # type: ignore[assignment]
    return float(stats["cmdstat_evalsha"]["usec"]) / times

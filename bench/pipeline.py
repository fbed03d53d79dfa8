"""`python -m bench.pipeline`: payments from POST to settled, here and in the stock configuration.

One ingress process, one worker process, Redis, two simulated processors without delay, and one
client, all on this machine. The client posts as fast as the ingress answers; the clock stops when
the last payment is settled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import cast

import click
import httpx

from bench.common import ROUNDS, Measure, Result, Values, publish, take_turns
from bench.local import (
    DURABLE,
    BenchError,
    Store,
    read_answer,
    redis_cpu_s,
    running,
    running_redis,
    tree_cpu_s,
)
from bench.stock import SETTLED
from payswitch.local.machine import LOCAL, Port
from payswitch.store import keys
from tests.support import PROCESSORS, free_port

MEASURES = (
    Measure("accepted_per_s", "accepted/s", more_is_better=True),
    Measure("settled_per_s", "settled/s", more_is_better=True),
    Measure("refused", "answered 503"),
    Measure("ingress_us", "ingress (µs CPU)"),
    Measure("worker_us", "worker (µs CPU)"),
    Measure("redis_us", "Redis (µs CPU)"),
    Measure("simulators_us", "simulators (µs CPU)"),
    Measure("client_us", "client (µs CPU)"),
    Measure("service_us", "ingress + worker + Redis (µs CPU)"),
    Measure("all_us", "all of it (µs CPU)"),
)
NOTES = (
    f"Redis: {DURABLE}. One ingress process, one worker process, the payments port without HAProxy;"
    " two simulators without delay; all of it and the client on this machine's cores.",
    "settled/s: all payments by the time from the first POST to the last payment settled. CPU is "
    "per payment.",
    "stock: bench/stock.py: Starlette on Granian, a stock enqueue_job per request, the arq "
    "command, httpx.AsyncClient; 20 slots, polled every 10 ms.",
)
_READY_WITHIN_S = 30
_STUCK_AFTER_S = 20
_POLL_S = 0.02
_AT_ONCE = "Requests in flight."


@dataclass(frozen=True, slots=True)
class System:
    """The commands of one configuration, and what it leaves in Redis."""

    ingress: Callable[[int], tuple[str, ...]]
    """The command, for a port."""
    worker: tuple[str, ...]
    is_up: Callable[[Store], bool]
    """Whether the worker has started."""
    settled: Callable[[Store], int]
    """The number of settled payments."""


def _settled_here(client: Store) -> int:
    totals = [client.hget(f"ledger:{name}:0:total", "count") for name in PROCESSORS]
    return sum(int(cast(bytes, total or 0)) for total in totals)


def _is_up(client: Store) -> bool:
    """Whether arq's health key is there."""
    return bool(client.exists(keys.sign_of_life(keys.QUEUE)))


def _settled_by_stock(client: Store) -> int:
    return cast(int, client.zcard(SETTLED))


def _stock_ingress(port: int) -> tuple[str, ...]:
    options = ("--interface", "asgi", "--host", LOCAL, "--port", str(port), "--log-level", "error")
    return ("-m", "granian", *options, "bench.stock:app")


def _ingress(port: int) -> tuple[str, ...]:
    """As behind HAProxy, which sends payments to the payments port."""
    ports = ("--port", str(free_port()), "--payments-port", str(port))
    return ("-m", "payswitch", "ingress", "--host", LOCAL, *ports)


SYSTEMS = {
    "stock": System(
        _stock_ingress,
        ("-m", "arq", "bench.stock.WorkerSettings"),
        _is_up,
        _settled_by_stock,
    ),
    "payswitch": System(
        _ingress,
        ("-m", "payswitch", "worker"),
        _is_up,
        _settled_here,
    ),
}


def measure(
    system: System,
    count: int,
    at_once: int,
    store: Callable[[], AbstractContextManager[tuple[str, Store]]] = running_redis,
) -> Values:
    """Start an empty system, send the payments, wait until all are settled, and return the figures.
    Raises `BenchError` if a payment isn't paid exactly once."""
    with ExitStack() as stack:
        url, client = stack.enter_context(store())
        ports = {name: free_port() for name in PROCESSORS}
        environment = {"REDIS_URL": url}
        processes = {}
        for name, port in ports.items():
            address = f"http://{LOCAL}:{port}"
            environment[f"PAYMENT_PROCESSOR_URL_{name.upper()}"] = address
            simulator = ("-m", "payswitch", "simulator", "--name", name, "--port", str(port))
            processes[name] = stack.enter_context(running(*simulator, environment=environment))
        port = free_port()
        started = {"ingress": system.ingress(port), "worker": system.worker}
        for name, command in started.items():
            processes[name] = stack.enter_context(running(*command, environment=environment))
        _wait_until_ready([*ports.values(), port], lambda: system.is_up(client))
        pids = {name: process.pid for name, process in processes.items()}
        before = _cpu_s(client, pids)
        load = ("-m", "bench.load", LOCAL, str(port), str(count), str(at_once))
        with running(*load) as loader:
            sent = read_answer(loader)
        settled_at = _wait_until_settled(lambda: system.settled(client), count)
        after = _cpu_s(client, pids)
        _check_books(ports, count)
    used = {name: (after[name] - before[name]) / count * 1e6 for name in after}
    client_us = sent["cpu_s"] / count * 1e6
    return {
        "refused": sent["refused"],
        "accepted_per_s": count / (sent["ended"] - sent["began"]),
        "settled_per_s": count / (settled_at - sent["began"]),
        "ingress_us": used["ingress"],
        "worker_us": used["worker"],
        "redis_us": used["redis"],
        "simulators_us": sum(used[name] for name in PROCESSORS),
        "client_us": client_us,
        "service_us": used["ingress"] + used["worker"] + used["redis"],
        "all_us": sum(used.values()) + client_us,
    }


def _cpu_s(client: Store, pids: Mapping[str, int]) -> dict[str, float]:
    return {
        "redis": redis_cpu_s(client),
        **{name: tree_cpu_s(pid) for name, pid in pids.items()},
    }


def _wait_until_ready(ports: list[int], worker_is_up: Callable[[], bool]) -> None:
    """Wait until every port answers and the worker has started."""
    give_up = time.monotonic() + _READY_WITHIN_S
    for number in ports:
        port = Port("", LOCAL, number, "")
        while asyncio.run(port.status("/")) is None:
            _require_time(give_up)
    while not worker_is_up():
        _require_time(give_up)


def _require_time(give_up: float) -> None:
    if time.monotonic() > give_up:
        raise BenchError("a part does not start")
    time.sleep(_POLL_S)


def _wait_until_settled(settled: Callable[[], int], count: int) -> float:
    """Wait for the last settlement; its instant by the machine's monotonic clock."""
    grew_at, last = time.monotonic(), -1
    while (now_settled := settled()) < count:
        if now_settled > last:
            grew_at, last = time.monotonic(), now_settled
        elif time.monotonic() - grew_at > _STUCK_AFTER_S:
            raise BenchError(f"only {now_settled} of {count} payments are settled")
        time.sleep(_POLL_S)
    return time.monotonic()


def _check_books(ports: Mapping[str, int], count: int) -> None:
    """Check that the processors have each payment once."""
    books = 0
    for port in ports.values():
        url = f"http://{LOCAL}:{port}/admin/payments-summary"
        books += httpx.get(url, headers={"X-Rinha-Token": "123"}).json()["totalRequests"]
    if books != count:
        raise BenchError(f"the processors have {books} payments instead of {count}")


def load_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of a run: rounds, payments, and requests in flight."""
    positive = click.IntRange(1)
    for option in (
        click.option("--at-once", default=256, show_default=True, type=positive, help=_AT_ONCE),
        click.option("--payments", default=20_000, show_default=True, type=click.IntRange(100)),
        click.option("--rounds", default=ROUNDS, show_default=True, type=positive),
    ):
        command = option(command)
    return command


@click.command()
@load_options
def main(rounds: int, payments: int, at_once: int) -> None:
    """Payments a second from POST to settled and CPU per payment by component, against the stock
    configuration of the same service."""
    contenders = {name: partial(measure, each, payments, at_once) for name, each in SYSTEMS.items()}
    result = Result(
        "pipeline",
        f"{payments:,} payments from POST to settled, {at_once} requests in flight",
        MEASURES,
        take_turns(contenders, rounds=rounds, title="pipeline"),
        notes=NOTES,
        distributions=("arq", "httpx", "starlette", "granian", "redis", "hiredis", "uvloop"),
    )
    publish(result, pictured=["accepted_per_s", "settled_per_s", "service_us"])


if __name__ == "__main__":
    main()

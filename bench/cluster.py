"""`python -m bench.cluster`: payments from POST to settled, on one Redis and on clusters of it.

The same run as `bench.pipeline`, with the queue on a single server, and on clusters of one, two and
four shards without replicas. Each shard gets as many requests as the single server. All servers are
on this machine's cores, so its throughput doesn't grow with the shards: the CPU per payment tells
what more machines would bring.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
from redis import Redis
from redis.cluster import RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from bench.common import Result, publish, take_turns
from bench.local import DURABLE, BenchError, Store
from bench.pipeline import MEASURES, SYSTEMS, load_options, measure
from payswitch.local.machine import LOCAL
from payswitch.store import keys
from payswitch.store.partitions import tags
from tests.support import PROCESSORS, RedisServer, free_port

SHARDS = (1, 2, 4)
PARTITIONS = 16
NOTES = (
    f"Redis: {DURABLE}, no replicas, {PARTITIONS} partitions in a cluster. One ingress process, one"
    " worker process; all of it, simulators and client on this machine's cores.",
)
_FORMS_WITHIN_S = 30
_POLL_S = 0.02


@contextmanager
def running_cluster(shards: int) -> Iterator[tuple[str, Store]]:
    """A cluster of so many servers without replicas, in which a deployment has begun; yields its
    URL and a client. Raises `BenchError` if it does not form."""
    with ExitStack() as stack:
        servers, buses = [], []
        for _ in range(shards):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            buses.append(free_port())
            bus = ("--cluster-enabled", "yes", "--cluster-port", str(buses[-1]))
            servers.append(RedisServer(Path(folder), *bus))
            servers[-1].start()
            stack.callback(servers[-1].kill)
        _form(servers, buses)
        url = f"redis+cluster://{','.join(f'{LOCAL}:{each.port}' for each in servers)}/"
        environment = os.environ | {"REDIS_URL": url, "PAYSWITCH_PARTITIONS": str(PARTITIONS)}
        command = (sys.executable, "-m", "payswitch", "init")
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with RedisCluster(host=LOCAL, port=servers[0].port) as client:
            yield url, client


def _form(servers: list[RedisServer], buses: list[int]) -> None:
    """Give each server an equal range of the slots, and wait until all know it."""
    clients: list[Any] = [Redis(port=each.port) for each in servers]
    for number, client in enumerate(clients):
        first, end = (SLOTS * i // len(servers) for i in (number, number + 1))
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        client.execute_command("CLUSTER", "MEET", LOCAL, servers[0].port, buses[0])
    give_up = time.monotonic() + _FORMS_WITHIN_S
    while not all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients):
        if time.monotonic() > give_up:
            raise BenchError("the cluster does not form")
        time.sleep(_POLL_S)
    for client in clients:
        client.close()


def _settled(client: Store) -> int:
    totals = [
        client.hget(f"ledger:{{{tag}}}:{name}:0:total", "count")
        for tag in tags(PARTITIONS)
        for name in PROCESSORS
    ]
    return sum(int(cast(bytes, total or 0)) for total in totals)


def _is_up(client: Store) -> bool:
    return bool(client.exists(keys.sign_of_life(f"{keys.QUEUE}:{{{keys.SELECTION}}}")))


@click.command()
@load_options
def main(rounds: int, payments: int, at_once: int) -> None:
    """Payments a second from POST to settled and CPU per payment, on one Redis and on clusters of
    one, two and four shards, with `--at-once` requests in flight for each shard."""
    single = SYSTEMS["payswitch"]
    sharded = replace(single, is_up=_is_up, settled=_settled)
    contenders = {"one server": partial(measure, single, payments, at_once)}
    for shards in SHARDS:
        store = partial(running_cluster, shards)
        name = f"{shards} shard{'s' if shards > 1 else ''}"
        contenders[name] = partial(measure, sharded, payments, at_once * shards, store)
    result = Result(
        "cluster",
        f"{payments:,} payments from POST to settled, {at_once} requests in flight for each shard",
        MEASURES,
        take_turns(contenders, rounds=rounds, title="cluster"),
        notes=NOTES,
        distributions=("arq", "redis", "hiredis", "uvloop"),
    )
    publish(result, pictured=["settled_per_s", "service_us", "redis_us"])


if __name__ == "__main__":
    main()

"""`make bench-peers`: payments from POST to settled, here and on other queues.

The same run as `bench.pipeline`: one ingress process, one worker process, Redis, two simulated
processors without delay, and one client, all on this machine. The peers run where Node or Go is
installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import partial

import click
from rich import box
from rich.console import Console
from rich.table import Table

from bench.common import Result, publish, take_turns
from bench.local import DURABLE
from bench.peers.programs import PEERS
from bench.peers.promises import PROMISES
from bench.pipeline import MEASURES, SYSTEMS, System, load_options, measure

NOTES = (
    f"Redis: {DURABLE}. One ingress process, one worker process, no load balancer, Payswitch's "
    "payments port; two simulators without delay; all of it and the client on these cores.",
    "settled/s: all payments by the time from the first POST to the last payment settled. CPU is "
    "per payment.",
    "All processes start cold, so Node's compiler is in its CPU; more --payments lessen its part.",
    "bullmq: Fastify, a job with the payment's id, a worker with 100 calls under way through "
    "undici. asynq: net/http, a task with the payment's id, a server with 100 calls under way. Both"
    " know one processor and keep a finished job for 7 days.",
)
_WIDTH = 150


def install() -> tuple[dict[str, System], list[str]]:
    """The peers that this machine can run, and a sentence for each other one.

    Raises `BenchError` if one can't be installed.
    """
    lacks = {name: peer.lack for name, peer in PEERS.items()}
    systems = {name: PEERS[name].install() for name, lack in lacks.items() if lack is None}
    return systems, [f"{name} is left out: {lack}." for name, lack in lacks.items() if lack]


def promises(names: Iterable[str]) -> Table:
    """What each contender promises, beside the figures."""
    table = Table(title="What each promises", title_justify="left", box=box.SIMPLE)
    table.add_column("")
    for name in names:
        table.add_column(name)
    for question, answers in PROMISES.items():
        table.add_row(question, *(answers[name] for name in names))
    return table


def versions(names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
    """The versions behind each peer."""
    peers = {name: PEERS[name] for name in names}
    return {
        name: {peer.programs[0]: peer.version, **peer.packages()} for name, peer in peers.items()
    }


@click.command()
@load_options
def main(rounds: int, payments: int, at_once: int) -> None:
    """Payments a second from POST to settled and CPU per payment, against BullMQ on Node and asynq
    on Go, with what each promises."""
    peers, left_out = install()
    for sentence in left_out:
        click.echo(sentence, err=True)
    systems = {**peers, "payswitch": SYSTEMS["payswitch"]}
    contenders = {name: partial(measure, each, payments, at_once) for name, each in systems.items()}
    result = Result(
        "peers",
        f"{payments:,} payments from POST to settled, {at_once} requests in flight",
        MEASURES,
        take_turns(contenders, rounds=rounds, title="peers"),
        notes=[*NOTES, *left_out],
        distributions=("starlette", "granian", "arq", "redis", "hiredis", "uvloop"),
        more={"peers": versions(peers), "promises": PROMISES},
    )
    publish(result, pictured=["settled_per_s", "service_us"])
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(promises(list(systems)))


if __name__ == "__main__":
    main()

"""Measures the cost of a POST to a processor with httpx' own transport, other clients, and ours.

Each measurement is a process of its own that calls a simulator with a fixed number of calls in
flight, on uvloop. The result includes each one's behaviour on errors (`processor_behaviour`).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import click
import uvloop
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
from bench.local import BenchError, read_answer, running
from bench.processor_behaviour import Behaviour, observe
from bench.processor_candidates import CANDIDATES, OURS, STOCK
from tests.support import free_port

MEASURES = (
    Measure("cpu_us", "CPU per POST (µs)"),
    Measure("posts_per_s", "POSTs/s", more_is_better=True),
)

NOTES = (
    "CPU is of the calling process, all of its threads: pyreqwest's work is done in such. The "
    "processor is a simulator in a process of its own.",
    "All run on uvloop, with limits for connecting, pool, reading and writing, and with as many "
    "connections as calls in flight.",
    "Each measurement begins after six calls by each of those in flight, or 15 s, and ends while "
    "all are: stock httpx needs several times as much when its calls begin or end all at once.",
    "Called directly: `handle_async_request` of the transport with an `httpx.Request`, as "
    "`payswitch.processors.processor` does; else through `httpx.AsyncClient.post`.",
)

_DISTRIBUTIONS = (
    *("httpx", "httpcore", "aiohttp", "httpx-aiohttp", "pyreqwest"),
    *("httptools", "uvloop"),
)
_START_LIMIT_S = 30


@contextlib.contextmanager
def simulator() -> Iterator[str]:
    """The URL for payments of a processor that answers at once."""
    port = free_port()
    command = ("-m", "payswitch", "simulator", "--name", "default", "--port", str(port))
    with running(*command):
        deadline = time.monotonic() + _START_LIMIT_S
        while not _listens(port):
            if time.monotonic() > deadline:
                raise BenchError("the simulator does not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/payments"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measure(candidate: str, url: str, in_flight: int, seconds: float) -> Values:
    """Call for that long in a separate process."""
    with running(
        "-m", "bench.processor_calls", candidate, url, str(in_flight), str(seconds)
    ) as process:
        took = read_answer(process)
    return {
        "cpu_us": took["cpu_s"] / took["calls"] * 1e6,
        "posts_per_s": took["calls"] / took["wall_s"],
    }


def measure_all(levels: Sequence[int], rounds: int, seconds: float) -> dict[int, Result]:
    """The cost of each candidate, by the number of calls in flight."""
    results: dict[int, Result] = {}
    for level in levels:
        with simulator() as url:
            contenders: dict[str, Callable[[], Values]] = {
                name: partial(measure, name, url, level, seconds) for name in CANDIDATES
            }
            title = f"{level:,} in flight"
            measured = take_turns(contenders, rounds=rounds, title=title)
        results[level] = Result(
            "processor",
            f"A POST to a processor, {title}",
            MEASURES,
            measured,
            distributions=_DISTRIBUTIONS,
        )
    return results


def observe_all() -> dict[str, Behaviour]:
    """Each candidate's behaviour on errors."""
    found: dict[str, Behaviour] = {}
    with progress_bar() as bar:
        task = bar.add_task("behaviour", total=len(CANDIDATES))
        for name, candidate in CANDIDATES.items():
            bar.update(task, description=f"behaviour: {name}")
            found[name] = uvloop.run(observe(candidate))
            bar.advance(task)
    return found


def print_behaviours(behaviours: dict[str, Behaviour]) -> None:
    """A row for each candidate."""
    console = Console(width=200)
    table = Table(title="When something is wrong", title_justify="left", box=box.SIMPLE)
    for column in (
        *("", "errors that mislead", "errors as stock's", "check next to the write"),
        *("a call given up", "a stale connection", "the same, at once", "8 MiB in answer"),
    ):
        table.add_column(column)
    stock = behaviours[STOCK].errors
    for name, each in behaviours.items():
        same = sum(error == stock[case] for case, error in each.errors.items())
        table.add_row(
            name,
            "\n".join(each.misleading) or "none",
            f"{same} of {len(stock)}",
            each.hook,
            each.given_up,
            each.stale,
            each.stale_at_once,
            each.large_response,
        )
    console.print(table)


def publish(results: dict[int, Result], behaviours: dict[str, Behaviour]) -> None:
    """Write, print and draw everything."""
    for result in results.values():
        print_table(result)
    print_behaviours(behaviours)
    for note in NOTES:
        Console(width=120).print(f"- {note}", markup=False, highlight=False)
    documents = {level: result.as_document() for level, result in results.items()}
    first = next(iter(documents.values()))
    write_json(
        "processor",
        {name: first[name] for name in ("bench", "at", "command", "machine", "baseline")}
        | {
            "title": "A POST to a processor",
            "notes": NOTES,
            "inFlight": {str(level): each["contenders"] for level, each in documents.items()},
            "behaviour": {name: asdict(each) for name, each in behaviours.items()},
        },
    )
    draw_lines(
        "processor",
        "CPU per POST to a processor",
        list(_lines(results)),
        x="calls in flight",
        y="µs",
        log_y=True,
    )


def _lines(results: dict[int, Result]) -> Iterator[Line]:
    drawn = (
        STOCK,
        "httpx-aiohttp",
        "pyreqwest",
        "aiohttp itself",
        "ours under httpx' client",
        OURS,
    )
    for name in drawn:
        points: list[tuple[float, Spread]] = []
        for level, result in results.items():
            found = result.spread(name, "cpu_us")
            assert found is not None
            points.append((level, found))
        yield Line(name, points)


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=1.0, show_default=True, help="The least for a measurement.")
@click.option(
    "--in-flight",
    "levels",
    multiple=True,
    default=(1, 10, 100, 1000),
    show_default=True,
    type=click.IntRange(1, 1000),
)
def main(rounds: int, seconds: float, levels: tuple[int, ...]) -> None:
    """CPU per POST of stock httpx, other transports and ours; and how each behaves."""
    behaviours = observe_all()
    publish(measure_all(levels, rounds, seconds), behaviours)


if __name__ == "__main__":
    main()

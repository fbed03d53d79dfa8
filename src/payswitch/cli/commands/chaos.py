"""`payswitch chaos`: break the system on purpose and prove that no payment suffers."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from payswitch.chaos import report
from payswitch.chaos.island import why_no_island
from payswitch.chaos.plan import kinds_of
from payswitch.chaos.run import RunOrder, RunOutcome, run
from payswitch.chaos.system import find_libfaketime
from payswitch.chaos.timeline import draw
from payswitch.cli.main import fail
from payswitch.local.machine import MachineError, make_files_private
from payswitch.local.supervisor import PartNotStartedError
from payswitch.settings import MOST_PROCESSORS, Settings, SettingsError


@click.command()
@click.option("--seed", default=1, type=click.IntRange(0), help="Of the first run.")
@click.option("--runs", default=1, type=click.IntRange(1, 1000), help="Each has the next seed.")
@click.option(
    "--minutes", default=2.0, type=click.FloatRange(0.1, 600), help="Time under load and faults."
)
@click.option(
    "--faults",
    help="Groups (clean, processor, process, redis, cluster, client, clock) or single ones, with "
    "commas. [default: all that this machine can do]",
)
@click.option("--rate", default=300.0, type=click.FloatRange(1, 20_000), help="Payments a second.")
@click.option(
    "--processors",
    default=3,
    type=click.IntRange(1, MOST_PROCESSORS),
    help="As of `payswitch up`: the third speaks charges, so that it can decline payments.",
)
@click.option(
    "--redis",
    default="single",
    type=click.Choice(["single", "cluster"]),
    help="One server, or a cluster of three primaries with a replica each.",
)
@click.option("--workers", default=3, type=click.IntRange(1, 32), help="Payment workers.")
@click.option(
    "--out",
    default=".payswitch/chaos",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for verdict.json, timeline.png and system.log of each run.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the verdicts as JSON instead of a table."
)
def chaos(
    seed: int, runs: int, faults: str | None, out: Path, as_json: bool, **of_each_run: Any
) -> None:
    """Run the real system on ports of its own, under load, and break it by a schedule that follows
    from the seed; then compare every payment with the processors' journals.

    The exit code is 1 if one was lost or paid twice, or if a cent is missing. Settings come from
    the environment as for every part.

    Example: payswitch chaos --seed 7 --minutes 2 --faults processor,redis
    """
    try:
        cluster = of_each_run["redis"] == "cluster"
        kinds = all_here(cluster) if faults is None else kinds_of(faults, cluster=cluster)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--faults") from None
    try:
        Settings.from_environment()  # before the progress bar starts
    except SettingsError as error:
        fail(str(error))
    make_files_private()
    # What it sees of Redis itself is in the parts' log as well, and would break the progress bar.
    logging.getLogger("payswitch").addHandler(logging.NullHandler())
    orders = [
        RunOrder(seed=number, kinds=kinds, folder=out / f"seed-{number}", **of_each_run)
        for number in range(seed, seed + runs)
    ]
    outcomes, documents = zip(*_run_all(orders), strict=True)
    if as_json:
        click.echo(orjson.dumps(documents))
    else:
        report.show(outcomes, Console())
    sys.exit(0 if all(outcome.verdict.holds for outcome in outcomes) else 1)


def all_here(cluster: bool) -> frozenset[str]:
    """All faults that this machine can do; a line says what it can't."""
    kinds = kinds_of("all", cluster=cluster)
    if find_libfaketime() is None:
        click.echo("payswitch: no clock is set, as libfaketime is not installed", err=True)
        kinds -= {"clock"}
    if cluster and (why := why_no_island()) is not None:
        click.echo(f"payswitch: no host is cut off: {why}", err=True)
        kinds -= {"cut-off"}
    return kinds


def _run_all(orders: list[RunOrder]) -> list[tuple[RunOutcome, dict[str, Any]]]:
    columns = (TextColumn("seed {task.fields[seed]}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.description}"), console=Console(stderr=True)
    ) as progress:
        try:
            return [_run_one(order, progress) for order in orders]
        except (MachineError, SettingsError, PartNotStartedError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("stopped before the end")


def _run_one(order: RunOrder, progress: Progress) -> tuple[RunOutcome, dict[str, Any]]:
    bar = progress.add_task("", total=order.seconds, seed=order.seed)

    def advance(elapsed_s: float, doing: str) -> None:
        progress.update(bar, completed=elapsed_s, description=doing)

    outcome = asyncio.run(run(order, os.environ, advance))
    document = report.as_document(outcome)
    written = [report.write(document, order.folder)]
    try:
        written.append(draw(outcome))
    except ImportError:
        progress.console.print("no timeline.png: it needs `pip install payswitch[pictures]`")
    progress.update(bar, completed=order.seconds, description=", ".join(map(str, written)))
    return outcome.without_payments(), document

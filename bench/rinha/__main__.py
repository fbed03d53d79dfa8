"""`make rinha`: play a scored run and score it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import click
import orjson
from rich.console import Console

from bench.rinha import containers, processes
from bench.rinha.board import board
from bench.rinha.load import LoadError
from bench.rinha.picture import draw
from bench.rinha.result import as_document, as_timeline, show
from bench.rinha.run import Outcome, run
from bench.rinha.scenario import Scenario, load_scenario
from bench.rinha.site import Site, SiteError
from payswitch.durability import Durability
from payswitch.local.machine import make_files_private
from payswitch.process import allow_many_open_files

_ROOT = Path(__file__).parents[2]
_TABLE_WIDTH = 110


@click.command()
@click.argument("name", metavar="SCENARIO", type=click.Choice(["preview", "final"]))
@click.option(
    "--target",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "containers", "processes"]),
    help="auto: containers where Docker or Podman is there, else processes without limits.",
)
@click.option(
    "--start/--no-start",
    default=True,
    show_default=True,
    help="Make the containers and remove them in the end, or measure those that run. Those lose "
    "all their payments.",
)
@click.option("--build/--no-build", default=True, show_default=True, help="Build the image before.")
@click.option(
    "--durability",
    type=click.Choice([each.value for each in Durability]),
    help="What a 202 stands for.  [as in compose.yaml]",
)
@click.option(
    "--time-scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.01, 1),
    help="Shortens the run, to try things out; its score is none.",
)
@click.option(
    "--out",
    default=_ROOT / ".payswitch" / "rinha",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for result.json, timeline.json and picture.png, in one of its own by scenario.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, not as a table.")
def rinha(
    name: str,
    target: str,
    start: bool,
    build: bool,
    durability: str | None,
    time_scale: float,
    out: Path,
    as_json: bool,
) -> None:
    """Play a scored run of the Rinha de Backend 2025 and score it by its rules.

    Example: python -m bench.rinha final
    """
    if durability and not start:
        raise click.UsageError("--durability needs --start: what runs has its own")
    allow_many_open_files()
    scenario = load_scenario(name).shortened(time_scale)
    make_files_private()
    folder = (out / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        site = _site(
            target,
            folder,
            start=start,
            build=build,
            durability=Durability(durability) if durability else None,
        )
        outcome = asyncio.run(_play(scenario, site))
    except (SiteError, LoadError) as error:
        click.echo(f"rinha: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("rinha: stopped before the end", err=True)
        sys.exit(130)
    _write(outcome, folder)
    if as_json:
        click.echo(orjson.dumps(as_document(outcome), option=orjson.OPT_INDENT_2))
    else:
        console = Console()
        console.width = max(console.width, _TABLE_WIDTH)
        show(outcome, console)
    click.echo(f"{folder}/picture.png, result.json, timeline.json", err=True)


async def _play(
    scenario: Scenario, starting: contextlib.AbstractAsyncContextManager[Site]
) -> Outcome:
    async with starting as site:
        with board(scenario) as shown:
            return await run(site, scenario, shown)


@contextlib.asynccontextmanager
async def _site(
    target: str, folder: Path, *, start: bool, build: bool, durability: Durability | None
) -> AsyncIterator[Site]:
    engine = None if target == "processes" else await containers.find_engine()
    if target == "containers" and engine is None:
        raise SiteError("neither Docker nor Podman answers here, each with its compose")
    if target == "auto" and engine and not start and not await containers.is_running(engine):
        engine = None
    if engine is None:
        click.echo("starting the system as processes, without limits", err=True)
        async with processes.serving(folder, durability=durability) as site:
            yield site
    else:
        click.echo(f"containers by {engine.program}" + (", starting" if start else ""), err=True)
        serving = containers.serving(engine, _ROOT, start=start, build=build, durability=durability)
        async with serving as site:
            yield site


def _write(outcome: Outcome, folder: Path) -> None:
    for name, document in (
        ("result.json", as_document(outcome)),
        ("timeline.json", as_timeline(outcome)),
    ):
        content = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (folder / name).write_bytes(content)
    draw(outcome, folder / "picture.png")


rinha(prog_name="python -m bench.rinha")

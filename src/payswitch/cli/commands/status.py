"""`payswitch status`: the live page's numbers in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import click
import orjson
from arq.connections import ArqRedis
from redis.exceptions import RedisError
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from payswitch.cli.output import print_json, run
from payswitch.money import Currency
from payswitch.operations.history import parse_sample, read_history
from payswitch.operations.overview import Overview, read_overview
from payswitch.operations.status import Level, Status, breakers, document, duration, money, rates
from payswitch.settings import Settings
from payswitch.store.errors import in_words
from payswitch.telemetry.heartbeat import Process
from payswitch.text import printable, shown

_SAMPLES = 15
_EVERY_S = 1.0
_COLORS = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.ERROR: "red"}
_UNKNOWN = 2
"""The exit code if Redis can't be asked."""


@click.command()
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, a line a second.")
def status(watch: bool, as_json: bool) -> None:
    """Whether money flows, through whom, at what cost, what waits and what is wrong.

    Exit code 0: nothing is wrong, or only warnings; 1: something is; 2: Redis can't be asked.

    Example: payswitch status
    """
    show = _watch if watch else _show
    with contextlib.suppress(KeyboardInterrupt):
        run(lambda settings, redis: show(settings, redis, as_json=as_json), failed=_UNKNOWN)


async def _show(settings: Settings, redis: ArqRedis, *, as_json: bool) -> int:
    now = await _read(redis, settings)
    if as_json:
        print_json(document(now, settings.currency))
    else:
        Console(highlight=False).print(_drawn(now, settings))
    return 1 if now.level is Level.ERROR else 0


async def _watch(settings: Settings, redis: ArqRedis, *, as_json: bool) -> int:
    if as_json:
        while True:
            click.echo(orjson.dumps(document(await _read(redis, settings), settings.currency)))
            await asyncio.sleep(_EVERY_S)
    console = Console(highlight=False)
    while not console.is_terminal:  # a pipe or a file gets one after another
        console.print(await _picture(redis, settings))
        await asyncio.sleep(_EVERY_S)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(await _picture(redis, settings), refresh=True)
            await asyncio.sleep(_EVERY_S)


async def _picture(redis: ArqRedis, settings: Settings) -> RenderableType:
    try:
        return _drawn(await _read(redis, settings), settings)
    except (RedisError, OSError) as error:
        where = shown(settings.redis_url)
        return Text(f"Redis at {where}: {in_words(error)}", style="red")


async def _read(redis: ArqRedis, settings: Settings) -> Status:
    kept = await read_history(redis, _SAMPLES)
    overview = await read_overview(redis, list(settings.processor_urls))
    samples = [sample for raw in kept if (sample := parse_sample(raw)) is not None]
    return Status(overview, rates(samples, overview.at))


def _drawn(now: Status, settings: Settings) -> Group:
    lines = [Text(printable(now.headline), style=f"bold {_COLORS[now.level]}")]
    lines += [Text(f"  {printable(each.text)}", style=_COLORS[each.level]) for each in now.findings]
    if not now.overview.processes:
        lines.append(Text(f"  So says Redis at {shown(settings.redis_url)} (REDIS_URL)"))
    return Group(
        *lines,
        Text(),
        _numbers(now, settings.currency),
        _processors(now, settings.currency),
        _processes(now.overview),
        *_nodes(now.overview),
    )


def _numbers(now: Status, currency: Currency) -> Table:
    overview, recent = now.overview, now.rates
    table = _table("", "", "")
    table.show_header = False
    table.columns[-1].no_wrap = False
    settled = sum(total.count for total in overview.settled.values())
    accepted_per_s = None if recent is None else recent.accepted_per_s
    settled_per_s = None if recent is None else recent.all_settled_per_s
    if overview.durability is not None and overview.is_kept:
        survives = f"survives {overview.durability.survives}"
        _add(table, "durability", overview.durability, survives)
    _add(table, "accepted", f"{overview.accepted:,}", _per_second(accepted_per_s))
    _add(table, "settled", f"{settled:,}", _per_second(settled_per_s))
    oldest = overview.oldest_age_ms
    waits = "" if oldest is None else f"the oldest for {duration(oldest)}"
    _add(table, "backlog", f"{overview.backlog:,}", waits)
    if recent is not None and recent.p50_ms is not None and recent.p99_ms is not None:
        times = duration(recent.p50_ms), f"p50, p99 {duration(recent.p99_ms)}"
        _add(table, "time to settle", *times)
    fees = overview.fees
    if fees is None:
        _add(table, "fees", "unknown", "the processors have not said what they take")
    else:
        saved = f", {money(overview.saved, currency)} saved by waiting" if overview.saved else ""
        extra = f"{money(fees.extra, currency)} more than all by {overview.preferred}"
        _add(table, "fees", money(fees.paid, currency), extra + saved)
    if declined := sum(overview.declined.values()):
        _add(table, "declined", f"{declined:,}", "")
    _add(table, "dead letters", f"{overview.dead:,}", "")
    _add(table, "reconciliation", *_reconciled(overview))
    return table


def _reconciled(overview: Overview) -> tuple[str, str]:
    last = overview.reconciled
    if last is None:
        return "never", "payswitch reconcile"
    words = "all equal" if not last.differences else f"{last.differences:,} differences"
    return words, f"{duration(max(0, overview.at - last.at))} ago"


def _processors(now: Status, currency: Currency) -> Table:
    overview, recent = now.overview, now.rates
    table = _table("processor", "settled", "", "amount", "fee", "health", "breakers")
    for name, total in overview.settled.items():
        selected = overview.choice is not None and overview.choice.processor == name
        states = breakers(overview, name)
        fee = overview.fee_rates.get(name)
        _add(
            table,
            f"{name}, selected" if selected else name,
            f"{total.count:,}",
            _per_second(None if recent is None else recent.settled_per_s.get(name, 0)),
            money(total.cents, currency),
            "unknown" if fee is None else f"{fee:.1%}",
            _health(overview, name),
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none",
        )
    return table


def _health(overview: Overview, name: str) -> str:
    seen = overview.health.get(name)
    if seen is None:
        return "never asked"
    said = "failing" if seen.failing else f"healthy, {seen.min_response_ms} ms"
    return said if seen.known else "no answer"


def _processes(overview: Overview) -> Table:
    table = _table("process", "host", "pid", "up", "has done")
    for each in sorted(overview.processes, key=lambda each: (each.kind, each.host, each.pid)):
        up = duration(max(0, overview.at - each.since))
        _add(table, each.kind, each.host, str(each.pid), up, _done(each))
    return table


def _nodes(overview: Overview) -> Iterator[Table]:
    """A table of the cluster's nodes; none on a single Redis."""
    if not overview.shards:
        return
    table = _table("node", "replicas", "partitions")
    table.columns[-1].no_wrap = False
    for each in overview.shards:
        replicas = "unknown" if each.replicas is None else str(each.replicas)
        numbers = ", ".join(map(str, each.partitions)) or "none"
        _add(table, each.address or "none", "away" if each.problem else replicas, numbers)
    yield table


def _done(process: Process) -> str:
    if process.kind == "ingress":
        refused = sum(process.of("refused:").values())
        return f"accepted {process.counts.get('accepted:new', 0):,}, refused {refused:,}"
    if process.kind == "worker":
        under_way = sum(process.of("in_flight:").values())
        return f"settled {sum(process.of('settled:').values()):,}, {under_way:,} under way"
    return ""


def _per_second(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.1f}/s"


def _table(*columns: str) -> Table:
    """A narrow terminal folds names and breakers, but no number."""
    table = Table(*columns, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns:
        folds = column.header in ("processor", "breakers")
        column.no_wrap, column.min_width = not folds, len("fallback,") if folds else None
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))

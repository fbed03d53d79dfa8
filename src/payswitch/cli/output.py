"""Common parts of the operators' commands: Redis, tables, progress, one line for an error.

rich is loaded only for drawing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import click
import orjson
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.cli.main import read_settings
from payswitch.cli.terminal import is_output_full
from payswitch.instants import format_instant
from payswitch.operations.controls import Order
from payswitch.operations.shards import read_shards
from payswitch.settings import Settings, SettingsError
from payswitch.store import keys
from payswitch.store.client import Client, connect
from payswitch.store.errors import in_words
from payswitch.store.server_watch import wrong_currency
from payswitch.text import printable, shown

_REDIS_LIMIT_S = 10
_WIDE = 10_000
"""Lines in a file or a pipe aren't folded."""

Advance = Callable[[int], None]
"""Adds to the count of a progress bar."""


def run(command: Callable[[Settings, ArqRedis], Awaitable[int]], *, failed: int = 1) -> NoReturn:
    """Run a command that returns its exit code, and end the process with it.

    If Redis can't be used, or holds payments in another currency, print one line and exit with
    `failed`.
    """
    settings = read_settings()
    where = f"payswitch: Redis at {shown(settings.redis_url)}"

    async def connected() -> int:
        redis = connect(settings.redis_url, limit_s=_REDIS_LIMIT_S, deployment=settings.deployment)
        try:
            held = None
            with contextlib.suppress(RedisError, OSError):  # then the command tells it, or waits
                first = redis.partitions[0]
                held = await first.redis.get(first.key(keys.CURRENCY))
            if problem := wrong_currency(held, settings.currency_code):
                click.echo(f"{where}: {problem}", err=True)
                return failed
            return await command(settings, redis)
        except BrokenPipeError:  # no reader is left; click ends quietly
            raise
        except (RedisError, OSError) as error:
            if isinstance(error, OSError) and is_output_full(error):
                raise
            click.echo(f"{where}: {await _problem(redis, error)}", err=True)
            return failed
        finally:
            await redis.aclose(close_connection_pool=True)

    try:
        sys.exit(asyncio.run(connected()))
    except SettingsError as error:  # such as a connector that there is not
        click.echo(f"payswitch: {error}", err=True)
        sys.exit(failed)


async def _problem(redis: Client, error: Exception) -> str:
    """What went wrong; in a cluster also which nodes are away."""
    away = [f"{each.trouble} ({each.served})" for each in await read_shards(redis) if each.problem]
    if away and type(error) in (RedisConnectionError, RedisTimeoutError, TimeoutError):
        return "; ".join(away)
    return "; ".join([in_words(error), *away])


def print_json(document: Any) -> None:
    """Print one JSON document, indented."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def print_pairs(pairs: Mapping[str, str | None]) -> None:
    """Print each name with its value, made printable; skip None."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        if value is not None:
            click.echo(f"{name:<{width}}  {printable(value)}")


def in_order(order: Order) -> dict[str, str | None]:
    """An order's author, instant, reason and end, for people and JSON."""
    return {
        "by": order.by,
        "at": order.at,
        "reason": order.reason,
        "until": None if order.until_ms is None else format_instant(order.until_ms),
    }


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str]
) -> None:
    """Print a table with printable cells; columns in `numbers` are right-aligned. A narrow terminal
    folds all columns but the first, whose ids stay whole for copying."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE, title_style="bold")
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=column == columns[0],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    is_terminal = sys.stdout.isatty()
    console = Console() if is_terminal else Console(width=_WIDE, color_system=None)
    console.print(table)


class Lines:
    """A table that is printed page by page, for more rows than fit in memory. Columns are aligned
    to the rows so far."""

    def __init__(self, title: str, columns: Sequence[str], *, numbers: Sequence[str]) -> None:
        self._widths = [0] * (len(columns) - 1)
        self._is_number = [column in numbers for column in columns]
        self._heads: list[Sequence[str]] = [columns]
        click.echo(title)

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        """Print a page of rows."""
        page = [*self._heads, *([printable(cell) for cell in row] for row in rows)]
        self._heads = []
        self._widths = [
            max(width, *(len(row[at]) for row in page)) for at, width in enumerate(self._widths)
        ]
        click.echo("\n".join(map(self._line, page)))

    def _line(self, row: Sequence[str]) -> str:
        cells = zip(row, self._widths, self._is_number, strict=False)
        padded = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells]
        return "  ".join([*padded, row[-1]]).rstrip()


@contextlib.contextmanager
def progress(doing: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on standard error within the context, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.advance(task, done)

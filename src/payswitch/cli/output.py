"""What the operators' commands have in common: Redis, tables, progress, one line for what fails.

rich is loaded only where something is drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any

import click
import orjson
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from payswitch.cli.terminal import can_not_be_written
from payswitch.instants import format_instant
from payswitch.operations.controls import Order
from payswitch.settings import Settings
from payswitch.store.client import connect
from payswitch.store.errors import in_words
from payswitch.text import printable, shown

_REDIS_LIMIT_S = 10
_WIDE = 10_000
"""In a file or a pipe no line is folded."""

Advance = Callable[[int], None]
"""Tells a progress bar how many more are done."""


@contextlib.asynccontextmanager
async def redis_of(settings: Settings) -> AsyncIterator[ArqRedis]:
    """A client that is closed with the context."""
    client = connect(settings.redis_url, limit_s=_REDIS_LIMIT_S)
    try:
        yield client
    finally:
        await client.aclose(close_connection_pool=True)


def run(task: Coroutine[Any, Any, int], settings: Settings, *, failed: int = 1) -> int:
    """Run a command to its exit code; where Redis can't be asked, say so and return `failed`."""
    try:
        return asyncio.run(task)
    except BrokenPipeError:  # nobody reads what is printed; click ends quietly
        raise
    except (RedisError, OSError) as error:
        if isinstance(error, OSError) and can_not_be_written(error):
            raise
        problem = in_words(error)
    click.echo(f"payswitch: Redis at {shown(settings.redis_url)}: {problem}", err=True)
    return failed


def print_json(document: Any) -> None:
    """Print one JSON document, indented."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def print_pairs(pairs: Mapping[str, str | None]) -> None:
    """Print each name with its value, what isn't printable being spelled out; nothing of None."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        if value is not None:
            click.echo(f"{name:<{width}}  {printable(value)}")


def in_order(order: Order) -> dict[str, str | None]:
    """Who has ordered it, when, why, and until when, for `print_pairs`."""
    return {
        "by": order.by,
        "at": order.at,
        "reason": order.reason,
        "until": None if order.until_ms is None else format_instant(order.until_ms),
    }


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str]
) -> None:
    """Print a table, each cell as it is, what isn't printable being spelled out; columns in
    `numbers` are right-aligned. In a terminal that is too narrow all but the first column are
    folded: who it is can be copied."""
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
    """A table that is printed as its rows come, for more rows than anybody would hold in memory: a
    line each, as `print_table` has them, aligned as far as the rows so far tell."""

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
        """The last column is as wide as it is."""
        cells = zip(row, self._widths, self._is_number, strict=False)
        padded = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells]
        return "  ".join([*padded, row[-1]]).rstrip()


@contextlib.contextmanager
def progress(doing: str, total: int | None) -> Iterator[Advance]:
    """A bar on standard error while the context is open; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.advance(task, done)

"""`payswitch dead`: list dead letters, look into one, put them back into the backlog."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence

import click
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from payswitch.cli.arguments import parse_id, parse_ids
from payswitch.cli.main import fail
from payswitch.cli.output import Lines, print_json, print_pairs, progress, run
from payswitch.cli.records import in_words
from payswitch.instants import format_instant
from payswitch.money import format_cents
from payswitch.payments.dead_letters import DeadLetters, Replay
from payswitch.payments.records import Record, Unreadable
from payswitch.text import printable

_WHY_NOT = {
    Replay.QUEUED: "no dead letter: it waits to be paid",
    Replay.PROCESSING: "no dead letter: it is being paid",
    Replay.SETTLED: "no dead letter: it is paid",
    Replay.UNKNOWN: "no such payment",
    Replay.BROKEN: "its record can't be read",
}
_WHY_NOT_OF_ALL = {**_WHY_NOT, Replay.UNKNOWN: "a dead letter without a record"}


@click.group()
def dead() -> None:
    """Payments that could not be paid: list them, look into one, put them back.

    Example: payswitch dead list
    """


@dead.command("list")
@click.option("--limit", default=100, type=click.IntRange(1), help="Show at most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(limit: int, as_json: bool) -> None:
    """List dead letters, the newest first, and how many there are.

    Example: payswitch dead list --limit 20
    """
    run(lambda _, redis: _list(redis, limit, as_json=as_json))


@dead.command()
@click.argument("correlation_id", metavar="ID", callback=parse_id)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(correlation_id: str, as_json: bool) -> None:
    """Show all that is known of a payment, also of one that was replayed.

    Example: payswitch dead show 4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3
    """
    run(lambda _, redis: _show(redis, correlation_id, as_json=as_json))


@dead.command()
@click.argument("correlation_ids", metavar="[ID]...", nargs=-1, callback=parse_ids)
@click.option("--all", "everything", is_flag=True, help="All that are dead letters now.")
def replay(correlation_ids: tuple[str, ...], everything: bool) -> None:
    """Put dead letters back into the backlog, to be paid now. Their processors are asked first, so
    what was paid after all isn't paid again.

    Exit code 1 where an ID is no dead letter; the others are replayed.

    Example: payswitch dead replay --all
    """
    if everything == bool(correlation_ids):
        raise click.UsageError("name payments by their IDs, or say --all")
    run(lambda _, redis: _replay(redis, correlation_ids))


async def _list(redis: ArqRedis, limit: int, *, as_json: bool) -> int:
    letters = DeadLetters(redis)
    total = await letters.count()
    if as_json:
        print_json(_document(total, await letters.newest(limit)))
    elif total:
        await _print_pages(total, limit, letters.pages(limit))
    else:
        click.echo("There are no dead letters.")
    return 0


def _document(total: int, found: Sequence[Record | Unreadable]) -> dict[str, object]:
    return {
        "total": total,
        "deadLetters": [each.as_json() for each in found if isinstance(each, Record)],
        "unreadable": [
            {"correlationId": each.correlation_id, "problem": each.problem}
            for each in found
            if isinstance(each, Unreadable)
        ],
    }


async def _print_pages(
    total: int, limit: int, pages: AsyncIterator[list[Record | Unreadable]]
) -> None:
    """Print each page as it is read: a million of them don't fit in memory."""
    lines = Lines(
        f"{min(total, limit)} of {total} dead letters, the newest first",
        ("payment", "amount", "died at", "processor", "tries", "reason"),
        numbers=("amount", "tries"),
    )
    unreadable = 0
    async for page in pages:
        lines.print(map(_row, page))
        unreadable += sum(isinstance(letter, Unreadable) for letter in page)
    if unreadable:
        click.echo(f"{unreadable} of them unreadable: see docs/dead-letters.md")


def _row(letter: Record | Unreadable) -> tuple[str, ...]:
    if isinstance(letter, Unreadable):
        return letter.correlation_id, "", "", "", "", f"unreadable: {letter.problem}"
    return (
        letter.correlation_id,
        format_cents(letter.cents),
        "never" if letter.dead_at is None else format_instant(letter.dead_at),
        letter.processor or "none",
        str(letter.tries),
        letter.reason or "",
    )


async def _show(redis: ArqRedis, correlation_id: str, *, as_json: bool) -> int:
    record = await DeadLetters(redis).find(correlation_id)
    if record is None:
        fail(f"{correlation_id}: no such payment")
    if isinstance(record, Unreadable):
        fail(f"{correlation_id}: unreadable: {printable(record.problem)}")
    if as_json:
        print_json(record.as_json())
    else:
        print_pairs(in_words(record))
    return 0


async def _replay(redis: ArqRedis, ids: Sequence[str]) -> int:
    """Replay these payments; all dead letters if there are none."""
    counts: Counter[Replay] = Counter()
    letters = DeadLetters(redis)
    pages = letters.replay(ids) if ids else letters.replay_all()
    try:
        with progress("replaying", len(ids) or await letters.count()) as advance:
            async for verdicts in pages:
                _explain(verdicts, _WHY_NOT if ids else _WHY_NOT_OF_ALL)
                counts.update(verdicts.values())
                advance(len(verdicts))
    except (RedisError, OSError):
        if counts:
            click.echo(f"{counts[Replay.REPLAYED]} replayed before it failed")
        raise
    click.echo(f"{counts[Replay.REPLAYED]} replayed")
    return 0 if counts.total() == counts[Replay.REPLAYED] else 1


def _explain(verdicts: Mapping[str, Replay], why_not: Mapping[Replay, str]) -> None:
    for correlation_id, verdict in verdicts.items():
        if verdict is not Replay.REPLAYED:
            click.echo(f"payswitch: {printable(correlation_id)}: {why_not[verdict]}", err=True)

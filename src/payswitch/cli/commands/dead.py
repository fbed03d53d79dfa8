"""`payswitch dead`: list dead letters, look into one, put them back, resolve them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from payswitch.cli.arguments import parse_age, parse_id, parse_ids, signed, signed_with_reason
from payswitch.cli.main import fail
from payswitch.cli.output import Lines, print_json, print_pairs, print_table, progress, run
from payswitch.cli.records import in_words
from payswitch.instants import format_instant
from payswitch.money import Currency
from payswitch.payments.audit import Signature
from payswitch.payments.dead_letters import ALL, DeadLetters, Filter, Handling, Letter
from payswitch.payments.records import Record, Unreadable
from payswitch.settings import Settings
from payswitch.text import printable

_WHY_NOT = {
    Handling.QUEUED: "no dead letter: it waits to be paid",
    Handling.PROCESSING: "no dead letter: it is being paid",
    Handling.SETTLED: "no dead letter: it is paid",
    Handling.DECLINED: "no dead letter: its processor declined it",
    Handling.RESOLVED: "it is resolved already",
    Handling.UNKNOWN: "no such payment",
    Handling.BROKEN: "its record can't be read",
}
_WHY_NOT_REPLAYED = {
    **_WHY_NOT,
    Handling.RESOLVED: "it is resolved, so a replay may pay it twice; --even-resolved replays it",
}
_WHY_NOT_OF_ALL = {**_WHY_NOT, Handling.UNKNOWN: "a dead letter without a record"}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def filtered(command: _Command) -> _Command:
    """Add the options that choose among the dead letters."""
    for option in (
        click.option(
            "--younger-than", callback=parse_age, metavar="DURATION", help="Died since then."
        ),
        click.option(
            "--older-than", callback=parse_age, metavar="DURATION", help="Died before that."
        ),
        click.option("--processor", metavar="NAME", help="Pinned to it; `none` if never sent."),
        click.option("--with-reason", metavar="TEXT", help="Has this in its reason, in any case."),
    ):
        command = option(command)
    return command


def _filter(options: Mapping[str, Any]) -> Filter:
    return Filter(
        reason=options["with_reason"],
        processor=options["processor"],
        older_than_ms=options["older_than"],
        younger_than_ms=options["younger_than"],
    )


@click.group()
def dead() -> None:
    """Payments that could not be paid: list them, look into one, put them back, resolve them.

    Example: payswitch dead list
    """


@dead.command("list")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1), help="Show at most so many."
)
@filtered
@click.option("--resolved", is_flag=True, help="Those that operators have resolved.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(limit: int, resolved: bool, as_json: bool, **options: Any) -> None:
    """List the dead letters that nobody has resolved, the newest first, and how many there are.

    Example: payswitch dead list --with-reason 'status 422' --older-than 1h
    """
    wanted = _filter(options)
    if resolved and wanted != ALL:
        raise click.UsageError("--resolved goes with no filter")
    if resolved:
        run(lambda settings, redis: _list_resolved(settings, redis, limit, as_json=as_json))
    run(lambda settings, redis: _list(redis, limit, wanted, settings.currency, as_json=as_json))


@dead.command()
@click.argument("correlation_id", metavar="ID", callback=parse_id)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(correlation_id: str, as_json: bool) -> None:
    """Show all that is known of a payment, also of one that was replayed.

    Example: payswitch dead show 4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3
    """
    run(lambda settings, redis: _show(redis, correlation_id, settings.currency, as_json=as_json))


@dead.command()
@click.argument("correlation_ids", metavar="[ID]...", nargs=-1, callback=parse_ids)
@click.option("--all", "everything", is_flag=True, help="All that are dead letters now.")
@filtered
@click.option("--even-resolved", is_flag=True, help="Also resolved ones: they may be paid twice.")
@signed
def replay(
    correlation_ids: tuple[str, ...],
    everything: bool,
    even_resolved: bool,
    by: str,
    reason: str | None,
    **options: Any,
) -> None:
    """Put dead letters back into the backlog, to be paid now. Their processors are asked first, so
    what was paid after all isn't paid again. Resolved ones stay, as they may be paid elsewhere.

    Exit code 1 where an ID is no dead letter; the others are replayed.

    Example: payswitch dead replay --all --processor default
    """
    if everything == bool(correlation_ids):
        raise click.UsageError("name payments by their IDs, or say --all")
    wanted = _filter(options)
    if correlation_ids and wanted != ALL:
        raise click.UsageError("filters go with --all")
    if everything and even_resolved:
        raise click.UsageError("--even-resolved goes with IDs")
    signature = Signature(by, reason)
    if everything:
        run(lambda _, redis: _replay_all(redis, signature, wanted))
    run(lambda _, redis: _replay_ids(redis, correlation_ids, signature, even_resolved))


@dead.command()
@click.argument("correlation_ids", metavar="ID...", nargs=-1, required=True, callback=parse_ids)
@signed_with_reason
def resolve(correlation_ids: tuple[str, ...], by: str, reason: str) -> None:
    """Note that dead letters are settled outside, and how: paid by hand, refunded, written off.
    Payswitch never pays them again. They leave the list, and the page and the alert no longer count
    them.

    Exit code 1 where an ID is no dead letter; the others are resolved.

    \b
    Example: payswitch dead resolve 4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3 --reason refunded
    """
    signature = Signature(by, reason)
    run(lambda settings, redis: _resolve(settings, redis, correlation_ids, signature))


async def _list(
    redis: ArqRedis, limit: int, wanted: Filter, currency: Currency, *, as_json: bool
) -> int:
    letters = DeadLetters(redis)
    total = await letters.count()
    if as_json:
        print_json(_document(total, await letters.newest(limit, wanted), currency))
    elif not total:
        click.echo("There are no dead letters.")
    elif wanted == ALL:
        title = f"{min(total, limit)} of {total} dead letters, the newest first"
        await _print_pages(title, letters.pages(limit), currency)
    else:
        title = "the dead letters that fit, the newest first"
        shown = await _print_pages(title, letters.pages(limit, wanted), currency)
        click.echo(f"{shown} of {total} dead letters shown")
    return 0


async def _list_resolved(settings: Settings, redis: ArqRedis, limit: int, *, as_json: bool) -> int:
    letters = await DeadLetters(redis).resolved(limit, settings.retention_ms)
    if as_json:
        print_json(_document(len(letters), letters, settings.currency))
    elif not letters:
        click.echo("There are no resolved dead letters.")
    else:
        columns = ("payment", "amount", "reason", "resolved at", "by", "how")
        rows = [_resolved_row(letter, settings.currency) for letter in letters]
        title = f"{len(letters)} resolved dead letters, the last first"
        print_table(title, columns, rows, numbers=("amount",))
    return 0


def _document(total: int, found: Sequence[Letter], currency: Currency) -> dict[str, object]:
    return {
        "total": total,
        "deadLetters": [each.as_json(currency) for each in found if isinstance(each, Record)],
        "unreadable": [
            {"correlationId": each.correlation_id, "problem": each.problem}
            for each in found
            if isinstance(each, Unreadable)
        ],
    }


async def _print_pages(title: str, pages: AsyncIterator[list[Letter]], currency: Currency) -> int:
    """Print each page as it is read: a million of them don't fit in memory. Returns how many."""
    lines = Lines(
        title,
        ("payment", "amount", "died at", "processor", "tries", "reason"),
        numbers=("amount", "tries"),
    )
    shown = unreadable = 0
    async for page in pages:
        lines.print(_row(letter, currency) for letter in page)
        shown += len(page)
        unreadable += sum(isinstance(letter, Unreadable) for letter in page)
    if unreadable:
        click.echo(f"{unreadable} of them unreadable: see docs/dead-letters.md")
    return shown


def _row(letter: Letter, currency: Currency) -> tuple[str, ...]:
    if isinstance(letter, Unreadable):
        return letter.correlation_id, "", "", "", "", f"unreadable: {letter.problem}"
    return (
        letter.correlation_id,
        currency.format_cents(letter.cents),
        "never" if letter.dead_at is None else format_instant(letter.dead_at),
        letter.processor or "none",
        str(letter.tries),
        letter.reason or "",
    )


def _resolved_row(letter: Letter, currency: Currency) -> tuple[str, ...]:
    if isinstance(letter, Unreadable):
        return letter.correlation_id, "", f"unreadable: {letter.problem}", "", "", ""
    how = letter.resolution
    return (
        letter.correlation_id,
        currency.format_cents(letter.cents),
        letter.reason or "",
        "" if how is None else format_instant(how.at),
        "" if how is None else how.by,
        "" if how is None else how.reason,
    )


async def _show(redis: ArqRedis, correlation_id: str, currency: Currency, *, as_json: bool) -> int:
    record = await DeadLetters(redis).find(correlation_id)
    if record is None:
        fail(f"{correlation_id}: no such payment")
    if isinstance(record, Unreadable):
        fail(f"{correlation_id}: unreadable: {printable(record.problem)}")
    if as_json:
        print_json(record.as_json(currency))
    else:
        print_pairs(in_words(record, currency))
    return 0


async def _replay_ids(
    redis: ArqRedis, ids: Sequence[str], signature: Signature, even_resolved: bool
) -> int:
    pages = DeadLetters(redis).replay(ids, signature, even_resolved=even_resolved)
    return await _replay(pages, len(ids), _WHY_NOT_REPLAYED)


async def _replay_all(redis: ArqRedis, signature: Signature, wanted: Filter) -> int:
    letters = DeadLetters(redis)
    pages = letters.replay_all(signature, wanted)
    return await _replay(pages, await letters.count(), _WHY_NOT_OF_ALL)


async def _replay(
    pages: AsyncIterator[Mapping[str, Handling]], most: int, why_not: Mapping[Handling, str]
) -> int:
    counts: Counter[Handling] = Counter()
    try:
        with progress("replaying", most) as advance:
            async for verdicts in pages:
                _explain(verdicts, why_not)
                counts.update(verdicts.values())
                advance(len(verdicts))
    except (RedisError, OSError):
        if counts:
            click.echo(f"{counts[Handling.DONE]} replayed before it failed")
        raise
    click.echo(f"{counts[Handling.DONE]} replayed")
    return 0 if counts.total() == counts[Handling.DONE] else 1


async def _resolve(
    settings: Settings, redis: ArqRedis, ids: Sequence[str], signature: Signature
) -> int:
    letters = DeadLetters(redis)
    verdicts = await letters.resolve(ids, signature, retention_ms=settings.retention_ms)
    _explain(verdicts, _WHY_NOT)
    done = sum(verdict is Handling.DONE for verdict in verdicts.values())
    click.echo(f"{done} resolved")
    return 0 if done == len(verdicts) else 1


def _explain(verdicts: Mapping[str, Handling], why_not: Mapping[Handling, str]) -> None:
    for correlation_id, verdict in verdicts.items():
        if verdict is not Handling.DONE:
            click.echo(f"payswitch: {printable(correlation_id)}: {why_not[verdict]}", err=True)

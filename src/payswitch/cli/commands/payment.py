"""`payswitch payment`: the record, the history and the next step of one payment."""

from __future__ import annotations

from typing import Any

import click
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from payswitch.cli.arguments import parse_id
from payswitch.cli.main import fail
from payswitch.cli.output import print_json, print_pairs, run
from payswitch.cli.records import in_words
from payswitch.instants import LATEST_MS, format_instant
from payswitch.money import Currency
from payswitch.operations.controls import Controls, Order
from payswitch.operations.reconcile import Incident, read_incidents
from payswitch.payments.dead_letters import DeadLetters
from payswitch.payments.records import Record, Unreadable
from payswitch.store import keys
from payswitch.text import printable

_Event = tuple[int, str]
"""Its instant (ms since the epoch by Redis' clock) and its words."""


@click.command()
@click.argument("correlation_id", metavar="ID", callback=parse_id)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def payment(correlation_id: str, as_json: bool) -> None:
    """Show a payment's record and history, whatever its state.

    Exit code 1 where the ID is unknown: never accepted, purged, or expired since it was settled.

    Example: payswitch payment 4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3
    """
    run(lambda settings, redis: _payment(redis, correlation_id, settings.currency, as_json=as_json))


async def _payment(redis: Redis, correlation_id: str, currency: Currency, *, as_json: bool) -> int:
    record = await DeadLetters(redis).find(correlation_id)
    due = await redis.zscore(keys.QUEUE, correlation_id)
    paused = await Controls(redis).paused()
    ahead = await _ahead(redis, record)
    incidents = [
        each for each in await read_incidents(redis) if each.correlation_id == correlation_id
    ]
    if record is None:
        fail(f"{correlation_id}: no such payment")
    if isinstance(record, Unreadable):
        fail(f"{correlation_id}: unreadable: {printable(record.problem)}")
    due_at = None
    if due is not None and record.state == "queued":
        due_at = int(min(max(due, 0), LATEST_MS))
    events = _history(record, incidents)
    if as_json:
        document = record.as_json(currency)
        print_json(document | _beyond(record, due_at, ahead, paused, events))
        return 0
    print_pairs({**in_words(record, currency), "next": _next(record, due_at, ahead, paused)})
    click.echo("\nhistory")
    for at, what in events:
        click.echo(f"{format_instant(at)}  {printable(what)}")
    return 0


async def _ahead(redis: Redis, record: Record | Unreadable | None) -> int | None:
    """The number of payments before it in its processor's line; None if it isn't in one."""
    if not isinstance(record, Record) or record.processor is None or record.state != "queued":
        return None
    try:
        rank = await redis.zrank(keys.waiting(record.processor), record.correlation_id)
    except ResponseError:  # the key is of another type
        return None
    return None if rank is None else int(rank)


def _next(
    record: Record, due_at: int | None, ahead: int | None, paused: Order | None
) -> str | None:
    if due_at is None:
        return None
    if paused is None:
        at = f"a try from {format_instant(due_at)} on"
        if ahead is None:
            return at
        return f"{at}, sooner once {record.processor} answers; {ahead} wait for it before this one"
    until = "payswitch resume" if paused.until_ms is None else format_instant(paused.until_ms)
    return f"nothing until {until}: paused by {paused.by}"


def _history(record: Record, incidents: list[Incident]) -> list[_Event]:
    """The events of a payment, the oldest first."""
    is_settled = record.state == "settled"
    pinned = (
        f"requested from {record.processor}"
        if is_settled
        else f"pinned to {record.processor}, tries in all: {record.tries}"
    )
    known: list[tuple[int | None, str]] = [
        (record.accepted_at, "accepted"),
        (record.requested_at, pinned),
        (record.dead_at, f"dead letter: {record.reason}"),
        (record.replayed_at, "a dead letter, put back by an operator"),
        (record.settled_at, f"settled: paid by {record.processor}, tries in all: {record.tries}"),
        *(
            (
                each.at,
                f"incident: {each.paid_by} has it, though pinned to {each.pinned or 'nobody'}",
            )
            for each in incidents
        ),
    ]
    return sorted(((at, what) for at, what in known if at is not None), key=lambda event: event[0])


def _beyond(
    record: Record,
    due_at: int | None,
    ahead: int | None,
    paused: Order | None,
    events: list[_Event],
) -> dict[str, Any]:
    """What JSON has beyond the record."""
    return {
        "dueAt": None if due_at is None else format_instant(due_at),
        "waitsFor": None if ahead is None else record.processor,
        "paused": paused is not None,
        "history": [{"at": format_instant(at), "what": what} for at, what in events],
    }

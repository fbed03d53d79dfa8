"""`payswitch payment`: the record, the history and the next step of one payment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import click
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from payswitch.cli.arguments import parse_id
from payswitch.cli.main import fail
from payswitch.cli.output import print_json, print_pairs, run
from payswitch.cli.records import in_words
from payswitch.instants import LATEST_MS, format_instant
from payswitch.operations.controls import Controls, Order
from payswitch.payments.dead_letters import DeadLetters
from payswitch.payments.history import Event
from payswitch.payments.incidents import Incident, Incidents
from payswitch.payments.records import Record, Unreadable
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.client import partitions_of
from payswitch.store.partitions import Partition
from payswitch.text import printable


@click.command()
@click.argument("correlation_id", metavar="ID", callback=parse_id)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def payment(correlation_id: str, as_json: bool) -> None:
    """Show a payment's record and history, whatever its state.

    Exit code 1 where the ID is unknown: never accepted, purged, or expired since it was settled.

    Example: payswitch payment 4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3
    """
    run(lambda settings, redis: _payment(settings, redis, correlation_id, as_json=as_json))


async def _payment(settings: Settings, redis: Redis, correlation_id: str, *, as_json: bool) -> int:
    record = await DeadLetters(redis).find(correlation_id)
    partition = partitions_of(redis).of(correlation_id)
    job_id = partition.job_id(correlation_id)
    due = await partition.redis.zscore(partition.key(keys.QUEUE), job_id)
    paused = await Controls(redis).paused()
    ahead = await _ahead(partition, record)
    held_for = await _held_for(partition, record, settings.processor_urls)
    of_all = Incidents(redis, retention_ms=settings.retention_ms)
    incidents = [
        each
        for each in (*await of_all.unresolved(), *await of_all.resolved())
        if each.correlation_id == correlation_id
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
        document = record.as_json(settings.currency)
        document |= _beyond(record, due_at, ahead, held_for, paused, events)
        print_json(document | _place(partition, correlation_id))
        return 0
    print_pairs(
        {
            **in_words(record, settings.currency),
            "next": _next(record, due_at, ahead, held_for, paused),
            **_place(partition, correlation_id),
        }
    )
    click.echo("\nhistory")
    for event in events:
        click.echo(f"{format_instant(event.at)}  {printable(event.what)}")
    return 0


async def _ahead(partition: Partition, record: Record | Unreadable | None) -> int | None:
    """The number of payments before it in its processor's line; None if it isn't in one."""
    if not isinstance(record, Record) or record.processor is None or record.state != "queued":
        return None
    try:
        line = partition.family(keys.WAITING, record.processor)
        rank = await partition.redis.zrank(line, partition.job_id(record.correlation_id))
    except ResponseError:  # the key is of another type
        return None
    return None if rank is None else int(rank)


async def _held_for(
    partition: Partition, record: Record | Unreadable | None, processors: Iterable[str]
) -> str | None:
    """The processor for which it is held until that works again; None if it isn't."""
    if not isinstance(record, Record) or record.state != "queued":
        return None
    for name in processors:
        with contextlib.suppress(ResponseError):  # the key is of another type
            line = partition.family(keys.HELD, name)
            if await partition.redis.zscore(line, partition.job_id(record.correlation_id)):
                return name
    return None


def _place(partition: Partition, correlation_id: str) -> dict[str, Any]:
    """In a cluster: the key of the record, and the node that has it."""
    if not partition.tag:
        return {}
    return {"key": partition.record(correlation_id), "node": partition.home}


def _next(
    record: Record,
    due_at: int | None,
    ahead: int | None,
    held_for: str | None,
    paused: Order | None,
) -> str | None:
    if due_at is None:
        return None
    if paused is None:
        at = f"a try from {format_instant(due_at)} on"
        if held_for is not None:
            return f"{at}, sooner once {held_for} works again: it is held until then"
        if ahead is None:
            return at
        return f"{at}, sooner once {record.processor} answers; {ahead} wait for it before this one"
    until = "payswitch resume" if paused.until_ms is None else format_instant(paused.until_ms)
    return f"nothing until {until}: paused by {paused.by}"


def _history(record: Record, incidents: Sequence[Incident]) -> list[Event]:
    """The events of a payment, the oldest first."""
    is_settled = record.state == "settled"
    pinned = (
        f"requested from {record.processor}"
        if is_settled
        else f"pinned to {record.processor}, tries in all: {record.tries}"
    )
    how = record.resolution
    known: list[tuple[int | None, str]] = [
        (record.accepted_at, "accepted"),
        (record.requested_at, pinned),
        (record.dead_at, f"dead letter: {record.reason}"),
        (None if how is None else how.at, f"resolved {how}"),
        (record.settled_at, f"settled: paid by {record.processor}, tries in all: {record.tries}"),
        *((each.at, f"incident: {each}") for each in incidents),
        *(
            (each.resolution.at, f"incident resolved {each.resolution}")
            for each in incidents
            if each.resolution is not None
        ),
    ]
    events = [*record.history, *(Event(at, what) for at, what in known if at is not None)]
    return sorted(events, key=lambda event: event.at)


def _beyond(
    record: Record,
    due_at: int | None,
    ahead: int | None,
    held_for: str | None,
    paused: Order | None,
    events: list[Event],
) -> dict[str, Any]:
    """What JSON has beyond the record."""
    return {
        "dueAt": None if due_at is None else format_instant(due_at),
        "waitsFor": None if ahead is None else record.processor,
        "heldFor": held_for,
        "paused": paused is not None,
        "history": [{"at": format_instant(each.at), "what": each.what} for each in events],
    }

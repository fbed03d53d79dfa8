"""`payswitch incidents`: list proofs of payment that match no pin, and resolve them."""

from __future__ import annotations

from typing import Any

import click
from arq.connections import ArqRedis

from payswitch.cli.arguments import parse_ids, signed_with_reason
from payswitch.cli.output import print_json, print_table, run
from payswitch.instants import EARLIEST_MS, LATEST_MS, format_instant
from payswitch.payments.audit import Signature
from payswitch.payments.incidents import Incident, Incidents
from payswitch.settings import Settings


@click.group()
def incidents() -> None:
    """Proofs of payment that match no pin: somebody may have been paid twice.

    Example: payswitch incidents list
    """


@incidents.command("list")
@click.option("--resolved", is_flag=True, help="Those that operators have resolved.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(resolved: bool, as_json: bool) -> None:
    """List the incidents that nobody has resolved, the oldest first.

    Example: payswitch incidents list --json
    """
    run(lambda settings, redis: _list(settings, redis, resolved=resolved, as_json=as_json))


@incidents.command()
@click.argument("correlation_ids", metavar="ID...", nargs=-1, required=True, callback=parse_ids)
@signed_with_reason
def resolve(correlation_ids: tuple[str, ...], by: str, reason: str) -> None:
    """Note that the incidents of these payments are settled, and how. They leave the list, and the
    page and the alert no longer count them.

    Exit code 1 where a payment has no incident; the others are resolved.

    \b
    Example: payswitch incidents resolve 4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3 --reason reclaimed
    """
    signature = Signature(by, reason)
    run(lambda settings, redis: _resolve(settings, redis, correlation_ids, signature))


async def _list(settings: Settings, redis: ArqRedis, *, resolved: bool, as_json: bool) -> int:
    found = Incidents(redis, retention_ms=settings.retention_ms)
    entries = await (found.resolved() if resolved else found.unresolved())
    if as_json:
        print_json({"incidents": [_as_json(each) for each in entries]})
    elif not entries:
        click.echo(f"There are no {'resolved ' if resolved else ''}incidents.")
    else:
        title = f"{len(entries)} {'resolved ' if resolved else ''}incidents"
        columns = ("payment", "at", "paid by", "pinned to", "requestedAt", "what", "resolved")
        print_table(title, columns, map(_row, entries), numbers=())
    return 0


async def _resolve(
    settings: Settings, redis: ArqRedis, ids: tuple[str, ...], signature: Signature
) -> int:
    found = Incidents(redis, retention_ms=settings.retention_ms)
    counts = await found.resolve(ids, signature)
    for correlation_id, count in counts.items():
        if not count:
            click.echo(f"payswitch: {correlation_id}: it has no incident", err=True)
    click.echo(f"{sum(counts.values())} resolved")
    return 0 if all(counts.values()) else 1


def _row(incident: Incident) -> tuple[str, ...]:
    how = incident.resolution
    return (
        incident.correlation_id,
        _instant(incident.at) or "",
        incident.paid_by or "",
        incident.pinned or "",
        _instant(incident.requested_at) or "",
        incident.what or "unreadable",
        "" if how is None else f"{format_instant(how.at)} {how}",
    )


def _as_json(incident: Incident) -> dict[str, Any]:
    return {
        "correlationId": incident.correlation_id,
        "at": _instant(incident.at),
        "paidBy": incident.paid_by,
        "pinned": incident.pinned,
        "requestedAt": _instant(incident.requested_at),
        "what": incident.what,
        "resolution": incident.resolution and incident.resolution.as_json(),
    }


def _instant(ms: int | None) -> str | None:
    return None if ms is None else format_instant(min(max(ms, EARLIEST_MS), LATEST_MS))

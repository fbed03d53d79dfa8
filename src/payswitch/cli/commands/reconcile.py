"""`payswitch reconcile`: our ledger against the processors' books."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import click
import orjson
from arq.connections import ArqRedis
from redis.asyncio import Redis

from payswitch.cli.output import print_json, print_table, progress, run
from payswitch.instants import EARLIEST_MS, LATEST_MS, format_instant, parse_instant_ms
from payswitch.money import Currency, Total
from payswitch.operations.comparison import Differing
from payswitch.operations.reconcile import ReconcileReport, Reconciliation
from payswitch.payments.incidents import Incident
from payswitch.payments.ledger import Ledger
from payswitch.processors.outcomes import Found
from payswitch.processors.processor import CannotAskError, make_processors, make_transport
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.notes import write_note
from payswitch.text import printable

_UNKNOWN = 2
"""The exit code if Redis or a processor can't be asked."""
_MOST_ROWS = 100
"""The most payments in a table; JSON has all."""
_FOLDED = "that far back the ledger keeps sums of whole entries (docs/reconciliation.md)"


def _parse_bound(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_instant_ms(text)
    except (ValueError, OverflowError):
        raise click.BadParameter("not an instant such as 2026-11-22T16:05:00.123Z") from None


@click.command()
@click.option("--from", "first", callback=_parse_bound, metavar="INSTANT", help="Inclusive.")
@click.option("--to", "last", callback=_parse_bound, metavar="INSTANT", help="Inclusive.")
@click.option("--thorough", is_flag=True, help="Look every payment up, also where totals agree.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reconcile(first: int | None, last: int | None, thorough: bool, as_json: bool) -> None:
    """Compare our ledger with the processors' books, payment by payment where they differ.

    An INSTANT is ISO-8601, in UTC if it says nothing else; without one there is no bound. Exit code
    0: all is equal; 1: something differs; 2: unknown, as Redis or a processor can't be asked.

    Example: payswitch reconcile --from 2026-11-22T16:00:00Z
    """
    if first is not None and last is not None and first > last:
        raise click.UsageError("--from is later than --to")
    run(
        lambda settings, redis: _reconcile(
            settings, redis, first, last, thorough=thorough, as_json=as_json
        ),
        failed=_UNKNOWN,
    )


async def _reconcile(
    settings: Settings,
    redis: ArqRedis,
    first: int | None,
    last: int | None,
    *,
    thorough: bool,
    as_json: bool,
) -> int:
    transport = make_transport(settings)
    ledger = Ledger(
        redis, processors=list(settings.processor_urls), retention_ms=settings.retention_ms
    )
    try:
        with progress("payments looked at", None) as advance:
            report = await Reconciliation(
                redis,
                ledger,
                make_processors(settings, transport),
                on_looked_up=advance,
            ).run(first, last, thorough=thorough)
        await _note(redis, report)
    except CannotAskError as error:
        click.echo(f"payswitch: {printable(str(error))}", err=True)
        return _UNKNOWN
    finally:
        await transport.aclose()
    if as_json:
        print_json(_as_json(report, settings.currency))
    else:
        if first is not None and report.windows[0].first < first:
            click.echo(f"Compared from {_instant(report.windows[0].first)}: {_FOLDED}")
        if last is not None and report.windows[-1].last > last:
            click.echo(f"Compared to {_instant(report.windows[-1].last)}: {_FOLDED}")
        _print(report, settings.currency)
    return 0 if report.equal else 1


async def _note(redis: Redis, report: ReconcileReport) -> None:
    """Store the result for the overview."""
    differences = sum(
        map(len, (report.payments, report.unexplained, report.incidents, report.unreadable))
    )
    document = {
        "at": time.time_ns() // 1_000_000,
        "differences": differences or int(not report.equal),
        "windows": [[window.first, window.last] for window in report.windows],
    }
    await write_note(redis, keys.RECONCILED, document)


def _print(report: ReconcileReport, currency: Currency) -> None:
    _print_totals(report, currency)
    if report.without_totals:
        names = ", ".join(report.without_totals)
        click.echo(f"Without totals, as their connectors can't ask for them: {names}")
    if report.payments:
        shown = report.payments[:_MOST_ROWS]
        print_table(
            f"{len(shown)} of {len(report.payments)} payments that differ",
            ("payment", "difference", "ours", *report.ours),
            (_payment_row(each, report.ours, currency) for each in shown),
            numbers=(),
        )
    if report.unreadable:
        gone = report.unreadable[:_MOST_ROWS]
        print_table(
            f"{len(gone)} of {len(report.unreadable)} payments whose record is gone or spoilt",
            ("payment", "what is wrong"),
            ((each.correlation_id, each.problem) for each in gone),
            numbers=(),
        )
    if report.unexplained:
        print_table(
            "Payments that we have no record of: expired, purged, or never ours",
            ("processor", "from", "to", "payments", "amount"),
            (
                (
                    each.processor,
                    _instant(each.window.first),
                    _instant(each.window.last),
                    f"{each.missing_here.count:+}",
                    _signed(each.missing_here.cents, currency),
                )
                for each in report.unexplained
            ),
            numbers=("payments", "amount"),
        )
    if report.incidents:
        print_table(
            "Incidents: proofs of payment that match no pin",
            ("payment", "paid by", "pinned to", "requested at", "noticed at"),
            map(_incident_row, report.incidents),
            numbers=(),
        )
    click.echo("All is equal." if report.equal else "There are differences.")


def _print_totals(report: ReconcileReport, currency: Currency) -> None:
    rows: list[tuple[str, ...]] = []
    for name in report.ours:
        ours, theirs = report.ours[name], report.theirs[name]
        missing = theirs - ours
        rows += [
            (name, "ours", str(ours.count), currency.format_cents(ours.cents)),
            ("", "theirs", str(theirs.count), currency.format_cents(theirs.cents)),
            ("", "difference", f"{missing.count:+}", _signed(missing.cents, currency)),
        ]
    columns = ("processor", "", "payments", "amount")
    print_table("Totals", columns, rows, numbers=columns[2:])


def _payment_row(
    payment: Differing, processors: Iterable[str], currency: Currency
) -> tuple[str, ...]:
    record = payment.record
    instant = "" if record.requested_at is None else f", {_instant(record.requested_at)}"
    ours = f"{record.state}, {record.processor}, {currency.format_cents(record.cents)}{instant}"
    theirs = (_their_side(payment.theirs.get(name), currency) for name in processors)
    return record.correlation_id, payment.kind.value, ours, *theirs


def _their_side(found: Found | None, currency: Currency) -> str:
    if found is None:
        return "nothing"
    return f"{currency.format_cents(found.cents)}, {_instant(found.requested_at)}"


def _incident_row(incident: Incident) -> tuple[str, ...]:
    return (
        incident.correlation_id,
        incident.paid_by or "",
        incident.pinned or "",
        _instant_if_any(incident.requested_at) or "",
        _instant_if_any(incident.at) or "",
    )


def _signed(cents: int, currency: Currency) -> str:
    amount = currency.format_cents(cents)
    return f"+{amount}" if cents >= 0 else amount


def _instant(ms: int) -> str:
    return format_instant(min(max(ms, EARLIEST_MS), LATEST_MS))


def _instant_if_any(ms: int | None) -> str | None:
    return None if ms is None else _instant(ms)


def _total(total: Total, currency: Currency) -> dict[str, Any]:
    return {
        "totalRequests": total.count,
        "totalAmount": orjson.Fragment(currency.format_cents(total.cents)),
    }


def _found(found: Found | None, currency: Currency) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "amount": orjson.Fragment(currency.format_cents(found.cents)),
        "requestedAt": _instant(found.requested_at),
    }


def _payment(each: Differing, currency: Currency) -> dict[str, Any]:
    record = each.record
    return {
        "correlationId": record.correlation_id,
        "difference": each.kind.value,
        "ours": {
            "state": record.state,
            "processor": record.processor,
            "amount": orjson.Fragment(currency.format_cents(record.cents)),
            "requestedAt": _instant_if_any(record.requested_at),
        },
        "theirs": {name: _found(found, currency) for name, found in each.theirs.items()},
    }


def _as_json(report: ReconcileReport, currency: Currency) -> dict[str, Any]:
    return {
        "equal": report.equal,
        "windows": [
            {"from": _instant(window.first), "to": _instant(window.last)}
            for window in report.windows
        ],
        "totals": {
            name: {
                "ours": _total(ours, currency),
                "theirs": _total(report.theirs[name], currency),
                "difference": _total(report.theirs[name] - ours, currency),
            }
            for name, ours in report.ours.items()
        },
        "payments": [_payment(each, currency) for each in report.payments],
        "unreadable": [
            {"correlationId": each.correlation_id, "problem": each.problem}
            for each in report.unreadable
        ],
        "unexplained": [
            {
                "processor": each.processor,
                "from": _instant(each.window.first),
                "to": _instant(each.window.last),
                **_total(each.missing_here, currency),
            }
            for each in report.unexplained
        ],
        "incidents": [
            {
                "correlationId": incident.correlation_id,
                "paidBy": incident.paid_by,
                "pinned": incident.pinned,
                "requestedAt": _instant_if_any(incident.requested_at),
                "at": _instant_if_any(incident.at),
            }
            for incident in report.incidents
        ],
    }

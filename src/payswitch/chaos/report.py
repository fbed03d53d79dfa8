"""A run's verdict as a table and as JSON, with the full history of each offending payment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from payswitch.chaos.audit import Spread
from payswitch.chaos.run import RunOutcome

_MOST_HISTORIES = 20
_MOST_LINES = 40
_LONG_NUMBERS = 20
"""Columns for numbers that are longer than their heads."""


def show(outcomes: Sequence[RunOutcome], console: Console) -> None:
    """The verdict table, a row a run, and the violations."""
    title = f"chaos, PAYSWITCH_DURABILITY={outcomes[0].durability}"
    table = Table(title=title, title_justify="left")
    processors = outcomes[0].verdict.settled
    heads = ["seed", "sent", "accepted", *processors, "declined", "dead", "lost", "double"]
    heads += ["cents off", "settled after", "verdict"]
    console.width = max(console.width, sum(len(head) + 3 for head in heads) + _LONG_NUMBERS)
    for head in heads:
        table.add_column(head, justify="left" if head == "verdict" else "right")
    for outcome in outcomes:
        table.add_row(*_row(outcome))
    console.print(table)
    for outcome in outcomes:
        for line in _remarks(outcome):
            console.print(line, highlight=False, soft_wrap=True)


def _row(outcome: RunOutcome) -> list[str]:
    verdict = outcome.verdict
    numbers = [outcome.order.seed, verdict.sent, verdict.accepted, *verdict.settled.values()]
    numbers += [verdict.declined, verdict.dead]
    numbers += [verdict.lost, verdict.double, verdict.difference_cents]
    after = "never" if outcome.settled_after_s is None else f"{outcome.settled_after_s:.1f} s"
    word = "[green]holds[/]" if verdict.holds else "[bold red]BROKEN[/]"
    return [*(f"{number:,}" for number in numbers), after, word]


def _remarks(outcome: RunOutcome) -> Iterable[str]:
    verdict = outcome.verdict
    seed = f"seed {outcome.order.seed}:"
    if outcome.answers_ms:
        yield f"{seed} 202 after {_spread(outcome.answers_ms)}"
    if verdict.settle_gap:
        yield f"{seed} from a processor's commit to our settling {_spread(verdict.settle_gap)}"
    if outcome.audits:
        waits = [each.agreed_after_ms or 0 for each in outcome.audits]
        unequal = sum(wait > 0 for wait in waits)
        yield (
            f"{seed} {len(waits)} windows audited under load, {unequal} of them unequal at first, "
            f"for at most {max(waits):.0f} ms"
        )
    if verdict.faults_met:
        met = ", ".join(f"{fault} {count:,}" for fault, count in verdict.faults_met.items())
        yield f"{seed} calls that met a fault: {met}"
    for reason, count in verdict.dead_by_reason.items():
        yield f"{seed} {count:,} dead: {reason}"
    for violation in verdict.violations[:_MOST_LINES]:
        about = f"{violation.correlation_id}: " if violation.correlation_id else ""
        yield f"{seed} VIOLATION: {violation.what}: {about}{violation.detail}"
    if len(verdict.violations) > _MOST_LINES:
        yield f"{seed} and {len(verdict.violations) - _MOST_LINES:,} violations more"


def _spread(spread: Spread) -> str:
    return f"p50 {spread.p50} ms, p99 {spread.p99} ms, worst {spread.worst} ms"


def write(document: dict[str, Any], folder: Path) -> Path:
    """Write `verdict.json`."""
    path = folder / "verdict.json"
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    return path


def as_document(outcome: RunOutcome) -> dict[str, Any]:
    """The outcome for JSON, with the plan and the histories of offending payments."""
    order, verdict = outcome.order, outcome.verdict
    return {
        "seed": order.seed,
        "minutes": order.minutes,
        "rate": order.rate,
        "workers": order.workers,
        "durability": outcome.durability,
        "faults": sorted(order.kinds),
        "holds": verdict.holds,
        "sent": verdict.sent,
        "accepted": verdict.accepted,
        "unacknowledgedPaid": verdict.unacknowledged_paid,
        "settled": verdict.settled,
        "declined": verdict.declined,
        "dead": verdict.dead,
        "deadByReason": verdict.dead_by_reason,
        "faultsMet": verdict.faults_met,
        "lost": verdict.lost,
        "double": verdict.double,
        "differenceCents": verdict.difference_cents,
        "settledAfterS": outcome.settled_after_s,
        "answersMs": outcome.answers_ms,
        "settleGapMs": verdict.settle_gap,
        "windowsUnderLoad": [
            {"atS": each.at_s, "agreedAfterMs": each.agreed_after_ms} for each in outcome.audits
        ],
        "violations": verdict.violations,
        "plan": outcome.plan,
        "histories": [history(outcome, payment) for payment in _offending(outcome)],
    }


def _offending(outcome: RunOutcome) -> list[str]:
    ids = [each.correlation_id for each in outcome.verdict.violations if each.correlation_id]
    return list(dict.fromkeys(ids))[:_MOST_HISTORIES]


def history(outcome: RunOutcome, correlation_id: str) -> dict[str, Any]:
    """Everything about a payment: from its client, Redis, both processors and the log."""
    books = outcome.books
    log = outcome.order.folder / "system.log"
    return {
        "correlationId": correlation_id,
        "client": outcome.sent.get(correlation_id),
        "record": books.records.get(correlation_id),
        "books": {name: book.get(correlation_id) for name, book in books.booked.items()},
        "journals": {
            name: [event for event in journal if event["correlationId"] == correlation_id]
            for name, journal in books.journals.items()
        },
        "log": [line for line in log.read_text().splitlines() if correlation_id in line],
    }

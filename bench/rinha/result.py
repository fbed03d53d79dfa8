"""The result of a run: as JSON, under the challenge's names and then ours, and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.rinha.host import Host
from bench.rinha.run import Outcome
from bench.rinha.scenario import PROCESSORS
from bench.rinha.site import Usage
from bench.rinha.stalls import SLOW_MS, Stall

_MB = 10**6
_STALLS_SHOWN = 10
_CAUSES_SHOWN = 3


def as_document(outcome: Outcome) -> dict[str, Any]:
    """The challenge's own fields; under `payswitch` what it doesn't ask for."""
    score = outcome.score
    return {
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "participante": "payswitch",
        "total_liquido": float(score.value),
        "total_bruto": float(score.amount),
        "total_taxas": float(sum(score.fees.values())),
        "p99": {
            "valor": f"{score.p99_ms:g}ms",
            "bonus": f"{score.bonus * 100:.0f}%",
            "max_requests": outcome.scenario.users,
        },
        "multa": {
            "porcentagem": float(score.fine),
            "total": float(score.net * score.fine),
            "composicao": {"num_inconsistencias": score.inconsistencies},
        },
        "caixa_dois": {"detectado": score.is_disqualified},
        "lag": {
            "num_pagamentos_total": score.accepted - score.lag,
            "num_pagamentos_solicitados": score.accepted,
            "lag": score.lag,
        },
        "pagamentos_solicitados": {
            "qtd_sucesso": score.accepted,
            "qtd_falha": sum(outcome.failed.values()),
        },
        **{
            f"pagamentos_realizados_{name}": {
                "total_bruto": score.processed[name].cents / 100,
                "num_pagamentos": score.processed[name].count,
                "total_taxas": float(score.fees[name]),
            }
            for name in PROCESSORS
        },
        "payswitch": _ours(outcome),
    }


def _ours(outcome: Outcome) -> dict[str, Any]:
    score = outcome.score
    return {
        "scenario": outcome.scenario.name,
        "timeScale": outcome.scenario.time_scale,
        "target": outcome.site.kind,
        "durability": outcome.durability,
        "seconds": round(outcome.seconds, 3),
        "net": float(score.net),
        "netOfAllDefault": float(_net_of_all_default(outcome)),
        "p50Ms": round(outcome.p50_ms, 3),
        "failed": outcome.failed,
        "audits": len(outcome.audits),
        "auditsWithoutSummary": sum(bool(audit.failed) for audit in outcome.audits),
        "strictInconsistencies": asdict(outcome.strict),
        "allPaidAfterS": outcome.rested_after_s,
        "differenceAtRest": asdict(outcome.at_rest),
        "problems": outcome.problems,
        "stalls": [_stall(each) for each in outcome.stalls],
        "host": _host(outcome.host),
        "parts": {name: _part(each, outcome.seconds) for name, each in outcome.usages.items()},
    }


def _stall(stall: Stall) -> dict[str, Any]:
    return {
        "atS": stall.at_s,
        "ms": stall.ms,
        "payments": stall.payments,
        "busyMs": stall.busy,
    }


def _host(host: Host | None) -> dict[str, Any] | None:
    if host is None:
        return None
    return {
        "cores": host.cores,
        "idleCores": round(host.idle_cores, 3),
        "stolenShare": round(host.stolen_share, 4),
    }


def _part(usage: Usage, seconds: float) -> dict[str, Any]:
    return {
        "cores": None if usage.cpu_s is None else round(usage.cpu_s / seconds, 4),
        "memoryBytes": usage.memory_bytes,
        "memoryPeakBytes": usage.memory_peak_bytes,
        "periods": usage.periods,
        "throttledPeriods": usage.throttled_periods,
        "throttledS": usage.throttled_s,
        "restarts": usage.restarts,
    }


def as_timeline(outcome: Outcome) -> dict[str, Any]:
    """What the picture is drawn from, and every audit."""
    return {
        "samples": [asdict(each) | {"backlog": each.backlog} for each in outcome.samples],
        "audits": [
            {
                "at_s": round(each.at_s, 3),
                "ours": {name: asdict(total) for name, total in each.ours.items()},
                "theirs": {name: asdict(total) for name, total in each.theirs.items()},
                "failed": each.failed,
            }
            for each in outcome.audits
        ],
    }


def show(outcome: Outcome, console: Console) -> None:
    """Print what the run came to, and what each part used."""
    console.print(_score_table(outcome))
    if outcome.usages:
        console.print(_usage_table(outcome))
    if outcome.stalls:
        console.print(stall_table(outcome.stalls, outcome.score.accepted))
    for problem in outcome.problems:
        console.print(f"NOT AS PLANNED: {problem}", markup=False)


def _score_table(outcome: Outcome) -> Table:
    score, scenario = outcome.score, outcome.scenario
    title = f"{scenario.name}, {scenario.seconds:g} s, {outcome.site.kind}"
    title += f", durability {outcome.durability}"
    if scenario.time_scale != 1:
        title += " (shortened: the score is none)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column()
    failures = ", ".join(f"{count} {what}" for what, count in outcome.failed.items())
    missing = sum(bool(audit.failed) for audit in outcome.audits)
    share = 100 * score.net / _net_of_all_default(outcome) if score.accepted else Decimal(0)
    rest = outcome.rested_after_s
    rows: list[tuple[str, str, str]] = [
        ("accepted", f"{score.accepted:,}", ""),
        ("failed", f"{sum(outcome.failed.values()):,}", failures),
        *(
            (
                f"processed by {name}",
                f"{score.processed[name].count:,}",
                f"fees {score.fees[name]:,.2f}",
            )
            for name in PROCESSORS
        ),
        ("lag", f"{score.lag:,}", _lag_note(rest)),
        ("net", f"{score.net:,.2f}", f"{share:.2f} % of all default"),
        ("p50, p99", f"{outcome.p50_ms:.2f} ms, {score.p99_ms:.2f} ms", f"bonus {score.bonus:.0%}"),
        (
            "inconsistencies",
            f"{score.inconsistencies}",
            f"fine {score.fine:.0%}; {len(outcome.audits)} audits, {missing} lacked a summary",
        ),
        (
            "strictly",
            f"{outcome.strict.count}",
            f"{outcome.strict.cents} cents; at rest {outcome.at_rest.count} payments, "
            f"{outcome.at_rest.cents} cents",
        ),
        ("score", f"{score.value:,.2f}", "DISQUALIFIED" if score.is_disqualified else ""),
    ]
    if (host := outcome.host) is not None:
        note = f"{host.stolen_share:.1%} of their time went to the host's other guests"
        rows.append(("idle", f"{host.idle_cores:.2f} of {host.cores} cores", note))
    for row in rows:
        table.add_row(*row)
    return table


def _lag_note(rested_after_s: float | None) -> str:
    if rested_after_s is None:
        return "some were never paid"
    return f"all paid {rested_after_s:.1f} s after the end"


def _net_of_all_default(outcome: Outcome) -> Decimal:
    scenario = outcome.scenario
    kept = 1 - Decimal(scenario.fee_percent["default"]) / 100
    return outcome.score.accepted * Decimal(scenario.cents) / 100 * kept


def stall_table(stalls: Sequence[Stall], accepted: int) -> Table:
    """The longest stalls, and how many more there were."""
    longest = sorted(stalls, key=lambda stall: stall.ms, reverse=True)
    shown, more = longest[:_STALLS_SHOWN], longest[_STALLS_SHOWN:]
    payments = sum(stall.payments for stall in longest)
    total_s = sum(stall.ms for stall in longest) / 1000
    table = Table(
        title=f"stalls: {len(longest)}, {total_s:.2f} s together; {payments:,} payments "
        f"({100 * payments / max(1, accepted):.2f} %) took over {SLOW_MS:g} ms",
        title_justify="left",
        box=box.SIMPLE,
    )
    for column in ("at", "lasted", "payments"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what was busy")
    for stall in shown:
        causes = list(stall.busy.items())[:_CAUSES_SHOWN]
        busy = ", ".join(f"{cause} {ms:.0f} ms" for cause, ms in causes)
        length = f"{stall.ms:.0f} ms"
        table.add_row(f"{stall.at_s:.2f} s", length, str(stall.payments), busy or "unexplained")
    if more:
        table.add_row("", "", "", f"{len(more)} more, of {more[0].ms:.0f} ms at most")
    return table


def _usage_table(outcome: Outcome) -> Table:
    table = Table(title="parts", title_justify="left", box=box.SIMPLE)
    table.add_column("part", no_wrap=True)
    for column in ("CPU", "throttled", "stood still", "memory", "peak", "restarts"):
        table.add_column(column, justify="right")
    for name, usage in sorted(outcome.usages.items()):
        table.add_row(name, *_cells(usage, outcome.seconds))
    return table


def _cells(usage: Usage, seconds: float) -> list[str]:
    throttled = "-"
    if usage.periods is not None and usage.throttled_periods is not None:
        throttled = f"{usage.throttled_periods} of {usage.periods}"
    return [
        "-" if usage.cpu_s is None else f"{usage.cpu_s / seconds:.3f}",
        throttled,
        "-" if usage.throttled_s is None else f"{usage.throttled_s:.2f} s",
        _megabytes(usage.memory_bytes),
        _megabytes(usage.memory_peak_bytes),
        str(usage.restarts),
    ]


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / _MB:.0f} MB"

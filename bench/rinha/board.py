"""How a run goes, while it goes: one line with a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bench.rinha.run import Sample, Show
from bench.rinha.scenario import PROCESSORS, Scenario

_DRAWN_PER_S = 2
_EVERY_S = 10.0


@contextlib.contextmanager
def board(scenario: Scenario) -> Iterator[Show]:
    """What shows samples on standard error while the context is open."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(scenario)
        return
    columns = (TextColumn(scenario.name), BarColumn(20), TextColumn("{task.description}"))
    with Progress(*columns, console=console, refresh_per_second=_DRAWN_PER_S) as progress:
        bar = progress.add_task("resetting", total=scenario.seconds)
        shown = _Shown(scenario)

        def show(sample: Sample) -> None:
            completed = min(sample.at_s, scenario.seconds)
            progress.update(bar, completed=completed, description=shown.text(sample))

        yield show


class _Lines:
    def __init__(self, scenario: Scenario) -> None:
        self._shown = _Shown(scenario)
        self._due_s = 0.0

    def __call__(self, sample: Sample) -> None:
        text = self._shown.text(sample)
        if sample.at_s >= self._due_s:
            self._due_s = sample.at_s + _EVERY_S
            click.echo(text, err=True)


class _Shown:
    """Words for samples; rates are those since the one before."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._before: Sample | None = None

    def text(self, sample: Sample) -> str:
        """One line."""
        before, self._before = self._before, sample
        stage = self._scenario.stage_at(sample.at_s)
        parts = [
            f"{sample.at_s:5.1f} s",
            f"{sample.users} users",
            f"{_rate(sample, before):.0f}/s",
            "p99 " + ("-" if sample.p99_ms is None else f"{sample.p99_ms:.1f} ms"),
            "backlog " + ("?" if sample.backlog is None else f"{sample.backlog:,}"),
            f"to {sample.selected or _used(sample, before)}",
            f"{sample.inconsistencies} inconsistencies",
        ]
        if sample.failed:
            parts.append(f"{sample.failed:,} failed")
        if stage:
            parts.append(", ".join(f"{name} {each}" for name, each in stage.settings.items()))
        return " · ".join(parts)


def _rate(sample: Sample, before: Sample | None) -> float:
    if before is None or sample.at_s <= before.at_s:
        return 0.0
    return (sample.accepted - before.accepted) / (sample.at_s - before.at_s)


def _used(sample: Sample, before: Sample | None) -> str:
    """Who was paid through lately, where the selection itself can't be asked for."""
    if before is None or sample.booked is None or before.booked is None:
        return "?"
    grown = [name for name in PROCESSORS if sample.booked[name] > before.booked[name]]
    return "+".join(grown) or "nobody"

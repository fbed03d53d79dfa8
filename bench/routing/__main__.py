"""Plays policies of routing on the challenge's scenarios and on seeded ones, in simulated time.

A policy's figure is its net in percent of the optimum that knows the future, under the same
patience:

    python -m bench.routing
    python -m bench.routing --seeds 5
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from bench.common import RESULTS, command, machine, progress_bar, write_json
from bench.rinha.scenario import Scenario, load_scenario
from bench.routing.optimum import Optimum, optimum
from bench.routing.scenarios import PUBLIC, SEEDS, seeded
from bench.routing.simulation import HEALTH_MS, SLOTS, WORKERS, Policy, Simulation, Tally
from payswitch.selection.selector import Limits

PATIENCE_MS = 75_000
"""The final's outage lasts 60 s."""
PHASES_MS = range(0, HEALTH_MS, HEALTH_MS // 3)
"""Each public scenario is played with the first health check at each of these instants."""

_COMPOSE = Limits(1100, 1100)
_UP_TO_TRAP = Limits(1400, 1400)
_PATIENT = Limits(PATIENCE_MS, PATIENCE_MS)

POLICIES = (
    Policy("no patience, 50 and 200 ms (the defaults)", Limits()),
    Policy("no patience, 1.1 s", _COMPOSE),
    Policy("no patience, 1.4 s", _UP_TO_TRAP),
    Policy("wait while it is down, 1.1 s", _COMPOSE, PATIENCE_MS),
    Policy("wait while it is down, 1.4 s (compose.yaml)", _UP_TO_TRAP, PATIENCE_MS),
    Policy("the same for 15 s at most", _UP_TO_TRAP, 15_000),
    Policy("the same for 30 s at most", _UP_TO_TRAP, 30_000),
    Policy("the same for 120 s at most", _UP_TO_TRAP, 120_000),
    Policy("wait while it is down or slow, 1.4 s", _UP_TO_TRAP, PATIENCE_MS, slow_is_down=True),
    Policy("never too slow: the patience is the limit", _PATIENT, PATIENCE_MS),
)


@dataclass(frozen=True, slots=True)
class Played:
    """One run of one policy, beside the optimum."""

    scenario: str
    tally: Tally
    best: Optimum
    all_default: float
    """The net if the cheaper processor paid all of them, in cents."""

    @property
    def percent(self) -> float:
        """The net in percent of the optimum."""
        return 100 * self.tally.net / self.best.net

    @property
    def percent_of_all_default(self) -> float:
        """The net in percent of what all payments through the cheaper processor would bring."""
        return 100 * self.tally.net / self.all_default


def bound(scenario: Scenario, policy: Policy) -> Optimum:
    """The optimum under a policy's patience, with the workers' calls under way."""
    return optimum(scenario, patience_ms=policy.patience_ms, slots=WORKERS * SLOTS)


def play(scenario: Scenario, policy: Policy, best: Optimum, *, phase_ms: int) -> Played:
    """Play one policy on one scenario. The pauses between tries are the same each time."""
    random.seed(phase_ms)
    kept = 1 - next(iter(scenario.fee_percent.values())) / 100
    tally = Simulation(scenario, policy, phase_ms=phase_ms).run()
    return Played(scenario.name, tally, best, scenario.cents * tally.accepted * kept)


def runs(seeds: int) -> list[tuple[Scenario, int]]:
    """Every scenario with the instant of its first health check: the public ones at several."""
    public = [(scenario, phase) for scenario in map(load_scenario, PUBLIC) for phase in PHASES_MS]
    return [*public, *((seeded(seed), seed * 997 % HEALTH_MS) for seed in range(1, seeds + 1))]


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one policy. Each percentage is of the optimum; of a public scenario's phases
    the worst counts."""

    preview: float
    final: float
    final_of_all_default: float
    seeded: float
    seeded_worst: float
    lag: int
    """Payments in no book at the end, over all runs."""
    fined: int
    """Runs in which an audit found a difference."""
    most_waiting: int
    longest_drain_ms: int


def row(played: Sequence[Played]) -> Row:
    """The figures of one policy over its runs."""
    named = {name: [each for each in played if each.scenario == name] for name in PUBLIC}
    others = [each.percent for each in played if each.scenario not in PUBLIC]
    return Row(
        preview=min(each.percent for each in named["preview"]),
        final=min(each.percent for each in named["final"]),
        final_of_all_default=min(each.percent_of_all_default for each in named["final"]),
        seeded=mean(others),
        seeded_worst=min(others),
        lag=sum(each.tally.lag for each in played),
        fined=sum(each.tally.audits_with_differences > 0 for each in played),
        most_waiting=max(each.tally.longest_waiting for each in played),
        longest_drain_ms=max(each.tally.longest_drain_ms for each in played),
    )


def notes() -> list[str]:
    """The conditions that a reader needs to judge the numbers."""
    final, slots = load_scenario("final"), WORKERS * SLOTS
    best = optimum(final, patience_ms=PATIENCE_MS, slots=slots)
    fined = optimum(final, patience_ms=PATIENCE_MS, slots=slots, trap_ms=-1000 * final.seconds)
    return [
        f"{WORKERS} workers with {SLOTS} calls to each processor; a health check each "
        f"{HEALTH_MS / 1000:g} s; the patience is {PATIENCE_MS / 1000:g} s",
        "once a health report shows that a processor is within 0.5 s of the auditor's margin, the "
        f"optimum pays nothing through it; else it had {100 * fined.net / best.net - 100:.2f} % "
        "more in the final, less the fine of 35 %",
        "a public scenario's figure is the worst of three instants of the first health check",
    ]


def print_rows(rows: Mapping[str, Row]) -> None:
    """Print the table of policies."""
    table = Table(title="Net in % of the optimum", title_justify="left", box=box.SIMPLE)
    titles = (
        "preview",
        "final",
        "final, of all-default",
        "seeded",
        "the worst",
        "lag",
        "fined runs",
    )
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    for name, each in rows.items():
        percentages = (each.preview, each.final, each.final_of_all_default, each.seeded)
        cells = [f"{value:.2f}" for value in (*percentages, each.seeded_worst)]
        table.add_row(name, *cells, f"{each.lag:,}", str(each.fined))
    console = Console(width=150)
    console.print(table)
    for note in notes():
        console.print(f"- {note}", markup=False, highlight=False)


def draw(played: Mapping[str, Sequence[Played]]) -> None:
    """Draw each policy's runs as points into `bench/results/routing.png`."""
    figure = Figure(figsize=(10, 0.55 * len(played) + 1.6), layout="constrained")
    axes: Axes = figure.subplots()
    names = list(played)[::-1]
    for height, name in enumerate(names):
        for is_public, color in ((False, "#2a78b5"), (True, "#c0392b")):
            values = [
                each.percent for each in played[name] if (each.scenario in PUBLIC) is is_public
            ]
            axes.plot(values, [height] * len(values), "o", color=color, alpha=0.6, markersize=5)
    axes.axvline(99.5, color="#999999", linewidth=1, linestyle="--")
    axes.set_xlim(94, 100.2)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(
        "net in % of the optimum (red: preview and final, blue: seeded; below 94 left out)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "routing.png", dpi=110)


def document(rows: Mapping[str, Row], played: Mapping[str, Sequence[Played]]) -> dict[str, Any]:
    """The JSON file's content."""
    return {
        "bench": "routing",
        "command": command(),
        "machine": machine(),
        "notes": notes(),
        "policies": {
            name: {
                **asdict(rows[name]),
                "runs": [{**asdict(each), "percent": each.percent} for each in played[name]],
            }
            for name in rows
        },
    }


@click.command(help=__doc__)
@click.option("--seeds", type=click.IntRange(1), default=SEEDS, help="Seeded scenarios.")
def main(seeds: int) -> None:
    """Play, print, draw."""
    played: dict[str, list[Played]] = {policy.name: [] for policy in POLICIES}
    bounds: dict[tuple[str, int], Optimum] = {}
    with progress_bar() as bar:
        for scenario, phase_ms in bar.track(runs(seeds), description="routing"):
            for policy in POLICIES:
                key = scenario.name, policy.patience_ms
                if key not in bounds:
                    bounds[key] = bound(scenario, policy)
                each = play(scenario, policy, bounds[key], phase_ms=phase_ms)
                played[policy.name].append(each)
    rows = {name: row(each) for name, each in played.items()}
    write_json("routing", document(rows, played))
    draw(played)
    print_rows(rows)


if __name__ == "__main__":
    main()

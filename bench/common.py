"""Shared by the benches: turns, medians, ratios, CPU time, results as JSON, table and picture.

Every round measures each contender once, alternately forwards and backwards, so a change of the
machine's speed affects all alike. A contender's figure is the median of its rounds; its ratio to
the baseline is the median of the ratios within each round.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import orjson
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from payswitch.local.machine import MachineError, find_redis, redis_version

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BASELINE_COLOR = "#999999"
_COLORS = ("#2a78b5", "#d9822b", "#4c9a5b", "#7d5ba6", "#c0392b", "#8a6d3b")

Values = Mapping[str, float]
"""The result of one measurement: a number by the name of its measure."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that a bench measures, and its display."""

    name: str
    """Its key in `Values` and in the JSON file."""
    title: str
    """With its unit."""
    digits: int = 0
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, the smallest and the largest value of several rounds."""

    median: float
    low: float
    high: float

    def shown(self, digits: int) -> str:
        """The median and the range, for a table."""
        middle = f"{self.median:,.{digits}f}"
        if self.low == self.high:
            return middle
        return f"{middle} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(median(values), min(values), max(values))


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """The ratio to the baseline, round by round; both have the same rounds in the same order.

    Raises `ZeroDivisionError` if the baseline measured nothing.
    """
    return spread([ours / theirs for ours, theirs in zip(values, baseline, strict=True)])


@dataclass
class Result:
    """The results of a bench. `rounds` has the values of each contender, round by round; the first
    contender is the baseline. Some contenders may lack a measure."""

    bench: str
    title: str
    measures: Sequence[Measure]
    rounds: dict[str, list[Values]]
    notes: Sequence[str] = ()
    """The conditions that a reader needs to judge the numbers."""
    distributions: Sequence[str] = ()
    """Python packages whose versions matter."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further figures, for the JSON file."""

    @property
    def baseline(self) -> str:
        """The contender that the others are compared with."""
        return next(iter(self.rounds))

    def values(self, contender: str, measure: str) -> list[float]:
        """The values round by round; empty if this contender lacks the measure."""
        return [each[measure] for each in self.rounds[contender] if measure in each]

    def spread(self, contender: str, measure: str) -> Spread | None:
        """The spread; None if this contender lacks the measure."""
        values = self.values(contender, measure)
        return spread(values) if values else None

    def ratio(self, contender: str, measure: str) -> Spread | None:
        """The ratio to the baseline; None if either lacks the measure."""
        values, baseline = self.values(contender, measure), self.values(self.baseline, measure)
        if not values or not baseline or 0 in baseline:
            return None
        return ratio(values, baseline)

    def as_document(self) -> dict[str, Any]:
        """The JSON file's content."""
        return {
            "bench": self.bench,
            "title": self.title,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(),
            "machine": machine(self.distributions),
            "notes": list(self.notes),
            "baseline": self.baseline,
            "contenders": {name: self._contender(name) for name in self.rounds},
            **self.more,
        }

    def _contender(self, name: str) -> dict[str, Any]:
        return {
            measure.name: {
                "title": measure.title,
                "rounds": self.values(name, measure.name),
                **_figures(self.spread(name, measure.name)),
                "timesBaseline": _figures(self.ratio(name, measure.name)),
            }
            for measure in self.measures
            if self.values(name, measure.name)
        }


def _figures(found: Spread | None) -> dict[str, float]:
    if found is None:
        return {}
    return {"median": found.median, "low": found.low, "high": found.high}


def take_turns(
    contenders: Mapping[str, Callable[[], Values]], *, rounds: int = ROUNDS, title: str
) -> dict[str, list[Values]]:
    """Measure each contender once a round, with a bar on standard error."""
    found: dict[str, list[Values]] = {name: [] for name in contenders}
    with progress_bar() as bar:
        task = bar.add_task(title, total=rounds * len(contenders))
        for number in range(rounds):
            for name in turns(list(contenders), number):
                bar.update(task, description=f"{title}: round {number + 1}, {name}")
                found[name].append(contenders[name]())
                bar.advance(task)
    return found


def turns(names: Sequence[str], number: int) -> Sequence[str]:
    """The order in which a round measures them: forwards in even rounds, backwards in odd ones."""
    return names[::-1] if number % 2 else names


def progress_bar() -> Progress:
    """A bar on standard error; outside of a terminal only its end is printed."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def cpu_s(pid: int | None = None) -> float:
    """The CPU time in seconds of all threads of a process, user and system: exact for this process,
    to a hundredth of a second for others (/proc, Linux).

    Raises `FileNotFoundError` if the process has ended.
    """
    if pid is None or pid == os.getpid():
        return time.process_time()
    # The program's name, in brackets, may hold anything.
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / _TICKS_PER_S


def children_cpu_s() -> float:
    """The CPU time in seconds of all children of this process that have ended and were waited
    for."""
    used = os.times()
    return used.children_user + used.children_system


def command() -> str:
    """The command that runs this bench from the repository."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    return shlex.join(["python", *program.split(), *sys.argv[1:]])


def machine(distributions: Sequence[str] = ()) -> dict[str, Any]:
    """The machine and versions behind the figures. They are published: no names, no paths."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis": server_version(),
        "versions": {name: metadata.version(name) for name in distributions},
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def server_version() -> str | None:
    """Name and version of the Redis server that the benches use; None if there is none."""
    try:
        return redis_version(find_redis())
    except MachineError:
        return None


def publish(result: Result, *, pictured: Sequence[str]) -> None:
    """Write the JSON file, print the table, and draw the measures named in `pictured` as bars."""
    write_json(result.bench, result.as_document())
    print_table(result)
    draw_bars(result, pictured)


def write_json(bench: str, document: Mapping[str, Any]) -> Path:
    """Write `bench/results/<bench>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{bench}.json"
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return path


def print_table(result: Result) -> None:
    """Print medians with their spread, and each contender's ratio to the baseline below them."""
    table = Table(title=result.title, title_justify="left", box=box.SIMPLE, title_style="bold")
    table.add_column("")
    for measure in result.measures:
        table.add_column(measure.title, justify="right")
    for name in result.rounds:
        cells = [result.spread(name, measure.name) for measure in result.measures]
        digits = [measure.digits for measure in result.measures]
        table.add_row(name, *(_cell(*each) for each in zip(cells, digits, strict=True)))
        if name != result.baseline:
            ratios = [result.ratio(name, measure.name) for measure in result.measures]
            table.add_row("  times the baseline", *(_cell(each, 2) for each in ratios), style="dim")
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    for note in result.notes:
        console.print(f"- {note}", markup=False, highlight=False)


def _cell(found: Spread | None, digits: int) -> str:
    return "" if found is None else found.shown(digits)


def draw_bars(result: Result, pictured: Sequence[str]) -> Path:
    """Draw a row of bar charts, one for each measure, into `bench/results/<bench>.png`."""
    measures = [each for each in result.measures if each.name in pictured]
    figure, rows = _figure(len(measures))
    for axes, measure in zip(rows, measures, strict=True):
        _draw_measure(axes, result, measure)
    figure.suptitle(result.title)
    return _save(figure, result.bench)


def _draw_measure(axes: Axes, result: Result, measure: Measure) -> None:
    known = {name: result.spread(name, measure.name) for name in result.rounds}
    shown = {name: each for name, each in known.items() if each is not None}
    heights = [each.median for each in shown.values()]
    below = [each.median - each.low for each in shown.values()]
    above = [each.high - each.median for each in shown.values()]
    bars = axes.bar(
        list(shown),
        heights,
        yerr=[below, above],
        color=[color_of(name, result) for name in shown],
        ecolor="#444444",
        capsize=3,
    )
    axes.bar_label(bars, [f"{height:,.{measure.digits}f}" for height in heights], padding=3)
    better = "more is better" if measure.more_is_better else "less is better"
    axes.set_title(f"{measure.title}\n({better})", fontsize=10)
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", labelrotation=20, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def color_of(contender: str, result: Result) -> str:
    """The colour of a contender in every picture of its bench; the baseline's is grey."""
    number = list(result.rounds).index(contender)
    return _BASELINE_COLOR if number == 0 else _COLORS[(number - 1) % len(_COLORS)]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a picture, with the spread at each point."""

    name: str
    points: Sequence[tuple[float, Spread]]


def draw_lines(
    bench: str, title: str, lines: Sequence[Line], *, x: str, y: str, log_y: bool = False
) -> Path:
    """Draw lines over a logarithmic x-axis into `bench/results/<bench>.png`, each with the range of
    its rounds. The first is the baseline."""
    figure, (axes,) = _figure(1)
    for number, line in enumerate(lines):
        color = _BASELINE_COLOR if number == 0 else _COLORS[(number - 1) % len(_COLORS)]
        at = [point for point, _ in line.points]
        spreads = [each for _, each in line.points]
        axes.plot(at, [each.median for each in spreads], color=color, marker="o", label=line.name)
        lows, highs = [each.low for each in spreads], [each.high for each in spreads]
        axes.fill_between(at, lows, highs, color=color, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, bench)


def new_figure(width: float, height: float) -> Figure:
    """An empty picture of so many inches. Only this loads matplotlib, which takes a second."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _figure(columns: int) -> tuple[Figure, Sequence[Axes]]:
    figure = new_figure(max(7.0, 4.2 * columns), 4.5)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _save(figure: Figure, bench: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{bench}.png"
    figure.savefig(path, dpi=110)
    return path

"""The timeline of a run as a picture: load, settling, backlog, and the faults."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from payswitch.chaos.plan import KINDS, PlannedFault
from payswitch.chaos.run import RunOutcome
from payswitch.chaos.watch import LoadSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACCEPTED = "#555555"
_PROCESSORS = ("#2a78b5", "#d9822b", "#4c9f70", "#7d5ba6")
_FAULTS = {
    "processor": "#d9822b",
    "clean": "#e3b341",
    "process": "#2a78b5",
    "redis": "#c0392b",
    "cluster": "#8e2f4f",
    "clock": "#7d5ba6",
}
_SELF_EVIDENT = ("redis", "haproxy", "nodes", "selection", "island")
_AN_INSTANT_S = 0.4
_SMOOTHED_OVER_S = 1.0
_GAP_S = 1.5


def draw(outcome: RunOutcome) -> Path:
    """Draw `timeline.png` into the run's folder.

    Raises `ImportError` without matplotlib (the extra `pictures`).
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rates, backlog, faults) = plt.subplots(
        3, 1, sharex=True, figsize=(12, 9), height_ratios=[3, 2, 4], layout="constrained"
    )
    verdict = outcome.verdict
    word = "the promise holds" if verdict.holds else f"{len(verdict.violations)} VIOLATIONS"
    figure.suptitle(
        f"chaos, seed {outcome.order.seed}, durability {outcome.durability}: "
        f"{verdict.accepted:,} accepted, "
        f"{sum(verdict.settled.values()):,} settled, "
        f"{verdict.declined:,} declined, {verdict.dead:,} dead, {verdict.lost} lost, "
        f"{verdict.double} double: {word}"
    )
    _draw_rates(rates, outcome.samples, [*verdict.settled])
    _draw_backlog(backlog, outcome.samples)
    _draw_faults(faults, outcome.plan)
    for axes in (rates, backlog, faults):
        axes.axvline(outcome.order.seconds, color="#999999", linestyle=":", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    faults.set_xlabel("seconds since the load began (dotted: the last fault is over)")
    path = outcome.order.folder / "timeline.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw_rates(axes: Axes, samples: Sequence[LoadSample], processors: Sequence[str]) -> None:
    accepted = [(each.at_s, each.accepted) for each in samples]
    axes.plot(*_rates(accepted), color=_ACCEPTED, label="accepted", linewidth=1.2)
    for name, color in zip(processors, cycle(_PROCESSORS)):
        known = [(each.at_s, each.settled[name]) for each in samples if each.settled]
        axes.plot(*_rates(known), color=color, label=f"settled by {name}", linewidth=1.2)
    axes.set_ylabel("payments a second")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=6)


def _rates(totals: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """The growth a second of a running total, with a gap where it was unknown for a while."""
    at, rate = [], []
    start = 0
    for number, (at_s, total) in enumerate(totals):
        if number and at_s - totals[number - 1][0] > _GAP_S:
            at.append(at_s)
            rate.append(nan)
            start = number
        while totals[start][0] < at_s - _SMOOTHED_OVER_S:
            start += 1
        began_s, before = totals[start]
        if at_s > began_s:
            at.append(at_s)
            rate.append((total - before) / (at_s - began_s))
    return at, rate


def _draw_backlog(axes: Axes, samples: Sequence[LoadSample]) -> None:
    known = [(each.at_s, each.backlog) for each in samples if each.backlog is not None]
    at, unpaid = [at_s for at_s, _ in known], [backlog for _, backlog in known]
    axes.fill_between(at, unpaid, color="#bbbbbb", step="post")
    axes.set_ylabel("unpaid payments")
    axes.set_ylim(bottom=0)


def _draw_faults(axes: Axes, plan: Sequence[PlannedFault]) -> None:
    rows = sorted({(KINDS[event.kind].group, event.kind) for event in plan}, reverse=True)
    for row, (group, kind) in enumerate(rows):
        spans = [
            (event.at_s, max(event.lasts_s, _AN_INSTANT_S)) for event in plan if event.kind == kind
        ]
        axes.broken_barh(spans, (row - 0.35, 0.7), color=_FAULTS[group], alpha=0.8)
        for event in plan:
            if event.kind == kind and event.target not in _SELF_EVIDENT:
                axes.text(event.at_s, row, f" {event.target}", fontsize=6, va="center")
    axes.set_yticks(range(len(rows)), [kind for _, kind in rows])
    axes.set_ylabel("faults")

"""A run as a picture: who processed how much, p99 and backlog, over the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.common import new_figure
from bench.rinha.run import Outcome, Sample
from bench.rinha.scenario import PROCESSORS, Scenario, Setting
from bench.rinha.stalls import Stall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"accepted": "#555555", "default": "#2a78b5", "fallback": "#d9822b"}
_SMOOTHED_OVER_S = 1.0
_SLOW_MS = 50
_BONUS_BELOW_MS = 11


def draw(outcome: Outcome, file: Path) -> None:
    """Draw the run into a PNG file."""
    figure = new_figure(12, 9)
    rates, times, backlog = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
    score, scenario = outcome.score, outcome.scenario
    figure.suptitle(
        f"{scenario.name} in {outcome.site.kind}, durability {outcome.durability}: "
        f"score {score.value:,.0f}, "
        f"p99 {score.p99_ms:.2f} ms, lag {score.lag}, {score.inconsistencies} inconsistencies"
        + ("" if scenario.time_scale == 1 else " (shortened)")
    )
    _draw_rates(rates, outcome.samples)
    _draw_times(times, outcome.samples)
    _mark_stalls(times, outcome.stalls)
    times.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4)
    _draw_backlog(backlog, outcome.samples)
    for axes in (rates, times, backlog):
        _shade(axes, scenario)
        axes.spines[["top", "right"]].set_visible(False)
    _name_stages(rates, scenario)
    backlog.set_xlim(0, scenario.seconds + 1)
    backlog.set_xlabel("seconds (blue: default is slow, or fails; hatched: fallback is or does)")
    figure.savefig(file, dpi=110)


def _draw_rates(axes: Axes, samples: Sequence[Sample]) -> None:
    lines: list[tuple[str, str, Callable[[Sample], int | None]]] = [
        ("accepted", "accepted", lambda sample: sample.accepted)
    ]
    for name in PROCESSORS:
        lines.append((name, f"processed by {name}", _booked_by(name)))
    for key, label, total in lines:
        known = [(each.at_s, value) for each in samples if (value := total(each)) is not None]
        axes.plot(*_rates(known), color=_COLORS[key], label=label, linewidth=1.2)
    axes.set_ylabel("payments a second")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.1), frameon=False, ncols=3)


def _booked_by(name: str) -> Callable[[Sample], int | None]:
    return lambda sample: None if sample.booked is None else sample.booked[name]


def _rates(totals: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """The growth a second of a running total."""
    at, rate = [], []
    start = 0
    for at_s, total in totals:
        while totals[start + 1][0] <= at_s - _SMOOTHED_OVER_S:
            start += 1
        began_s, before = totals[start]
        if at_s > began_s:
            at.append(at_s)
            rate.append((total - before) / (at_s - began_s))
    return at, rate


def _draw_times(axes: Axes, samples: Sequence[Sample]) -> None:
    known = [each for each in samples if each.p99_ms is not None and each.p50_ms is not None]
    at = [each.at_s for each in known]
    axes.plot(at, [each.p99_ms or 0 for each in known], color="#c0392b", label="p99, last 2 s")
    axes.plot(at, [each.p50_ms or 0 for each in known], color="#888888", label="p50")
    axes.axhline(_BONUS_BELOW_MS, color="#999999", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("ms (dotted: bonus below)")


def _mark_stalls(axes: Axes, stalls: Sequence[Stall]) -> None:
    """Each at its second, as high as it was long."""
    for label, color, marked in (
        ("stall", "#444444", [stall for stall in stalls if stall.busy]),
        ("unexplained stall", "#8e44ad", [stall for stall in stalls if not stall.busy]),
    ):
        if marked:
            at, lengths = [stall.at_s for stall in marked], [stall.ms for stall in marked]
            axes.scatter(at, lengths, marker="x", s=18, linewidths=1, color=color, label=label)


def _draw_backlog(axes: Axes, samples: Sequence[Sample]) -> None:
    known = [(each.at_s, each.backlog) for each in samples if each.backlog is not None]
    at, unpaid = [at_s for at_s, _ in known], [backlog for _, backlog in known]
    axes.fill_between(at, unpaid, color="#bbbbbb")
    axes.set_ylabel("accepted, not yet processed")
    axes.set_ylim(bottom=0)


def _shade(axes: Axes, scenario: Scenario) -> None:
    for first_s, last_s, settings in _spans(scenario):
        axes.axvline(first_s, color="#cccccc", linewidth=0.6)
        default, fallback = settings["default"], settings["fallback"]
        axes.axvspan(first_s, last_s, color=_COLORS["default"], alpha=_shadow(default), linewidth=0)
        if _shadow(fallback):
            axes.axvspan(
                first_s,
                last_s,
                facecolor="none",
                edgecolor=_COLORS["fallback"],
                hatch="//",
                alpha=2 * _shadow(fallback),
                linewidth=0,
            )


def _name_stages(axes: Axes, scenario: Scenario) -> None:
    for first_s, _, settings in _spans(scenario):
        text = "\n".join(f"{name[0]}: {each}" for name, each in settings.items())
        axes.text(
            first_s,
            1.0,
            f" {text}".replace("\n", "\n "),
            transform=axes.get_xaxis_transform(),
            fontsize=7,
            va="bottom",
        )


def _spans(scenario: Scenario) -> list[tuple[float, float, dict[str, Setting]]]:
    ends = [stage.at_s for stage in scenario.stages[1:]] + [scenario.seconds]
    return [
        (stage.at_s, end_s, stage.settings)
        for stage, end_s in zip(scenario.stages, ends, strict=True)
    ]


def _shadow(setting: Setting) -> float:
    """How dark a stage is drawn: failing, slow, or neither."""
    return 0.22 if setting.failing else 0.1 if setting.delay_ms >= _SLOW_MS else 0.0

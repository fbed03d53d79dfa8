"""The two scored runs: how many users pay when, and what the processors are set to. Pure.

`scenarios.json` holds their figures, for this driver and for `k6.js` alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

PROCESSORS = ("default", "fallback")
PAUSE_S = 1.0
"""What every user sleeps after each payment."""
CLIENT_LIMIT_S = 1.5
"""When users and the auditor give up."""
AUDIT_EVERY_S = 10.0
AUDIT_WINDOW_MS = 15_000


@dataclass(frozen=True, slots=True)
class Setting:
    """What a processor is told to do to payments."""

    delay_ms: int
    failing: bool

    def __str__(self) -> str:
        return f"{self.delay_ms} ms" + (", failing" if self.failing else "")


@dataclass(frozen=True, slots=True)
class Stage:
    """From this second of the run on, the processors are set like this."""

    at_s: float
    settings: dict[str, Setting]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scored run."""

    name: str
    seconds: float
    users: int
    """At the end; they ramp linearly from 1."""
    cents: int
    """What every payment is of."""
    fee_percent: dict[str, int]
    margin_ms: int
    """An audited window ends this long ago."""
    totals_from_backend: bool
    """Whose totals are scored at the end: the backend's summary or the processors' own."""
    differences_cancel: bool
    """Whether an audit adds the processors' differences up with their signs."""
    stages: tuple[Stage, ...]
    time_scale: float = 1.0

    def starts_at_s(self, user: int) -> float:
        """When a user, counted from 0, pays for the first time."""
        return self.seconds * user / (self.users - 1) if user else 0.0

    def users_at(self, at_s: float) -> int:
        """How many have started by this second."""
        if at_s < 0:
            return 0
        return min(self.users, 1 + int(at_s * (self.users - 1) / self.seconds))

    def window_ms(self, now_ms: int) -> tuple[int, int]:
        """First and last millisecond of what an audit compares."""
        return now_ms - AUDIT_WINDOW_MS, now_ms - self.margin_ms

    @property
    def audit_every_s(self) -> float:
        """The auditor's pause between two audits."""
        return AUDIT_EVERY_S * self.time_scale

    def stage_at(self, at_s: float) -> Stage | None:
        """The stage that this second lies in; None before the first."""
        begun = [stage for stage in self.stages if stage.at_s <= at_s]
        return begun[-1] if begun else None

    def shortened(self, time_scale: float) -> Scenario:
        """The same with less time for everything but delays and limits, to try things out: its
        score is none."""
        return replace(
            self,
            seconds=self.seconds * time_scale,
            stages=tuple(replace(each, at_s=each.at_s * time_scale) for each in self.stages),
            time_scale=self.time_scale * time_scale,
        )


def load_scenario(name: str) -> Scenario:
    """One of `preview` and `final`. Raises `KeyError`."""
    file = Path(__file__).with_name("scenarios.json")
    document: dict[str, Any] = orjson.loads(file.read_bytes())[name]
    return Scenario(
        name=name,
        seconds=float(document["seconds"]),
        users=document["users"],
        cents=document["cents"],
        fee_percent=document["feePercent"],
        margin_ms=document["marginMs"],
        totals_from_backend=document["totalsFrom"] == "backend",
        differences_cancel=document["differencesCancel"],
        stages=tuple(map(_stage, document["stages"])),
    )


def _stage(document: dict[str, Any]) -> Stage:
    settings = {
        name: Setting(document[name]["delayMs"], document[name]["failing"]) for name in PROCESSORS
    }
    return Stage(float(document["atS"]), settings)

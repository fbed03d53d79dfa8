"""The scenarios that policies are played on: the challenge's two, and seeded ones. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from random import Random

from bench.rinha.scenario import PAUSE_S, PROCESSORS, Scenario, Setting, Stage, load_scenario

PUBLIC = ("preview", "final")
SEEDS = 20
TICK_MS = 10
"""Payments of the same tick count as one cohort."""
GRACE_MS = 1000
"""After the users' end the totals are read so much later."""

_FEES = ((5, 15), (7, 10))
_SLOWEST_MS = 1400
"""Of the stages before the trap: the auditor sees none of them."""
_ALIGN_S = 10.0
"""The trap begins with an audit, as in the challenge's final."""


@dataclass(frozen=True, slots=True)
class Course:
    """The settings of one processor over a scenario, by millisecond."""

    starts_ms: tuple[int, ...]
    settings: tuple[Setting, ...]

    def at(self, at_ms: float) -> Setting:
        """The setting at an instant; before the first stage, that of the first."""
        index = 0
        for number, start in enumerate(self.starts_ms):
            if start <= at_ms:
                index = number
        return self.settings[index]

    def pays(self, at_ms: float) -> bool:
        """Whether a call that begins then is paid: the processor decides after its delay."""
        return not self.at(at_ms + self.at(at_ms).delay_ms).failing


def courses(scenario: Scenario) -> dict[str, Course]:
    """The course of each processor, the cheaper one first."""
    starts = tuple(int(stage.at_s * 1000) for stage in scenario.stages)
    return {
        name: Course(starts, tuple(stage.settings[name] for stage in scenario.stages))
        for name in PROCESSORS
    }


def end_ms(scenario: Scenario) -> int:
    """The instant at which the totals are read."""
    return int(scenario.seconds * 1000) + GRACE_MS


def arrivals(scenario: Scenario) -> list[tuple[int, int]]:
    """The instants (ms) at which payments are accepted, with their numbers."""
    found: Counter[int] = Counter()
    for user in range(scenario.users - 1):
        at_s = scenario.starts_at_s(user)
        while at_s < scenario.seconds:
            found[int(at_s * 1000) // TICK_MS * TICK_MS] += 1
            at_s += PAUSE_S
    return sorted(found.items())


def seeded(seed: int) -> Scenario:
    """A scenario of random stages; the last is the trap of the challenge's final: the cheaper
    processor pays, but so late that the auditor sees it."""
    random = Random(seed)
    final = load_scenario("final")
    lasts_s = random.uniform(60, 270)
    starts = [1.0]
    while (at_s := round(starts[-1] + random.uniform(10, 40), 1)) < lasts_s:
        starts.append(at_s)
    at_s = ceil(at_s / _ALIGN_S) * _ALIGN_S
    stages = [Stage(each, {name: _setting(random) for name in PROCESSORS}) for each in starts]
    trap = {"default": Setting(final.margin_ms, False), "fallback": Setting(0, False)}
    default, fallback = random.choice(_FEES)
    return Scenario(
        name=f"seed {seed}",
        seconds=round(at_s + random.uniform(10, 40), 1),
        users=random.randint(100, final.users),
        cents=final.cents,
        fee_percent={"default": default, "fallback": fallback},
        margin_ms=final.margin_ms,
        totals_from_backend=False,
        differences_cancel=False,
        stages=(*stages, Stage(at_s, trap)),
    )


def _setting(random: Random) -> Setting:
    """Fast in half of all cases, else slow or failing."""
    kind = random.random()
    if kind < 0.5:
        return Setting(random.randint(0, 100), False)
    if kind < 0.75:
        return Setting(random.randint(100, _SLOWEST_MS), False)
    return Setting(random.choice((0, 5, 100, 2000, 5000)), True)


def all_scenarios() -> list[Scenario]:
    """The public ones, then the seeded ones."""
    return [*map(load_scenario, PUBLIC), *map(seeded, range(1, SEEDS + 1))]

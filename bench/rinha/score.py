"""What a run is worth, by the challenge's rules. Pure.

`score.js` is the same for k6. Both compute the bonus in doubles and round their decimal notation
half up, as the challenge's own script does, and money exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from math import ceil, floor

from bench.rinha.scenario import PROCESSORS, Scenario
from payswitch.money import Total

Totals = Mapping[str, Total]

NOTHING: Totals = {name: Total() for name in PROCESSORS}
"""What a summary counts as that failed or came too late."""
FINE = Decimal("0.35")


@dataclass(frozen=True, slots=True)
class Audit:
    """One comparison of the backend's summary with the processors' own."""

    at_s: float
    ours: Totals
    theirs: Totals
    failed: tuple[str, ...] = ()
    """Whose summary failed or took too long; it counts as zeros."""

    def inconsistencies(self, *, differences_cancel: bool) -> int:
        """The challenge's count: of requests, whatever their amounts."""
        differences = [self.ours[name].count - self.theirs[name].count for name in PROCESSORS]
        return abs(sum(differences)) if differences_cancel else sum(map(abs, differences))

    @property
    def strict(self) -> Total:
        """Requests and cents that differ, by processor and without signs."""
        return difference(self.ours, self.theirs)


@dataclass(frozen=True, slots=True)
class Score:
    """The challenge's verdict. Money is in the payments' currency."""

    processed: dict[str, Total]
    fees: dict[str, Decimal]
    accepted: int
    inconsistencies: int
    p99_ms: float
    bonus: Decimal

    @property
    def amount(self) -> Decimal:
        """What was processed."""
        return sum((_money(total) for total in self.processed.values()), Decimal(0))

    @property
    def net(self) -> Decimal:
        """What was processed, without fees."""
        return self.amount - sum(self.fees.values())

    @property
    def fine(self) -> Decimal:
        """The part of `net` that is lost to inconsistencies."""
        return FINE if self.inconsistencies else Decimal(0)

    @property
    def lag(self) -> int:
        """Accepted, but not processed when the run ended."""
        return self.accepted - sum(total.count for total in self.processed.values())

    @property
    def is_disqualified(self) -> bool:
        """More was processed than accepted."""
        return self.lag < 0

    @property
    def value(self) -> Decimal:
        """The score; nothing for who is disqualified."""
        return Decimal(0) if self.is_disqualified else self.net * (1 + self.bonus - self.fine)


def judge(
    scenario: Scenario, *, processed: Totals, accepted: int, inconsistencies: int, p99_ms: float
) -> Score:
    """Score a run. `p99_ms` is that of all successful requests, not yet rounded."""
    rounded = float(half_up(p99_ms))
    return Score(
        processed=dict(processed),
        fees={
            name: _money(processed[name]) * scenario.fee_percent[name] / 100 for name in PROCESSORS
        },
        accepted=accepted,
        inconsistencies=inconsistencies,
        p99_ms=rounded,
        bonus=bonus(rounded),
    )


def bonus(p99_ms: float) -> Decimal:
    """The part of `net` that a p99 below 11 ms (rounded to 2 decimals) earns on top."""
    return max(Decimal(0), half_up((11 - p99_ms) * 0.02))


def half_up(value: float) -> Decimal:
    """Two decimals of a double's shortest notation, halves away from zero."""
    return Decimal(repr(value)).quantize(Decimal("0.01"), ROUND_HALF_UP)


def percentile(values: Sequence[float], part: float) -> float:
    """A percentile (0 to 1) by linear interpolation, as k6 has it; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    at = part * (len(ordered) - 1)
    below, above = ordered[floor(at)], ordered[ceil(at)]
    return below + (above - below) * (at - floor(at))


def difference(ours: Totals, theirs: Totals) -> Total:
    """By how many requests and cents two books differ, by processor and without signs."""
    return Total(
        sum(abs(ours[name].count - theirs[name].count) for name in PROCESSORS),
        sum(abs(ours[name].cents - theirs[name].cents) for name in PROCESSORS),
    )


def count_inconsistencies(scenario: Scenario, audits: Iterable[Audit]) -> int:
    """The challenge's count over all audits of a run."""
    cancel = scenario.differences_cancel
    return sum(audit.inconsistencies(differences_cancel=cancel) for audit in audits)


def count_strictly(audits: Iterable[Audit]) -> Total:
    """Requests and cents over all audits of a run that nothing cancels."""
    differences = [audit.strict for audit in audits]
    return Total(sum(each.count for each in differences), sum(each.cents for each in differences))


def _money(total: Total) -> Decimal:
    return Decimal(total.cents) / 100

"""Stalls: times in which payments waited for long, and what was busy meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

SLOW_MS = 20.0
_NAMED_FROM = 1 / 3


@dataclass(frozen=True, slots=True)
class SlowCall:
    """A payment that got its answer, or none, after more than `SLOW_MS`."""

    at_s: float
    """Since the run began, as everywhere here."""
    ms: float


@dataclass(frozen=True, slots=True)
class Stall:
    """A time in which at least one slow call was under way."""

    at_s: float
    ms: float
    payments: int
    """The slow calls."""
    busy: dict[str, float]
    """By cause the ms that it took, of those that took a third of the time; empty if none did."""


def find_stalls(
    calls: Iterable[SlowCall], busy: Callable[[float, float], Mapping[str, float]]
) -> list[Stall]:
    """All stalls in their order. `busy` tells by cause its share of the time from one second of
    the run to another."""
    return [_stall(group, busy) for group in _overlapping(calls)]


def _overlapping(calls: Iterable[SlowCall]) -> list[list[SlowCall]]:
    groups: list[list[SlowCall]] = []
    ends_s = 0.0
    for call in sorted(calls, key=lambda call: call.at_s):
        if not groups or call.at_s > ends_s:
            groups.append([])
        groups[-1].append(call)
        ends_s = max(ends_s, _end_s(call))
    return groups


def _stall(calls: Sequence[SlowCall], busy: Callable[[float, float], Mapping[str, float]]) -> Stall:
    at_s, end_s = calls[0].at_s, max(map(_end_s, calls))
    ms = (end_s - at_s) * 1000
    shares = sorted(busy(at_s, end_s).items(), key=lambda item: item[1], reverse=True)
    named = {cause: round(share * ms, 1) for cause, share in shares if share >= _NAMED_FROM}
    return Stall(round(at_s, 3), round(ms, 1), len(calls), named)


def _end_s(call: SlowCall) -> float:
    return call.at_s + call.ms / 1000

"""The Selector: it chooses the processor of new payments.

The choice is a pure function of the health reports. Redis caches it for 10 seconds under
`selected_payment_processor`; only the holder of the health check's lock writes it. An operator's
override (`selection:override`) takes precedence until it expires.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from redis.asyncio import Redis

from payswitch.instants import format_instant
from payswitch.store import keys, scripts
from payswitch.store.notes import read_note

if TYPE_CHECKING:
    from payswitch.processors.outcomes import HealthReport

_LIFE_MS = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of response times, in ms (see `decide`)."""

    fast_enough_ms: int = 50
    fallback_advantage_ms: int = 200


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen processor; `healthy` is False if none was known to be healthy."""

    processor: str
    healthy: bool
    reason: str
    overridden: bool = False
    """Whether an operator has chosen: then no other processor steps in."""
    down: tuple[str, ...] = ()
    """The processors that are failing, or whose health is unknown."""


def unselected(processors: Sequence[str]) -> Selection:
    """The selection where none is cached: the first processor, until a worker's own results say
    otherwise."""
    return Selection(processors[0], True, "no selection is cached")


def decide(reports: Mapping[str, HealthReport | None], limits: Limits) -> Selection:
    """Choose by health reports in order of preference; a report of None is unknown.

    The first healthy processor that answers within `fast_enough_ms` is chosen; else the first
    healthy one, unless a later one is faster by more than `fallback_advantage_ms`. If none is
    healthy: the first one, marked unhealthy.
    """
    speeds = {
        name: report.min_response_ms
        for name, report in reports.items()
        if report is not None and not report.failing
    }
    down = tuple(name for name in reports if name not in speeds)
    told = [f"{name} {_word(reports[name])}" for name in down]
    if not speeds:
        return Selection(next(iter(reports)), False, ", ".join(told), down=down)
    if len(speeds) > 1 or not told:
        told += [f"{name} {speed} ms" for name, speed in speeds.items()]
    healthy = list(speeds)
    fast = [name for name in healthy if speeds[name] <= limits.fast_enough_ms]
    steady = (
        name
        for place, name in enumerate(healthy)
        if all(
            speeds[name] - speeds[later] <= limits.fallback_advantage_ms
            for later in healthy[place + 1 :]
        )
    )
    return Selection(fast[0] if fast else next(steady), True, ", ".join(told), down=down)


def parse_selection(raw: bytes | None, processors: Sequence[str]) -> Selection | None:
    """Read the cached selection; None if there is none, or none of a known processor."""
    document = read_note(raw)
    processor, healthy = document.get("processor"), document.get("healthy")
    if not isinstance(processor, str) or processor not in processors or type(healthy) is not bool:
        return None
    named = document.get("down")
    down = tuple(each for each in processors if isinstance(named, list) and each in named)
    return Selection(processor, healthy, str(document.get("reason", "")), down=down)


def parse_override(raw: bytes | None, processors: Sequence[str]) -> Selection | None:
    """Read an operator's choice; None if there is none of a known processor."""
    document = read_note(raw)
    processor = document.get("processor")
    if not isinstance(processor, str) or processor not in processors:
        return None
    return Selection(processor, True, f"chosen by {document.get('by')}", overridden=True)


def parse_standing(raw: Sequence[bytes | None], processors: Sequence[str]) -> Selection:
    """The current selection by the values of `keys.SELECTIONS`: an operator's, else the health
    check's."""
    override, selection = raw
    return (
        parse_override(override, processors)
        or parse_selection(selection, processors)
        or unselected(processors)
    )


class Selector:
    """Decides, and writes the cached selection."""

    def __init__(self, redis: Redis, limits: Limits) -> None:
        self._limits = limits
        self._select = scripts.load(redis, "select")
        self._key = self._select.partitions.common.key(keys.SELECTION)

    async def select(
        self, reports: Mapping[str, HealthReport | None], *, lock_key: str, token: str, at_ms: int
    ) -> Selection | None:
        """Decide and cache the choice; None, with nothing written, if the token no longer holds the
        lock. Raises `RedisError`."""
        selection = decide(reports, self._limits)
        document = orjson.dumps(
            {
                "processor": selection.processor,
                "healthy": selection.healthy,
                "reason": selection.reason,
                "down": selection.down,
                "at": format_instant(at_ms),
            }
        )
        written = await self._select(keys=[lock_key, self._key], args=[token, document, _LIFE_MS])
        return selection if written else None


def _word(report: HealthReport | None) -> str:
    return "unknown" if report is None else "failing" if report.failing else "healthy"

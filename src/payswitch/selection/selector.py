"""The Selector: it chooses the processor of new payments.

The choice is a pure function of the two health reports. Redis caches it for 10 seconds under
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
from payswitch.settings import DEFAULT, FALLBACK, PROCESSORS
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
    """Whether an operator has chosen: then the other processor never steps in."""


UNSELECTED = Selection(DEFAULT, True, "no selection is cached")
"""The reading of a missing, corrupt or foreign cache entry: `default`, until a worker's own results
say otherwise."""


def decide(reports: Mapping[str, HealthReport | None], limits: Limits) -> Selection:
    """Choose by two health reports; a report of None is unknown.

    If one processor is healthy: that one. If both are: `default` if it answers within
    `fast_enough_ms`, else `fallback` if that does, else `default` unless it is slower by more than
    `fallback_advantage_ms`. If neither is: `default`, marked unhealthy.
    """
    default, fallback = reports.get(DEFAULT), reports.get(FALLBACK)
    default_is_healthy = default is not None and not default.failing
    fallback_is_healthy = fallback is not None and not fallback.failing
    if not default_is_healthy and not fallback_is_healthy:
        return Selection(DEFAULT, False, f"default {_word(default)}, fallback {_word(fallback)}")
    if default is None or not default_is_healthy:
        return Selection(FALLBACK, True, f"default {_word(default)}")
    if fallback is None or not fallback_is_healthy:
        return Selection(DEFAULT, True, f"fallback {_word(fallback)}")
    speeds = f"default {default.min_response_ms} ms, fallback {fallback.min_response_ms} ms"
    if default.min_response_ms <= limits.fast_enough_ms:
        return Selection(DEFAULT, True, speeds)
    slower_by = default.min_response_ms - fallback.min_response_ms
    if (
        fallback.min_response_ms <= limits.fast_enough_ms
        or slower_by > limits.fallback_advantage_ms
    ):
        return Selection(FALLBACK, True, speeds)
    return Selection(DEFAULT, True, speeds)


def parse_selection(raw: bytes | None) -> Selection:
    """Read the cached selection; anything else is `UNSELECTED`."""
    document = read_note(raw)
    processor, healthy = document.get("processor"), document.get("healthy")
    if processor not in PROCESSORS or type(healthy) is not bool:
        return UNSELECTED
    return Selection(processor, healthy, str(document.get("reason", "")))


def parse_override(raw: bytes | None) -> Selection | None:
    """Read an operator's choice; None if there is none of a known processor."""
    document = read_note(raw)
    processor = document.get("processor")
    if processor not in PROCESSORS:
        return None
    return Selection(processor, True, f"chosen by {document.get('by')}", overridden=True)


def parse_standing(raw: Sequence[bytes | None]) -> Selection:
    """The current selection by the values of `keys.SELECTIONS`: an operator's, else the health
    check's."""
    override, selection = raw
    return parse_override(override) or parse_selection(selection)


class Selector:
    """Decides, and writes the cached selection."""

    def __init__(self, redis: Redis, limits: Limits) -> None:
        self._limits = limits
        self._select = scripts.load(redis, "select")

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
                "at": format_instant(at_ms),
            }
        )
        written = await self._select(
            keys=[lock_key, keys.SELECTION], args=[token, document, _LIFE_MS]
        )
        return selection if written else None


def _word(report: HealthReport | None) -> str:
    return "unknown" if report is None else "failing" if report.failing else "healthy"

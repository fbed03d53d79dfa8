"""Reads and writes durations such as `90s`, `10m`, `1h30m` and `2d`."""

from __future__ import annotations

import re

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000}
_DURATION = re.compile("".join(rf"(?:(\d{{1,9}}){unit})?" for unit in _UNITS_MS), re.ASCII)


def parse_duration_ms(text: str) -> int:
    """Milliseconds of whole days, hours, minutes and seconds, the larger unit first. Raises
    `ValueError`."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"not a duration: {text[:64]!r}")
    return sum(
        int(number or 0) * unit
        for number, unit in zip(match.groups(), _UNITS_MS.values(), strict=True)
    )


def format_duration(ms: int) -> str:
    """`1h30m` for milliseconds, rounded up to whole seconds."""
    rest = -(-ms // 1000) * 1000
    parts = []
    for unit, length in _UNITS_MS.items():
        number, rest = divmod(rest, length)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"

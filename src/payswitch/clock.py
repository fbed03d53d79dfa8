"""The clock for leases."""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime_ms() -> float:
    """Milliseconds on a clock that can't be set and that runs on while the process or the machine
    is suspended (Linux' CLOCK_BOOTTIME; elsewhere the monotonic clock)."""
    return time.clock_gettime(_CLOCK) * 1000

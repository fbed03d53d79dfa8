"""What a process asks of the operating system and of Python for itself."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable

from payswitch.reasons import reason

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_ENOUGH_FILES = 65_536
_OBJECTS = 20_000
"""Some 1,000 payments under way: what was made for them is gone before it is looked at. Python's
own 700 have the collector walk over live payments all the time, a fifth of a worker's CPU."""


def die_with_parent(parent_pid: int, by: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends.

    It holds through `exec`, not through `fork`: each process asks for itself. Only Linux can do
    it; elsewhere nothing happens.
    """
    death_signal(parent_pid, by)()


def death_signal(parent_pid: int, by: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """`die_with_parent` for a `preexec_fn`: all is loaded before the fork."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, by)
        if os.getppid() != parent_pid:  # it ended before the kernel was asked
            os.kill(os.getpid(), by)

    return ask


def allow_many_open_files() -> None:
    """Raise the soft limit of open files to what is enough for all connections, as far as the hard
    limit goes.

    Shells often give a soft limit of 1,024 for the sake of programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(_ENOUGH_FILES, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS knows a third limit, the kernel's
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def yield_to_others() -> None:
    """Take only the CPU that nobody else on the machine wants: Linux' `SCHED_IDLE` (sched(7)), for
    this process and the threads that it will start.

    Weights and shares alone decide who goes first on one core. A core with nothing but such tasks
    also counts as free, so a waking process goes there instead of waiting behind its like.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:  # no Linux, or forbidden in this container
        logger.warning("can't yield the CPU to others: %(error)s", {"error": reason(error)})


def collect_seldom() -> None:
    """Look for cyclic garbage seldom. Call it once all is imported: what is there now is never
    looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, 20, 50)

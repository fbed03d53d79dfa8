"""What a process asks of the operating system and of Python's garbage collector."""

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
"""As many objects as about 1,000 payments under way make, so most are gone before a collection.
With Python's own 700 the collector walks over live payments all the time, which takes a fifth of a
worker's CPU."""


def die_with_parent(parent_pid: int, by: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends for any reason.

    The request survives `exec`, not `fork`. Without Linux nothing happens.
    """
    death_signal(parent_pid, by)()


def death_signal(parent_pid: int, by: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """`die_with_parent` for a `preexec_fn`; loads everything before the fork."""
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
    """Raise the soft limit of open files as far as all connections need and the hard limit allows.

    Shells often set it to 1,024 for programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(_ENOUGH_FILES, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS has a third limit, the kernel's
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def yield_to_others() -> None:
    """Use only CPU that no other process wants: Linux' `SCHED_IDLE` (sched(7)), for this process
    and its later threads.

    Weights and shares only decide which task goes first on a core. A core that runs only such tasks
    also counts as free, so a waking process goes there instead of waiting behind another.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:  # not Linux, or forbidden in this container
        logger.warning("can't yield the CPU to others: %(error)s", {"error": reason(error)})


def collect_seldom() -> None:
    """Look for cyclic garbage seldom. Call it after all imports: objects that exist by then are
    never examined again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, 20, 50)

"""No process outlives the one that started it, even where that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent(parent_pid: int, by: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends.

    It holds through `exec`, not through `fork`: each process asks for itself. Only Linux can do
    it; elsewhere nothing happens.
    """
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent_pid:  # it ended before the kernel was asked
        os.kill(os.getpid(), by)

"""How a process stands beside others that want the same core."""

from __future__ import annotations

import logging
import os

from payswitch.reasons import reason

logger = logging.getLogger(__name__)


def yield_to_others() -> None:
    """Take only the CPU that nobody else on the machine wants: Linux' `SCHED_IDLE` (sched(7)), for
    this process and the threads that it will start.

    Weights and shares alone decide who goes first on one core. A core with nothing but such tasks
    also counts as free, so who is waited for goes there instead of waiting behind its like.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError) as error:  # no Linux, or forbidden in this container
        logger.warning("can't yield the CPU to others: %(error)s", {"error": reason(error)})

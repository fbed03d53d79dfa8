"""Keys of Redis that more than one room spells."""

from __future__ import annotations

from arq.constants import default_queue_name

QUEUE = default_queue_name
"""arq's queue of the payments: ids by the instant at which each is due (ms)."""
HEALTH_QUEUE = f"{QUEUE}:health"
"""arq's queue of the health check."""

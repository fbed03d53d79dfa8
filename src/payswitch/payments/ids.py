"""Ids of leases and tries."""

from __future__ import annotations

import os


def random_id() -> str:
    """A random number of 64 bits in decimals, for comparison as text.

    A counter in Redis would give an id twice once a failover has undone some of its steps. The
    kernel's random source shares no state between processes, even after a fork.
    """
    return str(int.from_bytes(os.urandom(8)))

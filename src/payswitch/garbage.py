"""How often Python looks for cyclic garbage in a process that serves payments."""

from __future__ import annotations

import gc

_OBJECTS = 20_000
"""Some 1,000 payments under way: what was made for them is gone before it is looked at. Python's
own 700 have the collector walk over live payments all the time, a fifth of a worker's CPU."""


def collect_seldom() -> None:
    """Call it once all is imported: what is there now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, 20, 50)

"""Payswitch: a payment dispatcher that pays exactly once through the cheapest healthy processor."""

import sys

# httpx does without its own command line where that can't be loaded. Else each worker would load
# all of rich for it: 60 ms of CPU and 4 MB.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

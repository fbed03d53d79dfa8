"""Payswitch: a payment dispatcher that pays exactly once through the cheapest healthy processor."""

import sys

# httpx works without its command line, which would load rich into each worker: 60 ms of CPU, 4 MB.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

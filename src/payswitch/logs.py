"""Log lines: one per event that matters, on standard error."""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Write lines from this level on; arq's and httpx' lines per job and per call only from
    warnings on, for they are a cost on the hot path and put payments into logs."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
    )
    for name in ("arq", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)

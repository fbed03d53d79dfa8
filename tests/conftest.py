"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal

from hypothesis import settings

# How long an example takes says something of the machine only. CI plays more of them.
settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("quick")

# A background job of a shell ignores SIGINT, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What the tests ask is on this machine, and a proxy is elsewhere.
for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
    for each in (name, name.lower()):
        os.environ.pop(each, None)


def pytest_collection_finish() -> None:
    """What thousands of collected tests hold is looked at by no collection of garbage again."""
    gc.collect()
    gc.freeze()

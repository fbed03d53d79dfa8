"""What holds for all tests."""

from __future__ import annotations

import signal

# A background job of a shell ignores SIGINT, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

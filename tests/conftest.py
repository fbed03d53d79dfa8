"""What holds for all tests."""

from __future__ import annotations

import signal

# A background job of a shell ignores SIGINT, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup it is SIGHUP. A handler, unlike that, is not inherited.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

"""How many files, and so connections, this process and those that it starts may have open."""

from __future__ import annotations

import contextlib
import resource

_ENOUGH = 65_536


def allow_many_open_files() -> None:
    """Raise the soft limit to what is enough for all connections, as far as the hard limit goes.

    Shells often give a soft limit of 1,024 for the sake of programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH:
        return
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(_ENOUGH, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS knows a third limit, the kernel's
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

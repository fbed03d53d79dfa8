"""The folder in which the processes of one ingress share their counts.

prometheus_client decides when it is imported whether it counts in memory or in such a folder, so
nothing here imports it, and `shared_by_processes` begins before anything else does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_OLD_VARIABLE = "prometheus_multiproc_dir"
_PREFIX = "payswitch-metrics-"
_MEMORY = Path("/dev/shm")


def shared() -> Path | None:
    """The folder; None where this is the only process."""
    path = os.environ.get(_VARIABLE)
    return Path(path) if path else None


def leave_that_of_others() -> None:
    """Count in no folder that the environment names: it is another program's, and may be gone."""
    for name in (_VARIABLE, _OLD_VARIABLE):
        os.environ.pop(name, None)


@contextlib.contextmanager
def shared_by_processes() -> Iterator[None]:
    """While the context lasts, processes that are started from here share a folder, in memory where
    the system has such files. Raises `OSError` where none can be made."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent) as folder:
        os.environ[_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def remove_oldest_of_ended(folder: Path, *, kept: int = 200) -> None:
    """Bound what processes leave that end again and again: beyond so many files of ended ones, the
    oldest go, and with them their counts."""
    ended: list[tuple[float, Path]] = []
    for file in folder.glob("*.db"):
        owner = re.search(r"_(\d+)$", file.stem)
        if owner is not None and not _lives(int(owner[1])):
            with contextlib.suppress(FileNotFoundError):
                ended.append((file.stat().st_mtime, file))
    for _, file in sorted(ended)[: max(0, len(ended) - kept)]:
        file.unlink(missing_ok=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of ingress that were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        owner = re.match(r"\d+", folder.name.removeprefix(_PREFIX))
        if owner is not None and not _lives(int(owner[0])):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""The folder in which the processes of one ingress share their counts.

prometheus_client decides at its import whether it counts in memory or in such a folder. So nothing
here imports it, and `shared_by_processes` begins before any import of it.
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
    """The shared folder; None for the only process of an ingress."""
    path = os.environ.get(_VARIABLE)
    return Path(path) if path else None


def leave_that_of_others() -> None:
    """Ignore a folder that the environment names: it belongs to another program and may be gone."""
    for name in (_VARIABLE, _OLD_VARIABLE):
        os.environ.pop(name, None)


@contextlib.contextmanager
def shared_by_processes() -> Iterator[None]:
    """Let processes that start within the context share a folder, in memory if the system can.
    Raises `OSError`."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent) as folder:
        os.environ[_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def remove_oldest_of_ended(folder: Path, *, kept: int = 200) -> None:
    """Bound the files of processes that keep crashing: keep the newest of ended processes, and drop
    the counts of older ones."""
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
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # else another user's
    return True

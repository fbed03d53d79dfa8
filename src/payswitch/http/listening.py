"""Addresses to listen at: whether one can be had, found out before anything is claimed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from payswitch.errors import StartError
from payswitch.reasons import reason

_LONGEST_PATH = 107
"""Bytes of a unix socket's path that Linux takes (unix(7)); macOS takes 103."""


class ListenError(StartError):
    """An address can't be listened at; the message names it and says why."""


def numeric(host: str, port: int, name: str = "") -> str:
    """The host's first address in numbers, once it was free for a moment. Raises `ListenError`,
    which calls it by the name, or by its port.

    Granian takes nothing but numbers, and shares a port that another ingress has.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"{name or f'port {port}'}: {reason(error, host)}") from None
    return str(place[0])


def free_path(path: Path) -> Path:
    """The path of a unix socket, once a socket was there for a moment; what a killed process left
    is removed. Raises `ListenError`."""
    try:
        whole = path.resolve()
        if len(os.fsencode(whole)) > _LONGEST_PATH:
            raise ListenError(f"socket {path}: a path of over {_LONGEST_PATH} bytes")
        if whole.is_socket():
            _remove_dead(whole)
        elif whole.exists():
            what = "a folder" if whole.is_dir() else "another file"
            raise ListenError(f"socket {path}: this is {what}, not a socket")
        _try(whole)
    except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is the latter
        if isinstance(error, ListenError):
            raise
        raise ListenError(f"socket {path}: {reason(error)}") from None
    return whole


def _remove_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ListenError(f"socket {path} is in use")


def _try(path: Path) -> None:
    restore = create_sockets_with(0)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.bind(str(path))
    finally:
        restore()
    path.unlink()


def create_sockets_with(mode: int) -> Callable[[], None]:
    """Have unix sockets made with exactly this mode from now on: it is theirs from their first
    moment, as a mode that is set later is not. What is returned gives the umask back."""
    before = os.umask(0o777 & ~mode)

    def restore() -> None:
        os.umask(before)

    return restore

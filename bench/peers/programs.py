"""Installs the peers into `build/peers`, from the versions that their lock files pin."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import orjson

from bench.local import BenchError
from bench.pipeline import System

_SOURCES = Path(__file__).parent
_BUILD = Path(__file__).parents[2] / "build" / "peers"


@dataclass(frozen=True, slots=True)
class QueuePeer:
    """A contender that is no part of this project."""

    programs: tuple[str, ...]
    """What the machine must have; the first one runs the peer."""
    ask_version: tuple[str, ...]
    """The command that prints the first one's version."""
    oldest: tuple[int, int]
    """The oldest version that will do."""
    packages: Callable[[], Mapping[str, str]]
    """The pinned versions by name."""
    install: Callable[[], System]
    """Raises `BenchError` if that fails."""

    @property
    def version(self) -> str:
        """The version of the program that runs the peer."""
        found = re.search(r"\d+\.\d+[.\d]*", _run(*self.ask_version, folder=_SOURCES))
        return found[0] if found else "0.0"

    @property
    def lack(self) -> str | None:
        """Why this machine can't run it; None if it can."""
        for program in self.programs:
            if shutil.which(program) is None:
                return f"there is no {program}"
        version = self.version
        if tuple(map(int, version.split(".")[:2])) < self.oldest:
            return f"{self.programs[0]} {version} is older than {'.'.join(map(str, self.oldest))}"
        return None


def _program(*command: str) -> tuple[str, ...]:
    return ("-m", "bench.program", *command)


def _run(*command: str, folder: Path) -> str:
    """Run a command and return its output. Go doesn't fetch a newer version of itself."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _install_bullmq() -> System:
    folder = _BUILD / "bullmq"
    shutil.copytree(_SOURCES / "bullmq", folder, dirs_exist_ok=True)
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".payswitch-lock.json"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)
        shutil.copyfile(lock, installed)
    return System(
        ingress=lambda port: _program("node", str(folder / "ingress.js"), str(port)),
        worker=_program("node", str(folder / "worker.js")),
        is_up=lambda client: bool(client.exists("bull:payments:stalled-check")),
        settled=lambda client: cast(int, client.zcard("bull:payments:completed")),
    )


def _bullmq_packages() -> dict[str, str]:
    package = orjson.loads((_SOURCES / "bullmq" / "package.json").read_bytes())
    return cast(dict[str, str], package["dependencies"])


def _install_asynq() -> System:
    binary = str(_BUILD / "asynq")
    _run("go", "build", "-buildvcs=false", "-o", binary, ".", folder=_SOURCES / "asynq")
    return System(
        ingress=lambda port: _program(binary, "ingress", str(port)),
        worker=_program(binary, "worker"),
        is_up=lambda client: bool(client.exists("asynq:servers")),
        settled=lambda client: cast(int, client.zcard("asynq:{default}:completed")),
    )


def _asynq_packages() -> dict[str, str]:
    module = (_SOURCES / "asynq" / "go.mod").read_text()
    return dict(re.findall(r"^\t\S+/(\w+) v(\S+)$", module, re.MULTILINE))


PEERS = {
    "bullmq": QueuePeer(
        ("node", "npm"), ("node", "--version"), (20, 18), _bullmq_packages, _install_bullmq
    ),
    "asynq": QueuePeer(
        ("go",), ("go", "env", "GOVERSION"), (1, 24), _asynq_packages, _install_asynq
    ),
}

"""The system in containers under the challenge's limits: compose.yaml, by Docker or Podman.

What the run starts is a project of its own with its own volume, so that it begins empty and takes
nothing with it when it is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import yaml

from bench.rinha.cgroups import usage_of
from bench.rinha.site import Site, SiteError, Usage, Usages
from payswitch.durability import Durability

PROJECT = "payswitch-rinha"
COMPOSE = "compose.yaml"
PROCESSORS_COMPOSE = "compose.processors.yaml"
ENDPOINT = "http://localhost:9999"
PROCESSORS = {"default": "http://localhost:8001", "fallback": "http://localhost:8002"}

_OWN_PROJECTS = (PROJECT, "payswitch")
_PROCESSOR_CONTAINERS = tuple(f"payment-processor-{name}" for name in PROCESSORS)
_ENGINES = {"docker": ("docker", "compose"), "podman": ("podman-compose",)}
_SIGNS_OF_LIFE = ("arq:queue:health-check", "arq:queue:health:health-check")
_READY_LIMIT_S = 60.0
_TAIL = 12


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that answers, and its compose command."""

    program: str
    compose: tuple[str, ...]

    async def ids(self, *, project: str) -> list[str]:
        """The running containers of a compose project."""
        label = f"label=com.docker.compose.project={project}"
        return (await output(self.program, "ps", "--quiet", "--filter", label)).split()

    async def inspect(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What the engine knows of containers; those that don't exist are left out."""
        found = []
        for name in names:
            with contextlib.suppress(SiteError):
                found += orjson.loads(await output(self.program, "inspect", name))
        return found


async def find_engine() -> Engine | None:
    """Docker or Podman, whichever answers and can compose."""
    for program, compose in _ENGINES.items():
        if not all(shutil.which(each) for each in (program, compose[0])):
            continue
        with contextlib.suppress(SiteError):
            await output(program, "ps", "--quiet")
            await output(*compose, "version")
            return Engine(program, compose)
    return None


async def is_running(engine: Engine) -> bool:
    """Whether the system runs in containers already."""
    return bool(await _own_ids(engine))


@contextlib.asynccontextmanager
async def serving(
    engine: Engine, root: Path, *, start: bool, build: bool, durability: Durability | None = None
) -> AsyncIterator[Site]:
    """The system in containers. With `start` they are made, with another durability than the
    compose file's on demand, and removed in the end; else they must be running. Raises
    `SiteError`."""
    async with contextlib.AsyncExitStack() as stack:
        if start:
            files = [COMPOSE]
            if durability is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                files.append(str(_write_override(root / COMPOSE, durability, folder)))
            await _start(engine, root, stack, files, ["--build"] if build else [])
        containers = await _containers(engine)
        if "redis" not in containers:
            raise SiteError(f"no containers of {COMPOSE} are running")
        await _wait_for_workers(engine, containers["redis"]["Id"])

        async def usages() -> Usages:
            return {
                name: _usage(container) for name, container in (await _containers(engine)).items()
            }

        yield Site(
            kind="containers",
            endpoint=ENDPOINT,
            processors=PROCESSORS,
            token="123",
            usages=usages,
            selection=_unknown,
            check=lambda: None,
        )


async def output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints. Raises `SiteError` with its last lines when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=cwd
    )
    printed, errors = await process.communicate()
    if process.returncode:
        raise SiteError(_failure(command, errors))
    return printed.decode()


def durability_override(compose: Mapping[str, Any], durability: Durability) -> dict[str, Any]:
    """What a second compose file must say, so that the system of the first has this durability."""
    services = compose["services"]
    command = list(services["redis"]["command"])
    command[command.index("--appendfsync") + 1] = durability.appendfsync[0]
    parts = [name for name, service in services.items() if "environment" in service]
    environment = {"PAYSWITCH_DURABILITY": durability}
    return {
        "services": {
            "redis": {"command": command},
            **{name: {"environment": environment} for name in parts},
        }
    }


def _write_override(compose: Path, durability: Durability, folder: Path) -> Path:
    document = durability_override(yaml.safe_load(compose.read_text()), durability)
    file = folder / "durability.yaml"
    file.write_bytes(orjson.dumps(document))  # JSON is YAML, and nothing in it needs quotes
    return file


async def _start(
    engine: Engine,
    root: Path,
    stack: contextlib.AsyncExitStack,
    files: Sequence[str],
    options: Sequence[str],
) -> None:
    if await is_running(engine):
        raise SiteError(
            f"the system runs in containers already: stop it, or measure it with --no-start, "
            f"which deletes its payments ({engine.program} ps)"
        )
    processors = await engine.inspect(_PROCESSOR_CONTAINERS)
    if not all(_is_up(each) for each in processors) or len(processors) < len(PROCESSORS):
        # Those that run are left alone: they may be the challenge's own.
        of_processors = (*engine.compose, "-f", PROCESSORS_COMPOSE)
        stack.push_async_callback(_compose, root, *of_processors, "down")
        await _compose(root, *of_processors, "up", "-d", *options)
    ours = (*engine.compose, "-p", PROJECT, *(word for file in files for word in ("-f", file)))
    stack.push_async_callback(_compose, root, *ours, "down", "--volumes")
    await _compose(root, *ours, "up", "-d", *options)


async def _compose(root: Path, *command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, cwd=root
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise SiteError(_failure(command, printed))


def _failure(command: Sequence[str], printed: bytes) -> str:
    lines = printed.decode(errors="backslashreplace").strip().splitlines()
    return "\n".join([f"{' '.join(command)} failed:", *lines[-_TAIL:]])


async def _own_ids(engine: Engine) -> list[str]:
    return [each for project in _OWN_PROJECTS for each in await engine.ids(project=project)]


async def _containers(engine: Engine) -> dict[str, dict[str, Any]]:
    """Ours and the processors', by service."""
    found = await engine.inspect([*await _own_ids(engine), *_PROCESSOR_CONTAINERS])
    return {_service(each): each for each in found}


async def _wait_for_workers(engine: Engine, redis: str) -> None:
    """Wait until payments and health workers have said in Redis that they live."""
    command = (engine.program, "exec", redis, "redis-cli", "exists", *_SIGNS_OF_LIFE)
    try:
        async with asyncio.timeout(_READY_LIMIT_S):
            while (await output(*command)).strip() != str(len(_SIGNS_OF_LIFE)):
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise SiteError(f"the workers are not ready after {_READY_LIMIT_S:.0f} s") from None


def _service(container: Mapping[str, Any]) -> str:
    labels = container["Config"].get("Labels") or {}
    name: str = labels.get("com.docker.compose.service") or container["Name"].lstrip("/")
    return name


def _is_up(container: Mapping[str, Any]) -> bool:
    return bool(container["State"].get("Running"))


def _usage(container: Mapping[str, Any]) -> Usage:
    pid = container["State"].get("Pid") or 0
    usage = usage_of(pid) if pid else Usage()
    return replace(usage, restarts=int(container.get("RestartCount") or 0))


async def _unknown() -> str | None:
    """Redis is not reachable from here, and to ask inside would cost it CPU."""
    return None

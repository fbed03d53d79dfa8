"""What a scored run starts and removes, by an engine that only writes down what it is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from bench.rinha.containers import PROCESSORS, Engine, serving
from bench.rinha.site import SiteError
from payswitch.durability import Durability
from tests.documented import REPOSITORY
from tests.unit.deployment.test_compose import COMPOSE as DOCUMENT

PODMAN = """#!/bin/sh
cd "$(dirname "$0")"
echo "podman $*" >> log
case $1 in
    ps) cat "running-${4##*=}" 2>/dev/null || true ;;
    inspect) cat "container-$2" 2>/dev/null ;;
    exec) echo 2 ;;
esac
"""
COMPOSE = """#!/bin/sh
cd "$(dirname "$0")"
echo "compose $*" >> log
case "$*" in
    *payswitch-rinha*up*) test ! -e broken && echo redis > running-payswitch-rinha ;;
    *payswitch-rinha*down*) rm -f running-payswitch-rinha ;;
esac
"""


class Recorded:
    """An engine whose containers are files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, script in (("podman", PODMAN), ("compose", COMPOSE)):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        self.add("redis", service="redis")
        self.engine = Engine(str(folder / "podman"), (str(folder / "compose"),))

    def add(self, name: str, *, service: str, running: bool = True) -> None:
        container = {
            "Id": name,
            "Name": name,
            "RestartCount": 3,
            "State": {"Running": running, "Pid": 0},
            "Config": {"Labels": {"com.docker.compose.service": service}},
        }
        (self._folder / f"container-{name}").write_bytes(orjson.dumps([container]))

    def run_by_the_user(self) -> None:
        (self._folder / "running-payswitch").write_text("redis\n")

    def run_processors(self, *, running: bool = True) -> None:
        for name in PROCESSORS:
            container = f"payment-processor-{name}"
            self.add(container, service=container, running=running)

    def fail(self) -> None:
        (self._folder / "broken").touch()

    @property
    def composed(self) -> list[str]:
        lines = (self._folder / "log").read_text().splitlines()
        return [line.removeprefix("compose ") for line in lines if line.startswith("compose")]


OURS_UP = "-p payswitch-rinha -f compose.yaml up -d --build"
OURS_DOWN = "-p payswitch-rinha -f compose.yaml down --volumes"
PROCESSORS_UP = "-f compose.processors.yaml up -d --build"
PROCESSORS_DOWN = "-f compose.processors.yaml down"


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


async def test_everything_that_was_started_is_removed_with_a_volume_of_its_own(
    recorded: Recorded, tmp_path: Path
) -> None:
    async with serving(recorded.engine, tmp_path, start=True, build=True) as site:
        assert recorded.composed == [PROCESSORS_UP, OURS_UP]
        assert (await site.usages())["redis"].restarts == 3
    assert recorded.composed == [PROCESSORS_UP, OURS_UP, OURS_DOWN, PROCESSORS_DOWN]


@pytest.mark.parametrize("durability", Durability)
async def test_another_durability_is_an_override_of_redis_and_all_parts(
    recorded: Recorded, tmp_path: Path, durability: Durability
) -> None:
    shutil.copy(REPOSITORY / "compose.yaml", tmp_path)
    running = serving(recorded.engine, tmp_path, start=True, build=True, durability=durability)
    async with running:
        up = recorded.composed[-1]
        file = up.split("-f ")[2].split(" ")[0]
        assert up == f"-p payswitch-rinha -f compose.yaml -f {file} up -d --build"
        override = read_yaml(file)["services"]
    assert recorded.composed[-2] == f"-p payswitch-rinha -f compose.yaml -f {file} down --volumes"
    redis = DOCUMENT["services"]["redis"]["command"]
    assert override.pop("redis") == {
        "command": [
            durability.appendfsync[0] if before == "--appendfsync" else word
            for before, word in zip(["", *redis], redis, strict=False)
        ]
    }
    parts = {name for name, part in DOCUMENT["services"].items() if "environment" in part}
    environment = {"PAYSWITCH_DURABILITY": str(durability)}
    assert override == {name: {"environment": environment} for name in parts}


def read_yaml(file: str) -> Any:
    return yaml.safe_load(Path(file).read_text())


async def test_processors_that_run_are_used_and_left_alone(
    recorded: Recorded, tmp_path: Path
) -> None:
    recorded.run_processors()
    async with serving(recorded.engine, tmp_path, start=True, build=True) as site:
        assert {f"payment-processor-{name}" for name in PROCESSORS} < set(await site.usages())
    assert recorded.composed == [OURS_UP, OURS_DOWN]


async def test_processors_that_stand_still_are_started(recorded: Recorded, tmp_path: Path) -> None:
    recorded.run_processors(running=False)
    async with serving(recorded.engine, tmp_path, start=True, build=True):
        assert recorded.composed == [PROCESSORS_UP, OURS_UP]


async def test_a_system_that_runs_already_is_not_touched(
    recorded: Recorded, tmp_path: Path
) -> None:
    recorded.run_by_the_user()
    with pytest.raises(SiteError, match="--no-start"):
        async with serving(recorded.engine, tmp_path, start=True, build=True):
            pass
    assert recorded.composed == []


async def test_a_system_that_runs_already_is_measured_on_demand(
    recorded: Recorded, tmp_path: Path
) -> None:
    recorded.run_by_the_user()
    async with serving(recorded.engine, tmp_path, start=False, build=True) as site:
        assert set(await site.usages()) == {"redis"}
    assert recorded.composed == []


async def test_without_containers_there_is_nothing_to_measure(
    recorded: Recorded, tmp_path: Path
) -> None:
    with pytest.raises(SiteError, match=r"no containers of compose\.yaml"):
        async with serving(recorded.engine, tmp_path, start=False, build=True):
            pass


async def test_what_was_started_is_removed_when_the_rest_fails(
    recorded: Recorded, tmp_path: Path
) -> None:
    recorded.fail()
    with pytest.raises(SiteError, match="failed"):
        async with serving(recorded.engine, tmp_path, start=True, build=False):
            pass
    assert recorded.composed[-2:] == [OURS_DOWN, PROCESSORS_DOWN]

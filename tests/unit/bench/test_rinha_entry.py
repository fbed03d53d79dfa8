"""The challenge's entry: made from compose.yaml, within the rules, and the same system."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from bench.rinha.entry import OTHER_TECHNOLOGIES, Author, EntryError, entry, write_entry
from payswitch.durability import Durability
from tests.documented import REPOSITORY
from tests.unit.deployment.test_compose import COMPOSE, SERVICES, limits, size

AUTHOR = Author(
    name="Débora",
    social=("https://social.example/debora",),
    repository="https://git.example/debora/payswitch",
    image="docker.io/debora/payswitch:1.2.3",
)
NAMES = sorted(SERVICES)
COMPOSERS = [
    command
    for command in (("docker", "compose"), ("podman-compose",))
    if shutil.which(command[0])
    and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written entry."""
    folder = tmp_path_factory.mktemp("entries") / "debora"
    write_entry(REPOSITORY / "compose.yaml", AUTHOR, folder)
    return folder


@pytest.fixture(scope="module")
def published(folder: Path) -> dict[str, Any]:
    """Its docker-compose.yml."""
    document = yaml.safe_load((folder / "docker-compose.yml").read_text())
    assert isinstance(document, dict)
    return document


def changed_compose(folder: Path, **service: Any) -> Path:
    """A compose file like ours, whose Redis is another in some respect."""
    services = SERVICES | {"redis": SERVICES["redis"] | service}
    path = folder / "compose.yaml"
    path.write_text(yaml.safe_dump(COMPOSE | {"services": services}))
    (folder / "haproxy.cfg").touch()
    return path


# The challenge's rules.


def test_its_limits_add_up_to_what_the_challenge_allows(published: dict[str, Any]) -> None:
    given = [limits(service) for service in published["services"].values()]
    assert sum(Decimal(each["cpus"]) for each in given) <= Decimal("1.5")
    assert sum(size(each["memory"]) for each in given) <= 350 * 1024**2


@pytest.mark.parametrize("name", NAMES)
def test_its_images_are_named_with_a_tag_and_not_built(
    name: str, published: dict[str, Any]
) -> None:
    service = published["services"][name]
    assert "build" not in service
    assert re.fullmatch(r"docker\.io/\w+/\w+:[\w.]+", service["image"])
    assert not service["image"].endswith(":latest")


@pytest.mark.parametrize("name", NAMES)
def test_it_has_nothing_that_the_rules_forbid(name: str, published: dict[str, Any]) -> None:
    service = published["services"][name]
    assert not {"privileged", "network_mode", "scale"} & service.keys()
    assert "replicas" not in service["deploy"]
    assert set(service["networks"]) <= published["networks"].keys()


def test_its_networks_are_a_bridge_and_the_processors_own(published: dict[str, Any]) -> None:
    assert published["networks"] == {
        "payswitch": {"driver": "bridge"},
        "payment-processor": {"name": "payment-processor", "external": True},
    }


def test_two_servers_answer_behind_port_9999(published: dict[str, Any]) -> None:
    services = published["services"]
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"haproxy": ["9999:9999"]}
    servers = [each for each in services.values() if "ingress" in each.get("command", "")]
    assert len(servers) >= 2


# The same system.


@pytest.mark.parametrize("name", NAMES)
def test_a_service_is_what_it_is_in_compose_yaml(name: str, published: dict[str, Any]) -> None:
    ours = dict(SERVICES[name])
    if ours.pop("build", None):
        ours["image"] = AUTHOR.image
    assert published["services"][name] == ours


def test_it_has_just_the_services_that_up_starts(published: dict[str, Any]) -> None:
    assert published["services"].keys() == SERVICES.keys()


def test_all_but_the_services_is_as_in_compose_yaml(published: dict[str, Any]) -> None:
    ours = {name for name in COMPOSE if not name.startswith("x-")}
    assert published.keys() == ours
    assert {name: published[name] for name in ours - {"services"}} == {
        name: COMPOSE[name] for name in ours - {"services"}
    }


def test_it_is_written_out_without_anchors(folder: Path) -> None:
    events = list(yaml.parse((folder / "docker-compose.yml").read_text()))
    assert not [event for event in events if getattr(event, "anchor", None)]


def test_no_text_is_a_number_to_another_yaml(folder: Path) -> None:
    # YAML 1.2 reads 1e3 and 0o7 as numbers, which 1.1 does not.
    events = yaml.parse((folder / "docker-compose.yml").read_text())
    plain = [each for each in events if isinstance(each, yaml.ScalarEvent) and not each.style]
    assert [
        each.value for each in plain if each.value[:1].isdigit() and not each.value.isdigit()
    ] == []


def test_what_its_services_mount_is_there(folder: Path) -> None:
    assert (folder / "haproxy.cfg").read_bytes() == (REPOSITORY / "haproxy.cfg").read_bytes()


@pytest.mark.skipif(not COMPOSERS, reason="neither docker compose nor podman-compose is here")
@pytest.mark.parametrize("composer", COMPOSERS, ids=lambda command: command[0])
def test_a_composer_reads_the_same_from_both(composer: tuple[str, ...], folder: Path) -> None:
    def services(path: Path) -> Any:
        read = subprocess.run(
            [*composer, "-f", path.name, "config"], cwd=path.parent, capture_output=True, check=True
        )
        found = yaml.safe_load(read.stdout)["services"]
        found.pop("operator", None)
        for service in found.values():
            if service.pop("build", None):
                service["image"] = AUTHOR.image
        return found

    assert services(folder / "docker-compose.yml") == services(REPOSITORY / "compose.yaml")


# info.json and the README.


def test_info_json_has_the_challenges_fields(folder: Path) -> None:
    assert orjson.loads((folder / "info.json").read_bytes()) == {
        "name": "Débora",
        "social": ["https://social.example/debora"],
        "source-code-repo": "https://git.example/debora/payswitch",
        "langs": ["python"],
        "storages": ["redis"],
        "messaging": ["redis"],
        "load-balancers": ["haproxy"],
        "other-technologies": list(OTHER_TECHNOLOGIES),
    }


def test_the_other_technologies_are_what_payswitch_depends_on() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {Requirement(each).name for each in project["dependencies"]} >= set(OTHER_TECHNOLOGIES)


def test_the_readme_links_to_the_source_and_adds_up_the_limits(folder: Path) -> None:
    readme = (folder / "README.md").read_text()
    assert f"<{AUTHOR.repository}>" in readme
    given = [limits(service) for service in SERVICES.values()]
    cpus = sum(Decimal(each["cpus"]) for each in given)
    memory = sum(size(each["memory"]) for each in given) // 1024**2
    assert f"| **in all** | | **{cpus}** | **{memory}MB** |" in readme
    for name in NAMES:
        assert f"| {name} | " in readme


@pytest.mark.parametrize("durability", Durability)
def test_the_readme_says_what_a_202_stands_for(durability: Durability, tmp_path: Path) -> None:
    environment = {"PAYSWITCH_DURABILITY": str(durability)}
    services = SERVICES | {
        name: part | {"environment": environment}
        for name, part in SERVICES.items()
        if "environment" in part
    }
    compose = tmp_path / "compose.yaml"
    compose.write_text(yaml.safe_dump(COMPOSE | {"services": services}))
    (tmp_path / "haproxy.cfg").touch()
    write_entry(compose, AUTHOR, tmp_path / "entry")
    readme = (tmp_path / "entry" / "README.md").read_text()
    said = f"survives {durability.survives}\n(`PAYSWITCH_DURABILITY={durability}`)."
    assert said in readme


def test_nothing_else_is_in_the_entry(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "docker-compose.yml",
        "haproxy.cfg",
        "info.json",
        "README.md",
    }


def test_an_image_that_info_json_has_no_field_for_is_refused(tmp_path: Path) -> None:
    compose = changed_compose(tmp_path, image="docker.io/library/postgres:17")
    with pytest.raises(EntryError, match=r"library/postgres:17"):
        write_entry(compose, AUTHOR, tmp_path / "entry")
    assert not (tmp_path / "entry").exists()


def test_a_limit_in_another_unit_is_refused(tmp_path: Path) -> None:
    given = {"deploy": {"resources": {"limits": {"cpus": "0.40", "memory": "1G"}}}}
    with pytest.raises(EntryError, match="1G"):
        write_entry(changed_compose(tmp_path, **given), AUTHOR, tmp_path / "entry")


# The command.


def test_the_command_makes_its_defaults_from_the_owner(tmp_path: Path) -> None:
    ended = CliRunner().invoke(entry, ["--owner", "Somebody", "--out", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    info = orjson.loads((tmp_path / "info.json").read_bytes())
    assert info["source-code-repo"] == "https://github.com/Somebody/payswitch"
    assert info["social"] == ["https://github.com/Somebody"]
    services = yaml.safe_load((tmp_path / "docker-compose.yml").read_text())["services"]
    tag = SERVICES["health"]["image"].rpartition(":")[2]
    assert services["health"]["image"] == f"docker.io/somebody/payswitch:{tag}"


def test_the_command_writes_over_an_older_entry(tmp_path: Path) -> None:
    for owner in ("one", "two"):
        arguments = ["--owner", owner, "--out", str(tmp_path)]
        assert CliRunner().invoke(entry, arguments).exit_code == 0
    assert "docker.io/two/" in (tmp_path / "docker-compose.yml").read_text()
    assert "docker.io/one/" not in (tmp_path / "docker-compose.yml").read_text()


@pytest.mark.parametrize(
    "image",
    [
        "payswitch",
        "payswitch:1",
        "docker.io/me/payswitch",
        "docker.io/me/payswitch:latest",
        "a b:1",
    ],
)
def test_an_image_that_nobody_could_pull_is_refused(image: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(entry, ["--image", image, "--out", str(tmp_path / "entry")])
    assert ended.exit_code == 2
    assert repr(image) in ended.output
    assert not (tmp_path / "entry").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = CliRunner().invoke(entry, ["--out", str(tmp_path / "file" / "entry")])
    assert ended.exit_code == 1
    assert ended.output.startswith("entry: ")
    assert ended.output.count("\n") == 1

"""Holds `compose.yaml` to the challenge's rules, and the container files to one another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from decimal import Decimal
from importlib.metadata import requires
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from payswitch.durability import Durability
from tests.documented import REPOSITORY

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


def load(name: str) -> dict[str, Any]:
    document = yaml.safe_load((REPOSITORY / name).read_text())
    assert isinstance(document, dict)
    return document


COMPOSE = load("compose.yaml")
PROCESSORS = load("compose.processors.yaml")
SERVICES: dict[str, dict[str, Any]] = {
    name: service for name, service in COMPOSE["services"].items() if "profiles" not in service
}
"""What `up` starts."""
OPERATOR: dict[str, Any] = COMPOSE["services"]["operator"]
ALL_SERVICES = SERVICES | PROCESSORS["services"]
INGRESSES = {name for name in SERVICES if name.startswith("ingress")}
WORKERS = {name for name in SERVICES if name.startswith("worker")}


def limits(service: dict[str, Any]) -> dict[str, str]:
    found = service["deploy"]["resources"]["limits"]
    assert isinstance(found, dict)
    return found


def size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG])B?", text.upper())
    assert match, text
    return int(match[1]) * UNITS[match[2]]


def options(command: list[str]) -> dict[str, str]:
    """What follows `redis-server`, as pairs."""
    given = command[command.index("redis-server") + 1 :]
    return dict(zip(given[::2], given[1::2], strict=True))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits(name: str) -> None:
    given = limits(SERVICES[name])
    assert Decimal(given["cpus"]) > 0
    assert size(given["memory"]) > 0


def test_the_limits_add_up_to_at_most_one_and_a_half_cpu() -> None:
    assert sum(Decimal(limits(service)["cpus"]) for service in SERVICES.values()) <= Decimal("1.5")


def test_the_limits_add_up_to_at_most_350_mb() -> None:
    assert sum(size(limits(service)["memory"]) for service in SERVICES.values()) <= 350 * 1024**2


@pytest.mark.parametrize("name", ALL_SERVICES)
def test_no_service_has_what_the_rules_forbid(name: str) -> None:
    service = ALL_SERVICES[name]
    assert not {"privileged", "network_mode", "scale"} & service.keys()
    assert "replicas" not in service.get("deploy", {})
    assert service.get("networks"), "a service without networks joins the default one"


@pytest.mark.parametrize("name", ALL_SERVICES)
def test_every_service_comes_back_by_itself(name: str) -> None:
    assert ALL_SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ALL_SERVICES)
def test_every_image_is_pinned_by_a_tag(name: str) -> None:
    _, _, tag = ALL_SERVICES[name]["image"].rpartition("/")[2].partition(":")
    assert tag
    assert tag != "latest"


def test_the_networks_are_bridges_but_the_processors_own() -> None:
    networks = COMPOSE["networks"]
    external = {name for name, network in networks.items() if network.get("external")}
    assert external == {"payment-processor"}
    assert networks["payment-processor"].get("name", "payment-processor") == "payment-processor"
    assert {networks[name].get("driver", "bridge") for name in networks.keys() - external} == {
        "bridge"
    }


def test_only_who_calls_the_processors_is_on_their_network() -> None:
    joined = {
        name for name, service in SERVICES.items() if "payment-processor" in service["networks"]
    }
    assert joined == WORKERS | {"health"}


def test_port_9999_leads_to_haproxy_and_no_other_port_is_open() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"haproxy": ["9999:9999"]}


def test_haproxy_has_every_ingress_behind_it() -> None:
    assert len(INGRESSES) >= 2
    for kind, port in (("INGRESS", 9001), ("PAYMENTS", 9002)):
        servers = re.findall(
            rf'^ *server \S+ "\$\{{{kind}_\d-([^:]+):{port}\}}"', haproxy_config(), re.MULTILINE
        )
        assert set(servers) == INGRESSES
    assert set(SERVICES["haproxy"]["depends_on"]) == INGRESSES
    for name in INGRESSES:
        assert SERVICES[name]["command"].split()[:1] == ["ingress"]
        assert "--host 0.0.0.0 --port 9001 --payments-port 9002" in SERVICES[name]["command"]
    assert any(mount.startswith("./haproxy.cfg:") for mount in SERVICES["haproxy"]["volumes"])


def test_payments_are_paid_and_health_is_watched() -> None:
    assert WORKERS
    assert all(SERVICES[name]["command"] == "worker" for name in WORKERS)
    assert SERVICES["health"]["command"] == "health"


def test_who_a_client_waits_for_goes_first() -> None:
    later = WORKERS | {"health"}
    assert len({SERVICES[name]["cpu_shares"] for name in later}) == 1
    first = min(service["cpu_shares"] for name, service in SERVICES.items() if name not in later)
    assert all(SERVICES[name]["cpu_shares"] < first for name in later)
    assert SERVICES["health"]["environment"]["PAYSWITCH_WORKERS_YIELD"] == "on"


def test_a_worker_may_finish_before_it_is_killed() -> None:
    assert all(SERVICES[name]["stop_grace_period"] == "15s" for name in WORKERS)


def test_redis_keeps_what_a_202_stands_for() -> None:
    redis = SERVICES["redis"]
    given = options(redis["command"])
    assert given["--appendonly"] == "yes"
    durability = Durability(SERVICES["health"]["environment"]["PAYSWITCH_DURABILITY"])
    assert durability is Durability.PROCESS
    assert given["--appendfsync"] == durability.appendfsync[0]
    assert given["--maxmemory-policy"] == "noeviction"
    assert given["--save"] == ""
    volumes = [mount.split(":") for mount in redis["volumes"]]
    assert [(name, target) for name, target, *_ in volumes] == [("redis", "/data")]
    assert "redis" in COMPOSE["volumes"]


def test_redis_refuses_before_it_is_killed_for_its_memory() -> None:
    redis = SERVICES["redis"]
    assert size(options(redis["command"])["--maxmemory"]) <= 0.75 * size(limits(redis)["memory"])


def test_parts_of_payswitch_are_one_image_and_agree_on_their_settings() -> None:
    parts = [SERVICES[name] for name in INGRESSES | WORKERS | {"health"}]
    parts_and_simulators = [*parts, *PROCESSORS["services"].values()]
    assert len({part["image"] for part in parts_and_simulators}) == 1
    for part in parts:
        assert part["environment"] == parts[0]["environment"]


def test_operators_have_a_service_of_their_own_that_up_does_not_start() -> None:
    assert COMPOSE["services"].keys() - SERVICES.keys() == {"operator"}
    assert OPERATOR["profiles"] == ["operator"]
    assert OPERATOR["restart"] == "no"
    health = SERVICES["health"]
    shared = ("image", "environment", "networks", "read_only", "cap_drop", "security_opt")
    assert [OPERATOR[name] for name in shared] == [health[name] for name in shared]


def test_operators_commands_have_memory_and_take_no_cpu_from_who_a_client_waits_for() -> None:
    # 41 MB were used by `reconcile --thorough` (docs/containers.md).
    assert size(limits(OPERATOR)["memory"]) >= 2 * 41 * 1024**2
    assert OPERATOR["cpu_shares"] == SERVICES["health"]["cpu_shares"]


def test_the_simulators_are_where_the_workers_look_for_processors() -> None:
    environment = SERVICES["health"]["environment"]
    assert PROCESSORS["networks"]["payment-processor"]["name"] == "payment-processor"
    for name, port in (("default", 8001), ("fallback", 8002)):
        simulator = PROCESSORS["services"][f"payment-processor-{name}"]
        url = environment[f"PAYMENT_PROCESSOR_URL_{name.upper()}"]
        assert url == f"http://{simulator['container_name']}:8080"
        assert simulator["ports"] == [f"127.0.0.1:{port}:8080"]
        assert simulator["networks"] == ["payment-processor"]


def test_the_image_is_not_run_by_root() -> None:
    _, _, final_stage = containerfile().rpartition("\nFROM ")
    users = re.findall(r"^USER (\d+)", final_stage, re.MULTILINE)
    assert users
    assert users[-1] != "0"


def test_the_image_is_built_with_all_that_the_build_backend_needs() -> None:
    match = re.search(r"wanted = /\^\(([^)]+)\)==/", containerfile())
    assert match
    assert set(match[1].split("|")) == needed_by("hatchling")


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
@pytest.mark.parametrize("where", ["containers", "host", "host without payments ports"])
def test_haproxy_takes_the_configuration(where: str) -> None:
    host = {
        "PAYSWITCH_BIND": "127.0.0.1:9999",
        "INGRESS_1": "127.0.0.1:9001",
        "INGRESS_2": "127.0.0.1:9002",
    }
    payments = {"PAYMENTS_1": "127.0.0.1:9051", "PAYMENTS_2": "127.0.0.1:9052"}
    given = {"containers": {}, "host": host | payments}.get(where, host)
    ours = host | payments
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    check = subprocess.run(
        ["haproxy", "-c", "-f", str(REPOSITORY / "haproxy.cfg")],
        env=environment | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr
    if given:
        assert "WARNING" not in check.stderr


def haproxy_config() -> str:
    return (REPOSITORY / "haproxy.cfg").read_text()


def containerfile() -> str:
    return (REPOSITORY / "Containerfile").read_text()


def needed_by(name: str) -> set[str]:
    """The package and, by their own word, all that it requires here."""
    found = {name}
    for text in requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= needed_by(requirement.name)
    return found

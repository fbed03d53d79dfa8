"""Holds `compose.cluster.yaml` to what `payswitch up --redis cluster` does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from payswitch.durability import Durability
from payswitch.local.cluster_topology import NODES
from payswitch.local.redis_cluster import LocalCluster
from payswitch.redis_url import cluster_nodes
from payswitch.settings import Settings
from tests.unit.deployment.test_compose import COMPOSE, PROCESSORS, load, options

CLUSTER = load("compose.cluster.yaml")
ALL: dict[str, dict[str, Any]] = CLUSTER["services"]
REDIS = [f"redis-{number}" for number in range(1, NODES + 1)]
PARTS = {"health", "worker-1", "worker-2", "ingress-1", "ingress-2", "operator"}
ADDRESSES = [ALL[name]["networks"]["payswitch"]["ipv4_address"] for name in REDIS]


def test_it_has_the_parts_of_compose_yaml_and_a_cluster_in_place_of_redis() -> None:
    others = COMPOSE["services"].keys() - {"redis"}
    assert ALL.keys() == others | {*REDIS, "form", "init"}
    for name in PARTS:
        ours, theirs = ALL[name], COMPOSE["services"][name]
        assert (ours["image"], ours["command"]) == (theirs["image"], theirs["command"])


@pytest.mark.parametrize("name", REDIS)
def test_a_node_is_set_up_as_under_up(name: str) -> None:
    given = options(ALL[name]["command"])
    [node, *_] = LocalCluster(["127.0.0.1"] * NODES, 7000, Path()).nodes
    promised = {
        f"--{setting}": value
        for setting, value in node.settings().items()
        if setting.startswith(("cluster-allow", "cluster-enabled", "cluster-re"))
    }
    assert len(promised) == 4
    assert promised.items() <= given.items()
    assert (given["--appendonly"], given["--appendfsync"]) == ("yes", "always")
    assert given["--maxmemory-policy"] == "noeviction"


CHECKS = {
    "compose.yaml": COMPOSE["services"]["redis"]["healthcheck"],
    "compose.production.yaml": load("compose.production.yaml")["services"]["redis"]["healthcheck"],
    "compose.cluster.yaml": ALL["redis-1"]["healthcheck"],
}


@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs timeout, which images have")
@pytest.mark.parametrize("file", CHECKS)
@pytest.mark.parametrize(
    ("redis_cli", "is_healthy"),
    [("echo PONG", True), ("echo LOADING Redis is loading", False), ("sleep 30", False)],
)
def test_redis_is_healthy_if_it_answers(
    tmp_path: Path, file: str, redis_cli: str, is_healthy: bool
) -> None:
    program = tmp_path / "redis-cli"
    program.write_text(f"#!/bin/sh\n{redis_cli}\n")
    program.chmod(0o755)
    [kind, command] = CHECKS[file]["test"]
    assert kind == "CMD-SHELL"
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", command], env={"PATH": path}, timeout=20)
    assert (done.returncode == 0) is is_healthy


def test_a_node_cuts_half_a_transaction_off_as_in_compose_yaml() -> None:
    theirs = COMPOSE["services"]["redis"]["command"]
    assert all(ALL[name]["command"][:3] == theirs[:3] for name in REDIS)


def test_each_node_keeps_its_files_and_its_address() -> None:
    assert [ALL[name]["volumes"] for name in REDIS] == [[f"{name}:/data"] for name in REDIS]
    assert CLUSTER["volumes"].keys() == {*REDIS}
    assert len({*ADDRESSES}) == NODES


def test_the_cluster_is_formed_then_prepared_then_used() -> None:
    [*_, script] = ALL["form"]["command"]
    positions = [script.index(f"{address}:6379") for address in ADDRESSES]
    assert positions == sorted(positions)
    assert "depends_on" not in ALL["form"]  # it waits for each node itself
    assert "until redis-cli -h redis-$$node ping" in script
    ended_well = {"condition": "service_completed_successfully"}
    assert ALL["init"]["depends_on"] == {"form": ended_well}
    assert all(ALL[name]["depends_on"] == {"init": ended_well} for name in PARTS)
    assert ALL["form"]["restart"] == ALL["init"]["restart"] == "on-failure"


@pytest.mark.parametrize("name", sorted(PARTS - {"operator"}))
def test_a_part_has_a_health_check_that_needs_no_redis_client(name: str) -> None:
    asked = ":9001/readyz" if name.startswith("ingress") else ":9100/metrics"
    assert asked in ALL[name]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", sorted(PARTS | {"init"}))
def test_a_part_knows_all_nodes_and_waits_for_replicas(name: str) -> None:
    settings = Settings.from_environment(ALL[name]["environment"])
    _, nodes = cluster_nodes(settings.redis_url)
    assert nodes == [(each, 6379) for each in REDIS]
    assert settings.durability is Durability.REPLICAS
    assert (settings.redis_trust, settings.purge) == ("require", "off")
    hosts = {url.split("/")[2].split(":")[0] for url in settings.processor_urls.values()}
    assert hosts == PROCESSORS["services"].keys()


def test_only_haproxy_is_reached_and_from_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in ALL.items() if "ports" in service}
    assert published == {"haproxy": ["127.0.0.1:9999:9999"]}

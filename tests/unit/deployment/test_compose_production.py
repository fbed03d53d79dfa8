"""Holds `compose.production.yaml` to what docs/how-to/production.md says of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from payswitch.durability import Durability
from payswitch.settings import Settings, variables
from tests.documented import REPOSITORY
from tests.unit.deployment.test_compose import (
    COMPOSE,
    INGRESSES,
    SERVICES,
    WORKERS,
    load,
    options,
    size,
)

PRODUCTION = load("compose.production.yaml")
ALL: dict[str, dict[str, Any]] = PRODUCTION["services"]
PARTS = {*INGRESSES, *WORKERS, "health", "operator"}
"""Services that are Payswitch itself."""
SECRET_VARIABLES = {
    each.name: each.file_name
    for key, each in variables().items()
    if each.file_name and not key.endswith(".token")
}
"""Not the tokens of processors: `rinha` needs none of its own."""


def filled_in(text: str) -> str:
    """A value as it is where nothing is set: `${NAME:-default}` is the default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def memory(name: str) -> int:
    return size(filled_in(ALL[name]["deploy"]["resources"]["limits"]["memory"]))


def environment(name: str) -> dict[str, str]:
    return {key: filled_in(str(value)) for key, value in ALL[name]["environment"].items()}


def test_it_has_the_services_of_compose_yaml() -> None:
    assert ALL.keys() == COMPOSE["services"].keys()
    assert {name for name in ALL if "profiles" not in ALL[name]} == SERVICES.keys()
    for name in PARTS:
        ours, theirs = ALL[name], COMPOSE["services"][name]
        assert (ours["image"], ours["command"]) == (theirs["image"], theirs["command"])


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_service_has_memory_enough_and_no_share_of_a_cpu(name: str) -> None:
    limits = ALL[name]["deploy"]["resources"]["limits"]
    assert limits.keys() == {"memory"}
    challenge = COMPOSE["services"][name]["deploy"]["resources"]["limits"]["memory"]
    assert memory(name) >= 2 * size(challenge)
    assert "cpu_shares" not in ALL[name]


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"operator"}))
def test_a_service_comes_back_by_itself_and_says_whether_it_is_well(name: str) -> None:
    assert ALL[name]["restart"] == "unless-stopped"
    assert ALL[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_service_can_do_little_beside_its_work(name: str) -> None:
    service = ALL[name]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    # The entrypoint of Redis' image changes the owner of its folder, then its own user.
    assert name == "redis" or service["cap_drop"] == ["ALL"]
    assert not {"privileged", "network_mode"} & service.keys()


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_services_log_does_not_fill_the_disk(name: str) -> None:
    assert ALL[name]["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_reads_its_secrets_from_files(name: str) -> None:
    given = environment(name)
    wanted = SECRET_VARIABLES.keys() - {"PAYSWITCH_PURGE_TOKEN"}
    assert not given.keys() & SECRET_VARIABLES.keys()
    files = {given[f"{variable}_FILE"] for variable in wanted}
    assert files == {f"/run/secrets/{secret}" for secret in ALL[name]["secrets"]}


def test_no_secret_stands_in_the_repository() -> None:
    assert all(each["file"].startswith("./secrets/") for each in PRODUCTION["secrets"].values())
    assert "/secrets/" in (REPOSITORY / ".gitignore").read_text().splitlines()
    used = {secret for service in ALL.values() for secret in service.get("secrets", ())}
    assert used == PRODUCTION["secrets"].keys()


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_has_settings_for_real_money(name: str) -> None:
    plain = {key: each for key, each in environment(name).items() if not key.endswith("_FILE")}
    settings = Settings.from_environment(plain)
    assert (settings.purge, settings.redis_trust, settings.page) == ("off", "require", "off")
    assert settings.durability is Durability.DISK
    assert settings.retention_ms == Settings.retention_ms
    assert settings.processor_fees == "ask"


def test_only_haproxy_is_reached_and_from_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in ALL.items() if "ports" in service}
    assert published == {"haproxy": ["127.0.0.1:9999:9999"]}


def test_redis_and_the_ingress_are_on_no_network_that_leads_out() -> None:
    networks = PRODUCTION["networks"]
    inside = {name for name, network in networks.items() if network.get("internal")}
    assert inside == {"payswitch"}
    for name in ("redis", *INGRESSES):
        assert set(ALL[name]["networks"]) == inside
    callers = {name for name, service in ALL.items() if "processors" in service["networks"]}
    assert callers == WORKERS | {"health", "operator"}


def test_redis_keeps_what_it_acknowledged_and_demands_a_password() -> None:
    ours, theirs = ALL["redis"], SERVICES["redis"]
    _, config, *rest = ours["command"][ours["command"].index("redis-server") :]
    assert config == "/run/secrets/redis_conf"
    given = options(["redis-server", *rest])
    wanted = options(theirs["command"]) | {"--appendfsync": "always"}
    assert {**given, "--maxmemory": ""} == {**wanted, "--maxmemory": ""}
    assert ours["volumes"] == theirs["volumes"]


def test_redis_cuts_half_a_transaction_off_as_in_compose_yaml() -> None:
    ours, theirs = ALL["redis"]["command"], SERVICES["redis"]["command"]
    assert ours[:3] == theirs[:3]


def test_redis_may_take_as_much_again_while_it_rewrites_its_file() -> None:
    given = options(["redis-server", *ALL["redis"]["command"][5:]])
    assert 2 * size(filled_in(given["--maxmemory"])) <= memory("redis")


def test_a_worker_may_finish_before_it_is_killed() -> None:
    for name in WORKERS:
        assert ALL[name]["stop_grace_period"] == SERVICES[name]["stop_grace_period"]


def test_haproxy_has_every_ingress_behind_it() -> None:
    assert set(ALL["haproxy"]["depends_on"]) == INGRESSES
    assert ALL["haproxy"]["volumes"] == SERVICES["haproxy"]["volumes"]

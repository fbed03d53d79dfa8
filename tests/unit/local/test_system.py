"""What `payswitch up` starts and lets clients do, by what the environment names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from payswitch.local.machine import MachineError
from payswitch.local.system import LocalSystem, Options
from payswitch.settings import MOST_PROCESSORS, SettingsError

REDIS = {"REDIS_URL": "redis://elsewhere"}
PROCESSORS = {
    "PAYMENT_PROCESSOR_URL_DEFAULT": "http://one",
    "PAYMENT_PROCESSOR_URL_FALLBACK": "http://two",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def system(folder: Path, environment: dict[str, str], *, processors: int = 2) -> LocalSystem:
    """The system that is started with these variables."""
    options = Options(
        "127.0.0.1", 9999, 9001, 8001, 8002, 6379, processors, 2, folder, fresh=False, haproxy=False
    )
    return LocalSystem(options, environment)


def in_files(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """The same, each value in a file."""
    for name, value in environment.items():
        (folder / name).write_text(value + "\n")
    return {f"{name}_FILE": str(folder / name) for name in environment}


def test_anyone_may_purge_what_is_all_its_own(folder: Path) -> None:
    assert system(folder, {}).settings.purge == "open"


@pytest.mark.parametrize(
    "environment", [REDIS, PROCESSORS, *({k: v} for k, v in PROCESSORS.items())]
)
@pytest.mark.parametrize("as_files", [False, True], ids=["as variables", "as files"])
def test_nobody_may_purge_where_a_server_is_not_its_own(
    folder: Path, environment: dict[str, str], as_files: bool
) -> None:
    given = in_files(folder, environment) if as_files else environment
    assert system(folder, given).settings.purge == "off"


def test_what_the_environment_says_of_the_purge_holds(folder: Path) -> None:
    assert system(folder, {"PAYSWITCH_PURGE": "off"}).settings.purge == "off"
    assert system(folder, REDIS | {"PAYSWITCH_PURGE": "open"}).settings.purge == "open"


def test_servers_that_files_name_are_used_and_not_started(folder: Path) -> None:
    used = system(folder, in_files(folder, REDIS | PROCESSORS))
    names = [service.part.name for group in used.groups() for service in group]
    assert names == ["ingress", "worker-1", "worker-2", "health"]
    assert used.settings.redis_url == REDIS["REDIS_URL"]
    assert [row.note for row in used.rows_of_others()] == [
        f"from {name}_FILE" for name in [*PROCESSORS, *REDIS]
    ]


def test_its_parts_get_the_path_and_not_the_secret(folder: Path) -> None:
    given = in_files(folder, REDIS | PROCESSORS)
    for group in system(folder, given).groups():
        for service in group:
            assert given.items() <= service.part.environment.items()
            assert REDIS["REDIS_URL"] not in service.part.environment.values()


@pytest.mark.parametrize(
    ("environment", "appendfsync"),
    [({}, "always"), ({"PAYSWITCH_DURABILITY": "process"}, "no")],
)
def test_its_redis_keeps_what_the_durability_promises(
    folder: Path, environment: dict[str, str], appendfsync: str
) -> None:
    [*_, [redis]] = system(folder, environment).groups()
    command = redis.part.command
    assert command[command.index("--appendfsync") + 1] == appendfsync


def simulators(used: LocalSystem) -> dict[str, list[str]]:
    """The command of each simulated processor, by its name."""
    parts = [service.part for group in used.groups() for service in group]
    commands = {part.name: list(part.command) for part in parts}
    return {name: command for name, command in commands.items() if "simulator" in command}


@pytest.mark.parametrize("processors", [1, 2, 3, MOST_PROCESSORS])
def test_any_number_of_processors_is_simulated(folder: Path, processors: int) -> None:
    used = system(folder, {}, processors=processors)
    assert [*simulators(used)] == [*used.settings.processor_urls]
    assert len(simulators(used)) == processors
    assert len({*used.settings.processor_urls.values()}) == processors
    assert used.settings.purge == "open"
    for each in used.settings.processors:
        command = simulators(used)[each.name]
        assert command[command.index("--protocol") + 1] == each.connector
        assert urlsplit(each.url).port == int(command[command.index("--port") + 1])
        assert each.token == ("123" if each.connector == "charges" else "")


def test_the_third_processor_speaks_charges_and_is_named_to_another_terminal(folder: Path) -> None:
    used = system(folder, {}, processors=3)
    acme = used.simulated["acme"]
    assert (acme.protocol, acme.fee, acme.token) == ("charges", "0.20", "123")
    assert used.tries()["another terminal"] == (
        "export PAYSWITCH_PROCESSORS=default,fallback,acme "
        f"PAYMENT_PROCESSOR_URL_ACME={acme.port.url} "
        "PAYSWITCH_CONNECTOR_ACME=charges PAYSWITCH_TOKEN_ACME=123"
    )


def test_a_token_of_the_environment_is_used_and_not_shown(folder: Path) -> None:
    used = system(folder, {"INITIAL_TOKEN": "secret"}, processors=3)
    assert used.settings.processors[2].token == "secret"
    assert "secret" not in used.tries()["another terminal"]


def test_the_environment_names_the_processors_and_those_without_a_url_are_simulated(
    folder: Path,
) -> None:
    given = {
        "PAYSWITCH_PROCESSORS": "nord,fallback,sud",
        "PAYSWITCH_CONNECTOR_NORD": "charges",
        "PAYMENT_PROCESSOR_URL_SUD": "http://sud",
    }
    used = system(folder, given, processors=1)
    assert [*simulators(used)] == ["nord", "fallback"]
    assert [each.connector for each in used.settings.processors] == ["charges", "rinha", "rinha"]
    assert used.settings.processor_urls["fallback"] == "http://127.0.0.1:8002"
    assert used.settings.purge == "off"
    assert [(row.part, row.where) for row in used.rows_of_others()] == [("sud", "http://sud")]


def test_a_protocol_that_no_simulator_speaks_needs_a_url(folder: Path) -> None:
    given = {"PAYSWITCH_PROCESSORS": "nord", "PAYSWITCH_CONNECTOR_NORD": "ours:Connector"}
    with pytest.raises(SettingsError, match="the processor nord needs a URL"):
        system(folder, given)


def cluster(folder: Path, environment: dict[str, str], *, redis_port: int = 6379) -> LocalSystem:
    """A system with a cluster of its own."""
    options = Options(
        *("127.0.0.1", 9999, 9001, 8001, 8002, redis_port, 2, 2, folder),
        fresh=True,
        haproxy=False,
        redis="cluster",
    )
    return LocalSystem(options, environment)


def test_a_cluster_has_six_nodes_a_step_and_then_all_other_parts(folder: Path) -> None:
    used = cluster(folder, {})
    services = {each.part.name: each for group in used.groups() for each in group}
    nodes = [f"redis-{number}" for number in range(1, 7)]
    assert [*services] == [
        *("ingress", "worker-1", "worker-2", "health", "default", "fallback"),
        *(*nodes, "init"),
    ]
    assert services["init"].part.after == tuple(nodes)
    assert services["init"].part.is_ready is None
    assert {services[name].part.after for name in ("ingress", "worker-1", "health")} == {("init",)}
    bound = {
        port.number for name in nodes for port in (services[name].port, services[name].bus) if port
    }
    assert bound == {*range(6379, 6391)}
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in range(6379, 6385))
    assert services["init"].part.environment["REDIS_URL"].rstrip("/") == url
    export = used.tries()["another terminal"]
    assert export.startswith(f"export REDIS_URL={url}")
    assert export.endswith(" PAYSWITCH_DURABILITY=replicas")


def test_a_cluster_keeps_a_payment_at_a_replica_too_unless_the_environment_says_otherwise(
    folder: Path,
) -> None:
    assert cluster(folder, {}).settings.durability == "replicas"
    process = cluster(folder, {"PAYSWITCH_DURABILITY": "process"})
    assert process.settings.durability == "process"


def test_a_cluster_of_its_own_is_not_started_beside_another_redis(folder: Path) -> None:
    with pytest.raises(MachineError, match="REDIS_URL names another"):
        cluster(folder, REDIS)


def test_a_cluster_needs_all_its_ports(folder: Path) -> None:
    assert cluster(folder, {}, redis_port=65_524).cluster is not None
    with pytest.raises(MachineError, match="ports up to 65536: lower --redis-port"):
        cluster(folder, {}, redis_port=65_525)

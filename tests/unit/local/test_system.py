"""What `payswitch up` starts and lets clients do, by what the environment names."""

from __future__ import annotations

from pathlib import Path

import pytest

from payswitch.local.system import LocalSystem, Options
from payswitch.settings import SettingsError

REDIS = {"REDIS_URL": "redis://elsewhere"}
PROCESSORS = {
    "PAYMENT_PROCESSOR_URL_DEFAULT": "http://one",
    "PAYMENT_PROCESSOR_URL_FALLBACK": "http://two",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def system(folder: Path, environment: dict[str, str]) -> LocalSystem:
    """The system that is started with these variables."""
    options = Options(
        "127.0.0.1", 9999, 9001, 8001, 8002, 6379, 2, folder, fresh=False, haproxy=False
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
    names = [service.part.name for group in used.groups(None) for service in group]
    assert names == ["ingress", "worker-1", "worker-2", "health"]
    assert used.settings.redis_url == REDIS["REDIS_URL"]
    assert [row.note for row in used.rows_of_others()] == [
        f"from {name}_FILE" for name in [*PROCESSORS, *REDIS]
    ]


def test_its_parts_get_the_path_and_not_the_secret(folder: Path) -> None:
    given = in_files(folder, REDIS | PROCESSORS)
    for group in system(folder, given).groups(None):
        for service in group:
            assert given.items() <= service.part.environment.items()
            assert REDIS["REDIS_URL"] not in service.part.environment.values()


CHARGES = {"PAYSWITCH_CONNECTOR_DEFAULT": "charges"}


def test_a_simulated_processor_speaks_the_protocol_that_is_set(folder: Path) -> None:
    started = system(folder, CHARGES)
    commands = {
        service.part.name: service.part.command
        for group in started.groups(None)
        for service in group
    }
    assert commands["default"][-2:] == ["--protocol", "charges"]
    assert commands["fallback"][-2:] == ["--protocol", "rinha"]


def test_a_simulated_processor_that_wants_a_token_gets_one(folder: Path) -> None:
    def token(environment: dict[str, str]) -> str:
        return system(folder, CHARGES | environment).settings.processors[0].token

    assert token({}) == "123"
    assert token({"INITIAL_TOKEN": "other"}) == "other"
    assert token({"PAYSWITCH_TOKEN_DEFAULT": "mine"}) == "mine"
    assert system(folder, {}).settings.processors[0].token == ""


def test_a_protocol_that_is_not_simulated_needs_a_url(folder: Path) -> None:
    acme = {"PAYSWITCH_CONNECTOR_DEFAULT": "acme:Acme"}
    with pytest.raises(SettingsError, match="set PAYMENT_PROCESSOR_URL_DEFAULT"):
        system(folder, acme)
    assert system(folder, acme | PROCESSORS).simulated == {}

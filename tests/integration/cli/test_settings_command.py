"""`payswitch settings` as an operator runs it, and what every part says of a wrong value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from payswitch.settings import variables
from tests.integration.command import Payswitch
from tests.support import free_port

NOWHERE = "redis://127.0.0.1:1/0"


def payswitch(environment: dict[str, str], *, redis_url: str = NOWHERE) -> Payswitch:
    """Commands with these variables and no other settings."""
    empty = {variable.name: "" for variable in variables().values() if variable.name != "REDIS_URL"}
    return Payswitch(redis_url, empty | environment)


async def document(environment: dict[str, str], **others: str) -> dict[str, Any]:
    ended = await payswitch(environment, **others)("settings", "--json")
    assert (ended.code, ended.err) == (0, "")
    found: dict[str, Any] = ended.json()
    return found


async def rows(environment: dict[str, str], **others: str) -> dict[str, dict[str, Any]]:
    """What is printed of each setting."""
    return {row["variable"]: row for row in (await document(environment, **others))["settings"]}


async def test_json_has_every_setting_with_its_value_and_where_it_is_from() -> None:
    found = await rows({"PAYSWITCH_LEASE_MS": "30000"})
    assert list(found) == [variable.name for variable in variables().values()]
    assert found["PAYSWITCH_LEASE_MS"] == {
        "variable": "PAYSWITCH_LEASE_MS",
        "value": 30000,
        "from": "environment",
        "default": 15000,
        "allowed": "a whole number from 200 to 86400000",
        "purpose": variables()["lease_ms"].purpose,
    }
    assert {name for name, row in found.items() if row["from"] == "environment"} == {
        "PAYSWITCH_LEASE_MS",
        "REDIS_URL",
    }


async def test_the_table_has_a_line_for_every_setting() -> None:
    ended = await payswitch({"PAYSWITCH_LEASE_MS": "30000"})("settings")
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["PAYSWITCH_LEASE_MS", "30000", "environment"] in lines
    assert ["PAYSWITCH_WORKER_SLOTS", "512", "default"] in lines
    assert ["PAYSWITCH_PURGE_TOKEN", "(empty)", "default"] in lines
    assert {variable.name for variable in variables().values()} <= {
        line[0] for line in lines if line
    }
    assert "\x1b" not in ended.out


async def test_a_secret_that_stands_in_a_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hunter2\n")
    environment = {"PAYSWITCH_PURGE": "token", "PAYSWITCH_PURGE_TOKEN_FILE": str(path)}
    found = (await rows(environment))["PAYSWITCH_PURGE_TOKEN"]
    assert (found["value"], found["from"]) == ("***", f"file {path}")
    assert (await document(environment))["unknown"] == []


@pytest.mark.parametrize("arguments", [(), ("--json",)])
async def test_no_secret_is_printed(arguments: tuple[str, ...]) -> None:
    secrets = {
        "PAYSWITCH_PURGE": "token",
        "PAYSWITCH_PURGE_TOKEN": "hunter2",
        "PAYSWITCH_PROCESSOR_ADMIN_TOKEN": "hunter2",
        "PAYMENT_PROCESSOR_URL_DEFAULT": "http://me:hunter2@one",
    }
    command = payswitch(secrets, redis_url="redis://:hunter2@127.0.0.1:1/0")
    ended = await command("settings", *arguments)
    assert ended.code == 0
    assert "hunter2" not in ended.out + ended.err
    assert "redis://:***@127.0.0.1:1/0" in ended.out
    assert "http://me:***@one" in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("settings",),
        ("worker",),
        ("health",),
        ("ingress", "--port", str(free_port())),
        ("up", "--port", str(free_port())),
        ("dead", "list"),
        ("reconcile",),
    ],
    ids=lambda arguments: arguments[0],
)
async def test_every_command_names_all_that_is_wrong_and_ends(arguments: tuple[str, ...]) -> None:
    wrong = {"PAYSWITCH_LEASE_MS": "soon", "PAYSWITCH_PURGE": "maybe"}
    ended = await payswitch(wrong, redis_url="redis://:hunter2@host/zero")(*arguments)
    assert ended.code == 1
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert all(line.startswith("payswitch: ") for line in lines)
    assert len(lines) == (3 if arguments == ("settings",) else 1)
    assert (
        "REDIS_URL=(not shown): must be a URL starting with redis://, rediss:// or unix://"
        in ended.err
    )
    assert "PAYSWITCH_LEASE_MS='soon': must be a whole number from 200 to 86400000" in ended.err
    assert "PAYSWITCH_PURGE='maybe': must be one of open, token, off" in ended.err


async def test_what_is_wrong_is_json_where_json_is_wanted() -> None:
    wrong = {"PAYSWITCH_LEASE_MS": "soon", "PAYSWITCH_PURGE": "token"}
    ended = await payswitch(wrong)("settings", "--json")
    assert (ended.code, ended.err) == (1, "")
    assert [problem["variables"] for problem in ended.json()["problems"]] == [
        ["PAYSWITCH_LEASE_MS"],
        ["PAYSWITCH_PURGE", "PAYSWITCH_PURGE_TOKEN"],
    ]
    assert "PAYSWITCH_LEASE_MS='soon'" in ended.json()["problems"][0]["problem"]


async def test_a_variable_that_looks_like_a_setting_is_pointed_out() -> None:
    ended = await payswitch({"PAYSWITCH_WORKER_SLOT": "9", "PAYSWITCH_BIND": ":80"})("settings")
    assert ended.code == 0
    assert ended.err == (
        "payswitch: PAYSWITCH_WORKER_SLOT is no setting; PAYSWITCH_WORKER_SLOTS is\n"
    )
    assert (await document({"PAYSWITCH_WORKER_SLOT": "9"}))["unknown"] == ["PAYSWITCH_WORKER_SLOT"]


async def test_a_variable_that_was_a_setting_once_is_pointed_out() -> None:
    ended = await payswitch({"PAYSWITCH_SELECTION_MS": "9"})("settings")
    assert (ended.code, ended.err) == (
        0,
        "payswitch: PAYSWITCH_SELECTION_MS is no setting any more\n",
    )


async def test_at_a_start_one_line_says_what_is_no_longer_a_setting() -> None:
    removed = {"PAYSWITCH_SELECTION_MS": "9", "PAYSWITCH_BREAKER_FAILURES": "9"}
    ended = await payswitch(removed)("status")
    line, _ = ended.err.splitlines()  # the other one says that Redis is away
    assert line.endswith("no longer a setting: PAYSWITCH_BREAKER_FAILURES, PAYSWITCH_SELECTION_MS")

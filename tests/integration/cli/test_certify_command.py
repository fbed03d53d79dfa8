"""`payswitch certify` on providers that break a rule or are not there; the page has a good one."""

from __future__ import annotations

from typing import Any

import pytest

from payswitch.operations.certification import RULES
from tests.integration.command import Ended, Payswitch
from tests.integration.operations.providers import (
    DECLINED,
    MAX_DELAY_MS,
    TOKEN,
    HasNoHealth,
)
from tests.support import free_port

NO_REDIS = "redis://127.0.0.1:1/0"


async def certify(url: str, *options: str, token: str = TOKEN, **environment: str) -> Ended:
    payswitch = Payswitch(
        NO_REDIS,
        {
            "PAYSWITCH_TOKEN_PROVIDER": token,
            "PAYSWITCH_PROCESSOR_MAX_DELAY_MS": str(MAX_DELAY_MS),
            **environment,
        },
    )
    return await payswitch("certify", url, "--connector", "charges", *options)


def rules_of(document: Any) -> dict[str, Any]:
    return {each["rule"]: each for each in document["rules"]}


async def test_a_broken_rule_is_named_with_exit_code_1() -> None:
    async with HasNoHealth().running() as provider:
        ended = await certify(provider.url, "--json")
    assert (ended.code, ended.err) == (1, "")
    document = ended.json()
    assert (document["connector"], document["passed"]) == ("charges", False)
    rules = rules_of(document)
    assert list(rules) == [rule.name for rule in RULES]
    assert {name for name, each in rules.items() if each["verdict"] == "fail"} == {"health"}
    assert rules["health"]["seen"] == "no report within 2500 ms"
    assert rules["decline"]["verdict"] == "can't check"


async def test_a_table_ends_with_the_broken_rules() -> None:
    async with HasNoHealth().running() as provider:
        ended = await certify(provider.url, "--declined", f"{DECLINED / 100:.2f}")
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.splitlines()[-1] == "Broken: health."
    assert TOKEN not in ended.out + ended.err


async def test_a_provider_that_is_not_there_is_exit_code_2() -> None:
    ended = await certify(f"http://user:password@127.0.0.1:{free_port()}")
    assert ended.code == 2
    assert ended.err.startswith("payswitch: http://127.0.0.1:")
    assert "can't be reached: " in ended.err
    assert ended.err.count("\n") == 1
    assert "password" not in ended.err


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        ("ftp://x", (), "a URL starting with http"),
        ("http://x", ("--name", "Upper"), "PAYSWITCH_PROCESSORS='Upper'"),
    ],
)
async def test_a_setting_that_is_wrong_is_said_in_one_line(
    url: str, options: tuple[str, ...], told: str
) -> None:
    ended = await certify(url, *options)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert told in ended.err


async def test_an_unknown_connector_is_said_in_one_line() -> None:
    ended = await Payswitch(NO_REDIS)("certify", "http://x", "--connector", "nobody")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "there is no connector 'nobody'" in ended.err


@pytest.mark.parametrize("amount", ["0", "-1", "0.001", "x"])
async def test_an_amount_that_is_none_is_misuse(amount: str) -> None:
    ended = await certify("http://x", "--declined", amount)
    assert (ended.code, ended.err.count("\n")) == (2, 1)

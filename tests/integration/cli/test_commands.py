"""What goes wrong in any command is told in one line, with an exit code that isn't 0."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys

import pytest
from arq.connections import ArqRedis

from tests.commands import examples, walk
from tests.integration.command import Payswitch
from tests.support import RedisServer, free_port

PARTS = {("up",), ("ingress",), ("worker",), ("health",), ("simulator",), ("chaos",)}
"""They start a Redis, or wait for it."""
GROUPS = {(), ("dead",), ("incidents",)}
ALONE = {("certify",), ("completion",), ("settings",)}
"""They need no Redis; `test_settings_command` has the settings."""

SAY_WHETHER_ALL_IS_WELL = {("reconcile",), ("status",)}
"""Exit code 1 is for what they find."""

EXAMPLES = {path: examples(command.help or "")[0] for path, command in walk()}
ASK_REDIS = [path for path in EXAMPLES if path not in PARTS | GROUPS | ALONE]
READ_SETTINGS = [path for path in EXAMPLES if path not in GROUPS | ALONE | {("simulator",)}]


@pytest.mark.parametrize("path", ASK_REDIS, ids=" ".join)
async def test_redis_away_is_one_line(path: tuple[str, ...]) -> None:
    port = free_port()
    ended = await Payswitch(f"redis://:secret@127.0.0.1:{port}/0")(*EXAMPLES[path])
    assert ended.code == (2 if path in SAY_WHETHER_ALL_IS_WELL else 1)
    assert (ended.out, ended.err.count("\n")) == ("", 1)
    assert ended.err.startswith(f"payswitch: Redis at redis://127.0.0.1:{port}/0: ")


async def test_a_redis_with_another_currency_is_one_line(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    await redis.set("payments:currency", "BRL")
    payswitch = Payswitch(redis_server.url, {"PAYSWITCH_CURRENCY": "JPY"})
    problem = "it holds payments in BRL, and PAYSWITCH_CURRENCY is JPY"
    for command, code in ((("dead", "list"), 1), (("status",), 2), (("reconcile", "--json"), 2)):
        ended = await payswitch(*command)
        assert (ended.code, ended.out) == (code, "")
        assert ended.err == f"payswitch: Redis at {redis_server.url}: {problem}\n"


@pytest.mark.parametrize("path", READ_SETTINGS, ids=" ".join)
async def test_a_wrong_setting_is_one_line(path: tuple[str, ...]) -> None:
    payswitch = Payswitch("redis://127.0.0.1:1/0", {"PAYSWITCH_LEASE_MS": "soon"})
    ended = await asyncio.wait_for(payswitch(*EXAMPLES[path]), 60)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("payswitch: PAYSWITCH_LEASE_MS='soon': ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_the_completion_is_for_that_shell(shell: str) -> None:
    ended = await Payswitch("redis://127.0.0.1:1/0")("completion", shell)
    assert (ended.code, ended.err) == (0, "")
    assert f"_PAYSWITCH_COMPLETE={shell}_complete" in ended.out


COMPLETE = """
eval "$(payswitch completion bash)"
COMP_WORDS=(payswitch {words}) COMP_CWORD={last}
_payswitch_completion payswitch
echo "${{COMPREPLY[*]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("sel", "select"),
        ("pa", "pause payment"),
        ("select f", "fallback"),
        ("pause --f", "--for"),
        ("dead rep", "replay"),
    ],
)
async def test_bash_completes(words: str, completed: str) -> None:
    script = COMPLETE.format(words=words, last=len(words.split()))
    bin_folder = os.path.dirname(sys.executable)
    process = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "-c", script),
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (out.decode().strip(), err) == (completed, b"")

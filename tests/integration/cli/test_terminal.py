"""What a command writes to, whatever that is; each is tried with one that needs no Redis."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from tests.support import SLACK_S

COMMAND = [sys.executable, "-m", "payswitch", "settings"]
NOT_ASCII = {**os.environ, "PAYMENT_PROCESSOR_URL_DEFAULT": "http://b\u00fccher.example"}


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, timeout=SLACK_S, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("command", [COMMAND, [*COMMAND, "--json"]], ids=["table", "json"])
def test_a_terminal_that_lacks_a_character_gets_it_spelt_out(command: list[str]) -> None:
    ended = run(command, env={**NOT_ASCII, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"b\\xfccher" in ended.stdout or "b\u00fccher".encode() in ended.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
@pytest.mark.parametrize("command", [COMMAND, [*COMMAND, "--json"]], ids=["table", "json"])
def test_a_full_disk_is_one_line(command: list[str]) -> None:
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # so that Python tries again at its end
    with open("/dev/full", "wb") as full:
        ended = run(command, env=buffered, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    assert ended.stderr == b"payswitch: the output can't be written: no space left on device\n"


def test_an_output_that_is_closed_is_no_error() -> None:
    ended = run(["/bin/sh", "-c", 'exec "$@" >&-', "sh", *COMMAND], stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_reader_that_is_gone_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = run(COMMAND, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


async def test_watching_ends_with_whoever_reads_it() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "status", "--watch"),
        env={**os.environ, "REDIS_URL": "redis://127.0.0.1:1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(SLACK_S):
        assert b": connection refused" in await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")

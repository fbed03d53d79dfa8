"""The ingress as a process of its own, on a unix socket."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import stat
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from arq.connections import ArqRedis
from click.testing import CliRunner

from payswitch.cli.main import main
from tests.support import SLACK_S, RedisServer, eventually, free_port


async def test_it_serves_a_unix_socket_also_where_a_killed_one_left_its_own(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    with tempfile.TemporaryDirectory() as short:  # such a path has about 100 characters at most
        path = f"{short}/ingress.sock"
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            for number, options, mode in (
                (signal.SIGKILL, [], 0o600),
                (signal.SIGTERM, ["--uds-mode", "666", "--workers", "2"], 0o666),
            ):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "payswitch", "ingress", "--uds", path, *options),
                    env={**os.environ, "REDIS_URL": redis_server.url},
                )
                try:
                    await eventually(ready, what="the ingress is ready")
                    assert stat.S_IMODE(os.stat(path).st_mode) == mode
                    body = {"correlationId": str(uuid4()), "amount": 1.5}
                    assert (await client.post("/payments", json=body)).status_code == 202
                finally:
                    process.send_signal(number)
                    code = await asyncio.wait_for(process.wait(), 30)
                assert code == (-9 if number == 9 else 0)
    assert await redis.zcard("arq:queue") == 2


TAKE_A_SECOND = """\
import os, time

def begin():
    with open(os.environ["BEGUN"], "a") as begun:
        begun.write("one\\n")
    time.sleep(1)

"""
SLOW_FORKS = f"{TAKE_A_SECOND}os.register_at_fork(after_in_child=begin)"
"""A `sitecustomize` under which a forked process takes a second before it does anything."""

SLOW_SERVERS = f"""{TAKE_A_SECOND}
import granian.server.mp as processes

def slow(*arguments, make=processes.ASGIWorker):
    begin()
    return make(*arguments)

processes.ASGIWorker = slow
"""
"""One under which Granian takes a second between the two runs of a process' loop."""


@pytest.mark.skipif(
    multiprocessing.get_context().get_start_method() != "fork", reason="Granian forks nothing here"
)
@pytest.mark.parametrize("slow", [SLOW_FORKS, SLOW_SERVERS], ids=["forks", "servers"])
async def test_a_stop_that_comes_before_its_processes_have_begun_is_not_lost(
    tmp_path: Path, slow: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(slow)
    begun = tmp_path / "begun"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "ingress", "--port", str(free_port())),
        *("--workers", "2"),
        env={
            **os.environ,
            "REDIS_URL": "redis://127.0.0.1:1",
            "PYTHONPATH": str(tmp_path),
            "BEGUN": str(begun),
        },
    )

    async def both_have_begun() -> bool:
        return begun.exists() and len(begun.read_text().splitlines()) == 2

    try:
        await eventually(both_have_begun, what="two processes were forked")
        process.terminate()
        assert await asyncio.wait_for(process.wait(), SLACK_S) == 0
    finally:
        if process.returncode is None:
            process.kill()


async def refused(*options: str) -> tuple[int | None, str]:
    """The exit code and the text of an ingress that can't start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "ingress", *options),
        env={**os.environ, "REDIS_URL": "redis://127.0.0.1:1"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, errors.decode()


async def test_a_place_that_can_not_be_had_is_one_line_before_anything_else() -> None:
    code, text = await refused("--uds", "/nonexistent/x")
    assert (code, text) == (1, "payswitch: socket /nonexistent/x: no such file or directory\n")


@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["one process", "two"])
async def test_a_variable_that_opentelemetry_refuses_is_one_line_before_it_listens(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("PAYSWITCH_TRACES", "otlp")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    monkeypatch.setenv("PAYSWITCH_LOG_LEVEL", "error")
    code, text = await refused("--port", str(free_port()), *options)
    assert code == 1
    assert text.startswith("payswitch: OTEL_… for the traces: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--uds", "x", "--uds-mode", "888"], "'888' is no mode such as 660 or 666"),
        (["--uds-mode", "660"], "--uds-mode is for --uds"),
        (["--uds", "x", "--port", "9001"], "--uds stands instead of --port"),
        (["--uds", "x", "--host", "::1"], "--host is for --port and --payments-port"),
    ],
)
def test_an_option_that_would_count_for_nothing_is_refused(
    options: list[str], problem: str
) -> None:
    ended = CliRunner().invoke(main, ["ingress", *options])
    assert ended.exit_code == 2
    assert problem in ended.stderr

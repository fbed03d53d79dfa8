"""What parts write to their logs, each as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.integration.command import Payswitch
from tests.support import RedisServer, eventually, free_port


@dataclass
class Running:
    """A part, and what it writes to standard error."""

    process: asyncio.subprocess.Process
    url: str

    async def documents(self) -> list[dict[str, Any]]:
        """Every line of its log, once it has ended by SIGTERM; nothing is on standard output."""
        self.process.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(self.process.communicate(), 30)
        assert out == b""
        return [json.loads(line) for line in err.splitlines()]


PROGRAM = ("-m", "payswitch")
WITH_A_BUG = (
    "-c",
    """
import payswitch.ingress.endpoints
from payswitch.cli.main import main

async def read_record(*_, **__):
    raise KeyError("a bug")

payswitch.ingress.endpoints.read_record = read_record
main()
""",
)


@contextlib.asynccontextmanager
async def ingress(
    redis_url: str, *options: str, program: tuple[str, str] = PROGRAM, **environment: str
) -> AsyncIterator[Running]:
    """An ingress that is ready, with a log of JSON."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *program, "ingress", "--port", str(port), *options),
        env={**os.environ, "REDIS_URL": redis_url, "PAYSWITCH_LOG_FORMAT": "json", **environment},
        stdout=PIPE,
        stderr=PIPE,
    )
    running = Running(process, f"http://127.0.0.1:{port}")
    try:
        async with httpx.AsyncClient(verify=False, base_url=running.url) as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(ready, what="the ingress is ready")
        yield running
    finally:
        if process.returncode is None:  # by an orderly stop, which leaves no folder behind
            process.terminate()
            await asyncio.wait_for(process.communicate(), 30)


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_bug_in_a_request_is_one_line_with_its_traceback(
    redis_server: RedisServer, processes: str
) -> None:
    options = ("--workers", processes)
    async with ingress(redis_server.url, *options, program=WITH_A_BUG) as part:
        async with httpx.AsyncClient(verify=False, base_url=part.url) as client:
            assert (await client.get(f"/payments/{uuid4()}")).status_code == 500
        documents = await part.documents()
    [bug] = [document for document in documents if "exception" in document]
    assert (bug["level"], bug["part"]) == ("error", "ingress")
    assert bug["event"] == bug["message"] == "Application callable raised an exception"
    assert bug["exception"].startswith("Traceback (most recent call last):\n  File")
    assert "KeyError: 'a bug'" in bug["exception"]


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_an_ingress_says_that_redis_is_away_and_back(
    own_redis: RedisServer, processes: str
) -> None:
    async with (
        ingress(own_redis.url, "--workers", processes) as part,
        httpx.AsyncClient(verify=False, base_url=part.url) as client,
    ):
        own_redis.kill()
        err = part.process.stderr
        assert err is not None

        async def said(event: str, times: int) -> None:
            for _ in range(times):
                while True:
                    document = json.loads(await asyncio.wait_for(err.readline(), 30))
                    if document["event"] == event:
                        break

        await said("redis is away: %(error)s", int(processes))
        assert (await client.get("/readyz")).status_code == 503
        own_redis.start()
        await said("redis is back", int(processes))


async def test_debug_has_granians_lines_in_the_same_form(redis_server: RedisServer) -> None:
    async with ingress(redis_server.url, PAYSWITCH_LOG_LEVEL="debug") as part:
        documents = await part.documents()
    granians = [document for document in documents if document["logger"] == "_granian"]
    assert any("Listening at" in document["message"] for document in granians)


async def test_at_the_default_level_granian_adds_nothing(redis_server: RedisServer) -> None:
    async with ingress(redis_server.url) as part:
        documents = await part.documents()
    assert [document["event"] for document in documents if document["level"] != "warning"] == [
        "listening on %(address)s"
    ]
    assert {document["logger"] for document in documents} <= {
        "payswitch.ingress.server",
        "payswitch.store.client",
    }


@pytest.mark.parametrize("command", ["ingress", "simulator"])
@pytest.mark.parametrize("form", ["json", "text"])
async def test_a_part_that_cannot_start_says_so_in_one_line(
    redis_server: RedisServer, command: str, form: str
) -> None:
    port = redis_server.port  # taken
    arguments = [command, "--port", str(port)]
    if command == "simulator":
        arguments += ["--name", "fallback"]
    payswitch = Payswitch(
        redis_server.url, {"PAYSWITCH_LOG_FORMAT": form, "PAYSWITCH_LOG_LEVEL": "error"}
    )
    ended = await payswitch(*arguments)
    assert (ended.code, ended.out) == (1, "")
    [line] = ended.err.splitlines()
    if form == "text":
        assert line.startswith(f"payswitch: port {port}: ")
    else:
        document = json.loads(line)
        assert document["level"] == "critical"
        assert document["part"] == ("fallback" if command == "simulator" else "ingress")
        assert document["error"].startswith(f"port {port}: ")

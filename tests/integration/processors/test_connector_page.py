"""`docs/how-to/connect-a-provider.md`, carried out as it is written: the connector, its tests and
its certification."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson

from payswitch.http.server import Exchange, Listener, reply
from tests.documented import REPOSITORY, Command, commands
from tests.support import SLACK_S, free_port

PAGE = "docs/how-to/connect-a-provider.md"
CONNECTOR, TESTS = re.findall(
    r"^```python\n(.*?)^```$", (REPOSITORY / PAGE).read_text(), re.M | re.S
)
LINES = 60
"""The most of the example."""
LATENCY_S = 0.03


class Acme:
    """The page's provider."""

    def __init__(self) -> None:
        self.transfers: dict[str, dict[str, Any]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        listener = Listener(self.handle)
        yield await listener.start("127.0.0.1", 0)
        await listener.close()

    def handle(self, exchange: Exchange) -> None:
        transfer_id = exchange.path.removeprefix(b"/transfers/").decode()
        if exchange.headers.get(b"x-api-key") != b"secret":
            exchange.answer(reply(HTTPStatus.UNAUTHORIZED))
        elif exchange.method == b"PUT":
            sent = orjson.loads(exchange.body)
            if sent["cents"] <= 0 or sent["currency"] != "BRL":
                exchange.answer(reply(HTTPStatus.BAD_REQUEST))
                return
            loop = asyncio.get_running_loop()
            loop.call_later(LATENCY_S, self.put, exchange, transfer_id, sent)
        elif transfer_id in self.transfers:
            exchange.answer(reply(HTTPStatus.OK, orjson.dumps(self.transfers[transfer_id])))
        else:
            nothing = b'{"error":"no such transfer"}'
            exchange.answer(reply(HTTPStatus.NOT_FOUND, nothing))

    def put(self, exchange: Exchange, transfer_id: str, sent: dict[str, Any]) -> None:
        new = {"id": transfer_id, "cents": sent["cents"], "at": sent["at"]}
        known = self.transfers.setdefault(transfer_id, new | {"no": len(self.transfers) + 1})
        if known != known | new:
            exchange.answer(reply(HTTPStatus.CONFLICT))
        else:
            exchange.answer(reply(HTTPStatus.CREATED, orjson.dumps(known)))


@contextlib.asynccontextmanager
async def started(
    line: str, folder: Path, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command of the page, in the folder that holds the page's files."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"exec {line}" if "=" not in line.split(maxsplit=1)[0] else line),
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def shown(line: str, folder: Path, **environment: str) -> str:
    """What a command shows, which must end well."""
    async with started(line, folder, **environment) as process, asyncio.timeout(2 * SLACK_S):
        output, _ = await process.communicate()
        assert process.returncode == 0, f"{line}\n{output.decode()}"
        return output.decode()


def command(begin: str) -> Command:
    [found] = [each for each in commands(PAGE) if begin in each.line]
    return found


def plain(text: str) -> str:
    """A text without what differs from run to run: numbers and spaces."""
    return re.sub(r"\s+", "", re.sub(r"\d+", "0", text))


def write_files(folder: Path) -> None:
    (folder / "acme.py").write_text(CONNECTOR)
    (folder / "test_acme.py").write_text(TESTS)


def test_the_example_is_short() -> None:
    assert len(CONNECTOR.splitlines()) <= LINES


async def test_the_example_passes_its_tests(tmp_path: Path) -> None:
    write_files(tmp_path)
    output = await shown(command("pytest").line, tmp_path)
    assert re.search(r"^1\d passed", output, re.MULTILINE), output


async def test_the_example_is_certified_as_the_page_shows(tmp_path: Path) -> None:
    write_files(tmp_path)
    certify = command("acme:AcmeConnector")
    async with Acme().running() as port:
        line = certify.line.replace("localhost:8004", f"localhost:{port}")
        # A shorter delay: less waiting for what may come late.
        output = await shown(line, tmp_path, PAYSWITCH_PROCESSOR_MAX_DELAY_MS="1000")
    said = plain(output)
    for part in plain(certify.shown).split("…"):
        assert part in said, output
    assert "secret" not in output


async def test_the_simulated_provider_is_certified(tmp_path: Path) -> None:
    port = str(free_port())
    start, certify = (
        command(each).line.replace("8003", port).removesuffix(" &")
        for each in ("payswitch simulator", "localhost:8003")
    )
    async with started(start, tmp_path) as simulator:
        assert simulator.stdout is not None
        assert b"listens on" in await simulator.stdout.readline()
        document = orjson.loads(await shown(certify, tmp_path))
    assert document["passed"]

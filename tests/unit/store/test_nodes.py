"""Calls that replicas confirm, at a server whose answers the test writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import hiredis
import pytest

from payswitch.store.client import connect
from payswitch.store.errors import UnconfirmedError
from payswitch.store.nodes import ServerNode
from payswitch.store.partitions import Confirm
from tests.support import SLACK_S

GENERATION = "payments:generation:{1}"


class Primary:
    """Answers each `WAIT` with the next count of replicas, and any script with its own name."""

    def __init__(self, *counts: int) -> None:
        self.commands: list[bytes] = []
        self.is_asked = asyncio.Event()
        self.holds_back: asyncio.Event | None = None
        """Answers to calls that come now wait for it."""
        self._counts = list(counts)
        self._marks = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                parser.feed(data)
                answers = []
                while (command := parser.gets()) is not False:
                    answers.append(self._answer(command))
                self.is_asked.set()
                if answers and self.holds_back is not None:
                    await self.holds_back.wait()
                writer.write(b"".join(answers))
        writer.close()

    def _answer(self, command: Sequence[bytes]) -> bytes:
        name = command[0].upper()
        self.commands.append(name)
        if name == b"WAIT":
            return b":%d\r\n" % self._counts.pop(0)
        if name == b"EVAL":
            self._marks += 1
            return b":%d\r\n" % self._marks
        return b"+%s\r\n" % name


@contextlib.asynccontextmanager
async def node_of(primary: Primary) -> AsyncIterator[ServerNode]:
    """A node with one replica."""
    server = await asyncio.start_server(primary.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = connect(f"redis://127.0.0.1:{port}/0", limit_s=SLACK_S)
    node = ServerNode(client.connection_pool, limit_s=SLACK_S, replicas=1)
    try:
        yield node
    finally:
        await node.aclose()
        await client.aclose()
        server.close()


async def run(node: ServerNode, confirm: Confirm) -> object:
    [answer] = await node.run("", "sha", [((GENERATION,), ())], confirm=confirm)
    return answer


@pytest.mark.parametrize(
    ("counts", "confirm", "is_confirmed", "waits"),
    [
        ((1,), True, True, 1),
        ((0,), True, False, 1),
        ((1,), "twice", True, 1),
        ((0, 1), "twice", True, 2),
        ((0, 0), "twice", False, 2),
        ((), False, True, 0),
    ],
)
async def test_a_call_whose_wait_comes_short_is_confirmed_once_more_where_that_is_asked_for(
    counts: Sequence[int], confirm: Confirm, is_confirmed: bool, waits: int
) -> None:
    primary = Primary(*counts)
    async with node_of(primary) as node:
        answer = await run(node, confirm)
        if is_confirmed:
            assert answer == b"EVALSHA"
        else:
            assert isinstance(answer, UnconfirmedError)
        assert primary.commands.count(b"WAIT") == waits
        assert primary.commands.count(b"EVALSHA") == 1


async def test_a_call_that_is_answered_after_a_later_one_is_confirmed() -> None:
    primary = Primary(1, 1, 1)
    async with node_of(primary) as node:
        await run(node, confirm=True)  # the connection is open
        primary.is_asked.clear()
        primary.holds_back = answers = asyncio.Event()
        first = asyncio.create_task(run(node, confirm=True))
        await primary.is_asked.wait()
        primary.holds_back = None
        assert await run(node, confirm=True) == b"EVALSHA"
        answers.set()
        assert await first == b"EVALSHA"

"""No call to a processor believes an answer that was there before it was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from payswitch.http.transport import Transport
from payswitch.processors.connector import ConnectorSettings, Instruction
from payswitch.processors.outcomes import Ended, Unclear
from payswitch.processors.processor import Processor
from payswitch.processors.rinha import RinhaConnector
from tests.integration.http.test_transport import Server, on_both_loops, serving, warm

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
ERROR = b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"

PAYMENT = Instruction(ID, 1990, 0)

Call = Callable[[Processor], Awaitable[object]]


def told(status: int, body: bytes = b"") -> bytes:
    """An answer as a processor gives it."""
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def processor_of(server: Server, transport: Transport) -> Processor:
    url = str(server.url.copy_with(path="/"))
    return Processor(
        "default",
        url,
        RinhaConnector(ConnectorSettings("default")),
        transport,
        pay_limit_ms=5000,
        find_limit_ms=5000,
        connect_limit_ms=5000,
    )


@pytest.mark.parametrize(
    ("call", "lie", "truth"),
    [
        (lambda each: each.pay(PAYMENT, lambda: True), told(200, b"{}"), Ended(500)),
        (lambda each: each.find(PAYMENT), told(404), Unclear("status 500")),
        (
            lambda each: each.health(5000),
            told(200, b'{"failing":false,"minResponseTime":0}'),
            None,
        ),
    ],
    ids=["pay", "find", "health"],
)
@on_both_loops
async def test_an_answer_that_came_while_nobody_asked_is_not_believed(
    call: Call, lie: bytes, truth: object
) -> None:
    async def answer_next() -> None:
        await (await server.accept()).answer(ERROR)

    async with serving() as server, Transport() as transport:
        processor = processor_of(server, transport)
        peer = await warm(server, transport)
        server.spawn(answer_next())
        peer.socket.send(lie)
        assert await call(processor) == truth

"""The virtual users, in a process of their own that does nothing else: what draws or audits beside
them would show in their times.

The order comes as the first argument; it says `READY`, reads the instant to begin at from stdin and
reports in JSON lines on stdout.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

import httptools
import orjson
import uvloop

from bench.rinha.scenario import CLIENT_LIMIT_S, PAUSE_S, Scenario
from bench.rinha.stalls import SLOW_MS, SlowCall
from payswitch.money import BRL
from payswitch.process import allow_many_open_files, die_with_parent

READY = "ready"
REPORT_S = 0.5


@dataclass(frozen=True, slots=True)
class Order:
    """What the users do: pay so many cents each time, until so many seconds are over."""

    endpoint: str
    cents: int
    seconds: float
    starts_s: list[float]
    """When each user begins."""

    @classmethod
    def of(cls, scenario: Scenario, endpoint: str) -> Order:
        """The users of a scenario; the last would start when it is over."""
        starts = [scenario.starts_at_s(user) for user in range(scenario.users - 1)]
        return cls(endpoint, scenario.cents, scenario.seconds, starts)


class UserConnection(asyncio.Protocol):
    """A user's own connection, opened when there is none.

    The clock stops where the loop hands over the answer's last byte: what the users' process takes
    to see to all of its users is not the endpoint's time.
    """

    def __init__(self, url: SplitResult) -> None:
        self._host = url.hostname or ""
        self._port = url.port or 80
        self._netloc = url.netloc
        self._path = f"{url.path}/payments"
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, float]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._written = 0.0

    async def post(self, body: bytes) -> tuple[int, float]:
        """Post a payment: the answer's status, and the seconds from the write to its end.

        Raises `OSError`, `EOFError` or `httptools.HttpParserError` where there is none.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, self._host, self._port)
        assert self._transport is not None
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: {self._netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._answer = loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._written = time.perf_counter()
        self._transport.write(head.encode() + body)
        return await self._answer

    def close(self) -> None:
        """End the connection; the next post opens another."""
        if self._transport is not None:
            self._transport.abort()
        self._transport = self._answer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        self._fail(exc or EOFError())

    def on_message_complete(self) -> None:
        """Called by the parser."""
        took_s = time.perf_counter() - self._written
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), took_s))
        if not self._parser.should_keep_alive():
            self.close()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class Users:
    """Each user has a connection of its own, as with k6, and its time to connect is not counted: a
    call lasts from the write of the request to the end of the response."""

    def __init__(self, order: Order, began: float) -> None:
        self._order = order
        self._began = began
        self._cpu_before_s = time.process_time()
        self._url = urlsplit(order.endpoint)
        self._amount = BRL.format_cents(order.cents)
        self._started = 0
        self._accepted = 0
        self._failed: Counter[str] = Counter()
        self._milliseconds: list[float] = []
        self._slow: list[SlowCall] = []

    async def run(self) -> None:
        """Pay until the time is over; who is in the middle of a round ends it, pause included."""
        reporting = asyncio.create_task(self._report_regularly())
        async with asyncio.TaskGroup() as group:
            for start_s in self._order.starts_s:
                group.create_task(self._user(start_s))
        reporting.cancel()
        self._report()

    async def _user(self, start_s: float) -> None:
        await asyncio.sleep(max(0.0, self._began + start_s - time.monotonic()))
        connection = UserConnection(self._url)
        end = self._began + self._order.seconds
        self._started += 1
        while time.monotonic() < end:
            await self._pay(connection)
            await asyncio.sleep(PAUSE_S)
        connection.close()

    async def _pay(self, connection: UserConnection) -> None:
        body = f'{{"correlationId":"{uuid4()}","amount":{self._amount}}}'
        asked = time.perf_counter()
        try:
            async with asyncio.timeout(CLIENT_LIMIT_S):
                status, took_s = await connection.post(body.encode())
        except (OSError, EOFError, TimeoutError, httptools.HttpParserError) as error:
            connection.close()
            self._failed[type(error).__name__] += 1
            self._note_if_slow(time.perf_counter() - asked)
            return
        self._note_if_slow(took_s)
        if 200 <= status < 300:
            self._accepted += 1
            self._milliseconds.append(round(took_s * 1000, 3))
        else:
            self._failed[f"status {status}"] += 1

    def _note_if_slow(self, took_s: float) -> None:
        if took_s * 1000 > SLOW_MS:
            at_s = time.monotonic() - took_s - self._began
            self._slow.append(SlowCall(round(at_s, 4), round(took_s * 1000, 1)))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._report()

    def _report(self) -> None:
        """Write what happened since the last report; totals are of the whole run."""
        milliseconds, self._milliseconds = self._milliseconds, []
        slow, self._slow = self._slow, []
        report = {
            "at_s": round(time.monotonic() - self._began, 3),
            "users": self._started,
            "accepted": self._accepted,
            "failed": self._failed,
            "milliseconds": milliseconds,
            "slow": slow,
            "cpu_s": time.process_time() - self._cpu_before_s,
        }
        sys.stdout.buffer.write(orjson.dumps(report) + b"\n")
        sys.stdout.buffer.flush()


def command(order: Order) -> list[str]:
    """What starts the process."""
    return [sys.executable, "-P", "-m", "bench.rinha.users", orjson.dumps(asdict(order)).decode()]


def main() -> None:
    """Read the order, wait for the instant (s of the monotonic clock), pay."""
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to answer
    allow_many_open_files()
    order = Order(**orjson.loads(sys.argv[1]))
    print(READY, flush=True)
    began = float(sys.stdin.readline())
    # A collection in the middle would show in the times; what is left behind is small.
    gc.freeze()
    gc.disable()
    uvloop.run(Users(order, began).run())


if __name__ == "__main__":
    main()

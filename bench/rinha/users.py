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
from uuid import uuid4

import httpx
import orjson
import uvloop

from bench.rinha.scenario import CLIENT_LIMIT_S, PAUSE_S, Scenario
from payswitch.open_files import allow_many_open_files
from payswitch.orphans import die_with_parent
from payswitch.payment import format_cents
from payswitch.transport import Transport

READY = "ready"
REPORT_S = 0.5
_IDLE_S = 60.0


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


class Users:
    """Each user has a connection of its own, as with k6, and its time to connect is not counted: a
    call lasts from the write of the request to the end of the response."""

    def __init__(self, order: Order, began: float) -> None:
        self._order = order
        self._began = began
        self._cpu_before_s = time.process_time()
        self._url = httpx.URL(f"{order.endpoint}/payments")
        host = self._url.netloc.decode()
        self._headers = httpx.Headers({"host": host, "content-type": "application/json"})
        self._amount = format_cents(order.cents)
        self._started = 0
        self._accepted = 0
        self._failed: Counter[str] = Counter()
        self._milliseconds: list[float] = []

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
        transport = Transport(
            max_connections_per_host=1,
            connect_timeout=None,
            read_timeout=None,
            write_timeout=None,
            pool_timeout=None,
            keepalive_expiry=_IDLE_S,
        )
        end = self._began + self._order.seconds
        self._started += 1
        while time.monotonic() < end:
            await self._pay(transport)
            await asyncio.sleep(PAUSE_S)
        await transport.aclose()

    async def _pay(self, transport: Transport) -> None:
        written = 0.0

        def note_write() -> None:
            nonlocal written
            written = time.perf_counter()

        body = f'{{"correlationId":"{uuid4()}","amount":{self._amount}}}'
        request = httpx.Request(
            "POST",
            self._url,
            headers=self._headers,
            content=body.encode(),
            extensions={"before_write": note_write},
        )
        try:
            async with asyncio.timeout(CLIENT_LIMIT_S):
                response = await transport.handle_async_request(request)
        except (httpx.TransportError, TimeoutError) as error:
            self._failed[type(error).__name__] += 1
            return
        took_ms = (time.perf_counter() - written) * 1000
        if response.is_success:
            self._accepted += 1
            self._milliseconds.append(round(took_ms, 3))
        else:
            self._failed[f"status {response.status_code}"] += 1

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._report()

    def _report(self) -> None:
        """Write what happened since the last report; totals are of the whole run."""
        milliseconds, self._milliseconds = self._milliseconds, []
        report = {
            "at_s": round(time.monotonic() - self._began, 3),
            "users": self._started,
            "accepted": self._accepted,
            "failed": self._failed,
            "milliseconds": milliseconds,
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

"""The clients of a chaos run: a steady rate of payments, some sent twice at once, some sent again
after a time-out, some whose connection is dropped as soon as the request has left."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from payswitch.http.transport import Transport
from payswitch.money import BRL
from payswitch.reasons import reason

_LIMIT_S = 1.5
"""The challenge's clients give up after this."""
_DUPLICATED, _DROPPED, _GIVEN_UP = 0.06, 0.04, 0.25
HUNG_UP = "hung up after sending"
_LAST_TRIES = 2
"""How often a payment is sent again after the last new one."""
_MOST_AT_ONCE = 1500
_BEHIND_S = 0.1
_RIGHT_ANSWERS = frozenset({202, 503})


@dataclass(slots=True)
class Sent:
    """A payment as its client sees it."""

    correlation_id: str
    cents: int
    acknowledged: bool = False
    tries: list[tuple[float, str]] = field(default_factory=list)
    """Instant (s since the load began) and answer in words."""

    @property
    def waited(self) -> bool:
        """Whether its client waited for an answer at least once."""
        return not self.tries or any(what != HUNG_UP for _, what in self.tries)


class Clients:
    """Pays at `rate` a second until `stop`. Everything about a payment but its timing follows from
    the seed."""

    def __init__(
        self,
        endpoint: str,
        ingresses: Sequence[str],
        *,
        rate: float,
        seed: int,
        kinds: frozenset[str],
    ) -> None:
        self.sent: dict[str, Sent] = {}
        self.wrong_answers: list[tuple[str, str]] = []
        """Payment and answer, if the answer is neither 202 nor 503."""
        self.latencies_ms: list[float] = []
        self.accepted = 0
        self._endpoint = endpoint
        self._ingresses = list(ingresses) or [endpoint]
        self._rate = rate
        self._choose = random.Random(f"{seed}:clients")
        self._kinds = kinds
        self._transport = Transport(max_connections_per_host=_MOST_AT_ONCE)
        self._began = time.monotonic()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Pay until `stop`; returns when every payment has had its last try."""
        self._began = due = time.monotonic()
        paying: set[asyncio.Task[None]] = set()
        async with (
            httpx.AsyncClient(transport=self._transport, timeout=_LIMIT_S) as http,
            asyncio.TaskGroup() as group,
        ):
            while not self._over.is_set():
                # Payments that could not be sent in time are left out: they would come as a flood.
                due = max(due + 1 / self._rate, time.monotonic() - _BEHIND_S)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if len(paying) < _MOST_AT_ONCE:
                    paying.add(task := group.create_task(self._pay(http)))
                    task.add_done_callback(paying.discard)

    def stop(self) -> None:
        """Send no new payments, and those without a 202 again a few times."""
        self._over.set()

    async def _pay(self, http: httpx.AsyncClient) -> None:
        choose = self._choose
        sent = Sent(str(UUID(int=choose.getrandbits(128), version=4)), choose.randrange(1, 100_000))
        dice, patience = choose.random(), choose.random()
        self.sent[sent.correlation_id] = sent
        if "duplicates" in self._kinds and dice < _DUPLICATED:
            targets = [*self._ingresses, self._endpoint]
            await asyncio.gather(*(self._post(http, target, sent) for target in targets))
        elif "drops" in self._kinds and dice > 1 - _DROPPED:
            await self._drop(sent)
            if patience < 0.5:
                return
        else:
            await self._post(http, self._endpoint, sent)
        if "retries" in self._kinds and patience >= _GIVEN_UP:
            await self._insist(http, sent)

    async def _insist(self, http: httpx.AsyncClient, sent: Sent) -> None:
        pause_s, last_ones = 0.3, _LAST_TRIES
        while not sent.acknowledged and last_ones:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 3.0)
            last_ones -= self._over.is_set()
            await self._post(http, self._endpoint, sent)

    async def _post(self, http: httpx.AsyncClient, target: str, sent: Sent) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(_LIMIT_S):
                response = await http.post(
                    f"{target}/payments",
                    content=_body(sent),
                    headers={"content-type": "application/json"},
                )
        except (httpx.TransportError, TimeoutError) as error:
            self._note(sent, reason(error))
            return
        self._note(sent, f"status {response.status_code}")
        if response.status_code not in _RIGHT_ANSWERS:
            self.wrong_answers.append((sent.correlation_id, f"{response.status_code}"))
        if response.status_code == 202:
            self.latencies_ms.append((time.monotonic() - began) * 1000)
            if not sent.acknowledged:
                sent.acknowledged = True
                self.accepted += 1

    async def _drop(self, sent: Sent) -> None:
        """Send the request and hang up without waiting for the answer."""
        where = urlsplit(self._endpoint)
        body = _body(sent)
        head = f"POST /payments HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json"
        try:
            async with asyncio.timeout(_LIMIT_S):
                _, writer = await asyncio.open_connection(where.hostname, where.port)
                writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
                writer.transport.abort()
        except (OSError, TimeoutError) as error:
            self._note(sent, reason(error))
            return
        self._note(sent, HUNG_UP)

    def _note(self, sent: Sent, what: str) -> None:
        sent.tries.append((round(time.monotonic() - self._began, 3), what))


def _body(sent: Sent) -> bytes:
    return (
        f'{{"correlationId":"{sent.correlation_id}","amount":{BRL.format_cents(sent.cents)}}}'
    ).encode()

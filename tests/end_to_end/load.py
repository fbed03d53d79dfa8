"""A steady load of payments, and the comparison of the summary with the processors' books."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import orjson

from payswitch.http.transport import Transport
from payswitch.instants import format_instant
from tests.end_to_end.harness import System
from tests.support import SLACK_S, eventually

TOKEN = {"X-Rinha-Token": "123"}


@dataclass
class Load:
    """What a load sent, by answer."""

    accepted: dict[str, int] = field(default_factory=dict)
    """Cents by id of every payment that was acknowledged."""
    refused: list[str] = field(default_factory=list)
    """The other answers: status and text, or the error."""


async def drive(system: System, *, rate: float, count: int, again: bool = False) -> Load:
    """Send `count` new payments at `rate` a second, whatever becomes of each; with `again`, a
    payment that was not acknowledged is sent again until it is."""
    load = Load()
    loop = asyncio.get_running_loop()
    choose = random.Random(count)

    async def send(http: httpx.AsyncClient) -> None:
        payment = str(uuid4())
        cents = choose.randrange(1, 100_000)
        body = {"correlationId": payment, "amount": cents / 100}
        while True:
            try:
                answer = await http.post("/payments", json=body)
            except httpx.TransportError as error:
                load.refused.append(type(error).__name__)
            else:
                if answer.status_code == 202:
                    load.accepted[payment] = cents
                    return
                load.refused.append(f"{answer.status_code} {answer.text}")
            if not again:
                return
            await asyncio.sleep(0.2)

    transport = Transport(max_connections_per_host=200)
    async with (
        httpx.AsyncClient(transport=transport, base_url=system.endpoint, timeout=SLACK_S) as http,
        asyncio.TaskGroup() as group,
    ):
        began = loop.time()
        for number in range(count):
            await asyncio.sleep(began + number / rate - loop.time())
            group.create_task(send(http))
    return load


async def configure(url: str, setting: str, value: int | bool) -> None:
    """Set a simulated processor's `delay` (ms) or `failure`."""
    async with httpx.AsyncClient(verify=False, base_url=url, headers=TOKEN) as http:
        path = f"/admin/configurations/{setting}"
        response = await http.put(path, json={setting: value})
        assert response.status_code == 200, response.text


async def keep_a_journal(system: System) -> None:
    """Let both simulated processors journal what they see from now on."""
    for url in (system.default_url, system.fallback_url):
        async with httpx.AsyncClient(verify=False, base_url=url, headers=TOKEN) as http:
            path = "/admin/configurations/faults"
            (await http.put(path, json={"journal": True})).raise_for_status()


async def arrivals(system: System) -> list[str]:
    """The id of every payment that arrived at a processor since then, as often as it did, in order
    of time."""
    found: list[tuple[int, str]] = []
    for url in (system.default_url, system.fallback_url):
        async with httpx.AsyncClient(verify=False, base_url=url, headers=TOKEN) as http:
            lines = (await http.get("/admin/journal")).content.splitlines()
        events = map(orjson.loads, lines)
        found += [
            (event["atUs"], event["correlationId"])
            for event in events
            if event["event"] == "arrived"
        ]
    return [payment for _, payment in sorted(found)]


async def ours(system: System, window: dict[str, str] | None = None) -> dict[str, tuple[int, int]]:
    """The summary: number and cents by processor."""
    async with httpx.AsyncClient(verify=False, base_url=system.endpoint) as http:
        summary = orjson.loads((await http.get("/payments-summary", params=window)).content)
    return {name: _total(total) for name, total in summary.items()}


async def theirs(
    system: System, window: dict[str, str] | None = None
) -> dict[str, tuple[int, int]]:
    """The processors' books: number and cents by processor."""
    books = {}
    urls = {"default": system.default_url, "fallback": system.fallback_url}
    for name, url in urls.items():
        async with httpx.AsyncClient(verify=False, base_url=url, headers=TOKEN) as http:
            response = await http.get("/admin/payments-summary", params=window)
            books[name] = _total(response.json())
    return books


async def all_settled(system: System, load: Load, *, before: int = 0) -> None:
    """Wait until every acknowledged payment is in the summary."""
    wanted = before + len(load.accepted)

    async def done() -> bool:
        summary = await ours(system)
        return sum(count for count, _ in summary.values()) >= wanted

    await eventually(done, what=f"{wanted} payments are settled", within_s=90)


async def assert_books_are_equal(system: System, *, windows: int = 10) -> None:
    """Compare summary and books over everything and over random windows."""
    assert await ours(system) == await theirs(system)
    choose = random.Random(windows)
    now = time.time_ns() // 1_000_000
    for _ in range(windows):
        bounds = sorted(now - choose.randrange(60_000) for _ in range(2))
        window = dict(zip(("from", "to"), map(format_instant, bounds), strict=True))
        assert await ours(system, window) == await theirs(system, window), window


def _total(document: dict[str, Any]) -> tuple[int, int]:
    return document["totalRequests"], int(Decimal(str(document["totalAmount"])) * 100)

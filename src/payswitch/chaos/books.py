"""The data of the system and of the processors, asked over HTTP and Redis for the audit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Protocol

import httpx
import orjson
from redis.exceptions import RedisError

from payswitch.instants import format_instant
from payswitch.money import Total
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.store.client import connect
from payswitch.store.partitions import Partition
from payswitch.store.redis_clock import redis_now_ms
from payswitch.store.scanning import pages

_PAGE = 1000
_EARLIEST_MS, _LATEST_MS = 0, 4_000_000_000_000
_EMPTY_AT_REST = (keys.QUEUE, keys.OPEN, keys.IN_FLIGHT)
_PATIENCE_S = 0.5

Totals = dict[str, Total]


@dataclass(frozen=True, slots=True)
class Booked:
    """A payment in a processor's book. Instants are µs since the epoch."""

    cents: int
    requested_at_us: int
    committed_at_us: int


@dataclass(frozen=True, slots=True)
class ComparedWindow:
    """The summary and the books of one window (ms since the epoch, None: open on that side)."""

    first_ms: int | None
    last_ms: int | None
    ours: Totals
    theirs: Totals


@dataclass(frozen=True, slots=True)
class Books:
    """The data that the audit compares."""

    records: dict[str, dict[str, str]]
    """Each payment's record as Redis has it."""
    booked: dict[str, dict[str, Booked]]
    """By processor, by correlation id."""
    ours: Totals
    theirs: Totals
    windows: list[ComparedWindow]
    incidents: list[str]
    dead: frozenset[str] = frozenset()
    """The payments in the list of dead letters."""
    left: Mapping[str, int] = field(default_factory=dict)
    """By key that must be empty at rest, the number of its entries."""
    journals: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By processor: every event of its journal."""


class Audited(Protocol):
    """The places to ask a running system."""

    @property
    def endpoint(self) -> str:
        """The endpoint's URL."""

    @property
    def processors(self) -> Mapping[str, str]:
        """Each processor's URL, by name."""

    @property
    def token(self) -> str:
        """The token of the processors' admin calls."""

    @property
    def settings(self) -> Settings:
        """Its settings, which name its Redis."""


class Auditor:
    """Asks the endpoint for its summary, Redis for its records and the processors for theirs."""

    def __init__(self, system: Audited) -> None:
        self._system = system
        headers = {"X-Rinha-Token": system.token}
        self._http = httpx.AsyncClient(headers=headers, timeout=30, trust_env=False)
        settings = system.settings
        self._redis = connect(settings.redis_url, limit_s=10, deployment=settings.deployment)
        self._partitions = self._redis.partitions

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._redis.aclose(close_connection_pool=True)

    async def backlog(self, accepted_until_ms: int | None = None) -> int | None:
        """The number of unpaid payments, of all or of those accepted until an instant of Redis'
        clock; None while Redis doesn't answer."""
        latest = "+inf" if accepted_until_ms is None else accepted_until_ms
        counts = [
            each.redis.zcount(each.key(keys.OPEN), "-inf", latest) for each in self._partitions
        ]
        try:
            async with asyncio.timeout(_PATIENCE_S):
                counted: list[int] = await asyncio.gather(*counts)
        except (RedisError, OSError, TimeoutError):
            return None
        return sum(counted)

    async def redis_now_ms(self) -> int:
        """Redis' wall clock, the latest of a cluster. Raises `RedisError`."""
        return max([await redis_now_ms(each.redis) for each in self._partitions])

    async def ours(self, first_ms: int | None = None, last_ms: int | None = None) -> Totals:
        """The endpoint's summary. Raises `httpx.HTTPError`."""
        url = f"{self._system.endpoint}/payments-summary"
        document = await self._get(url, _bounds(first_ms, last_ms))
        return {name: _total(document[name]) for name in self._system.processors}

    async def theirs(self, first_ms: int | None = None, last_ms: int | None = None) -> Totals:
        """The processors' own summaries. Raises `httpx.HTTPError`."""
        bounds = _bounds(first_ms, last_ms)
        totals = {}
        for name, url in self._system.processors.items():
            totals[name] = _total(await self._get(f"{url}/admin/payments-summary", bounds))
        return totals

    async def window(self, first_ms: int | None, last_ms: int | None) -> ComparedWindow:
        """Summary and books of one window. A processor ignores a bound that comes alone, so it gets
        another one beyond all payments."""
        earliest = _EARLIEST_MS if first_ms is None else first_ms
        latest = _LATEST_MS if last_ms is None else last_ms
        return ComparedWindow(
            first_ms,
            last_ms,
            await self.ours(first_ms, last_ms),
            await self.theirs(earliest, latest),
        )

    async def collect(self, *, windows: int, seed: int) -> Books:
        """All data of a system at rest, with so many windows chosen by the seed."""
        booked = {}
        journals = {}
        for name, url in self._system.processors.items():
            booked[name] = {
                line["correlationId"]: Booked(
                    line["cents"], line["requestedAtUs"], line["committedAtUs"]
                )
                for line in await self._lines(f"{url}/admin/payments")
            }
            journals[name] = await self._lines(f"{url}/admin/journal")
        records, incidents, dead, left = await self._of_redis()
        return Books(
            records=records,
            booked=booked,
            ours=await self.ours(),
            theirs=await self.theirs(),
            windows=[
                await self.window(*bounds)
                for bounds in _windows(booked.values(), windows, random.Random(f"{seed}:windows"))
            ],
            incidents=incidents,
            dead=frozenset(dead),
            left=left,
            journals=journals,
        )

    async def _of_redis(
        self,
    ) -> tuple[dict[str, dict[str, str]], list[str], list[str], dict[str, int]]:
        """Records, incidents, dead letters and the sizes of what must be empty."""
        records: dict[str, dict[str, str]] = {}
        incidents: list[str] = []
        dead: list[str] = []
        left = dict.fromkeys(_EMPTY_AT_REST, 0)
        for each in self._partitions:
            redis = each.redis
            records |= await _records(each)
            found = await redis.lrange(each.key(keys.INCIDENTS), 0, -1)  # type: ignore[misc]
            incidents += [incident.decode() for incident in found]
            dead += map(each.correlation_id, await redis.zrange(each.key(keys.DEAD), 0, -1))
            for name in left:
                left[name] += await redis.zcard(each.key(name))
        return records, incidents, dead, left

    async def _get(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        response = await self._http.get(url, params=params)
        response.raise_for_status()
        return orjson.loads(response.content)

    async def _lines(self, url: str) -> list[dict[str, Any]]:
        response = await self._http.get(url)
        response.raise_for_status()
        return [orjson.loads(line) for line in response.content.splitlines() if line]


async def _records(partition: Partition) -> dict[str, dict[str, str]]:
    """The partition's records by payment."""
    records = {}
    redis, prefix = partition.redis, partition.record("")
    async for page in pages(partial(redis.scan, match=f"{prefix}*", count=_PAGE)):
        async with redis.pipeline(transaction=False) as pipe:
            for key in page:
                pipe.hgetall(key)
            found = await pipe.execute()
        for key, fields in zip(page, found, strict=True):
            records[key.decode().removeprefix(prefix)] = {
                name.decode(): value.decode() for name, value in fields.items()
            }
    return records


def _bounds(first_ms: int | None, last_ms: int | None) -> dict[str, str]:
    bounds = {"from": first_ms, "to": last_ms}
    return {name: format_instant(bound) for name, bound in bounds.items() if bound is not None}


def _total(document: Mapping[str, Any]) -> Total:
    cents = int(Decimal(str(document["totalAmount"])).scaleb(2))
    return Total(document["totalRequests"], cents)


def _windows(
    booked: Iterable[dict[str, Booked]], count: int, choose: random.Random
) -> list[tuple[int | None, int | None]]:
    """Windows of all sizes over the time of all requests, some open on a side."""
    instants = [each.requested_at_us // 1000 for book in booked for each in book.values()]
    if not instants:
        return []
    first, last = min(instants) - 1000, max(instants) + 1000
    chosen = (sorted(choose.randint(first, last) for _ in range(2)) for _ in range(count))
    both = [(low, high) for low, high in chosen]
    return [
        *both,
        *((low, None) for low, _ in both[::10]),
        *((None, high) for _, high in both[::10]),
    ]

"""A ledger and two real simulators, for tests of what compares them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from uuid import uuid4

import httpx
from arq.connections import ArqRedis

from payswitch.dispatch.assembly import make_dispatcher
from payswitch.money import BRL, Currency, Total
from payswitch.operations.reconcile import ReconcileReport, Reconciliation
from payswitch.payments.claims import Claim, Claims
from payswitch.payments.ledger import Ledger, Settlement
from payswitch.processors.connector import Instruction
from payswitch.processors.outcomes import FindOutcome
from payswitch.processors.processor import Processor, make_processors, make_transport
from payswitch.settings import Settings
from payswitch.simulator.book import BookEntry
from payswitch.simulator.dialect import SimulatorConfig
from payswitch.simulator.server import Simulator
from payswitch.store import keys
from payswitch.store.client import partitions_of
from payswitch.telemetry.tracing import NO_STEP, Step

SETTLED = Settlement.SETTLED
AT = 1_767_225_600_000
"""2026-01-01, when the first payment was made."""


@dataclass
class Calls:
    """How often the processors were asked."""

    summaries: int = 0
    payments: int = 0


class CountingProcessor(Processor):
    """Counts the summaries and the payments that are asked for."""

    calls: Calls

    async def total(self, first_ms: int, last_ms: int) -> Total:
        self.calls.summaries += 1
        return await super().total(first_ms, last_ms)

    async def find(self, instruction: Instruction, step: Step = NO_STEP) -> FindOutcome:
        self.calls.payments += 1
        return await super().find(instruction, step)


@dataclass
class Books:
    """What we have and what they have, each to be written as a test likes."""

    redis: ArqRedis
    settings: Settings
    simulators: dict[str, Simulator]
    ledger: Ledger
    transport: httpx.AsyncBaseTransport
    calls: Calls

    async def settle_here(
        self, *, at: int = AT, cents: int = 1990, processor: str = "default", id: str = ""
    ) -> str:
        """Settle a payment in the ledger; its life took 5 ms."""
        correlation_id = id or str(uuid4())
        await self.keep(correlation_id, at=at, cents=cents, processor=processor, state="processing")
        assert await self.prove(correlation_id, processor, at=at, cents=cents) is SETTLED
        place = partitions_of(self.redis).of(correlation_id)
        settled_at = str(at + 5)
        await place.redis.hset(place.record(correlation_id), "settled_at", settled_at)  # type: ignore[misc]
        return correlation_id

    async def prove(
        self, correlation_id: str, processor: str, *, at: int = AT, cents: int = 1990
    ) -> Settlement:
        """Bring a processor's proof of payment."""
        number = partitions_of(self.redis).of(correlation_id).number
        generation = await self._generation()
        claim = Claim(correlation_id, cents, "1", generation, 0.0, partition=number)
        return await self.ledger.settle(claim, processor, at)

    async def keep(
        self, correlation_id: str, *, at: int, cents: int, processor: str, state: str
    ) -> None:
        """Write a record that is pinned."""
        place = partitions_of(self.redis).of(correlation_id)
        await place.redis.hset(  # type: ignore[misc]
            place.record(correlation_id),
            mapping=_record(await self._generation(), state, at, cents, processor),
        )
        key = {"dead": keys.DEAD, "settled": None}.get(state, keys.OPEN)
        if key is not None:
            await place.redis.zadd(place.key(key), {place.job_id(correlation_id): at})

    async def leave_unpaid(self, state: str, *, at: int = AT, processor: str = "default") -> str:
        """A payment that we have not settled."""
        correlation_id = str(uuid4())
        await self.keep(correlation_id, at=at, cents=1990, processor=processor, state=state)
        return correlation_id

    def record_there(
        self, id: str = "", *, at: int = AT, cents: int = 1990, processor: str = "default"
    ) -> str:
        """Enter a payment in a processor's book."""
        correlation_id = id or str(uuid4())
        assert self.simulators[processor].book.record(BookEntry(correlation_id, cents, at * 1000))
        return correlation_id

    async def pay(self, *, at: int = AT, cents: int = 1990, processor: str = "default") -> str:
        """A payment that is in both books."""
        correlation_id = await self.settle_here(at=at, cents=cents, processor=processor)
        return self.record_there(correlation_id, at=at, cents=cents, processor=processor)

    async def pay_many(self, count: int, *, every_ms: int) -> None:
        """Payments that are in both books of `default`, one after the other, the first at `AT`."""
        ids = [str(uuid4()) for _ in range(count)]
        generation = await self._generation()
        async with self.redis.pipeline(transaction=False) as pipe:
            for n, correlation_id in enumerate(ids):
                at = AT + n * every_ms
                fields = _record(generation, "processing", at, 1990, "default")
                pipe.hset(f"payment:{correlation_id}", mapping=fields)
                self.record_there(correlation_id, at=at)
            await pipe.execute()
            claims = [Claim(each, 1990, "1", generation, 0.0) for each in ids]
            await asyncio.gather(
                *(
                    self.ledger.settle(claim, "default", AT + n * every_ms)
                    for n, claim in enumerate(claims)
                )
            )
            for n, correlation_id in enumerate(ids):
                pipe.hset(f"payment:{correlation_id}", "settled_at", str(AT + n * every_ms + 5))
            await pipe.execute()

    async def settle_with_a_worker(self) -> None:
        """Claim and dispatch until the backlog is empty."""
        dispatcher = make_dispatcher(self.settings, self.redis, self.transport)
        claims = Claims(self.redis, lease_ms=15_000, deadline_ms=10**8, max_delay_ms=10_000)
        while await self.redis.zcard("payments:open"):
            for claimed in (await claims.take(10)).taken:
                await dispatcher.dispatch(claimed.claim)

    async def reconcile(
        self,
        first: int | None = None,
        last: int | None = None,
        *,
        thorough: bool = False,
        pause_s: float = 0.05,
        on_looked_up: Callable[[int], None] = lambda _: None,
    ) -> ReconcileReport:
        """Compare; nothing changes meanwhile, so the pauses are short."""
        processors = make_processors(self.settings, self.transport)
        for processor in processors.values():
            processor.__class__ = CountingProcessor
            processor.calls = self.calls  # type: ignore[attr-defined]
        return await Reconciliation(
            self.redis,
            self.ledger,
            processors,
            pause_s=pause_s,
            on_looked_up=on_looked_up,
        ).run(first, last, thorough=thorough)

    async def _generation(self) -> str:
        common = partitions_of(self.redis).common
        return (await common.redis.get(common.generation) or b"0").decode()


def _record(
    generation: str, state: str, at: int, cents: int, processor: str
) -> dict[str | bytes, bytes | float | int | str]:
    return {
        "generation": generation,
        "state": state,
        "cents": cents,
        "accepted_at": at,
        "processor": processor,
        "requested_at": at,
    }


@contextlib.asynccontextmanager
async def books(redis: ArqRedis, currency: Currency = BRL) -> AsyncIterator[Books]:
    """An empty ledger and two simulators with empty books."""
    simulators = {
        name: Simulator(SimulatorConfig(name, currency=currency))
        for name in ("default", "fallback")
    }
    ports = {name: await each.start("127.0.0.1", 0) for name, each in simulators.items()}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    settings = replace(
        Settings().with_urls(**urls), retention_ms=600_000, currency_code=currency.code
    )
    transport = make_transport(settings)
    ledger = Ledger(redis, processors=["default", "fallback"], retention_ms=600_000)
    yield Books(redis, settings, simulators, ledger, transport, Calls())
    await transport.aclose()
    for each in simulators.values():
        await each.close()

"""A queue, two processors and hands that claim, for tests of the protocol on a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from uuid import uuid4

import httpx
from arq.connections import ArqRedis

from payswitch.clock import boottime_ms
from payswitch.dispatch.assembly import make_dispatcher
from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.dispatch.routing import BreakerLimits
from payswitch.money import Total
from payswitch.payments.accepting import Acceptance, AcceptQueue
from payswitch.payments.claims import Claim, Claims, FirstTries
from payswitch.payments.ledger import Ledger
from payswitch.payments.payment import Payment
from payswitch.payments.purge import Purge
from payswitch.payments.records import Record, read_record
from payswitch.processors.processor import make_transport
from payswitch.settings import Settings
from tests.support import ANA, PROCESSORS, SLACK_S, ScriptedProcessor

FAST = Settings(
    lease_ms=1500,
    lease_margin_ms=100,
    processor_max_delay_ms=300,
    processor_find_limit_ms=2000,
    retry_base_ms=1,
    retry_cap_ms=20,
)
"""Settings under which every recovery takes a second or two."""
PATIENT = BreakerLimits(failures=1000, refusals=1000)
"""Under these no breaker opens."""


@dataclass
class Bench:
    """Everything between the queue and two scripted processors, without a running worker."""

    redis: ArqRedis
    settings: Settings
    default: ScriptedProcessor
    fallback: ScriptedProcessor
    dispatcher: Dispatcher
    ledger: Ledger
    transport: httpx.AsyncBaseTransport
    limits: BreakerLimits

    async def accept(
        self,
        *,
        cents: int = 1990,
        correlation_id: str | None = None,
        metadata: bytes | None = None,
    ) -> str:
        """Accept a new payment; returns its id."""
        correlation_id = correlation_id or str(uuid4())
        queue = AcceptQueue(self.redis, limit_ms=SLACK_S * 1000, max_backlog=10**6)
        assert await queue.accept(Payment(correlation_id, cents, metadata)) is Acceptance.NEW
        return correlation_id

    async def claim(self, *, limit: int = 10, first: FirstTries | None = None) -> list[Claim]:
        """Take what is due, as a worker would."""
        claims = Claims(
            self.redis,
            lease_ms=self.settings.lease_ms,
            deadline_ms=self.settings.payment_deadline_ms,
            max_delay_ms=self.settings.processor_max_delay_ms,
        )
        return [claimed.claim for claimed in (await claims.take(limit, first=first)).taken]

    async def claim_when_due(self, correlation_id: str) -> Claim:
        """Make one payment due before all others and take it alone."""
        await self.redis.zadd("arq:queue", {correlation_id: 0}, xx=True)
        [claim] = await self.claim(limit=1)
        assert claim.correlation_id == correlation_id
        return claim

    async def horizon_is_over(self, correlation_id: str) -> bool:
        """Whether Redis' clock has passed the record's horizon."""
        seconds, microseconds = await self.redis.time()
        horizon = await self.field(correlation_id, "horizon")
        return horizon is None or int(horizon) <= seconds * 1000 + microseconds // 1000

    def use(self, settings: Settings | None = None, limits: BreakerLimits | None = None) -> None:
        """Go on under other settings, or other limits of the breakers."""
        self.settings = settings or self.settings
        self.limits = limits or self.limits
        self.dispatcher = make_dispatcher(
            self.settings, self.redis, self.transport, limits=self.limits
        )

    async def dispatch_until_done(self, correlation_id: str, *, times: int = 50) -> Record:
        """Claim and dispatch until the payment is settled, declined or dead, with a worker's
        shortest pauses, as some need a time to pass."""
        for _ in range(times):
            await self.dispatcher.dispatch(await self.claim_when_due(correlation_id))
            record = await self.record(correlation_id)
            if record.state in ("settled", "declined", "dead"):
                return record
            await asyncio.sleep(0.02)
        raise AssertionError(f"still {record}")

    async def record(self, correlation_id: str) -> Record:
        """The payment's record, which must exist."""
        record = await read_record(self.redis, correlation_id)
        assert isinstance(record, Record)
        return record

    async def field(self, correlation_id: str, name: str) -> str | None:
        """One field of the record as `redis-cli` shows it."""
        value = await self.redis.hget(f"payment:{correlation_id}", name)  # type: ignore[misc]
        return None if value is None else value.decode()

    async def open_tries(self, correlation_id: str) -> list[str]:
        """The states of the payment's open tries."""
        return [
            "ended" if each.ended else "pending" if each.pending else "open"
            for each in (await self.record(correlation_id)).open_tries
        ]

    async def purge(self) -> None:
        """Purge, as the endpoint does."""
        purge = Purge(self.redis, PROCESSORS)
        await purge.run(ANA)
        await purge.remove_leftovers()

    async def purge_leftovers(self) -> None:
        """The purge's second half: remove what earlier generations left."""
        await self.redis.set("payments:leftovers", 1)
        await Purge(self.redis, PROCESSORS).remove_leftovers()

    async def summary(self) -> dict[str, Total]:
        """All that the ledger holds."""
        return (await self.ledger.window(None, None)).totals

    def choose(self, processor: str) -> None:
        """Let new payments go to this processor."""
        router = self.dispatcher.router
        selection = replace(router.selection, processor=processor)
        router.see(processor.encode(), selection, boottime_ms())


@contextlib.asynccontextmanager
async def bench(
    redis: ArqRedis, settings: Settings = FAST, limits: BreakerLimits = PATIENT
) -> AsyncIterator[Bench]:
    """Two scripted processors and a dispatcher that pays through them."""
    async with ScriptedProcessor().running() as default, ScriptedProcessor().running() as fallback:
        settings = settings.with_urls(default=default.url, fallback=fallback.url)
        transport = make_transport(settings)
        yield Bench(
            redis,
            settings,
            default,
            fallback,
            make_dispatcher(settings, redis, transport, limits=limits),
            Ledger(redis, processors=["default", "fallback"], retention_ms=60_000),
            transport,
            limits,
        )
        await transport.aclose()


@contextlib.asynccontextmanager
async def worker_process(
    b: Bench, redis_url: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `payswitch worker` that pays through the bench's processors while the context is open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "worker"),
        env={
            **os.environ,
            "REDIS_URL": redis_url,
            "PAYMENT_PROCESSOR_URL_DEFAULT": b.default.url,
            "PAYMENT_PROCESSOR_URL_FALLBACK": b.fallback.url,
            **environment,
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()

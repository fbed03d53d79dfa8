"""The processes of the model: ingress and workers, made of the real code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.dispatch.dispatcher import Pauses
from payswitch.dispatch.routing import Breaker, BreakerLimits, Router
from payswitch.operations.controls import Controls
from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.audit import Signature
from payswitch.payments.claims import Claim
from payswitch.payments.dead_letters import DeadLetters
from payswitch.payments.ledger import Ledger
from payswitch.payments.payment import Payment
from payswitch.payments.purge import Purge
from payswitch.payments.sweeper import Sweeper
from payswitch.processors.processor import Processor
from payswitch.selection.selector import Selection, parse_override
from payswitch.selection.standing import Standing
from payswitch.store import keys
from tests.model.clients import SteppedRedis, SteppedWatch
from tests.model.processors import Entry, ProcessorClient, Wire
from tests.model.stepped import Process
from tests.model.temper import LEASE_MS, MARGIN_MS
from tests.support import PROCESSORS

if TYPE_CHECKING:
    from tests.model.world import World

_MODEL = Signature("the model")
_PATIENCE_MS = 5000


class Part(Process):
    """An ingress or a worker: a process with a client of Redis."""

    def __init__(self, world: World, kind: str, number: int) -> None:
        super().__init__(world, f"{kind} {number}", world.layout_of(number))
        self._world = world
        self._client = client = SteppedRedis(self, world)
        self._redis = cast(Redis, client)
        self.watch = SteppedWatch(client)

    @property
    def has_met_primary(self) -> bool:
        """Whether it has called the present run of the node that it takes for the primary."""
        return self._client.has_met_primary


class Ingress(Part):
    """Accepts and purges."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, "ingress", number)
        redis = self._redis
        self._queue = AcceptQueue(redis, limit_ms=5000, max_backlog=1000)
        self._purge = Purge(redis, PROCESSORS)
        self._sweeper = Sweeper(redis, PROCESSORS, every_ms=30_000)
        self._dead_letters = DeadLetters(redis)
        self._controls = Controls(redis)
        self.tasks: list[asyncio.Task[None]] = []
        self.is_purging = False

    def _start(self, work: Any) -> None:
        self.tasks = [task for task in self.tasks if not task.done()]
        self.tasks.append(self._world.start(work))
        self._world.settle_down()

    def call_accept(self, correlation_id: str, cents: int) -> None:
        """A client asks for a payment."""
        self._world.amounts.setdefault(correlation_id, cents)
        self._start(self._accept(correlation_id, cents))

    def call_purge(self) -> None:
        """A client purges."""
        self._start(self._run_purge())

    def call_sweep(self) -> None:
        """The sweep, which a worker would do."""
        self._start(self._sweep())

    def call_replay(self, correlation_id: str) -> None:
        """An operator replays a dead letter."""
        self._start(self._replay(correlation_id))

    def call_resolve(self, correlation_id: str) -> None:
        """An operator resolves a dead letter, for longer than the model lives."""
        letters = self._dead_letters
        self._start(self._operate(letters.resolve([correlation_id], _MODEL, retention_ms=10**9)))

    def call_select(self, processor: str) -> None:
        """An operator chooses a processor, for longer than the model lives: its keys end by
        Redis' own clock."""
        self._start(
            self._operate(self._controls.select(processor, life_ms=10**9, signature=_MODEL))
        )

    def call_auto(self) -> None:
        """An operator's choice ends."""
        self._start(self._operate(self._controls.select_automatically(_MODEL)))

    def call_pause(self) -> None:
        """An operator pauses."""
        self._start(self._operate(self._controls.pause(life_ms=None, signature=_MODEL)))

    def call_resume(self) -> None:
        """A pause ends."""
        self._start(self._operate(self._controls.resume(_MODEL)))

    async def _operate(self, order: Awaitable[object]) -> None:
        with contextlib.suppress(RedisError):
            await order

    async def _accept(self, correlation_id: str, cents: int) -> None:
        world = self._world
        before = world.generation
        try:
            verdict = await self._queue.accept(Payment(correlation_id, cents))
        except NotAcceptedError:
            world.counts["accept: 503"] += 1
            return
        if verdict in (Acceptance.NEW, Acceptance.SAME) and before == world.generation:
            world.acknowledged[correlation_id] = cents

    async def _run_purge(self) -> None:
        self.is_purging = True
        try:
            await self._purge.run(_MODEL)
        except (RedisError, TimeoutError):
            self._world.counts["purge: failed"] += 1
        finally:
            self.is_purging = False

    async def _sweep(self) -> None:
        try:
            requeued = await self._sweeper.sweep()
            self._world.counts["sweep: queued again"] += requeued
            await self._purge.remove_leftovers()
        except RedisError:
            pass

    async def _replay(self, correlation_id: str) -> None:
        try:
            async for _ in self._dead_letters.replay([correlation_id], _MODEL):
                pass
        except RedisError:
            pass


class Worker(Part):
    """A payments worker without its main loop: the model claims for it."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, "worker", number)
        self.number = number
        self.stopping = False
        self.tasks: dict[asyncio.Task[None], Claim | None] = {}
        self._ahead = 100_000_000 * number
        redis = self._redis
        protocol, temper = world.protocol, world.temper
        max_delay_ms = world.books.max_delay_ms
        self._claims = protocol.claims(
            redis,
            lease_ms=LEASE_MS,
            deadline_ms=temper.deadline_ms,
            max_delay_ms=max_delay_ms,
            clock=self.clock,
        )
        self.ledger = Ledger(redis, processors=PROCESSORS, retention_ms=10**9)
        breakers = {
            name: Breaker(
                slots=8,
                limits=BreakerLimits(temper.breaker_failures, temper.breaker_refusals),
            )
            for name in PROCESSORS
        }
        self.dispatcher = protocol.dispatcher(
            processors={
                name: cast(Processor, ProcessorClient(name, self, world)) for name in PROCESSORS
            },
            tries=protocol.tries(
                redis, max_delay_ms=max_delay_ms, lease_ms=LEASE_MS, retention_ms=10**9
            ),
            ledger=self.ledger,
            router=Router(breakers, probe_ms=1000, patience_ms=_PATIENCE_MS * temper.patient),
            pauses=Pauses(2, 50),
            lease_margin_ms=MARGIN_MS,
            clock=self.clock,
        )
        self.dispatcher._watch = protocol.watch()
        self._seen: Standing = (None, None)
        self.prefer(PROCESSORS[number % 2])

    @property
    def sluggish(self) -> bool:
        """Whether it is mostly frozen."""
        return self.number == 1 and self._world.temper.sluggish

    def clock(self) -> float:
        """Its boot-time clock, ms: another than others', and nobody sets it."""
        return float(self._world.books.true_ms + self._ahead)

    def prefer(self, processor: str, *, healthy: bool = True) -> None:
        """The selection as this worker has read it."""
        others = tuple(name for name in PROCESSORS if name != processor)
        down = others if self._world.temper.patient else ()
        self._preferred = Selection(processor, healthy, "the model's", down=down)
        self._see(None)

    def _see(self, override: bytes | None) -> None:
        """An operator's choice stands above what is preferred."""
        selection = parse_override(override, PROCESSORS) or self._preferred
        self.dispatcher.router.see(f"{selection}".encode(), selection, self.clock())

    def claim(self, limit: int) -> None:
        """Take what is due, up to so many, and begin with it; where nothing is healthy, one to
        probe with, as `PaymentWorker` does (that one probe goes out in the whole cluster is not
        what exactly-once rests on)."""
        router, now = self.dispatcher.router, self.clock()
        probe = None
        if router.choose(now) is None:
            self._see(self.node.store.client.get(self._world.partition.key(keys.OVERRIDE)))  # type: ignore[arg-type]
            probe = router.to_probe(now)
            if probe is None:
                return
            router.probed(probe, now)
            limit = 1
        self._keep(self._world.start(self._take(limit, probe)), None)

    def bring(self, proof: Wire) -> None:
        """Bring a proof of payment again."""
        work = self._settle(proof.claim, proof.processor, proof.entry)
        self._keep(self._world.start(work), None)

    def _keep(self, task: asyncio.Task[None], claim: Claim | None) -> None:
        self.tasks[task] = claim
        task.add_done_callback(self.tasks.pop)

    async def _take(self, limit: int, probe: str | None) -> None:
        try:
            back = self.dispatcher.router.back()
            opens = probe is None and self._world.temper.first_tries
            first = self.dispatcher.first_tries(self._seen) if opens else None
            batch = await self._claims.take(limit, back=back, drain=1, first=first)
        except RedisError:
            return
        self._seen = batch.selection or (None, None)
        self._see(self._seen[0])
        for claimed in batch.taken:
            claim = claimed.claim
            self._world.counts["opened by its claim"] += claim.unsent is not None
            if any(other.correlation_id == claim.correlation_id for other in self._others()):
                self._world.counts["taken over from one that lives"] += 1
            self._keep(self._world.start(self._work(claim, probe), claim), claim)

    def _others(self) -> list[Claim]:
        return self._world.claims_in_hand()

    async def _work(self, claim: Claim, probe: str | None) -> None:
        """As `PaymentWorker._run`: what goes wrong gives the payment back, or leaves it to the
        lease's end."""
        try:
            await self.dispatcher.dispatch(claim, probe=probe)
        except asyncio.CancelledError:
            if not self.stopping or self.dead:
                raise
            await self._give_back(claim)
        except RedisError:
            if self.clock() < claim.expires_at:
                await self._give_back(claim)

    async def _give_back(self, claim: Claim) -> None:
        with contextlib.suppress(RedisError):
            await self.dispatcher.give_back(claim, delay_ms=0, error="redis was away")

    async def _settle(self, claim: Claim, processor: str, entry: Entry) -> None:
        with contextlib.suppress(RedisError):
            await self.ledger.settle(claim, processor, entry.requested_at)

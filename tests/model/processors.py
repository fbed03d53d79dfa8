"""Processors of the model: their books, the requests that are on the wire to them, and the client
that workers call instead of HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

from payswitch.payments.claims import Claim
from payswitch.processors.connector import ConnectorSettings, Instruction
from payswitch.processors.outcomes import (
    Declined,
    Ended,
    FindOutcome,
    Found,
    HealthReport,
    Missing,
    NotPaid,
    NotSentInTime,
    Outcome,
    Paid,
    Pending,
    Refused,
    Unclear,
    Unknown,
)
from payswitch.processors.rinha import RinhaConnector
from payswitch.telemetry.tracing import NO_STEP, Step
from tests.model.stepped import Process

UNCLEAR = Unclear("status 503")
MISSING = Missing()
REFUSED_CONNECTION = NotPaid("connection refused", healthy=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A payment in a processor's book."""

    cents: int
    requested_at: int


@dataclass(eq=False)
class Wire:
    """A request that has left: the processor may record it until its longest delay is over."""

    processor: str
    claim: Claim
    entry: Entry
    written_at: int
    """True time, ms."""
    reply: asyncio.Future[Outcome]
    recorded: bool = False
    """By this very request."""
    ended: bool = False
    """The processor is done with it."""
    denied: bool = False
    """The processor has it pending, and says that it doesn't have it."""

    @property
    def payment(self) -> str:
        """Its correlation id."""
        return self.claim.correlation_id


@dataclass
class Books:
    """What the processors of the model do with the requests on the wire.

    Their assumptions are the design's: idempotent by id, truthful to questions, and nothing is
    recorded later than `max_delay_ms` after it was written, nor after its end was answered. What is
    pending is recorded or declined at any later time. A decline that is kept is about the id, and
    one that isn't is about its request: another that is under way may yet be recorded.
    """

    max_delay_ms: int
    books: dict[str, dict[str, Entry]]
    counts: Counter[str]
    true_ms: int = 0
    wires: list[Wire] = field(default_factory=list)
    proofs: list[Wire] = field(default_factory=list)
    """Every request that was ever recorded."""
    pending: dict[str, dict[str, Wire]] = field(default_factory=lambda: defaultdict(dict))
    """By processor and id."""
    declined: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By processor: the ids whose decline it keeps."""
    refused: set[str] = field(default_factory=set)
    """The ids that any processor has ever declined, kept or not."""

    def purge(self) -> None:
        """Forget every payment, but not the requests on the wire."""
        for book in self.books.values():
            book.clear()
        self.pending.clear()
        self.declined.clear()
        self.refused.clear()

    def known_ids(self) -> set[str]:
        """Every id that a processor has, or has declined and keeps."""
        kept = set().union(*self.declined.values())
        return kept.union(*self.books.values(), *self.pending.values())

    def comes(self, wire: Wire) -> bool:
        """Whether it may be recorded, or pending, now or later."""
        return self.may_record(wire) and wire.payment not in self.declined[wire.processor]

    def may_record(self, wire: Wire) -> bool:
        """Whether it may be recorded now or later."""
        in_time = self.true_ms <= wire.written_at + self.max_delay_ms
        return in_time and not wire.recorded and not wire.ended

    def waits(self, wire: Wire) -> bool:
        """Whether its sender still waits for an answer."""
        return not wire.reply.done()

    def forget_finished(self) -> None:
        """Drop the requests of which nothing can come any more."""
        self.wires[:] = [wire for wire in self.wires if self.waits(wire) or self.may_record(wire)]

    def record(self, wire: Wire) -> None:
        """The processor records the payment, or finds that it has it."""
        if self._standing(wire.processor, wire.payment) != MISSING:
            self.counts["the processor knew it already"] += 1
            wire.ended = True
        else:
            self._enter(wire)
            if not self.waits(wire):
                self.counts["recorded after the sender had given up"] += 1

    def _enter(self, wire: Wire) -> None:
        self.books[wire.processor][wire.payment] = wire.entry
        wire.recorded = True
        self.proofs.append(wire)

    def deliberate(self, wire: Wire) -> None:
        """The processor has it pending from now on, unless it knows the id."""
        wire.ended = True
        if self._standing(wire.processor, wire.payment) == MISSING:
            self.pending[wire.processor][wire.payment] = wire

    def decline(self, wire: Wire, *, kept: bool = True) -> None:
        """The processor declines the request, or the id for good."""
        wire.ended = True
        self.refused.add(wire.payment)
        if kept:
            self.declined[wire.processor].add(wire.payment)

    def decide(self, wire: Wire, *, paid: bool) -> None:
        """A payment is pending no longer."""
        del self.pending[wire.processor][wire.payment]
        self.counts[f"decided: {'paid' if paid else 'declined'}"] += 1
        if paid:
            self._enter(wire)
        else:
            self.decline(wire)

    def undecided(self) -> list[Wire]:
        """Every request that made a payment pending."""
        return [wire for pending in self.pending.values() for wire in pending.values()]

    def find(self, processor: str, correlation_id: str) -> FindOutcome:
        """The truth of this instant, unless it is denied."""
        pending = self.pending[processor].get(correlation_id)
        if pending is not None and pending.denied:
            self.counts["find: denied"] += 1
            return MISSING
        finding = self._standing(processor, correlation_id)
        self.counts[f"find: {type(finding).__name__.lower()}"] += 1
        return finding

    def _standing(self, processor: str, correlation_id: str) -> FindOutcome:
        if correlation_id in self.declined[processor]:
            return Declined("kept")
        if correlation_id in self.pending[processor]:
            return Pending()
        entry = self.books[processor].get(correlation_id)
        return MISSING if entry is None else Found(entry.cents, entry.requested_at)

    def answer(self, wire: Wire, outcome: Outcome) -> None:
        """Answer the sender."""
        self.counts[f"outcome: {type(outcome).__name__}"] += 1
        wire.reply.set_result(outcome)

    def pay(self, wire: Wire) -> None:
        """Record it, unless that is done, and answer: 200, or what was there before: 422 if it was
        paid."""
        if not wire.recorded and not wire.ended:
            self.record(wire)
        match self._standing(wire.processor, wire.payment):
            case Declined() | Pending() as standing:
                self.end(wire, standing)
            case _:
                self.end(wire, Paid() if wire.recorded else Refused(422))

    def end(self, wire: Wire, outcome: Outcome) -> None:
        """Answer that it is over; it is not recorded later than now."""
        wire.ended = True
        self.answer(wire, outcome)

    def leave_unknown(self, wire: Wire) -> None:
        """The sender gives up or is cut off; what was sent lives on."""
        self.answer(wire, Unknown("no complete answer within 10.5 s"))

    def answers(self, wire: Wire) -> dict[str, tuple[int, Callable[[], None]]]:
        """What may happen to this request now: a weight and what to do, by name."""
        found: dict[str, tuple[int, Callable[[], None]]] = {}
        if self.may_record(wire):
            found["records it"] = (4, lambda: self.record(wire))
            found["loses it"] = (1, lambda: setattr(wire, "ended", True))
        if not self.waits(wire):
            return found
        found["stays silent"] = (5, lambda: self.leave_unknown(wire))
        if self.may_record(wire) or wire.recorded:
            found["pays it"] = (5, lambda: self.pay(wire))
            found["pays it, and the gateway says 429"] = (
                1,
                lambda: self._record_and_end(wire, Ended(429, 5000)),
            )
        if self.may_record(wire):
            found["records it and says 500"] = (1, lambda: self._record_and_end(wire, Ended(500)))
            found["lives on, but the gateway says 503"] = (
                1,
                lambda: self.answer(wire, Unknown("status 503", 5000)),
            )
        if not wire.recorded:
            found["refuses with 422"] = (1, lambda: self.end(wire, Refused(422)))
            found["answers 429"] = (1, lambda: self.end(wire, Ended(429, 5000)))
            found["answers 401"] = (1, lambda: self.end(wire, Ended(401)))
        found["says 500"] = (3, lambda: self.end(wire, Ended(500)))
        return found

    def deliberations(self, wire: Wire) -> dict[str, tuple[int, Callable[[], None]]]:
        """As `answers`: what else a processor does that declines payments and has some pending."""
        found: dict[str, tuple[int, Callable[[], None]]] = {}
        standing = self._standing(wire.processor, wire.payment)
        if self.waits(wire) and isinstance(standing, Declined | Pending):
            found["says what it decided"] = (6, lambda: self.end(wire, standing))
        if standing != MISSING or not self.may_record(wire):
            return found
        found["has it pending, unheard"] = (3, lambda: self.deliberate(wire))
        found["declines it, unheard"] = (1, lambda: self.decline(wire))
        if self.waits(wire):
            found["has it pending"] = (8, lambda: self._deliberate_and_say_so(wire))
            found["declines it"] = (3, lambda: self._decline_and_say_so(wire, kept=True))
            found["declines it, keeping nothing"] = (
                5,
                lambda: self._decline_and_say_so(wire, kept=False),
            )
        return found

    def _deliberate_and_say_so(self, wire: Wire) -> None:
        self.deliberate(wire)
        self.answer(wire, Pending())

    def _decline_and_say_so(self, wire: Wire, *, kept: bool) -> None:
        self.decline(wire, kept=kept)
        self.answer(wire, Declined("kept" if kept else "forgotten"))

    def _record_and_end(self, wire: Wire, outcome: Outcome) -> None:
        if not wire.recorded:
            self.record(wire)
        self.end(wire, outcome)


class Wires(Protocol):
    """What a client of the model's processors lives in."""

    books: Books
    free: bool

    def claim_in_hand(self) -> Claim:
        """The claim that the running task works on."""


class ProcessorClient:
    """Stands where `payswitch.processors.processor.Processor` does, in one worker."""

    def __init__(self, name: str, process: Process, around: Wires) -> None:
        self.name = name
        self.connector = RinhaConnector(ConnectorSettings(name))
        self.prepares = False
        self._process = process
        self._around = around

    async def pay(
        self,
        instruction: Instruction,
        may_send: Callable[[], bool],
        step: Step = NO_STEP,
    ) -> Outcome:
        """As the real one: nothing happens between the question `may_send` and the write."""
        claim = self._around.claim_in_hand()
        books = self._around.books
        reply: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def write() -> Outcome | None:
            if not may_send():
                books.counts["outcome: NotSentInTime"] += 1
                return NotSentInTime()
            wire = Wire(
                self.name,
                claim,
                Entry(instruction.cents, instruction.requested_at),
                books.true_ms,
                reply,
            )
            books.wires.append(wire)
            if self._around.free:
                books.pay(wire)
            return None

        label = f"write {instruction.correlation_id} to {self.name}"
        unsent = await self._process.pass_gate("write", label, write)
        if isinstance(unsent, NotPaid):
            books.counts["outcome: NotPaid"] += 1
        return await reply if unsent is None else cast(Outcome, unsent)

    async def find(self, instruction: Instruction, step: Step = NO_STEP) -> FindOutcome:
        """As the real one; the answer may be on its way for a while."""
        correlation_id = instruction.correlation_id
        finding = await self._process.pass_gate(
            "find",
            f"ask {self.name} for {correlation_id}",
            lambda: self._around.books.find(self.name, correlation_id),
        )
        return cast(FindOutcome, finding)

    async def prepare(self) -> str | None:
        """Nothing needs it here."""
        return None

    async def health(self, limit_ms: int) -> HealthReport | None:
        """Not asked here."""
        raise NotImplementedError

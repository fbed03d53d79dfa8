"""The life of one claimed payment: ask first if a try is open, route, pay, settle.

Each step follows the design's table of outcomes (docs/design.md). A dispatch ends with exactly one
of: settled, given back to the queue, made a dead letter, or the lease found lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from redis.exceptions import RedisError

from payswitch.clock import boottime_ms
from payswitch.dispatch.quiet_watch import QuietWatch
from payswitch.dispatch.routing import Breaker, BreakerState, Router, Verdict
from payswitch.dispatch.work import REFUSED, UNSENT, Work, words_of
from payswitch.payments.claims import Claim, FirstTries, Routed
from payswitch.payments.ledger import Ledger, Settlement
from payswitch.payments.tries import Burial, Tries
from payswitch.processors.outcomes import (
    Declined,
    Ended,
    FindOutcome,
    Found,
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
from payswitch.processors.processor import ConnectorFaultError, Processor
from payswitch.selection.standing import Standing
from payswitch.store.errors import UnconfirmedError, in_words
from payswitch.telemetry.histogram import Histogram
from payswitch.telemetry.tracing import NO_TRACE, PaymentTrace

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_QUESTIONS = 64
"""Questions about open tries to one processor at once: a silent processor must not hold every
slot."""
_UNPAID = "unpaid at its deadline"
_NOBODY = "no processor takes such a payment"
_HELD_MS = 200
"""The pause of a payment that no processor can take at the moment."""
_WAIT_MS = 500
"""The shortest pause of a payment that waits for its own processor."""
_UNKNOWN_MS = 5000
"""The pause of a payment that is pinned to a processor which this worker doesn't know."""
_MOST_UNASKED = 16
"""With this many open tries the processor is asked before each new one: a 404 closes those that
have ended, so the record stays small."""


_NO_FAILURES = (Paid, Pending, Declined)


@dataclass(frozen=True, slots=True)
class Pauses:
    """The pauses between tries, in ms: exponential with jitter, up to a cap (after Amazon's
    "Exponential Backoff And Jitter", 2015)."""

    base_ms: int
    cap_ms: int

    def after(self, tries: int) -> int:
        """The pause after try number `tries`, counted from 1."""
        longest = min(self.cap_ms, self.base_ms * 2 ** min(tries - 1, 30))
        return random.randint(longest // 2, longest)


_SHORTEST_WAIT_MS, _LONGEST_WAIT_MS = 1000, 300_000
"""The pauses between questions about a payment that its provider has yet to decide."""


class Dispatcher:
    """Sends claimed payments to their processors and records the outcomes in Redis."""

    def __init__(
        self,
        *,
        processors: Mapping[str, Processor],
        tries: Tries,
        ledger: Ledger,
        router: Router,
        pauses: Pauses,
        lease_margin_ms: int,
        clock: Callable[[], float] = boottime_ms,
    ) -> None:
        self.router = router
        self.calls: defaultdict[tuple[str, type[Outcome]], Histogram] = defaultdict(Histogram)
        """The times of `pay` calls by processor and outcome."""
        self._processors = processors
        self._restricted = {
            name for name, each in processors.items() if each.connector.restricts_payments
        }
        self._tries = tries
        self.ledger = ledger
        self._pauses = pauses
        self._lease_margin_ms = lease_margin_ms
        self._questions = {name: asyncio.Semaphore(_MOST_QUESTIONS) for name in processors}
        self._strangers: set[str | None] = set()
        self._faults: set[tuple[str, str]] = set()
        self._watch = QuietWatch()
        self._clock = clock

    async def dispatch(
        self, claim: Claim, trace: PaymentTrace = NO_TRACE, *, probe: str | None = None
    ) -> None:
        """Take a claimed payment as far as possible now. Raises `RedisError`; then the end of the
        lease gives the payment back. `probe` names the processor to use although none is healthy.
        """
        work = Work(claim, trace)
        if claim.unsent is not None:
            await self._send_first(work, claim.unsent)
            return
        if self._must_ask(claim, probe) and not await self._ask_in_turn(work):
            return
        still_open = work.still_open()
        if claim.open_tries and not still_open:
            await self._wake_next(claim)
        if claim.declined:
            await self._decline(work, claim.declined)
            return
        if claim.overdue:
            await self._end_overdue(work, still_open)
            return
        if still_open and work.is_pending:
            await self._undecided(
                work, f"{claim.processor} had it pending and now does not have it"
            )
            return
        try:
            eligible = None if still_open else self._eligible(work)
        except ConnectorFaultError as fault:
            await self._retry(work, str(fault))
            return
        if eligible is not None and not eligible:
            await self._bury(work, _NOBODY)
            return
        if still_open:
            processor = claim.processor
        elif probe is not None and (eligible is None or probe in eligible):
            processor = probe
        else:
            processor = self._choose(eligible)
            is_patient = processor is not None and self.router.patience_ms > 0
            if is_patient and await self._hold_back(work, processor, eligible):
                return
        breaker = self.router.breakers[processor] if processor is not None else None
        if processor is None or breaker is None or not breaker.free(self._clock()):
            if still_open and breaker is not None and breaker.state is not BreakerState.CLOSED:
                await self._wait(work)
            elif eligible is not None:  # claims go on for others, which it must not hold up
                await self._retry(work, "")
            else:
                await self._give_back(work, delay_ms=self._hold(breaker))
            return
        await self._pay_through(breaker, work, processor)

    async def give_back(self, claim: Claim, *, delay_ms: int, error: str = "") -> None:
        """Give back a payment without findings. Raises `RedisError`."""
        work = Work(claim, NO_TRACE)
        if claim.unsent is not None:
            work.saw(claim.unsent, NotPaid(error or UNSENT))
            work.findings.closed.add(claim.unsent.id)
        await self._give_back(work, delay_ms=delay_ms, error=error)

    def first_tries(self, standing: Standing) -> FirstTries | None:
        """Where a claim may open its payments' first tries, by these values of the selection: at
        the processor that each of them would get now. None if there is none, or if it depends on
        the payment."""
        name = self._choose()
        if name is None or self._restricted or self._processors[name].prepares:
            return None
        is_usable = self.router.breakers[name].state is BreakerState.CLOSED
        if not is_usable or self.router.awaited(name, 0) is not None:
            return None
        return FirstTries(name, standing)

    async def _send_first(self, work: Work, routed: Routed) -> None:
        """Send the try that the claim has opened, unless its processor has failed meanwhile."""
        breaker = self.router.breakers[routed.processor]
        if breaker.state is BreakerState.CLOSED and breaker.free(self._clock()):
            await self._pay_through(breaker, work, routed.processor)
            return
        outcome = NotPaid("it takes no more calls")
        work.saw(routed, outcome)
        await self._conclude(work, routed, outcome)

    async def _hold_back(
        self, work: Work, chosen: str | None, eligible: Collection[str] | None
    ) -> bool:
        """Give the payment back if it waits for a processor that is down; whether it does."""
        claim = work.claim
        assert chosen is not None
        awaited = self.router.awaited(chosen, claim.age_ms, eligible)
        if awaited is None:
            return False
        await self._tries.hold(
            claim,
            delay_ms=self.router.patience_ms - max(claim.age_ms, 0),
            findings=work.findings,
            processor=awaited,
            instead=chosen,
        )
        return True

    def _eligible(self, work: Work) -> list[str] | None:
        """The processors that may get the payment; None if all may. Raises `ConnectorFaultError` if
        none takes it and a connector can't tell: the payment then waits until that is mended."""
        if not self._restricted:
            return None
        instruction = work.instruction()
        found: list[str] = []
        fault: ConnectorFaultError | None = None
        for name, processor in self._processors.items():
            try:
                if name not in self._restricted or processor.takes(instruction):
                    found.append(name)
            except ConnectorFaultError as error:
                fault = error
                self._note_fault(name, str(error))
        if fault is not None and not found:
            raise fault
        return found if len(found) < len(self._processors) else None

    def _note_fault(self, processor: str, fault: str) -> None:
        if (processor, fault) not in self._faults:
            self._faults.add((processor, fault))
            logger.error(
                "%(processor)s: %(error)s; such payments go elsewhere, or wait",
                {"processor": processor, "error": fault},
            )

    def _choose(self, eligible: Collection[str] | None = None) -> str | None:
        return self.router.choose(self._clock(), eligible)

    async def _end_overdue(self, work: Work, still_open: set[str]) -> None:
        """Send nothing after the deadline; wait while a try is open."""
        if still_open:
            await self._wait(work, f"{_UNPAID}, but a try is open")
        else:
            await self._bury(work, await self._why_unpaid(work.claim))

    async def _why_unpaid(self, claim: Claim) -> str:
        """The reason for the dead letter; it includes the last refusal, if there was one."""
        last_error = await self._tries.last_error(claim)
        return f"{_UNPAID}; {last_error}" if REFUSED in last_error else _UNPAID

    def _must_ask(self, claim: Claim, probe: str | None) -> bool:
        """Whether to ask the open tries' processor before sending. Not if all have ended and the
        same processor is chosen again, for it knows the id. After a replay always: the last try may
        be days old."""
        if not claim.open_tries:
            return False
        if (
            claim.overdue
            or claim.declined
            or claim.job_try == 1
            or len(claim.open_tries) >= _MOST_UNASKED
            or not all(open_try.ended for open_try in claim.open_tries)
        ):
            return True
        return claim.processor != (probe or self._choose())

    async def _ask_in_turn(self, work: Work) -> bool:
        """Ask first, unless too many payments already wait for this processor's answers; True if
        more can be done now."""
        processor = work.claim.processor
        if processor is None or processor not in self._processors:
            await self._leave_to_others(work, processor)
            return False
        questions = self._questions[processor]
        try:
            async with asyncio.timeout(_HELD_MS / 1000):
                await questions.acquire()
        except TimeoutError:
            await self._wait(work)
            return False
        try:
            return await self._ask_first(work)
        finally:
            questions.release()

    async def _ask_first(self, work: Work) -> bool:
        """Ask the processor of the open tries about the payment; True if more can be done now."""
        assert work.claim.processor is not None
        is_first_look = work.claim.horizon_passed and self._watch.may_begin(work.claim)
        passed_here = self._watch.passed(work.claim, self._clock())
        nothing_comes_later = work.claim.horizon_passed and passed_here
        finding = await self._find(work, work.claim.processor)
        if is_first_look and (isinstance(finding, Missing | Declined) or work.claim.overdue):
            await self._wake_next(work.claim)
        match finding:
            case Found():
                await self._settle_found(
                    work, work.claim.processor, finding, horizon_passed=passed_here
                )
                return False
            case Declined():
                work.close_decided(nothing_comes_later=nothing_comes_later)
                await self._decline(work, finding.code)
                return False
            case Pending():
                await self._await_decision(work, finding)
                return False
            case Missing():
                work.findings.closed.update(
                    open_try.id
                    for open_try in work.claim.open_tries
                    if open_try.ended or (nothing_comes_later and not open_try.pending)
                )
                if work.claim.overdue and nothing_comes_later and work.still_open():
                    reason = f"{_UNPAID}; {work.claim.processor} had it pending and lost it"
                    await self._bury(work, reason, horizon_passed=True)
                    return False
                return True
            case Unclear():
                if work.claim.overdue and nothing_comes_later:
                    reason = f"{_UNPAID}; {work.claim.processor} can't tell"
                    await self._bury(work, reason, horizon_passed=True)
                else:
                    error = f"asked {work.claim.processor}: {finding.reason}"
                    await self._wait(work, error, finding.retry_after_ms)
                return False

    async def _leave_to_others(self, work: Work, processor: str | None) -> None:
        """The processor of the open tries is unknown here: other workers have newer settings."""
        error = f"pinned to {processor}, which a worker does not know"
        if processor not in self._strangers:
            self._strangers.add(processor)
            logger.error(
                "payments are pinned to %(processor)s, which PAYSWITCH_PROCESSORS does not name "
                "here: they wait for a worker that knows it",
                {"processor": processor},
            )
        await self._give_back(work, delay_ms=_UNKNOWN_MS, error=error)

    async def _pay_through(self, breaker: Breaker, work: Work, processor: str) -> None:
        is_probe = breaker.enter(self._clock())
        outcome: Outcome | None = None
        is_unconfirmed = False
        try:
            client = self._processors[processor]
            if client.prepares and (unprepared := await client.prepare()) is not None:
                outcome = NotPaid(unprepared, healthy=False)
                await self._retry(work, f"{processor}: {unprepared}")
                return
            routed = work.claim.unsent or await self._open(work, processor)
            if routed is None:
                logger.debug(
                    "payment %(payment)s may no longer be sent",
                    {"payment": work.claim.correlation_id},
                )
                return
            began = self._clock()
            outcome = await self._send(work, routed)
            work.saw(routed, outcome)
            self.calls[processor, type(outcome)].add(self._clock() - began)
            if isinstance(outcome, Refused):
                finding = await self._find(work, processor, routed.requested_at)
                outcome = replace(outcome, finding=finding)
        except UnconfirmedError:
            is_unconfirmed = True
            raise
        finally:
            if is_unconfirmed:
                breaker.withdraw(probe=is_probe)
            else:
                self._leave(breaker, processor, outcome, is_probe=is_probe)
        await self._conclude(work, routed, outcome)

    def _leave(
        self, breaker: Breaker, processor: str, outcome: Outcome | None, *, is_probe: bool
    ) -> None:
        """Count the end of a call, or of what was to be one."""
        was, was_refusing = breaker.state, breaker.refusing
        breaker.leave(
            _verdict(outcome),
            probe=is_probe,
            now=self._clock(),
            asked_ms=self._pause_for_all(outcome),
            reason=words_of(outcome),
        )
        _log_change(processor, breaker, was, was_refusing=was_refusing)

    async def _open(self, work: Work, processor: str) -> Routed | None:
        """Open a try. Raises `RedisError`; a try without confirmation is closed before, as it is
        not sent."""
        try:
            return await self._tries.open(work.claim, processor, work.findings)
        except UnconfirmedError as error:
            await self._give_back(work, delay_ms=_HELD_MS, error=f"not sent: {in_words(error)}")
            raise

    async def _send(self, work: Work, routed: Routed) -> Outcome:
        sends_until = work.claim.expires_at - self._lease_margin_ms
        clock = self._clock
        pay = self._processors[routed.processor].pay
        instruction = work.instruction(routed.requested_at)
        work.claim.unsent = None
        with work.trace.pay(routed.processor, routed.number) as step:
            outcome = await pay(instruction, lambda: clock() < sends_until, step)
            failed = not isinstance(outcome, _NO_FAILURES)
            step.set_outcome(type(outcome).__name__, failed=failed)
        return outcome

    async def _find(
        self, work: Work, processor: str, requested_at: int | None = None
    ) -> FindOutcome:
        find = self._processors[processor].find
        with work.trace.ask(processor) as step:
            finding = await find(work.instruction(requested_at), step)
            step.set_outcome(type(finding).__name__, failed=isinstance(finding, Unclear))
        return finding

    async def _conclude(self, work: Work, routed: Routed, outcome: Outcome) -> None:
        processor = routed.processor
        match outcome:
            case Paid():
                await self._settle(work, processor, routed.requested_at, outcome.reference)
            case Declined() | Pending():
                await self._after_finding(work, routed, outcome)
            case Refused():
                work.findings.ended.add(routed.id)
                await self._after_refusal(work, routed, outcome)
            case Ended():
                work.findings.ended.add(routed.id)
                await self._after_end(work, routed, outcome)
            case NotPaid():
                work.findings.closed.add(routed.id)
                await self._retry(work, f"{processor}: {outcome.reason}")
            case NotSentInTime():
                work.findings.closed.add(routed.id)
                await self._give_back(work, delay_ms=0, error=UNSENT)
            case Unknown():  # the try stays open, so the payment stays with its processor
                self._watch.saw(work.claim.correlation_id, routed.id, self._clock())
                error = f"{processor}: {outcome.reason}"
                await self._retry(work, error, outcome.retry_after_ms)

    async def _after_end(self, work: Work, routed: Routed, outcome: Ended) -> None:
        """Only the processor knows whether it recorded the payment. Ask it at once, so that the
        payment can go elsewhere; but not after a 429 if the payment returns there anyway."""
        asked_ms = outcome.retry_after_ms
        is_limit = outcome.status == HTTPStatus.TOO_MANY_REQUESTS
        if not is_limit or self.router.choose(self._clock()) != routed.processor:
            finding = await self._find(work, routed.processor, routed.requested_at)
            match finding:
                case Missing():
                    work.close_ended(routed)
                    asked_ms = None
                case Unclear():
                    asked_ms = max(asked_ms or 0, finding.retry_after_ms or 0)
                case _:
                    await self._after_finding(work, routed, finding)
                    return
        await self._retry(work, f"{routed.processor}: status {outcome.status}", asked_ms)

    async def _after_refusal(self, work: Work, routed: Routed, outcome: Refused) -> None:
        """The processor knows the id already, or can't take this payment. If it refuses most
        payments, the fault is its own, and none becomes a dead letter."""
        error = f"{routed.processor}: {words_of(outcome)}"
        match outcome.finding:
            case Found() | Declined() | Pending() as finding:
                await self._after_finding(work, routed, finding)
            case Missing():
                work.close_ended(routed)
                is_trusted = not self.router.breakers[routed.processor].refusing
                if is_trusted and not work.still_open():
                    await self._bury(work, error)
                else:
                    await self._retry(work, error)
            case Unclear() as unclear:
                await self._retry(work, error, unclear.retry_after_ms)

    async def _after_finding(
        self, work: Work, routed: Routed, finding: Found | Declined | Pending
    ) -> None:
        """The processor knows the payment: its word on this try, and on those that ended."""
        match finding:
            case Found():
                await self._settle_found(work, routed.processor, finding)
            case Declined():
                work.findings.closed.add(routed.id)
                work.close_decided()
                await self._decline(work, finding.code)
            case Pending():
                work.findings.pending.add(routed.id)
                await self._await_decision(work, finding)

    async def _await_decision(self, work: Work, pending: Pending) -> None:
        """The provider has the payment: every open try waits for its decision."""
        open_tries = work.claim.open_tries
        work.findings.pending |= work.still_open()
        if open_tries and not any(each.pending for each in open_tries):
            await self._wake_next(work.claim)
        await self._undecided(work, "pending", pending.retry_after_ms)

    async def _undecided(self, work: Work, error: str, asked_ms: int | None = None) -> None:
        """Ask again after a pause of up to half the time since the try."""
        claim = work.claim
        since = claim.requested_at if claim.open_tries else None
        waited_ms = 0 if since is None else claim.claimed_at - since
        longest_ms = min(max(waited_ms // 2, _SHORTEST_WAIT_MS), _LONGEST_WAIT_MS)
        pause_ms = max(asked_ms or 0, random.randint(longest_ms // 2, longest_ms))
        await self._give_back(work, delay_ms=min(pause_ms, _LONGEST_WAIT_MS), error=error)

    async def _decline(self, work: Work, code: str) -> None:
        """End the payment, or keep the decline in its record while another try may be recorded."""
        claim = work.claim
        bury = partial(
            self._tries.bury, claim, code, work.findings, horizon_passed=False, declined=True
        )
        with work.trace.bury(f"declined: {code}") as step:
            burial = await self._insist(bury)
            step.set_outcome(burial.value, failed=False)
        if burial is Burial.STILL_OPEN:
            await self._wait(work, f"declined ({code}), but an earlier try is open")
        elif burial is Burial.BURIED:
            self._watch.forget(claim.correlation_id)
            if claim.open_tries:
                await self._wake_next(claim)

    async def _settle_found(
        self, work: Work, processor: str, found: Found, *, horizon_passed: bool = False
    ) -> None:
        """The processor has the id: settle if the amount is ours, else leave it to a person."""
        if found.cents == work.claim.cents:
            await self._settle(work, processor, found.requested_at, found.reference)
        else:
            reason = f"{processor} has it with another amount"
            await self._bury(work, reason, horizon_passed=horizon_passed)

    async def _settle(self, work: Work, processor: str, requested_at: int, reference: str) -> None:
        self._watch.forget(work.claim.correlation_id)
        last_try = work.findings.last_try()
        settle = partial(
            self.ledger.settle, work.claim, processor, requested_at, last_try, reference
        )
        with work.trace.settle(processor) as step:
            settlement = await self._insist(settle)
            failed = settlement in (Settlement.INCIDENT, Settlement.UNADDABLE)
            step.set_outcome(settlement.value, failed=failed)
        if settlement is Settlement.INCIDENT:
            logger.error(
                "incident: %(processor)s has payment %(payment)s, which is pinned elsewhere",
                {"processor": processor, "payment": work.claim.correlation_id},
            )
        elif settlement is Settlement.UNADDABLE:
            logger.error(
                "payment %(payment)s is paid by %(processor)s, but a sum of the ledger can't take "
                "it; it is tried again",
                {"processor": processor, "payment": work.claim.correlation_id},
            )
            await self._retry(work, f"paid by {processor}; the ledger can't add it")
            return
        if work.still_open():
            await self._wake_next(work.claim)

    async def _insist(self, tell: Callable[[], Awaitable[T]]) -> T:
        """Repeat until Redis answers: proof of payment and a decline are never dropped."""
        tries = 0
        while True:
            try:
                return await tell()
            except (RedisError, OSError):
                tries += 1
                await asyncio.sleep(self._pauses.after(tries) / 1000)

    async def _bury(self, work: Work, reason: str, *, horizon_passed: bool = False) -> None:
        bury = self._tries.bury(work.claim, reason, work.findings, horizon_passed=horizon_passed)
        with work.trace.bury(reason) as step:
            burial = await bury
            step.set_outcome(burial.value, failed=False)
        if burial is Burial.STILL_OPEN:
            await self._retry(work, reason)
        elif burial is Burial.BURIED:
            self._watch.forget(work.claim.correlation_id)
            logger.warning(
                "dead letter: %(payment)s: %(reason)s",
                {"payment": work.claim.correlation_id, "reason": reason},
            )
            if work.still_open():
                await self._wake_next(work.claim)

    async def _wait(self, work: Work, error: str = "", asked_ms: int | None = None) -> None:
        """Give the payment back to wait for its processor, behind the others that do."""
        assert work.claim.processor is not None
        wait_ms = max(_WAIT_MS, min(asked_ms or 0, self._pauses.cap_ms))
        await self._tries.release(
            work.claim,
            delay_ms=wait_ms,
            findings=work.findings,
            error=error,
            waits_for=work.claim.processor,
        )

    async def _wake_next(self, claim: Claim) -> None:
        """This payment made progress, so wake others that wait for the same processor. A worker's
        first look counts as progress: its `QuietWatch` starts then. No guarantee relies on it."""
        if claim.processor is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._tries.wake(claim, claim.processor)

    async def _retry(self, work: Work, error: str, asked_ms: int | None = None) -> None:
        """Give the payment back for a pause; `asked_ms` is the processor's `Retry-After`."""
        longest = self._pauses.cap_ms
        delay_ms = max(self._pauses.after(work.claim.job_try), min(asked_ms or 0, longest))
        await self._give_back(work, delay_ms=delay_ms, error=error)

    async def _give_back(self, work: Work, *, delay_ms: int, error: str = "") -> None:
        await self._tries.release(
            work.claim, delay_ms=delay_ms, findings=work.findings, error=error
        )

    def _pause_for_all(self, outcome: Outcome | None) -> int:
        """The pause that the processor's `Retry-After` imposes on all payments, in ms."""
        asked_ms = outcome.retry_after_ms if isinstance(outcome, Ended) else None
        return min(asked_ms or 0, self._pauses.cap_ms)

    def _hold(self, breaker: Breaker | None) -> int:
        """The pause of a payment that its processor can't take now, in ms."""
        wait = _HELD_MS if breaker is None else breaker.reopens_in(self._clock())
        return int(max(wait, _HELD_MS) * random.uniform(1, 1.25))


def _log_change(processor: str, breaker: Breaker, was: BreakerState, *, was_refusing: bool) -> None:
    if breaker.refusing and not was_refusing:
        logger.error(
            "%(processor)s refuses most payments, so they are held or go elsewhere instead "
            "of becoming dead letters: %(reason)s",
            {"processor": processor, "reason": breaker.reason},
        )
    elif was_refusing and not breaker.refusing:
        logger.info(
            "%(processor)s takes payments again: they are no longer held", {"processor": processor}
        )
    elif was is BreakerState.CLOSED and breaker.state is BreakerState.OPEN:
        logger.warning(
            "%(processor)s keeps failing, so its circuit breaker opens: %(reason)s",
            {"processor": processor, "reason": breaker.reason},
        )
    elif was is not BreakerState.CLOSED and breaker.state is BreakerState.CLOSED:
        logger.info(
            "%(processor)s works again: its circuit breaker closes", {"processor": processor}
        )


def _verdict(outcome: Outcome | None) -> Verdict:
    """The verdict of a call on its processor; `outcome` is None if the call was never made."""
    match outcome:
        case Paid() | Declined() | Pending() | Refused(finding=Found() | Declined() | Pending()):
            return Verdict.GOOD
        case Refused(finding=Missing()):
            return Verdict.REFUSED
        case NotPaid(healthy=True) | NotSentInTime() | Refused(finding=None) | None:
            return Verdict.NEUTRAL
        case NotPaid() | Ended() | Unknown() | Refused():
            return Verdict.BAD

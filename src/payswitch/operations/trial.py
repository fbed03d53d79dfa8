"""Payments at a provider's sandbox, made and looked up through the processor client that workers
use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import uuid4

from payswitch.money import Total
from payswitch.processors.connector import Instruction
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
from payswitch.processors.processor import Processor

T = TypeVar("T")

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.5
_DECISION_S = 60.0
"""How long a pending payment may take to be decided."""
_BEYOND = 1.5
"""Payments are watched for so many times the longest delay."""


class RuleBrokenError(Exception):
    """The provider breaks the rule; the message says how."""


class UncheckableError(Exception):
    """The rule can't be checked; the message says why."""


class Trial:
    """One provider's sandbox. It keeps every payment that it makes, to count them at the end."""

    def __init__(self, processor: Processor, *, max_delay_ms: int) -> None:
        self.processor = processor
        self.max_delay_s = max_delay_ms / 1000
        self.made: list[Instruction] = []
        self.latency_s = 0.0
        """Of the first payment."""
        self._before: dict[str, Total] = {}
        self._last_instant = 0

    def amount(self, cents: int) -> str:
        """An amount in the deployment's currency."""
        return self.processor.connector.settings.currency.format_cents(cents)

    @property
    def watch_s(self) -> float:
        """How long it looks for what may come late."""
        return _BEYOND * self.max_delay_s

    async def new(self, cents: int) -> Instruction:
        """A payment with an id, and with an instant at which no other one was made here."""
        self._last_instant = max(time.time_ns() // 1_000_000, self._last_instant + 1)
        instruction = Instruction(str(uuid4()), cents, self._last_instant)
        if self.processor.tells_totals:
            self._before[instruction.correlation_id] = await self._total(instruction)
        self.made.append(instruction)
        return instruction

    async def pay(self, instruction: Instruction, processor: Processor | None = None) -> Outcome:
        """Send it once, perhaps with other credentials."""
        processor = processor or self.processor
        if (unprepared := await processor.prepare()) is not None:
            return NotPaid(unprepared)
        return await processor.pay(instruction, may_send=lambda: True)

    async def give_up(self, instruction: Instruction, after_s: float) -> Outcome | None:
        """Send it, and hang up `after_s` after its bytes were written. Its outcome if the answer
        came first."""

        def may_send() -> bool:
            asyncio.get_running_loop().call_later(after_s, call.cancel)
            return True

        await self.processor.prepare()
        call = asyncio.create_task(self.processor.pay(instruction, may_send))
        [outcome] = await asyncio.gather(call, return_exceptions=True)
        return None if isinstance(outcome, BaseException) else outcome

    async def resolve(self, instruction: Instruction) -> FindOutcome:
        """Send it, and ask, until it is clear what became of it. Raises `UncheckableError`."""

        async def settled() -> FindOutcome | None:
            outcome = await self.pay(instruction)
            if isinstance(outcome, Declined):
                return outcome
            if isinstance(outcome, Ended | Unknown) and outcome.retry_after_ms:
                await asyncio.sleep(min(outcome.retry_after_ms / 1000, self.watch_s))
            finding = await self.decided(instruction)
            if isinstance(finding, Found | Declined):
                return finding
            if isinstance(outcome, Paid):  # whether it can be found is another rule
                return Found(instruction.cents, instruction.requested_at, outcome.reference)
            reasons.append(f"{in_words(outcome)}, then {in_words(finding)}")
            return None

        reasons: list[str] = []
        found: FindOutcome | None = await self._poll(settled, self.watch_s)
        if found is None:
            raise UncheckableError(f"a payment came to nothing: {reasons[-1]}")
        return found

    async def paid(self, cents: int) -> tuple[Instruction, Found]:
        """A new payment that is paid. Raises `UncheckableError` if it can't be."""
        instruction = await self.new(cents)
        return instruction, await self.require_paid(instruction)

    async def require_paid(self, instruction: Instruction) -> Found:
        """Send it, and ask, until it is paid. Raises `UncheckableError` if it can't be."""
        found = await self.resolve(instruction)
        if not isinstance(found, Found):
            amount = self.amount(instruction.cents)
            raise UncheckableError(f"a payment of {amount} was {in_words(found)}")
        return found

    async def decided(self, instruction: Instruction) -> FindOutcome:
        """Ask; while it is pending, ask again for a minute."""

        async def no_longer_pending() -> FindOutcome | None:
            finding = await self.find(instruction)
            return None if isinstance(finding, Pending) else finding

        finding: FindOutcome | None = await self._poll(no_longer_pending, _DECISION_S)
        return Pending() if finding is None else finding

    async def find(self, instruction: Instruction) -> FindOutcome:
        """Ask once."""
        return await self.processor.find(instruction)

    async def seen(self, instruction: Instruction) -> FindOutcome:
        """Ask until the provider has the payment, or until it can't come any more."""

        async def there() -> FindOutcome | None:
            finding = await self.find(instruction)
            return finding if isinstance(finding, Found | Declined) else None

        finding: FindOutcome | None = await self._poll(there, self.watch_s)
        return await self.find(instruction) if finding is None else finding

    async def count(self, instruction: Instruction) -> Total | None:
        """How often the provider's totals hold a payment, and its cents; None if it tells none."""
        if not self.processor.tells_totals:
            return None
        return await self._total(instruction) - self._before[instruction.correlation_id]

    async def is_recorded(self, instruction: Instruction) -> bool:
        """Whether the provider has a payment now: by its totals, or else by the look-up."""
        count = await self.count(instruction)
        return isinstance(await self.find(instruction), Found) if count is None else count.count > 0

    async def require_once(
        self, instruction: Instruction, answers: Sequence[Outcome | FindOutcome]
    ) -> str:
        """How a payment that was answered as paid is seen to be there once: by the totals, or else
        by one reference in all answers. Raises `RuleBrokenError` if it is there more often."""
        if not self.processor.tells_totals:
            return await self._require_one_reference(instruction, answers)

        async def counted() -> Total | None:
            count = await self.count(instruction)
            return None if count is None or count.count == 0 else count

        count = await self._poll(counted, self.watch_s) or Total()
        if count.count != 1:
            self.made.remove(instruction)
            raise RuleBrokenError(f"the totals hold it {count.count} times")
        return "recorded once"

    async def _require_one_reference(
        self, instruction: Instruction, answers: Sequence[Outcome | FindOutcome]
    ) -> str:
        finding = await self.seen(instruction)
        if isinstance(finding, Unclear):
            raise RuleBrokenError(f"the look-up says: {finding.reason}")
        if not isinstance(finding, Found):
            raise UncheckableError(f"no totals, and the look-up says: {in_words(finding)}")
        paid = [each for each in (*answers, finding) if isinstance(each, Paid | Found)]
        references = sorted({each.reference for each in paid})
        if references[0] == "":
            raise UncheckableError("no totals to count it, and no reference to compare")
        if len(references) > 1:
            raise RuleBrokenError(f"it has several references: {', '.join(references)}")
        return "one reference in all answers (no totals to count it)"

    async def _total(self, instruction: Instruction) -> Total:
        return await self.processor.total(instruction.requested_at, instruction.requested_at)

    async def _poll(self, ask: Callable[[], Awaitable[T | None]], limit_s: float) -> T | None:
        """The first answer that isn't None; None if there is none in time."""
        deadline, pause_s = time.monotonic() + limit_s, _FIRST_PAUSE_S
        while (answer := await ask()) is None and time.monotonic() < deadline:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return answer


def in_words(outcome: Outcome | FindOutcome) -> str:
    """An outcome for a table."""
    match outcome:
        case Paid(reference=reference) | Found(reference=reference):
            name = type(outcome).__name__.lower()
            return f"{name}, reference {reference}" if reference else name
        case Declined(code=code):
            return f"declined ({code})"
        case Pending():
            return "pending"
        case Refused(status=status):
            return f"refused with status {status}"
        case Ended(status=status):
            return f"ended with status {status}"
        case Missing():
            return "missing"
        case NotPaid(reason=reason):
            return f"not sent ({reason})"
        case Unknown(reason=reason):
            return f"unknown ({reason})"
        case Unclear(reason=reason):
            return f"unclear ({reason})"
        case NotSentInTime():
            return "not sent"

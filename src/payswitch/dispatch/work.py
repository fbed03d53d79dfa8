"""A payment in hand: its claim, the findings about its tries, the words for their outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field

from payswitch.payments.claims import Claim, Routed
from payswitch.payments.history import Fate
from payswitch.payments.tries import Findings, Tried
from payswitch.processors.connector import Instruction
from payswitch.processors.outcomes import (
    Declined,
    Ended,
    NotPaid,
    NotSentInTime,
    Outcome,
    Paid,
    Pending,
    Refused,
    Unknown,
)
from payswitch.telemetry.tracing import PaymentTrace

UNSENT = "lease ran out unsent"
REFUSED = "refused with status"

_FATES: dict[type[Outcome], Fate] = {
    NotPaid: Fate.UNSENT,
    NotSentInTime: Fate.UNSENT,
    Declined: Fate.DECLINED,
    Pending: Fate.PENDING,
}
"""What became of a try by its outcome; of others the findings tell it."""


@dataclass(slots=True)
class Work:
    """A claimed payment, the findings about its tries, and its trace."""

    claim: Claim
    trace: PaymentTrace
    findings: Findings = field(default_factory=Findings)

    @property
    def is_pending(self) -> bool:
        """Whether the processor has the payment and will decide."""
        return any(each.pending for each in self.claim.open_tries) or bool(self.findings.pending)

    def still_open(self) -> set[str]:
        """The ids of the claim's tries that are still open."""
        if not self.claim.open_tries:
            return set()
        return {open_try.id for open_try in self.claim.open_tries} - self.findings.closed

    def instruction(self, requested_at: int | None = None) -> Instruction:
        """The payment for its connector, with the instant of its pin or of this try."""
        claim = self.claim
        at = requested_at or claim.requested_at or 0
        return Instruction(claim.correlation_id, claim.cents, at, claim.metadata)

    def saw(self, routed: Routed, outcome: Outcome) -> None:
        """Keep the outcome of a try that did not pay for the payment's history."""
        if not isinstance(outcome, Paid):
            words = words_of(outcome) or UNSENT
            fate = _FATES.get(type(outcome))
            self.findings.tried = Tried(routed, words, fate)

    def close_ended(self, routed: Routed) -> None:
        """The processor answered and doesn't have the payment: neither this try nor an earlier one
        that ended recorded it."""
        self.findings.closed.add(routed.id)
        self.findings.closed.update(each.id for each in self.claim.open_tries if each.ended)

    def close_decided(self, *, nothing_comes_later: bool = False) -> None:
        """The processor declined the payment: no try that it has answered will be recorded."""
        self.findings.closed.update(
            each.id
            for each in self.claim.open_tries
            if each.ended or each.pending or nothing_comes_later
        )


def words_of(outcome: Outcome | None) -> str:
    """The reason why a call did not pay; empty if it did, or was never made."""
    if isinstance(outcome, Paid):
        return ""
    match outcome:
        case NotPaid() | Unknown():
            return outcome.reason
        case Ended(retry_after_ms=asked_ms) if asked_ms:
            return f"status {outcome.status}, Retry-After {asked_ms // 1000} s"
        case Ended():
            return f"status {outcome.status}"
        case Refused():
            return f"{REFUSED} {outcome.status}"
        case Declined():
            return f"declined: {outcome.code}"
        case Pending():
            return "pending"
    return ""

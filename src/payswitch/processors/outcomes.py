"""The meaning of every possible answer of a processor.

The meanings are the design's table of outcomes (docs/design.md). An outcome answers one question:
has this try been recorded, and can it still be?
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from payswitch.http.transport import NotSent, bytes_left
from payswitch.reasons import reason


@dataclass(frozen=True, slots=True)
class Paid:
    """The payment is recorded, with the `requestedAt` that was sent."""

    reference: str = ""
    """The provider's own id of it."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The provider has decided not to take this payment, finally: nothing is recorded, and no other
    processor is tried."""

    code: str
    """The provider's code, such as `insufficient_funds`."""


@dataclass(frozen=True, slots=True)
class Pending:
    """The provider has the payment and will decide: it is asked, and never sent again."""

    reference: str = ""
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The processor knows the id or rejects the payment; this try recorded nothing."""

    status: int
    finding: FindOutcome | None = None
    """Its answer to the question which of the two; None before that."""


@dataclass(frozen=True, slots=True)
class NotPaid:
    """The try is certainly not recorded, now or later: no byte of it was sent."""

    reason: str
    healthy: bool = True
    """False if the processor is at fault."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The try is over, recorded or not. The payment may go to the same processor again, which would
    know the id; before it goes elsewhere, its processor must be asked."""

    status: int
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The try may be recorded, now or later."""

    reason: str
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class NotSentInTime:
    """Nothing was written, because the lease had run out."""


PayOutcome = Paid | Declined | Pending | Refused | Ended | Unknown
"""The meaning of a complete response."""

Outcome = PayOutcome | NotPaid | NotSentInTime


@dataclass(frozen=True, slots=True)
class Found:
    """The processor has the payment."""

    cents: int
    requested_at: int
    """ms since the epoch, as the processor has it; what was sent, if it doesn't keep that."""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """The processor does not have the payment now."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """The answer tells nothing."""

    reason: str
    retry_after_ms: int | None = None


FindOutcome = Found | Declined | Pending | Missing | Unclear


@dataclass(frozen=True, slots=True)
class HealthReport:
    """A processor's report on its health."""

    failing: bool
    min_response_ms: int


def classify_error(error: httpx.RequestError) -> Outcome:
    """The meaning of a payment without a complete answer."""
    if isinstance(error, NotSent):
        return NotSentInTime()
    if not isinstance(error, httpx.TransportError) or bytes_left(error):
        return Unknown(reason(error))
    return NotPaid(reason(error), healthy=isinstance(error, httpx.PoolTimeout))

"""The worker's own view of the horizon."""

from __future__ import annotations

from collections import OrderedDict

from payswitch.payments.claims import Claim, LifeOfTry


class QuietWatch:
    """The worker's own view of the horizon, on its own clock.

    Whoever sent the try that a claim shows did so under a lease that was taken before this worker
    first saw that try. So when the payment has had no newer try for its quiet time since then,
    nothing sent earlier can still be recorded, whatever Redis' clock did meanwhile.
    """

    def __init__(self, *, remembered: int = 100_000) -> None:
        self._seen: OrderedDict[str, tuple[LifeOfTry, float]] = OrderedDict()
        self._remembered = remembered

    def passed(self, claim: Claim, now_ms: float) -> bool:
        """Whether the quiet time has passed here since the claim's last try was first seen."""
        last_try = claim.life_of_try(claim.tries)
        seen, since = self._seen.get(claim.correlation_id, (None, now_ms))
        if seen != last_try:
            self.saw(claim.correlation_id, last_try, now_ms)
            return False
        return now_ms - since >= claim.quiet_ms

    def may_begin(self, claim: Claim) -> bool:
        """Whether a look at the claim's last try would be the first one here, and be remembered
        without another's being forgotten."""
        seen, _ = self._seen.get(claim.correlation_id, (None, 0.0))
        return seen != claim.life_of_try(claim.tries) and len(self._seen) < self._remembered

    def saw(self, correlation_id: str, last_try: LifeOfTry, now_ms: float) -> None:
        """Remember that the payment's last try was this one at this instant."""
        self._seen[correlation_id] = (last_try, now_ms)
        self._seen.move_to_end(correlation_id)
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)

    def forget(self, correlation_id: str) -> None:
        """The payment is done with, or has a newer try."""
        self._seen.pop(correlation_id, None)

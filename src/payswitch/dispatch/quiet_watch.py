"""The worker's own view of the horizon, on its own clock."""

from __future__ import annotations

from collections import OrderedDict

from payswitch.payments.claims import Claim


class QuietWatch:
    """Remembers when this worker first saw each payment's last open try, by its id.

    That try was sent under a lease that began before this worker saw it. So after the payment's
    quiet time without a newer open try, no call can still be recorded, even if Redis' clock jumped.
    """

    def __init__(self, *, remembered: int = 100_000) -> None:
        self._seen: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._remembered = remembered

    def passed(self, claim: Claim, now_ms: float) -> bool:
        """Whether the quiet time has passed since this worker first saw the last try that the
        claim has open."""
        last_try = claim.open_tries[-1].id
        seen, since = self._seen.get(claim.correlation_id, (None, now_ms))
        if seen != last_try:
            self.saw(claim.correlation_id, last_try, now_ms)
            return False
        return now_ms - since >= claim.quiet_ms

    def may_begin(self, claim: Claim) -> bool:
        """Whether the claim's last open try is new here, and there is room to remember it."""
        seen, _ = self._seen.get(claim.correlation_id, (None, 0.0))
        return seen != claim.open_tries[-1].id and len(self._seen) < self._remembered

    def saw(self, correlation_id: str, last_try: str, now_ms: float) -> None:
        """Remember that at this instant the payment's last open try was the one of this id."""
        self._seen[correlation_id] = (last_try, now_ms)
        self._seen.move_to_end(correlation_id)
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)

    def forget(self, correlation_id: str) -> None:
        """Forget a payment that is settled or dead."""
        self._seen.pop(correlation_id, None)

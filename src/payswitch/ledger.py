"""The ledger: each settled payment recorded once, and the summary of any window."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from payswitch import scripts
from payswitch.group_commit import GroupCommit
from payswitch.payment import format_cents
from payswitch.tries import Claim


class Settlement(enum.Enum):
    """What became of a proof of payment."""

    SETTLED = "settled"
    KNOWN = "known"
    """It was settled before."""
    GONE = "gone"
    """The payment was purged."""
    INCIDENT = "incident"
    """The proof matches no pin; it is kept in `payments:incidents`."""


@dataclass(frozen=True, slots=True)
class Total:
    """What one processor was paid in a window."""

    count: int = 0
    cents: int = 0


Settling = tuple[Claim, str, int]
"""A claim, the processor that has the payment, and its `requestedAt` (ms) there."""


class Ledger:
    """Settles payments, many per round trip, and sums them by window. `on_settled` gets each batch
    that Redis has answered."""

    def __init__(
        self,
        redis: Redis,
        *,
        processors: Sequence[str],
        retention_ms: int,
        on_settled: Callable[[Sequence[Settling], Sequence[Settlement]], None] | None = None,
    ) -> None:
        self._on_settled = on_settled
        self._processors = list(processors)
        self._retention_ms = retention_ms
        self._settle = scripts.load(redis, "settle")
        self._summary = scripts.load(redis, "summary")
        self._settlements: GroupCommit[Settling, Settlement] = GroupCommit(self._flush)

    async def settle(self, claim: Claim, processor: str, requested_at: int) -> Settlement:
        """Record that `processor` has the payment with this `requestedAt` (ms); it may be said
        again and by anyone who has the proof. Raises `RedisError`."""
        return await self._settlements.submit((claim, processor, requested_at))

    async def summary(self, first_ms: int | None, last_ms: int | None) -> dict[str, Total]:
        """Totals by processor of the payments whose `requestedAt` lies in the window, both bounds
        inclusive; None is no bound. Raises `RedisError`."""
        bounds = ["" if bound is None else max(0, bound) for bound in (first_ms, last_ms)]
        if last_ms is not None and last_ms < 0:
            return {name: Total() for name in self._processors}
        answer = await self._summary(args=[*bounds, *self._processors])
        parts = zip(answer[0::3], answer[1::3], answer[2::3], strict=True)
        return {
            name: Total(int(count), int(high) * 10**9 + int(low))
            for name, (count, high, low) in zip(self._processors, parts, strict=True)
        }

    async def _flush(self, items: list[Settling]) -> list[Settlement]:
        args: list[str | int] = [self._retention_ms]
        for claim, processor, requested_at in items:
            args += (claim.correlation_id, claim.generation, processor, requested_at)
        settlements = [Settlement(verdict.decode()) for verdict in await self._settle(args=args)]
        if self._on_settled is not None:
            self._on_settled(items, settlements)
        return settlements


def summary_json(totals: dict[str, Total]) -> bytes:
    """The summary as the contract has it, with exact amounts: 19.90, never 19.900000000000002."""
    return orjson.dumps(
        {
            name: {
                "totalRequests": total.count,
                "totalAmount": orjson.Fragment(format_cents(total.cents)),
            }
            for name, total in totals.items()
        }
    )

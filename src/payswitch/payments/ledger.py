"""The ledger: each settled payment recorded once, and the summary of any window."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from payswitch.money import Currency, Total
from payswitch.payments.claims import Claim
from payswitch.store import scripts
from payswitch.store.errors import in_words
from payswitch.store.group_commit import CommitByNode
from payswitch.store.partitions import Argument, Partition

logger = logging.getLogger(__name__)


class Settlement(enum.Enum):
    """The verdict on a proof of payment."""

    SETTLED = "settled"
    KNOWN = "known"
    """It was settled before."""
    GONE = "gone"
    """The payment was purged."""
    INCIDENT = "incident"
    """The proof matches no pin; it is kept in `payments:incidents`."""
    UNADDABLE = "unaddable"
    """A sum of the ledger can't take it; nothing of the payment has changed."""


_SETTLEMENTS = {each.value.encode(): each for each in Settlement}
_SETTLEMENTS[b"late"] = Settlement.SETTLED  # after it had ended otherwise


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals by processor, and their window (ms, both bounds inclusive; None is no bound)."""

    totals: dict[str, Total]
    first: int | None
    last: int | None


COARSE_AFTER_MS = 400 * 24 * 3600 * 1000
"""From this age on the ledger keeps entries of 1,000 s: the days of the last year stay exact."""

_Bound = int | str
"""ms, or '' for none."""

_BROUGHT_AGAIN = (b"settled", b"gone", b"unaddable")

Settling = tuple[Claim, str, int, str, str]
"""A claim, the processor that has the payment, its `requestedAt` (ms) there, the outcome of the
last try (`Findings.last_try`), and the processor's own reference."""


class Ledger:
    """Settles payments, many per round trip, and sums them by window. `on_settled` gets each batch
    with Redis' answers."""

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
        self._is_refused = False
        self._settle = scripts.load(redis, "settle")
        self._summary = scripts.load(redis, "summary")
        self._fold = scripts.load(redis, "fold")
        self._partitions = self._settle.partitions
        self._settlements: CommitByNode[Settling, Settlement] = CommitByNode(self._flush)

    async def settle(
        self,
        claim: Claim,
        processor: str,
        requested_at: int,
        last_try: str = "",
        reference: str = "",
    ) -> Settlement:
        """Record that `processor` has the payment with this `requestedAt` (ms), under its own id
        `reference`. Any worker with the proof may call it, and repeat it. `last_try` is
        `Findings.last_try`, for the history. Raises `RedisError`."""
        settling = claim, processor, requested_at, last_try, reference
        return await self._settlements.submit(self._partitions[claim.partition], settling)

    async def window(self, first_ms: int | None, last_ms: int | None) -> Summary:
        """Totals by processor of the payments whose `requestedAt` lies in the window, both bounds
        inclusive; None is no bound. A bound inside a folded entry moves outwards to that entry's
        start or end. Raises `RedisError`."""
        if last_ms is not None and last_ms < 0:
            return Summary({name: Total() for name in self._processors}, first_ms, last_ms)
        first, last, sums = await self._sum(
            *("" if bound is None else max(0, bound) for bound in (first_ms, last_ms))
        )
        return Summary(
            totals=dict(zip(self._processors, sums, strict=True)),
            first=None if first_ms is None else min(first_ms, int(first)),
            last=None if last_ms is None else int(last),
        )

    async def _sum(self, first: _Bound, last: _Bound) -> tuple[_Bound, _Bound, list[Total]]:
        """The window that was summed, and its totals: never those of a part of the partitions. If
        one partition's entries are coarser there, the others are asked again for its window."""
        args: list[Argument] = [first, last, *self._processors]
        calls = [(each, args) for each in self._partitions]
        answers = scripts.require_all(await self._summary.call_each(calls))
        windows = [(answer[0].decode(), answer[1].decode()) for answer in answers]
        widest = _widest(windows)
        if any(window != tuple(map(str, widest)) for window in windows):
            return await self._sum(*widest)
        sums = [Total() for _ in self._processors]
        for _, _, *answer in answers:
            parts = zip(answer[0::3], answer[1::3], answer[2::3], strict=True)
            sums = [
                total + Total(int(count), int(high) * 10**9 + int(low))
                for total, (count, high, low) in zip(sums, parts, strict=True)
            ]
        return *widest, sums

    async def fold(self) -> bool:
        """Fold one span older than the retention into coarser sums; no cent is lost. True if there
        may be more to fold. It takes Redis less than a millisecond. Raises `RedisError`."""
        ages = (self._retention_ms, max(self._retention_ms, COARSE_AFTER_MS))
        args: list[Argument] = [*ages, *self._processors]
        calls = [(each, args) for each in self._partitions]
        answers = await self._fold.call_each(calls)
        found = any(each for each in answers if not isinstance(each, Exception))
        return found or any(scripts.require_all(answers))

    async def _flush(
        self, items: list[tuple[Partition, Settling]]
    ) -> Sequence[Settlement | Exception]:
        settlements = await scripts.call_grouped(
            self._settle, items, self._arguments, self._read, confirm=_must_survive
        )
        refusal = next((each for each in settlements if isinstance(each, ResponseError)), None)
        if refusal is not None and not self._is_refused:
            logger.error(
                "redis refuses to settle; it is tried again: %(error)s",
                {"error": in_words(refusal)},
            )
        self._is_refused = refusal is not None
        return settlements

    def _arguments(self, partition: Partition, items: list[Settling]) -> list[str | int]:
        args: list[str | int] = [self._retention_ms]
        tag = partition.tag
        for claim, processor, requested_at, last_try, reference in items:
            args += (tag + claim.correlation_id, claim.generation, processor, requested_at)
            args += (last_try, reference)
        return args

    def _read(self, items: list[Settling], verdicts: Any) -> list[Settlement]:
        settlements = [_SETTLEMENTS[verdict] for verdict in verdicts]
        if self._on_settled is not None:
            self._on_settled(items, settlements)
        return settlements


def _must_survive(verdicts: Any) -> bool:
    """Whether a failover must not undo these settlements, as nobody would bring them again: the
    payments are in no queue."""
    return any(verdict not in _BROUGHT_AGAIN for verdict in verdicts)


def _widest(windows: Sequence[tuple[str, str]]) -> tuple[_Bound, _Bound]:
    firsts, lasts = zip(*windows, strict=True)
    first = min(map(int, firsts)) if all(firsts) else ""
    return first, max(map(int, lasts)) if all(lasts) else ""


def summary_json(totals: dict[str, Total], currency: Currency) -> bytes:
    """The contract's JSON summary, with exact amounts: 19.90, never 19.900000000000002."""
    return orjson.dumps(
        {
            name: {
                "totalRequests": total.count,
                "totalAmount": orjson.Fragment(currency.format_cents(total.cents)),
            }
            for name, total in totals.items()
        }
    )

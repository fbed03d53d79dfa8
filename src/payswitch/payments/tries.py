"""Which processor a payment is pinned to, and its open tries.

A try is opened in Redis before anything is sent, and closed only by a certain answer to that very
try. While one is open the payment stays with its processor. What may be done with open tries once
the **horizon** has passed rests on two clocks: Redis' (the record's `horizon`) and the worker's own
(`QuietWatch`), so that a step of either alone can't unpin a payment too early. Both are counted
with the longest delay of a processor that the record or the worker knows, whichever is larger.
"""

from __future__ import annotations

import enum
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from redis.asyncio import Redis

from payswitch.store import scripts
from payswitch.store.group_commit import GroupCommit

if TYPE_CHECKING:
    from payswitch.telemetry.traces import PaymentTrace

_TRY = re.compile(r"(\d+)(e?)")


_WOKEN_BY_ONE = 4
"""So many are woken by each that gets on: where most can, all soon do, and where few can, few are
claimed in vain."""

WAITING_KEY = "payments:waiting:{}"
"""Of a processor: who waits for it."""

LifeOfTry = tuple[str, int, int]
"""Generation, instant of acceptance and number of a try."""


@dataclass(frozen=True, slots=True)
class OpenTry:
    """A try whose outcome is not known: `ended` when the processor has answered it, so that it
    can't be recorded later than that answer."""

    number: int
    ended: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A payment in the hand of one worker: what its record held when the lease was taken."""

    correlation_id: str
    cents: int
    token: int
    generation: str
    expires_at: float
    """The lease's end, boot time in ms, counted from before the claim was written."""
    processor: str | None = None
    requested_at: int | None = None
    open_tries: tuple[OpenTry, ...] = ()
    tries: int = 0
    """The number of the last try ever opened."""
    horizon_passed: bool = False
    """By Redis' clock, nothing that was ever sent can still be recorded."""
    quiet_ms: int = 0
    """How long after the last lease a payment that was sent under it may still be recorded."""
    job_try: int = 1
    overdue: bool = False
    """The deadline for paying it has passed."""
    accepted_at: int = 0
    """ms by Redis' clock."""
    claimed_at: int = 0
    """ms by Redis' clock."""
    trace: PaymentTrace | None = field(default=None, compare=False, repr=False)
    """Where its steps are written down; None without traces."""

    def life_of_try(self, number: int) -> LifeOfTry:
        """What no other try has in common with this one, though an id may come again after a purge
        or after its record has expired, and its tries are counted anew then."""
        return self.generation, self.accepted_at, number


@dataclass(slots=True)
class Findings:
    """What was learned of a claim's tries: numbers to close, numbers that have ended."""

    closed: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)

    def arguments(self) -> tuple[str, str]:
        """Both as the scripts take them."""
        if not self.closed and not self.ended:
            return "", ""
        return ",".join(map(str, sorted(self.closed))), ",".join(map(str, sorted(self.ended)))


@dataclass(frozen=True, slots=True)
class Routed:
    """An open try that may now be sent: to whom, with which `requestedAt`."""

    processor: str
    requested_at: int
    number: int


_Release = tuple[Claim, int, Findings, str, str]
"""What is given back, due in how many ms, what was found, why, and for whom it waits."""


class Burial(enum.Enum):
    """What became of an attempt to make a payment a dead letter."""

    BURIED = "buried"
    STILL_OPEN = "open"
    LOST = "lost"
    GONE = "gone"


def parse_open_tries(text: str) -> tuple[OpenTry, ...]:
    """Read the record's `open` field, such as `3 4e`."""
    return tuple(OpenTry(int(number), mark == "e") for number, mark in _TRY.findall(text))


class Tries:
    """The record's tries in Redis; every change is fenced as the script's head says."""

    def __init__(self, redis: Redis, *, max_delay_ms: int, lease_ms: int) -> None:
        self._redis = redis
        self._route = scripts.load(redis, "route")
        self._release = scripts.load(redis, "release")
        self._bury = scripts.load(redis, "bury")
        self._wake = scripts.load(redis, "wake")
        self._max_delay_ms = max_delay_ms
        self._lease_ms = lease_ms
        self._routes: GroupCommit[tuple[Claim, str, Findings], Routed | None] = GroupCommit(
            self._flush_routes
        )
        self._releases: GroupCommit[_Release, bool] = GroupCommit(self._flush_releases)
        self._wakes: GroupCommit[str, None] = GroupCommit(self._flush_wakes)

    async def open(self, claim: Claim, processor: str, findings: Findings) -> Routed | None:
        """Open a try before it is sent: to `processor` if no other try is open, else to the pinned
        one. None if the lease is lost. Raises `RedisError`."""
        return await self._routes.submit((claim, processor, findings))

    async def release(
        self, claim: Claim, *, delay_ms: int, findings: Findings, error: str, waits_for: str = ""
    ) -> bool:
        """Note the findings and give the payment back, due in `delay_ms`; where it waits for a
        processor, behind the others that do. False if the lease is another's by now (the findings
        count all the same). Raises `RedisError`."""
        return await self._releases.submit((claim, delay_ms, findings, error, waits_for))

    async def wake(self, processor: str) -> None:
        """A payment that waited for this processor has got on, so the next ones are due now.
        Raises `RedisError`."""
        await self._wakes.submit(processor)

    async def bury(
        self, claim: Claim, reason: str, findings: Findings, *, horizon_passed: bool
    ) -> Burial:
        """Make the payment a dead letter that keeps pin and tries. `horizon_passed` is what the
        worker's own clock says; Redis' is asked by the script. Raises `RedisError`."""
        [verdict] = await self._bury(
            args=[
                self._max_delay_ms,
                claim.correlation_id,
                claim.token,
                claim.generation,
                reason,
                *findings.arguments(),
                int(horizon_passed),
            ]
        )
        return Burial(verdict.decode())

    async def last_error(self, claim: Claim) -> str:
        """Why the payment was given back at last; empty where it never was. Raises `RedisError`."""
        record = f"payment:{claim.correlation_id}"
        fields = self._redis.hmget(record, ["last_error"])
        [error] = await cast(Awaitable[list[bytes | None]], fields)
        return "" if error is None else error.decode(errors="replace")

    async def _flush_routes(
        self, items: list[tuple[Claim, str, Findings]]
    ) -> Sequence[Routed | None]:
        args: list[str | int] = [self._max_delay_ms, self._lease_ms]
        for claim, processor, findings in items:
            args += (claim.correlation_id, claim.token, claim.generation, processor)
            args += findings.arguments()
        answers = await self._route(args=args)
        return [
            None if answer is None else Routed(answer[0].decode(), int(answer[1]), int(answer[2]))
            for answer in answers
        ]

    async def _flush_releases(self, items: list[_Release]) -> list[bool]:
        args: list[str | int] = []
        for claim, delay_ms, findings, error, waits_for in items:
            args += (claim.correlation_id, claim.token, claim.generation, delay_ms)
            args += (*findings.arguments(), error, waits_for)
        return [verdict == b"released" for verdict in await self._release(args=args)]

    async def _flush_wakes(self, processors: list[str]) -> list[None]:
        args: list[str | int] = []
        for processor, count in Counter(processors).items():
            args += (processor, count * _WOKEN_BY_ONE)
        await self._wake(args=args)
        return [None] * len(processors)


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

"""Which processor a payment is pinned to, and its open tries.

A try is opened in Redis before anything is sent, and closed only by a certain answer to that very
try. While one is open the payment stays with its processor. What may be done with open tries once
the **horizon** has passed rests on two clocks: Redis' (the record's `horizon`) and the worker's own
(`QuietWatch`), so that a step of either alone can't unpin a payment too early. Both are counted
with the longest delay of a processor that the record or the worker knows, whichever is larger.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import cast

from redis.asyncio import Redis

from payswitch.payments.claims import Claim
from payswitch.store import keys, scripts
from payswitch.store.group_commit import GroupCommit

_WOKEN_BY_ONE = 4
"""So many are woken by each that gets on: where most can, all soon do, and where few can, few are
claimed in vain."""


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
    """What making a payment a dead letter has done."""

    BURIED = "buried"
    STILL_OPEN = "open"
    LOST = "lost"
    GONE = "gone"


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
        fields = self._redis.hmget(keys.record(claim.correlation_id), ["last_error"])
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

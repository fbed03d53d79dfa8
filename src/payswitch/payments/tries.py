"""A payment's pin and its open tries.

A try is opened in Redis before anything is sent, and only a certain answer to that try closes it.
While a try is open, the payment stays with its processor: it is **pinned**. Once the **horizon**
has passed, no open try can still be recorded. Two clocks must agree on that, Redis' (the record's
`horizon`) and the worker's own (`QuietWatch`), so that a jump of one can't unpin a payment early.
Both use the longer of the two delays of a processor that the record and the worker know.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson
from redis.asyncio import Redis

from payswitch.payments.claims import Claim
from payswitch.payments.history import Fate
from payswitch.store import keys, scripts
from payswitch.store.group_commit import GroupCommit

_WOKEN_BY_ONE = 4
"""Each payment that makes progress wakes so many: if most can be paid, soon all are awake; if few
can, few are claimed in vain."""
_LONGEST_OUTCOME = 200


@dataclass(frozen=True, slots=True)
class Tried:
    """A try that did not pay, for the payment's history."""

    number: int
    processor: str
    outcome: str
    """In words."""
    fate: Fate | None = None
    """What became of it, if that is more than the findings say."""


@dataclass(slots=True)
class Findings:
    """A claim's tries by number: those to close, those that ended, and those that the processor has
    and will decide. `tried` is the one just made, unless it paid."""

    closed: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    tried: Tried | None = None

    def arguments(self) -> tuple[str, str]:
        """The closed tries and the marks of others as arguments of a script."""
        if not (self.closed or self.ended or self.pending):
            return "", ""
        marks = {**dict.fromkeys(self.ended, "e"), **dict.fromkeys(self.pending, "p")}
        marked = ",".join(f"{number}{marks[number]}" for number in sorted(marks))
        return ",".join(map(str, sorted(self.closed))), marked

    def last_try(self, *, declined: bool = False) -> str:
        """The try just made as an argument of a script; empty if there is none, or it paid. If
        `declined`, the provider's decision has closed it."""
        if self.tried is None:
            return ""
        number, fate = self.tried.number, Fate.OPEN
        if self.tried.fate is not None:
            fate = self.tried.fate
        elif number in self.closed:
            fate = Fate.DECLINED if declined else Fate.MISSING
        elif number in self.ended:
            fate = Fate.ENDED
        outcome = self.tried.outcome[:_LONGEST_OUTCOME]
        return orjson.dumps([number, self.tried.processor, outcome, fate.value]).decode()


@dataclass(frozen=True, slots=True)
class Routed:
    """An open try, ready to be sent; `requested_at` in ms."""

    processor: str
    requested_at: int
    number: int


_Release = tuple[Claim, int, Findings, str, str, str]
"""Claim, delay in ms, findings, error, the processor that it waits for, and both that `hold`
names."""


class Burial(enum.Enum):
    """The verdict on a payment that was to become a dead letter or declined."""

    BURIED = "buried"
    STILL_OPEN = "open"
    LOST = "lost"
    GONE = "gone"


class Tries:
    """Changes the tries in payments' records. Each script fences its changes by lease and
    generation, as its head says."""

    def __init__(
        self, redis: Redis, *, max_delay_ms: int, lease_ms: int, retention_ms: int
    ) -> None:
        self._redis = redis
        self._route = scripts.load(redis, "route")
        self._release = scripts.load(redis, "release")
        self._bury = scripts.load(redis, "bury")
        self._wake = scripts.load(redis, "wake")
        self._max_delay_ms = max_delay_ms
        self._lease_ms = lease_ms
        self._retention_ms = retention_ms
        self._routes: GroupCommit[tuple[Claim, str, Findings], Routed | None] = GroupCommit(
            self._flush_routes
        )
        self._releases: GroupCommit[_Release, bool] = GroupCommit(self._flush_releases)
        self._wakes: GroupCommit[str, None] = GroupCommit(self._flush_wakes)

    async def open(self, claim: Claim, processor: str, findings: Findings) -> Routed | None:
        """Open a try, before it is sent: at `processor` if no other try is open, else at the pinned
        one. None if the lease is lost, or the payment pending or declined. Raises `RedisError`."""
        return await self._routes.submit((claim, processor, findings))

    async def release(
        self, claim: Claim, *, delay_ms: int, findings: Findings, error: str, waits_for: str = ""
    ) -> bool:
        """Record the findings and give the payment back, due in `delay_ms`. If it waits for a
        processor, it queues behind the others that do. False if another worker has the lease (the
        findings are recorded even then). Raises `RedisError`."""
        return await self._releases.submit((claim, delay_ms, findings, error, waits_for, ""))

    async def hold(
        self, claim: Claim, *, delay_ms: int, findings: Findings, processor: str, instead: str
    ) -> bool:
        """Give back a payment that waits up to `delay_ms` for `processor` to work, although
        `instead` would take it now. False if another worker has the lease. Raises `RedisError`."""
        held = f"{processor} {instead}"
        return await self._releases.submit((claim, delay_ms, findings, "", "", held))

    async def wake(self, processor: str) -> None:
        """Make the next payments that wait for this processor due now. Raises `RedisError`."""
        await self._wakes.submit(processor)

    async def bury(
        self,
        claim: Claim,
        reason: str,
        findings: Findings,
        *,
        horizon_passed: bool,
        declined: bool = False,
    ) -> Burial:
        """Make the payment a dead letter that keeps pin and tries, or declined with its provider's
        code as the reason. `horizon_passed` is by the worker's own clock; the script checks Redis'
        clock. A decline is kept even if the lease is lost. Raises `RedisError`."""
        [verdict] = await self._bury(
            args=[
                self._max_delay_ms,
                self._retention_ms,
                claim.correlation_id,
                claim.token,
                claim.generation,
                "declined" if declined else "dead",
                reason,
                *findings.arguments(),
                int(horizon_passed),
                findings.last_try(declined=declined),
            ]
        )
        return Burial(verdict.decode())

    async def last_error(self, claim: Claim) -> str:
        """The error with which the payment was last given back; empty if none. Raises
        `RedisError`."""
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
        for claim, delay_ms, findings, error, waits_for, held in items:
            args += (claim.correlation_id, claim.token, claim.generation, delay_ms)
            args += (*findings.arguments(), error, waits_for, findings.last_try(), held)
        return [verdict == b"released" for verdict in await self._release(args=args)]

    async def _flush_wakes(self, processors: list[str]) -> list[None]:
        args: list[str | int] = []
        for processor, count in Counter(processors).items():
            args += (processor, count * _WOKEN_BY_ONE)
        await self._wake(args=args)
        return [None] * len(processors)

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
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
from redis.asyncio import Redis

from payswitch.payments.claims import Claim, Routed
from payswitch.payments.history import Fate
from payswitch.payments.ids import random_id
from payswitch.store import scripts
from payswitch.store.errors import UnconfirmedError
from payswitch.store.group_commit import CommitByNode
from payswitch.store.partitions import Partition

_WOKEN_BY_ONE = 4
"""Each payment that makes progress wakes so many: if most can be paid, soon all are awake; if few
can, few are claimed in vain."""
_LONGEST_OUTCOME = 200


@dataclass(frozen=True, slots=True)
class Tried:
    """A try that did not pay, for the payment's history."""

    routed: Routed
    outcome: str
    """In words."""
    fate: Fate | None = None
    """What became of it, if that is more than the findings say."""


@dataclass(slots=True)
class Findings:
    """A claim's tries by id: those to close, those that ended, and those that the processor has
    and will decide. `tried` is the one just made, unless it paid."""

    closed: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    tried: Tried | None = None

    def arguments(self) -> tuple[str, str]:
        """The closed tries and the marks of others as arguments of a script."""
        if not (self.closed or self.ended or self.pending):
            return "", ""
        marks = {**dict.fromkeys(self.ended, "e"), **dict.fromkeys(self.pending, "p")}
        marked = ",".join(name + mark for name, mark in sorted(marks.items()))
        return ",".join(sorted(self.closed)), marked

    def last_try(self, *, declined: bool = False) -> str:
        """The try just made as an argument of a script; empty if there is none, or it paid. If
        `declined`, the provider's decision has closed it."""
        if self.tried is None:
            return ""
        routed, fate = self.tried.routed, Fate.OPEN
        if self.tried.fate is not None:
            fate = self.tried.fate
        elif routed.id in self.closed:
            fate = Fate.DECLINED if declined else Fate.MISSING
        elif routed.id in self.ended:
            fate = Fate.ENDED
        outcome = self.tried.outcome[:_LONGEST_OUTCOME]
        entry = [routed.id, routed.number, routed.processor, outcome, fate.value]
        return orjson.dumps(entry).decode()


_Route = tuple[Claim, str, Findings, str]
"""Claim, processor, findings, and the new try's id."""
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
        self._route = scripts.load(redis, "route")
        self._release = scripts.load(redis, "release")
        self._bury = scripts.load(redis, "bury")
        self._wake = scripts.load(redis, "wake")
        self._partitions = self._route.partitions
        self._max_delay_ms = max_delay_ms
        self._lease_ms = lease_ms
        self._retention_ms = retention_ms
        self._routes: CommitByNode[_Route, Routed | None] = CommitByNode(self._flush_routes)
        self._releases: CommitByNode[_Release, bool] = CommitByNode(self._flush_releases)
        self._wakes: CommitByNode[str, None] = CommitByNode(self._flush_wakes)

    async def open(self, claim: Claim, processor: str, findings: Findings) -> Routed | None:
        """Open a try, before it is sent: at `processor` if no other try is open, else at the pinned
        one. None if the lease is lost, or the payment pending or declined. Raises `RedisError`; if
        it is an `UnconfirmedError`, the try must not be sent, and is among the closed findings."""
        try_id = random_id()
        try:
            return await self._routes.submit(self._of(claim), (claim, processor, findings, try_id))
        except UnconfirmedError:
            findings.closed.add(try_id)
            raise

    async def release(
        self, claim: Claim, *, delay_ms: int, findings: Findings, error: str, waits_for: str = ""
    ) -> bool:
        """Record the findings and give the payment back, due in `delay_ms`. If it waits for a
        processor, it queues behind the others that do. False if another worker has the lease (the
        findings are recorded even then). Raises `RedisError`."""
        release = claim, delay_ms, findings, error, waits_for, ""
        return await self._releases.submit(self._of(claim), release)

    async def hold(
        self, claim: Claim, *, delay_ms: int, findings: Findings, processor: str, instead: str
    ) -> bool:
        """Give back a payment that waits up to `delay_ms` for `processor` to work, although
        `instead` would take it now. False if another worker has the lease. Raises `RedisError`."""
        held = f"{processor} {instead}"
        release = claim, delay_ms, findings, "", "", held
        return await self._releases.submit(self._of(claim), release)

    async def wake(self, claim: Claim, processor: str) -> None:
        """Make the next payments of the claim's partition that wait for this processor due now.
        Raises `RedisError`."""
        await self._wakes.submit(self._of(claim), processor)

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
        partition = self._of(claim)
        [verdict] = await self._bury(
            at=partition,
            confirm=True,
            args=[
                self._max_delay_ms,
                self._retention_ms,
                partition.job_id(claim.correlation_id),
                claim.token,
                claim.generation,
                "declined" if declined else "dead",
                reason,
                *findings.arguments(),
                int(horizon_passed),
                findings.last_try(declined=declined),
            ],
        )
        return Burial(verdict.decode())

    async def last_error(self, claim: Claim) -> str:
        """The error with which the payment was last given back; empty if none. Raises
        `RedisError`."""
        partition = self._of(claim)
        fields = partition.redis.hmget(partition.record(claim.correlation_id), ["last_error"])
        [error] = await cast(Awaitable[list[bytes | None]], fields)
        return "" if error is None else error.decode(errors="replace")

    def _of(self, claim: Claim) -> Partition:
        partition: Partition = self._partitions[claim.partition]
        return partition

    async def _flush_routes(
        self, items: list[tuple[Partition, _Route]]
    ) -> list[Routed | Exception | None]:
        # Confirmed, as the POST follows; a try that has to be closed costs more than a second wait.
        return await scripts.call_grouped(
            self._route, items, self._route_arguments, _routed, confirm="twice"
        )

    def _route_arguments(self, partition: Partition, items: list[_Route]) -> list[str | int]:
        args: list[str | int] = [self._max_delay_ms, self._lease_ms]
        tag = partition.tag
        for claim, processor, findings, try_id in items:
            args += (tag + claim.correlation_id, claim.token, claim.generation, processor)
            args += (*findings.arguments(), try_id)
        return args

    async def _flush_releases(
        self, items: list[tuple[Partition, _Release]]
    ) -> list[bool | Exception]:
        # Confirmed if a payment is pending, as its processor may deny that later.
        is_pending = any(findings.pending for _, (_, _, findings, *_) in items)
        return await scripts.call_grouped(
            self._release, items, _release_arguments, _released, confirm=is_pending
        )

    async def _flush_wakes(self, items: list[tuple[Partition, str]]) -> list[Exception | None]:
        return await scripts.call_grouped(self._wake, items, _wake_arguments, _woken)


def _routed(items: list[_Route], answers: Any) -> list[Routed | None]:
    return [
        None
        if answer is None
        else Routed(answer[0].decode(), int(answer[1]), item[3], int(answer[2]))
        for item, answer in zip(items, answers, strict=True)
    ]


def _release_arguments(partition: Partition, items: list[_Release]) -> list[str | int]:
    args: list[str | int] = []
    tag = partition.tag
    for claim, delay_ms, findings, error, waits_for, held in items:
        args += (tag + claim.correlation_id, claim.token, claim.generation, delay_ms)
        args += (*findings.arguments(), error, waits_for, findings.last_try(), held)
    return args


def _released(_: list[_Release], verdicts: Any) -> list[bool]:
    return [verdict == b"released" for verdict in verdicts]


def _wake_arguments(_: Partition, processors: list[str]) -> list[str | int]:
    args: list[str | int] = []
    for processor, count in Counter(processors).items():
        args += (processor, count * _WOKEN_BY_ONE)
    return args


def _woken(processors: list[str], _: Any) -> list[None]:
    return [None] * len(processors)

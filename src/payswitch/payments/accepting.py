"""Puts payments on the arq queue, in arq's own wire format, many per round trip.

Once a payment is accepted, Redis holds its record, backlog entry, job and queue entry. Accepting a
payment again changes nothing.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import orjson
from arq.jobs import serialize_job
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.clock import boottime_ms
from payswitch.payments.payment import Payment
from payswitch.store import scripts
from payswitch.store.errors import (
    UnconfirmedError,
    WrongServerError,
    in_words,
    says_out_of_memory,
)
from payswitch.store.group_commit import CommitByNode
from payswitch.store.partitions import Partition
from payswitch.store.redis_clock import redis_now_ms

JOB_FUNCTION = "pay"
"""The name of the job function that `workers/payments.py` registers."""

_REPLY_SHARE = 0.2
"""The part of the limit that is reserved for the way of Redis' answer: the script refuses before
the ingress gives up, never after."""


def job_bytes(correlation_id: str, enqueued_at_ms: int, traceparent: str | None = None) -> bytes:
    """A payment's job in arq's own wire format: its id and, if it is traced, its `traceparent`."""
    context = {} if traceparent is None else {"traceparent": traceparent}
    return serialize_job(
        JOB_FUNCTION, (correlation_id,), context, None, enqueued_at_ms, serializer=orjson.dumps
    )


class Acceptance(enum.Enum):
    """The verdict on a payment that was handed to `AcceptQueue.accept`."""

    NEW = "new"
    SAME = "same"
    OTHER_AMOUNT = "other"
    OTHER_METADATA = "metadata"
    """The amount is the same."""
    BACKLOG_FULL = "full"
    LEDGER_FULL = "sum"
    """The ledger's sums are near their limit: only payments that are already accepted still fit."""
    BROKEN = "broken"
    """Redis holds something else under the payment's key."""


class NotAcceptedError(Exception):
    """Redis did not confirm the payment.

    If `refused`, Redis holds nothing of it. Otherwise the connection may have failed between the
    write and the answer: then Redis holds the payment already; it will not take it later.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(slots=True)
class _Entry:
    partition: Partition
    payment: Payment
    gives_up_at: float
    """Boot time in ms."""
    traceparent: str | None


_Item = tuple[Partition, _Entry]
_AWAY = (RedisConnectionError, RedisTimeoutError)


class AcceptQueue:
    """Accepts payments with one script call per flush (group commit). `on_verdicts` gets Redis'
    answers to each batch."""

    def __init__(
        self,
        redis: Redis,
        *,
        limit_ms: int,
        max_backlog: int,
        on_verdicts: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._on_verdicts = on_verdicts
        self._script = scripts.load(redis, "accept")
        self._limit_ms = limit_ms
        self._max_backlog = -(-max_backlog // len(self._script.partitions))
        """Of each partition."""
        self._ahead_ms: dict[str, float] = {}
        """By node: how far its clock is ahead of boot time."""
        self._commits: CommitByNode[_Entry, str] = CommitByNode(
            self._flush, limit_s=limit_ms / 1000
        )

    async def accept(self, payment: Payment, traceparent: str | None = None) -> Acceptance:
        """Put the payment on the queue; returns once Redis has it. The job carries `traceparent`.

        Raises `NotAcceptedError` if Redis refuses, or does not answer within the limit. Each call
        carries a deadline by Redis' clock, after which the script refuses it. So Redis does not
        execute an abandoned call when it comes back.
        """
        partition = self._script.partitions.of(payment.correlation_id)
        entry = _Entry(partition, payment, boottime_ms() + self._limit_ms, traceparent)
        try:
            verdict = await self._commits.submit(partition, entry)
        except (RedisError, OSError) as error:
            raise _not_accepted(error) from None
        if verdict == "late":
            raise NotAcceptedError("Redis did not answer in time")
        return Acceptance(verdict)

    async def _flush(self, items: list[_Item]) -> list[str | Exception]:
        """Each payment's verdict, or the error of its partition."""
        verdicts = await self._call(items)
        failed = [n for n, each in enumerate(verdicts) if isinstance(each, RedisConnectionError)]
        if failed:
            # A pooled connection may have died with an earlier Redis, or the partition has moved to
            # another node. Accepting twice is harmless.
            self._replace(verdicts, failed, await self._call([items[n] for n in failed]))
        return await self._retry_late(verdicts, items) if "late" in verdicts else verdicts

    async def _retry_late(
        self, verdicts: list[str | Exception], items: list[_Item]
    ) -> list[str | Exception]:
        """Retry payments that were refused only because Redis' clock jumped, while there is time.
        The refusal brought the new time. If a retry fails, the verdicts so far stand."""
        margin_ms = self._limit_ms * _REPLY_SHARE
        while late := [
            number
            for number, verdict in enumerate(verdicts)
            if verdict == "late" and boottime_ms() < items[number][1].gives_up_at - margin_ms
        ]:
            again = await self._call([items[number] for number in late])
            self._replace(verdicts, late, again)
            if any(isinstance(each, Exception) for each in again):
                break
        return verdicts

    def _replace(
        self,
        verdicts: list[str | Exception],
        numbers: Sequence[int],
        again: Sequence[str | Exception],
    ) -> None:
        """Take the newer verdicts over; an error leaves the verdict `late` as it is."""
        for number, verdict in zip(numbers, again, strict=True):
            if verdicts[number] != "late" or not isinstance(verdict, Exception):
                verdicts[number] = verdict

    async def _call(self, items: list[_Item]) -> list[str | Exception]:
        ahead: dict[Partition, float] = {}
        failed: dict[Partition, Exception] = {}
        for partition in {partition for partition, _ in items}:
            try:
                ahead[partition] = await self._clock_of(partition)
            except (RedisError, OSError) as error:
                failed[partition] = error
        if not failed:
            return await self._send(items, ahead)
        rest = [item for item in items if item[0] not in failed]
        answers = iter(await self._send(rest, ahead) if rest else ())
        return [failed[each] if each in failed else next(answers) for each, _ in items]

    async def _clock_of(self, partition: Partition) -> float:
        """How far the clock of the partition's node is ahead: of another one perhaps, after a new
        connection or a move."""
        node = await partition.locate()
        if partition.home not in self._ahead_ms or not node.is_connected:
            self._learn_clock(partition, await redis_now_ms(partition.redis))
        return self._ahead_ms[partition.home]

    async def _send(
        self, items: list[_Item], ahead: Mapping[Partition, float]
    ) -> list[str | Exception]:
        arguments = partial(self._arguments, ahead)
        verdicts = await scripts.call_grouped(
            self._script, items, arguments, self._read, confirm=True, follow=False
        )
        for (partition, _), verdict in zip(items, verdicts, strict=True):
            if isinstance(verdict, _AWAY):
                self._ahead_ms.pop(partition.home, None)  # another Redis may be there next
        return verdicts

    def _read(self, entries: list[_Entry], answer: list[Any]) -> list[str | Exception]:
        self._learn_clock(entries[0].partition, int(answer[0]))
        verdicts = [verdict.decode() for verdict in cast(list[bytes], answer[1:])]
        if self._on_verdicts is not None:
            self._on_verdicts(verdicts)
        return cast(list[str | Exception], verdicts)

    def _arguments(
        self, ahead_ms: Mapping[Partition, float], partition: Partition, entries: list[_Entry]
    ) -> list[str | bytes | int]:
        ahead = ahead_ms[partition] - self._limit_ms * _REPLY_SHARE
        enqueued_at = time.time_ns() // 1_000_000
        tag = partition.tag
        args: list[str | bytes | int] = [self._max_backlog]
        for entry in entries:
            correlation_id = entry.payment.correlation_id
            args += (
                tag + correlation_id,
                entry.payment.cents,
                int(entry.gives_up_at + ahead),
                job_bytes(correlation_id, enqueued_at, entry.traceparent),
                entry.payment.metadata or b"",
            )
        return args

    def _learn_clock(self, partition: Partition, redis_now_ms: int) -> None:
        """Assume that the node read its clock just now: the deadlines are then early by the
        answer's travel time, never late."""
        self._ahead_ms[partition.home] = redis_now_ms - boottime_ms()


def _not_accepted(error: RedisError | OSError) -> NotAcceptedError:
    match error:
        case TimeoutError():
            return NotAcceptedError("Redis did not answer in time")
        case UnconfirmedError():
            return NotAcceptedError(f"Redis has it, but {in_words(error)}")
        case WrongServerError():
            return NotAcceptedError(f"Redis can't be used: {in_words(error)}")
        case ResponseError() if says_out_of_memory(error):
            return NotAcceptedError("Redis is full", refused=True)
        case ResponseError():
            return NotAcceptedError(f"Redis refused: {in_words(error)}", refused=True)
        case _:
            return NotAcceptedError(f"Redis can't be reached: {in_words(error)}")

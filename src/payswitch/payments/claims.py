"""Claims: workers take due payments by lease, many in one call."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from payswitch.clock import boottime_ms
from payswitch.payments.ids import random_id
from payswitch.store import scripts
from payswitch.store.partitions import Argument, Partition
from payswitch.telemetry.histogram import Histogram

logger = logging.getLogger(__name__)

_WORTH_A_CALL = 32
"""A call costs as much as a few payments: where more are due than fit, fewer partitions are asked,
each for as many."""

_TRY = re.compile(r"(\d+)([ep]?)")


@dataclass(frozen=True, slots=True)
class OpenTry:
    """A try whose outcome is unknown. If `ended`, the processor has answered it, so it can't be
    recorded after that answer. If `pending`, the processor has it and will decide."""

    id: str
    ended: bool
    pending: bool = False

    @property
    def text(self) -> str:
        """As it stands in the record's `open` field."""
        return f"{self.id}{'e' if self.ended else 'p' if self.pending else ''}"


@dataclass(frozen=True, slots=True)
class Routed:
    """An open try, ready to be sent; `requested_at` in ms."""

    processor: str
    requested_at: int
    id: str
    number: int
    """The number of tries so far, for people to read: it identifies nothing."""


@dataclass(frozen=True, slots=True)
class FirstTries:
    """Where a claim opens the first tries of its payments: at `processor`, if the values of
    `keys.SELECTIONS`, by which it was chosen, still stand."""

    processor: str
    standing: tuple[bytes | None, ...]


@dataclass(slots=True)  # not frozen: that takes twice the time for each payment
class Claim:
    """A payment leased by one worker, with the values of its record at that instant."""

    correlation_id: str
    cents: int
    token: str
    """The id of the claim call."""
    generation: str
    expires_at: float
    """The lease's end, boot time in ms, counted from before the claim was written."""
    processor: str | None = None
    requested_at: int | None = None
    open_tries: tuple[OpenTry, ...] = ()
    tries: int = 0
    """The number of tries so far."""
    horizon_passed: bool = False
    """By Redis' clock, no call that was ever sent can still be recorded."""
    quiet_ms: int = 0
    """How long after the last lease a call that was sent under it may still be recorded."""
    job_try: int = 1
    overdue: bool = False
    """Its deadline has passed; it begins again with a replay, and with each word of the processor
    that the payment is pending."""
    accepted_at: int = 0
    """ms by Redis' clock."""
    claimed_at: int = 0
    """ms by Redis' clock."""
    declined: str = ""
    """The code with which a try was declined while another was open."""
    metadata: bytes | None = field(default=None, repr=False)
    """The client's JSON object, in canonical form; logs never show it."""
    partition: int = 0
    """The number of its partition."""
    unsent: Routed | None = None
    """The first try, if the claim has opened it, until it is sent."""

    @property
    def age_ms(self) -> int:
        """The time from acceptance to this claim, by Redis' clock."""
        return self.claimed_at - self.accepted_at


def parse_open_tries(text: str) -> tuple[OpenTry, ...]:
    """Read the record's `open` field, such as `83 27e`: the last one was opened last."""
    return tuple(OpenTry(name, mark == "e", mark == "p") for name, mark in _TRY.findall(text))


@dataclass(frozen=True, slots=True)
class Claimed:
    """One leased payment, and arq's job for it."""

    claim: Claim
    job: bytes | None
    """arq's bytes; None if the key is gone."""
    score: int
    """When it was due, ms by Redis' clock."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of one claim call."""

    taken: list[Claimed]
    selection: tuple[bytes | None, ...]
    """The values of `keys.SELECTIONS` at that instant; empty in a cluster, where they are in
    another slot."""
    next_due_ms: float | None
    """The time until the next entry is due; None if the queues are empty."""
    strays: list[str]
    """Queue entries that are not payments of ours, put aside by the script."""
    errors: list[Exception] = field(default_factory=list)
    """Of partitions from which nothing was taken."""


def _shares(limit: int, asked: Sequence[Partition]) -> list[tuple[Partition, int]]:
    """How many payments to take from each partition: `limit` in all, none from some if need be."""
    share, rest = divmod(limit, len(asked))
    shares = [share + (number < rest) for number in range(len(asked))]
    return [(each, own) for each, own in zip(asked, shares, strict=True) if own > 0]


class Claims:
    """Takes leases. A lease counts here from before the call that writes it, on a clock that goes
    on while the process is frozen. So it ends here no later than in Redis."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_ms: int,
        deadline_ms: int,
        max_delay_ms: int,
        clock: Callable[[], float] = boottime_ms,
    ) -> None:
        self._script = scripts.load(redis, "claim")
        self._lease_ms = lease_ms
        self._deadline_ms = deadline_ms
        self._max_delay_ms = max_delay_ms
        self._clock = clock
        self.waits = Histogram()
        """From acceptance to the first claim, by Redis' clock."""

    async def take(
        self,
        limit: int,
        *,
        partitions: Sequence[Partition] | None = None,
        back: Sequence[str] = (),
        drain: int = 0,
        first: FirstTries | None = None,
        crowded: bool = False,
    ) -> Batch:
        """Take up to `limit` due payments of these partitions, by default of all, as evenly as
        `limit` allows. Before, make up to `drain` due that are held for each processor of `back`.
        If they are `crowded`, with more due payments than `limit`, a few at random are asked first,
        and the others only for the rest. Open `first` tries only where no replica must confirm
        them: a claim waits for none. Raises `RedisError` if no partition answers."""
        asked = list(self._script.partitions if partitions is None else partitions)
        random.shuffle(asked)
        at_once = max(1, limit // _WORTH_A_CALL) if crowded else limit
        batches: list[Batch] = []
        errors: list[Exception] = []
        while asked and limit > 0:
            group = asked[: min(at_once, limit)]
            rest = [*self._opening(first), -(-drain // len(group)), *back]
            found, failed = await self._take_from(group, limit, rest)
            batches += found
            errors += failed
            limit -= sum(len(each.taken) for each in found)
            drain = 0
            del asked[: len(group)]
        if not batches:
            raise errors[0]
        due = [each.next_due_ms for each in batches if each.next_due_ms is not None]
        return Batch(
            taken=[claimed for batch in batches for claimed in batch.taken],
            selection=batches[0].selection,
            next_due_ms=min(due, default=None),
            strays=[stray for batch in batches for stray in batch.strays],
            errors=errors,
        )

    def _opening(self, first: FirstTries | None) -> list[Argument]:
        """The script's arguments about first tries."""
        if first is None:
            return ["", "", "", 0]
        override, selection = (each or b"" for each in first.standing)
        return [first.processor, override, selection, self._deadline_ms]

    async def _take_from(
        self, asked: Sequence[Partition], limit: int, rest: Sequence[Argument]
    ) -> tuple[list[Batch], list[Exception]]:
        """Take up to `limit` from some partitions, in one write for each node."""
        expires_at, token = self._clock() + self._lease_ms, random_id()
        own: list[Argument] = [self._lease_ms, self._max_delay_ms, token, *rest]
        shares = _shares(limit, asked)
        answers = await self._script.call_each([(each, [share, *own]) for each, share in shares])
        batches = [
            self._batch(partition, scripts.named(answer), token, expires_at)
            for (partition, _), answer in zip(shares, answers, strict=True)
            if not isinstance(answer, Exception)
        ]
        return batches, [answer for answer in answers if isinstance(answer, Exception)]

    def _batch(
        self, partition: Partition, answer: Mapping[str, Any], token: str, expires_at: float
    ) -> Batch:
        next_due, selection = answer["next_due"], answer["selection"]
        return Batch(
            taken=list(self._readable(partition, answer, token, expires_at)),
            selection=tuple(selection or ()),
            next_due_ms=None if next_due is None else max(0.0, float(next_due) - answer["now"]),
            strays=[stray.decode() for stray in answer["strays"]],
        )

    def _readable(
        self,
        partition: Partition,
        answer: Mapping[str, Any],
        token: str,
        expires_at: float,
    ) -> Iterator[Claimed]:
        """Skip spoilt records, so that they stop no other payment; each is due again when its
        lease ends."""
        names = [name.decode() for name in answer["fields"]]
        now, generation = answer["now"], answer["generation"].decode()
        for values in answer["payments"]:
            entry = dict(zip(names, values, strict=True))
            try:
                yield self._read(partition, entry, now, generation, token, expires_at)
            except (ValueError, OverflowError):
                logger.error(
                    "the record of payment %(payment)s can't be read",
                    {"payment": entry["id"].decode()},
                )

    def _read(
        self,
        partition: Partition,
        entry: Mapping[str, Any],
        now: int,
        generation: str,
        token: str,
        expires_at: float,
    ) -> Claimed:
        processor, requested_at, tries = entry["processor"], entry["requested_at"], entry["open"]
        accepted_at, later_ms = int(entry["accepted_at"]), entry["later"]
        first_at = entry["first_at"]
        claim = Claim(
            correlation_id=partition.correlation_id(entry["id"]),
            cents=int(entry["cents"]),
            token=token,
            generation=generation,
            expires_at=expires_at,
            processor=processor.decode() if processor else None,
            requested_at=int(requested_at) if requested_at else None,
            open_tries=parse_open_tries(tries.decode()) if tries else (),
            tries=int(entry["tries"] or 0),
            horizon_passed=int(entry["horizon"] or 0) + later_ms <= now,
            quiet_ms=int(entry["quiet"] or 0) + later_ms,
            job_try=int(entry["job_try"]),
            overdue=now - int(entry["deadline_from"] or accepted_at) > self._deadline_ms,
            accepted_at=accepted_at,
            claimed_at=now,
            declined=(entry["declined"] or b"").decode(errors="replace"),
            metadata=entry["metadata"] or None,
            partition=partition.number,
            unsent=Routed(first_at.decode(), now, token, 1) if first_at else None,
        )
        if claim.job_try == 1 and not claim.tries:  # a replayed dead letter has tries
            self.waits.add(now - accepted_at)
        return Claimed(claim, entry["job"], int(float(entry["score"])))

"""The overview of the whole system, read from Redis in one call, or one for each partition.

Exact counts come from the ledger and the queues; the rest comes from the processes' heartbeats.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from redis.asyncio import Redis

from payswitch.durability import Durability
from payswitch.instants import parse_instant_ms
from payswitch.money import Total
from payswitch.operations.controls import Order, standing_override, standing_pause
from payswitch.operations.shards import Shard, read_shards
from payswitch.store import scripts
from payswitch.store.notes import read_note
from payswitch.telemetry.heartbeat import Process, parse_heartbeat
from payswitch.telemetry.histogram import LARGEST

_FEE_PLACES = 9
"""Decimals of a fee: 1e-999999 is a valid fee but would be written out in full."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The cached selection. Instants are ms since the epoch by the writer's clock."""

    processor: str
    healthy: bool
    reason: str
    at: int
    """The instant of the health check's decision."""
    expires_in_ms: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A processor's last health report."""

    known: bool
    """False if it did not answer."""
    failing: bool
    min_response_ms: int
    at: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The result of the last reconciliation."""

    at: int
    differences: int


@dataclass(frozen=True, slots=True)
class Fees:
    """The fees paid, in cents, and the fees for the same payments all through the first
    processor."""

    paid: Decimal
    all_preferred: Decimal

    @property
    def extra(self) -> Decimal:
        """The cost of failing over."""
        return self.paid - self.all_preferred


@dataclass(frozen=True, slots=True)
class Overview:
    """The system at one instant, ms since the epoch by Redis' clock."""

    at: int
    settled: Mapping[str, Total]
    """By processor in order of preference, since the last purge."""
    backlog: int
    waiting: Mapping[str, int]
    """Payments with an open try that a processor doesn't answer for."""
    held: Mapping[str, int]
    """The payments of the backlog that wait until a processor works again, by its name."""
    held_and_paid: Mapping[tuple[str, str], int]
    """The cents that waited for a processor and were paid by it, by its name and that of the one
    that would have taken them at once."""
    oldest_accepted_at: int | None
    in_flight: int
    dead: int
    """Dead letters that nobody has resolved."""
    resolved: int
    """Dead letters that an operator has resolved since the last purge."""
    declined: Mapping[str, int]
    """Payments that a processor has declined since the last purge, by its name."""
    incidents: int
    """Incidents that nobody has resolved."""
    choice: Choice | None
    health: Mapping[str, Seen]
    fee_rates: Mapping[str, Decimal]
    """The share of the amount that a processor takes; unknown ones are left out."""
    reconciled: Reconciled | None
    override: Order | None
    paused: Order | None
    processes: Sequence[Process]
    shards: Sequence[Shard] = ()
    """The cluster's nodes; none on a single Redis."""
    astray: Sequence[int] = ()
    """The partitions that don't follow the pause or its end yet."""

    @property
    def preferred(self) -> str:
        """The first processor in order of preference."""
        return next(iter(self.settled))

    @property
    def accepted(self) -> int:
        """All payments accepted since the last purge: settled, declined, waiting, dead or
        resolved."""
        ended = sum(total.count for total in self.settled.values()) + sum(self.declined.values())
        return ended + self.backlog + self.dead + self.resolved

    @property
    def oldest_age_ms(self) -> int | None:
        """The age of the oldest unpaid payment; None without one."""
        if self.oldest_accepted_at is None:
            return None
        return max(0, self.at - self.oldest_accepted_at)

    @property
    def fees(self) -> Fees | None:
        """The fees; None unless every fee involved is known."""
        preferred = self.fee_rates.get(self.preferred)
        used = {name: total.cents for name, total in self.settled.items() if total.cents}
        if preferred is None or not used.keys() <= self.fee_rates.keys():
            return None
        return Fees(
            paid=sum((self.fee_rates[name] * cents for name, cents in used.items()), Decimal()),
            all_preferred=preferred * sum(used.values()),
        )

    @property
    def saved(self) -> Decimal | None:
        """The fees, in cents, that payments saved by waiting; None unless every fee involved is
        known."""
        rates = self.fee_rates
        names = {name for pair in self.held_and_paid for name in pair}
        if not names <= rates.keys():
            return None
        sums = self.held_and_paid.items()
        return sum(
            ((rates[instead] - rates[name]) * cents for (name, instead), cents in sums), Decimal()
        )

    @property
    def durability(self) -> Durability | None:
        """What a 202 stands for at every ingress: the weakest promise; None without an ingress."""
        promises = [each.durability for each in self.of_kind("ingress") if each.durability]
        return max(promises, key=[*Durability].index, default=None)

    @property
    def is_kept(self) -> bool:
        """Whether Redis keeps that promise, by every ingress' word."""
        counts = [each.counts for each in self.of_kind("ingress")]
        return not any(each.get("redis:may_lose_payments") for each in counts)

    def of_kind(self, kind: str) -> list[Process]:
        """The living processes of one kind, by host and pid."""
        found = [each for each in self.processes if each.kind == kind]
        return sorted(found, key=lambda each: (each.host, each.pid))


async def read_overview(redis: Redis, processors: Sequence[str]) -> Overview:
    """Read the overview of this instant: of all partitions, or none. Raises `RedisError` or
    `OSError`."""
    script = scripts.load(redis, "overview")
    asked = script.partitions.with_common
    answers, shards = await asyncio.gather(
        script.call_each([(each, list(processors)) for each in asked]), read_shards(redis)
    )
    found = [scripts.named(each) for each in scripts.require_all(answers)]
    pauses = [_pause(each) for each in found]
    astray = [each.number for each, pause in zip(asked, pauses, strict=True) if pause != pauses[0]]
    return _parse(found, processors, shards, astray)


def _pause(answer: Mapping[str, Any]) -> tuple[bool, bytes]:
    """Whether there is a pause, and its order."""
    return answer["paused_life"] != -2, answer["paused"] or b""


def _parse(
    answers: Sequence[Mapping[str, Any]],
    processors: Sequence[str],
    shards: Sequence[Shard],
    astray: Sequence[int],
) -> Overview:
    """Read the answers of `overview.lua`: sums of all, and the first one's keys of the whole.
    Foreign data under its keys counts as nothing."""
    whole, now = answers[0], answers[0]["now"]
    ages = [each["now"] - _whole(each["oldest"]) for each in answers if _whole(each["oldest"])]
    return Overview(
        at=now,
        settled=_settled(processors, answers),
        backlog=_sum(answers, "backlog"),
        waiting=_by_processor(processors, answers, "waiting"),
        held=_by_processor(processors, answers, "held"),
        held_and_paid=_held_and_paid(processors, answers),
        oldest_accepted_at=now - max(ages) if ages else None,
        in_flight=_sum(answers, "in_flight"),
        dead=_sum(answers, "dead"),
        resolved=_sum(answers, "resolved"),
        declined=_by_processor(processors, answers, "declined"),
        incidents=_sum(answers, "incidents"),
        choice=_choice(processors, whole["selection"], whole["selection_life"] or 0),
        health=dict(_health(processors, read_note(whole["reports"]))),
        fee_rates=dict(_fee_rates(processors, read_note(whole["fees"]))),
        reconciled=_reconciled(read_note(whole["reconciled"])),
        override=standing_override(processors, whole["override"], now, whole["override_life"]),
        paused=standing_pause(whole["paused"], now, whole["paused_life"]),
        processes=list(_processes(whole["heartbeats"])),
        shards=shards,
        astray=astray,
    )


def _sum(answers: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(_whole(each[name]) for each in answers)


def _by_processor(
    processors: Sequence[str], answers: Sequence[Mapping[str, Any]], name: str
) -> dict[str, int]:
    counts = Counter(dict.fromkeys(processors, 0))
    for each in answers:
        counts.update(dict(zip(processors, map(_whole, each[name] or ()), strict=False)))
    return dict(counts)


def _settled(processors: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> dict[str, Total]:
    sums = dict.fromkeys(processors, Total())
    for each in answers:
        counts, cents = each["totals"][::2], each["totals"][1::2]
        for name, *total in zip(processors, counts, cents, strict=True):
            sums[name] += Total(*map(_whole, total))
    return sums


def _held_and_paid(
    processors: Sequence[str], answers: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], int]:
    found: Counter[tuple[str, str]] = Counter()
    for fields in (each["saved"] or () for each in answers):
        for field, cents in zip(fields[::2], fields[1::2], strict=True):
            name, _, instead = field.decode(errors="replace").partition(" ")
            if name in processors and instead in processors:
                found[name, instead] += _whole(cents)
    return dict(found)


def _choice(processors: Sequence[str], raw: bytes | None, expires_in_ms: int) -> Choice | None:
    note = read_note(raw)
    at = _instant(note.get("at"))
    if note.get("processor") not in processors or at is None:
        return None
    return Choice(
        processor=note["processor"],
        healthy=note.get("healthy") is True,
        reason=str(note.get("reason", "")),
        at=at,
        expires_in_ms=max(0, expires_in_ms),
    )


def _health(processors: Sequence[str], note: Mapping[str, Any]) -> Iterator[tuple[str, Seen]]:
    at, reports = note.get("at"), note.get("reports")
    if type(at) is not int or not isinstance(reports, dict):
        return
    for name in processors:
        match reports.get(name):
            case {"failing": bool(failing), "minResponseTime": int(slowness)}:
                yield name, Seen(True, failing, slowness, at)
            case _:
                yield name, Seen(False, False, 0, at)


def _fee_rates(processors: Sequence[str], note: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
    for name in processors:
        try:
            rate = Decimal(note[name])
        except (KeyError, InvalidOperation, TypeError, ValueError):
            continue
        if rate.is_finite() and 0 <= rate <= 1:
            yield name, round(rate, _FEE_PLACES)


def _reconciled(note: Mapping[str, Any]) -> Reconciled | None:
    at, differences = note.get("at"), note.get("differences")
    if type(at) is not int or type(differences) is not int:
        return None
    return Reconciled(at, differences)


def _processes(heartbeats: Sequence[Any]) -> Iterator[Process]:
    for fields in heartbeats:
        texts = [cast(bytes, each).decode(errors="replace") for each in fields]
        process = parse_heartbeat(dict(zip(texts[::2], texts[1::2], strict=True)))
        if process is not None:
            yield process


def _whole(raw: bytes | int | None) -> int:
    """Read a number; 0 for anything else and for numbers too large to be counts."""
    try:
        number = int(raw or 0)
    except ValueError:
        return 0
    return number if abs(number) <= LARGEST else 0


def _instant(text: object) -> int | None:
    try:
        return parse_instant_ms(text) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None

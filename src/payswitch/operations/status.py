"""The status that the live page and `payswitch status` show: an overview with findings."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from payswitch.instants import format_instant
from payswitch.money import Currency
from payswitch.operations.controls import Order
from payswitch.operations.history import WINDOW_S, Sample
from payswitch.operations.overview import Overview
from payswitch.operations.shards import Shard
from payswitch.telemetry.heartbeat import REFUSES, Process

_RATE_OVER_MS = 5000
_FRESH_MS = 5000
_LONG_MS = 30_000
"""A payment that has waited longer becomes a finding."""
_MOST_NAMED = 3
"""More processors are a number in the headline."""


class Level(enum.Enum):
    """The severity of a finding, the worst last."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


_LEVELS = list(Level)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for an operator."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates over the last seconds of the history."""

    accepted_per_s: float
    settled_per_s: Mapping[str, float]
    """By processor."""
    unavailable: int
    """Payments that were answered 503."""
    failed: Mapping[str, int]
    """Tries that a processor did not pay, by processor."""
    p50_ms: float | None
    """To settle, over the history's window."""
    p99_ms: float | None

    @property
    def all_settled_per_s(self) -> float:
        """Settled payments a second over all processors."""
        return sum(self.settled_per_s.values())


def rates(samples: Sequence[Sample], now: int) -> Rates | None:
    """The rates at `now` (ms); None if the history is too short or out of date."""
    recent = [each for each in samples if now - each.at <= _RATE_OVER_MS + _FRESH_MS]
    if len(recent) < 2 or now - recent[-1].at > _FRESH_MS:
        return None
    last = recent[-1]
    first = next(each for each in recent if last.at - each.at <= _RATE_OVER_MS)
    if first is last:
        first = recent[-2]
    seconds = max(last.at - first.at, 1) / 1000
    since = [each for each in recent if each.at > first.at]
    return Rates(
        accepted_per_s=max(0, last.accepted - first.accepted) / seconds,
        settled_per_s={
            name: max(0, count - first.settled.get(name, 0)) / seconds
            for name, count in last.settled.items()
        },
        unavailable=sum(each.unavailable for each in since),
        failed={name: sum(each.failed.get(name, 0) for each in since) for name in last.settled},
        p50_ms=last.p50_ms,
        p99_ms=last.p99_ms,
    )


@dataclass(frozen=True, slots=True)
class Status:
    """An overview, its rates if they are known, and the findings about both."""

    overview: Overview
    rates: Rates | None

    @property
    def findings(self) -> list[Finding]:
        """Everything wrong or unusual, the worst first."""
        found = [
            *of_shards(self.overview.shards),
            *_of_processes(self.overview),
            *_of_processors(self.overview),
            *_of_breakers(self.overview, self.rates),
            *_of_payments(self.overview, self.rates),
            *_of_held(self.overview),
            *_of_orders(self.overview),
        ]
        return sorted(found, key=lambda each: -_LEVELS.index(each.level))

    @property
    def level(self) -> Level:
        """The level of the worst finding."""
        return max((each.level for each in self.findings), key=_LEVELS.index, default=Level.OK)

    @property
    def headline(self) -> str:
        """Whether money flows, and through which processors."""
        overview, now = self.overview, self.rates
        waiting = _waiting(overview.backlog)
        if overview.paused is not None:
            return f"Paused, {waiting}"
        if now is not None and now.all_settled_per_s > 0:
            through = [name for name, rate in now.settled_per_s.items() if rate > 0]
            return f"{now.all_settled_per_s:,.0f} payments/s through {_listed(through)}"
        if overview.backlog:
            return f"No money flows, {waiting}" if now else waiting
        return "Nothing to pay"


def of_shards(shards: Sequence[Shard]) -> Iterator[Finding]:
    """A finding for each node of a cluster that is away or lacks replicas."""
    for each in shards:
        if each.trouble is not None:
            text = f"{each.trouble}; {each.served} take no payments"
            yield Finding(Level.ERROR, text)


def _of_processes(overview: Overview) -> Iterator[Finding]:
    lacking = {
        "ingress": (Level.ERROR, "No ingress lives: no payment is accepted"),
        "worker": (Level.ERROR, "No worker lives: no payment is paid"),
        "health": (Level.WARNING, "No health worker lives: nobody chooses the processor"),
    }
    for kind, (level, text) in lacking.items():
        if not overview.of_kind(kind):
            yield Finding(level, text)
    if any(each.counts.get("redis:short_of_memory") for each in overview.of_kind("ingress")):
        yield Finding(Level.ERROR, "Redis is short of memory: new payments are refused")
    if not overview.is_kept:
        text = (
            f"Redis may keep less than PAYSWITCH_DURABILITY={overview.durability} promises: the "
            "log of each ingress says why"
        )
        yield Finding(Level.WARNING, text)


def _of_processors(overview: Overview) -> Iterator[Finding]:
    choice = overview.choice
    if choice is None:
        yield Finding(Level.WARNING, f"No selection is cached: payments go to {overview.preferred}")
    elif not choice.healthy:
        yield Finding(Level.ERROR, f"No processor is healthy: {choice.reason}")
    elif choice.processor != overview.preferred:
        yield Finding(Level.WARNING, f"The dearer {choice.processor} is selected")
    for name, seen in overview.health.items():
        if not seen.known:
            yield Finding(Level.WARNING, f"{name} does not say how it is")
        elif seen.failing:
            yield Finding(Level.WARNING, f"{name} says that it is failing")


def _of_breakers(overview: Overview, now: Rates | None) -> Iterator[Finding]:
    """Only a payment closes a breaker, so it may stay open after its processor has recovered: that
    is a note while no try fails. A processor that refuses payments for a fault of its own is an
    error: it needs a person."""
    workers = overview.of_kind("worker")
    for name in overview.settled:
        not_closed = len(workers) - breakers(overview, name)["closed"]
        if not not_closed:
            continue
        seen = overview.health.get(name)
        is_well = seen is not None and seen.known and not seen.failing
        none_fails = now is not None and not now.failed.get(name)
        level = Level.NOTE if is_well and none_fails else Level.WARNING
        reasons = sorted({each.breaker_reasons.get(name, "") for each in workers} - {""})
        if any(reason.startswith(REFUSES) for reason in reasons):
            level = Level.ERROR
        why = f" ({', '.join(reasons)})" if reasons else ""
        yield Finding(
            level,
            f"{name}: circuit breaker open in {not_closed} of {len(workers)} workers{why}; "
            "the next payment sent there probes it",
        )


def _of_payments(overview: Overview, now: Rates | None) -> Iterator[Finding]:
    if now is not None and now.unavailable:
        yield Finding(Level.ERROR, f"{_payments(now.unavailable)} refused with 503 just now")
    if overview.backlog and now is not None and not now.all_settled_per_s and not overview.paused:
        level = Level.WARNING if any(overview.held.values()) else Level.ERROR
        yield Finding(level, f"Nothing is being settled, {_waiting(overview.backlog)}")
    age = overview.oldest_age_ms
    if age is not None and age > _LONG_MS:
        yield Finding(Level.WARNING, f"The oldest unpaid payment has waited {duration(age)}")
    if overview.incidents:
        text = f"{overview.incidents} proofs of payment match no pin: payswitch incidents list"
        yield Finding(Level.ERROR, text)
    if overview.reconciled is not None and overview.reconciled.differences:
        text = f"Reconciliation found {overview.reconciled.differences} differences"
        yield Finding(Level.ERROR, text)
    if overview.dead:
        yield Finding(Level.WARNING, f"{_payments(overview.dead)} dead: payswitch dead list")


def _of_held(overview: Overview) -> Iterator[Finding]:
    for name, count in overview.held.items():
        if count:
            yield Finding(Level.NOTE, f"{_waiting(count)} until {name} works again")


def _of_orders(overview: Overview) -> Iterator[Finding]:
    if overview.paused is not None:
        order = _order(overview.paused, overview.at)
        yield Finding(Level.WARNING, f"Paused by {order}: payswitch resume")
    if overview.override is not None:
        order = _order(overview.override, overview.at)
        yield Finding(Level.NOTE, f"{overview.override.processor} was chosen by {order}")


def breakers(overview: Overview, processor: str) -> Counter[str]:
    """The number of workers' circuit breakers for a processor, by state."""
    workers = overview.of_kind("worker")
    return Counter(each.breakers.get(processor, "closed") for each in workers)


def duration(ms: float) -> str:
    """A duration for people: its two largest units."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(int(ms // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = {"d": days, "h": hours, "min": minutes, "s": seconds}
    shown = [f"{count} {unit}" for unit, count in units.items() if count]
    return " ".join(shown[:2])


def money(cents: Decimal | int, currency: Currency) -> str:
    """Cents as a number with all decimals, a fraction of a cent rounded."""
    return currency.format_cents(int(Decimal(cents).to_integral_value()))


def document(status: Status, currency: Currency) -> dict[str, Any]:
    """The status as JSON: what `payswitch status --json` prints and the page gets."""
    overview, now = status.overview, status.rates
    at = overview.at
    choice, reconciled = overview.choice, overview.reconciled
    return {
        "at": format_instant(at),
        "currency": {"code": currency.code, "decimals": currency.decimals},
        "level": status.level.value,
        "headline": status.headline,
        "findings": _findings(status.findings),
        "cluster": _cluster(overview.shards),
        "durability": _durability(overview),
        "accepted": {
            "total": overview.accepted,
            "perSecond": now and round(now.accepted_per_s, 1),
            "unavailable": now and now.unavailable,
        },
        "settled": {
            "total": sum(total.count for total in overview.settled.values()),
            "amount": _amount(sum(total.cents for total in overview.settled.values()), currency),
            "perSecond": now and round(now.all_settled_per_s, 1),
        },
        "backlog": {
            "payments": overview.backlog,
            "oldestAgeMs": overview.oldest_age_ms,
            "inFlight": overview.in_flight,
        },
        "timeToSettle": {
            "p50Ms": _rounded(None if now is None else now.p50_ms),
            "p99Ms": _rounded(None if now is None else now.p99_ms),
            "overSeconds": WINDOW_S,
        },
        "selection": choice
        and {
            "processor": choice.processor,
            "healthy": choice.healthy,
            "reason": choice.reason,
            "ageMs": max(0, at - choice.at),
            "expiresInMs": choice.expires_in_ms,
        },
        "override": _order_document(overview.override, at),
        "paused": _order_document(overview.paused, at),
        "processors": {name: _processor(status, name, currency) for name in overview.settled},
        "fees": _fees(overview, currency),
        "deadLetters": overview.dead,
        "incidents": overview.incidents,
        "reconciliation": reconciled
        and {"ageMs": max(0, at - reconciled.at), "differences": reconciled.differences},
        "processes": [_process(each, at) for each in _in_order(overview)],
    }


def document_without_sums(shards: Sequence[Shard]) -> dict[str, Any]:
    """The page's document while Redis, or a node of the cluster, does not answer: a part of the
    sums would be wrong."""
    findings = [*of_shards(shards)]
    headline = "A part of the cluster does not answer" if findings else "Redis does not answer"
    text = "Redis does not answer: no payment is accepted or paid"
    return {
        "level": Level.ERROR.value,
        "headline": headline,
        "findings": _findings(findings or [Finding(Level.ERROR, text)]),
        "cluster": _cluster(shards),
    }


def _findings(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [{"level": each.level.value, "text": each.text} for each in findings]


def _cluster(shards: Sequence[Shard]) -> dict[str, Any] | None:
    if not shards:
        return None
    nodes = [
        {
            "address": each.address,
            "partitions": list(each.partitions),
            "replicas": each.replicas,
            "wantedReplicas": each.wanted_replicas,
            "problem": each.problem,
        }
        for each in shards
    ]
    return {"nodes": nodes}


def _durability(overview: Overview) -> dict[str, Any] | None:
    promise = overview.durability
    if promise is None:
        return None
    return {"promise": promise, "kept": overview.is_kept, "survives": promise.survives}


def _processor(status: Status, name: str, currency: Currency) -> dict[str, Any]:
    overview, now = status.overview, status.rates
    seen, total, fee = overview.health.get(name), overview.settled[name], overview.fee_rates
    workers = overview.of_kind("worker")
    return {
        "settled": total.count,
        "amount": _amount(total.cents, currency),
        "perSecond": now and round(now.settled_per_s.get(name, 0), 1),
        "failedTries": now and now.failed.get(name, 0),
        "waiting": overview.waiting[name],
        "held": overview.held[name],
        "declined": overview.declined[name],
        "fee": orjson.Fragment(f"{fee[name]:f}") if name in fee else None,
        "health": seen
        and {
            "known": seen.known,
            "failing": seen.failing,
            "minResponseMs": seen.min_response_ms,
            "ageMs": max(0, overview.at - seen.at),
        },
        "breakers": dict(breakers(overview, name)),
        "callsUnderWay": sum(each.counts.get(f"in_flight:{name}", 0) for each in workers),
    }


def _process(process: Process, at: int) -> dict[str, Any]:
    tries = Counter[str]()
    for name, count in process.of("tries:").items():
        tries[name.partition(":")[2]] += count
    return {
        "kind": process.kind,
        "host": process.host,
        "pid": process.pid,
        "upMs": max(0, at - process.since),
        "accepted": process.of("accepted:"),
        "refused": process.of("refused:"),
        "settled": process.of("settled:"),
        "tries": dict(tries),
        "callsUnderWay": sum(process.of("in_flight:").values()),
        "breakers": dict(process.breakers),
    }


def _in_order(overview: Overview) -> list[Process]:
    return [each for kind in ("ingress", "worker", "health") for each in overview.of_kind(kind)]


def _fees(overview: Overview, currency: Currency) -> dict[str, Any] | None:
    fees = overview.fees
    if fees is None:
        return None
    settled = sum(total.cents for total in overview.settled.values())
    return {
        "paid": _amount(fees.paid, currency),
        "allPreferred": _amount(fees.all_preferred, currency),
        "extra": _amount(fees.extra, currency),
        "saved": None if overview.saved is None else _amount(overview.saved, currency),
        "share": round(float(fees.paid / settled), 5) if settled else None,
    }


def _order_document(order: Order | None, at: int) -> dict[str, Any] | None:
    if order is None:
        return None
    return {
        "processor": order.processor,
        "by": order.by,
        "reason": order.reason,
        "expiresInMs": None if order.until_ms is None else order.until_ms - at,
    }


def _order(order: Order, at: int) -> str:
    reason = f" ({order.reason})" if order.reason else ""
    ends = "" if order.until_ms is None else f", {duration(order.until_ms - at)} left"
    return f"{order.by}{reason}{ends}"


def _amount(cents: Decimal | int, currency: Currency) -> orjson.Fragment:
    return orjson.Fragment(money(cents, currency))


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 1)


def _listed(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMED:
        return f"{len(names)} processors"
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _payments(count: int) -> str:
    return f"{count:,} payment{'' if count == 1 else 's'}"


def _waiting(count: int) -> str:
    return f"{_payments(count)} {'is' if count == 1 else 'are'} waiting"

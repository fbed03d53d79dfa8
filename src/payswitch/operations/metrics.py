"""The health worker's metrics: the whole system, from the overview that it reads each second for
the history. So a scrape costs Redis nothing.

Every health worker shows the same values, so take `max`, never `sum`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric

from payswitch.money import Currency
from payswitch.operations.history import HistoryWriter
from payswitch.operations.overview import Overview
from payswitch.operations.shards import Shard
from payswitch.telemetry import metrics
from payswitch.telemetry.metrics import Facts

_PARTS = ("ingress", "worker", "health")


def health_registry(history: HistoryWriter, currency: Currency) -> CollectorRegistry:
    """All metrics of a health worker."""

    def collect() -> Iterable[Metric]:
        yield metrics.build_info("health")
        yield metrics.REDIS_FAILURES.one(history.failures)
        if history.shards:
            yield from of_shards(history.shards)
        if history.latest is not None:
            yield from _of(history.latest, currency)

    return metrics.registry_of(Facts(collect))


def of_shards(shards: Sequence[Shard]) -> Iterable[Metric]:
    """The metrics of a cluster's nodes."""
    nodes = [each for each in shards if each.address]
    yield metrics.NODE_UP.by({(each.address,): each.problem is None for each in nodes})
    yield metrics.NODE_REPLICAS.by(
        {(each.address,): each.replicas for each in nodes if each.replicas is not None}
    )
    yield metrics.NODE_REPLICAS_WANTED.one(max(each.wanted_replicas for each in shards))
    yield metrics.PARTITIONS_CLOSED.one(
        sum(len(each.partitions) for each in shards if each.trouble is not None)
    )


def _of(overview: Overview, currency: Currency) -> Iterable[Metric]:
    yield metrics.OVERVIEW_AT.one(overview.at / 1000)
    yield metrics.BACKLOG.one(overview.backlog)
    yield metrics.OLDEST_AGE.one((overview.oldest_age_ms or 0) / 1000)
    yield metrics.IN_FLIGHT.one(overview.in_flight)
    yield metrics.HELD.by({(name,): count for name, count in overview.held.items()})
    yield metrics.DECLINED.by({(name,): count for name, count in overview.declined.items()})
    yield metrics.DEAD_LETTERS.one(overview.dead)
    yield metrics.INCIDENTS.one(overview.incidents)
    yield metrics.PROCESSES.by({(part,): len(overview.of_kind(part)) for part in _PARTS})
    yield from _of_money(overview, currency)
    yield from _of_choice(overview)
    yield from _of_processors(overview)
    if (reconciled := overview.reconciled) is not None:
        yield metrics.DIFFERENCES.one(reconciled.differences)
        yield metrics.RECONCILED_AT.one(reconciled.at / 1000)


def _of_money(overview: Overview, currency: Currency) -> Iterable[Metric]:
    settled = overview.settled.items()
    yield metrics.LEDGER_PAYMENTS.by({(name,): total.count for name, total in settled})
    yield metrics.LEDGER_AMOUNT.by(
        {(name,): total.cents / currency.scale for name, total in settled}
    )
    if (fees := overview.fees) is not None:
        yield metrics.FEES.by(
            {
                ("paid",): float(fees.paid / currency.scale),
                ("preferred",): float(fees.all_preferred / currency.scale),
            }
        )


def _of_choice(overview: Overview) -> Iterable[Metric]:
    choice, override = overview.choice, overview.override
    chosen = choice.processor if choice else None
    ordered = override.processor if override else None
    yield metrics.SELECTED.by({(name,): name == chosen for name in overview.settled})
    yield metrics.SELECTION_HEALTHY.one(choice is not None and choice.healthy)
    if choice is not None:
        yield metrics.SELECTION_AT.one(choice.at / 1000)
    yield metrics.OVERRIDE.by({(name,): name == ordered for name in overview.settled})
    yield metrics.PAUSED.one(overview.paused is not None)


def _of_processors(overview: Overview) -> Iterable[Metric]:
    seen = overview.health.items()
    yield metrics.PROCESSOR_HEALTHY.by(
        {(name,): each.known and not each.failing for name, each in seen}
    )
    yield metrics.PROCESSOR_LEAST_SECONDS.by(
        {(name,): each.min_response_ms / 1000 for name, each in seen if each.known}
    )
    yield metrics.HEALTH_CHECK_AT.by({(name,): each.at / 1000 for name, each in seen})

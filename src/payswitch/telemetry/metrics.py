"""Every metric by its name, in one place, and what makes the text of a scrape of it.

Names and units follow Prometheus' own rules: the prefix of the application, base units (seconds,
the currency's unit), `_total` on what only grows. No label holds a payment's id. Where the
library's own objects would cost the hot path too much, what is counted there anyway is read at the
scrape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from payswitch.telemetry.histogram import Histogram

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

disable_created_metrics()  # type: ignore[no-untyped-call]

Labelled = Mapping[tuple[str, ...], float]
"""Values by the values of the labels, in the labels' order."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric's name, type, meaning and labels."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    meaning: str
    labels: tuple[str, ...] = ()

    def one(self, value: float) -> Metric:
        """It without labels."""
        return self.by({(): value})

    def by(self, values: Labelled) -> Metric:
        """It with a value for each combination of its labels."""
        family = self._family()
        for labels, value in values.items():
            family.add_sample(self.name, self._named(labels), value)
        return family

    def histograms(self, histograms: Mapping[tuple[str, ...], Histogram]) -> Metric:
        """A histogram for each combination of its labels."""
        family = self._family()
        for values, histogram in histograms.items():
            labels, total = self._named(values), 0
            for bound, total in histogram.cumulative():
                le = "+Inf" if bound == math.inf else str(bound)
                family.add_sample(f"{self.name}_bucket", {**labels, "le": le}, total)
            family.add_sample(f"{self.name}_count", labels, total)
            family.add_sample(f"{self.name}_sum", labels, histogram.sum_ms / 1000)
        return family

    def _family(self) -> Metric:
        # The library takes a counter's name without the ending, and adds it.
        return Metric(self.name.removesuffix("_total"), self.meaning, self.kind)

    def _named(self, values: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self.labels, values, strict=True))


BUILD_INFO = Definition(
    "payswitch_build_info", "gauge", "Always 1; its labels say what runs.", ("part", "version")
)
REDIS_FAILURES = Definition(
    "payswitch_redis_failures_total",
    "counter",
    "Turns of the process' main loop that Redis did not answer or refused.",
)

# The ingress.
ACCEPT_SECONDS = Definition(
    "payswitch_accept_seconds",
    "histogram",
    "From POST /payments to its answer; result is accepted (202), refused (4xx), "
    "unavailable (503) or failed (500).",
    ("result",),
)
ACCEPTANCES = Definition(
    "payswitch_acceptances_total",
    "counter",
    "What Redis said to payments: new, same (accepted before), other (with another amount), full "
    "(the backlog), sum (the ledger has reached its largest), broken (something else under the "
    "key), late (past its time limit).",
    ("verdict",),
)
REFUSALS = Definition(
    "payswitch_refusals_total",
    "counter",
    "Answers to POST /payments other than 202, by their HTTP status.",
    ("status",),
)
UNAVAILABLE = Definition(
    "payswitch_unavailable_total",
    "counter",
    "Why payments were answered 503: redis (it can't be used), memory (Redis is short of it), "
    "backlog (it is full), ledger (its sums are too large), refused (by Redis), silent (Redis "
    "gave no answer).",
    ("reason",),
)
SHORT_OF_MEMORY = Definition(
    "payswitch_redis_short_of_memory",
    "gauge",
    "1 while this ingress refuses payments because Redis is short of memory.",
)
REDIS_MEMORY = Definition(
    "payswitch_redis_memory_bytes",
    "gauge",
    "What Redis uses of its maxmemory; 0 where it doesn't say.",
)
REDIS_MEMORY_LIMIT = Definition(
    "payswitch_redis_memory_limit_bytes",
    "gauge",
    "Redis' maxmemory; 0 where it has none, or doesn't say.",
)

# A payments worker.
QUEUE_WAIT_SECONDS = Definition(
    "payswitch_queue_wait_seconds",
    "histogram",
    "From acceptance until a worker claimed the payment for the first time.",
)
CALL_SECONDS = Definition(
    "payswitch_processor_call_seconds",
    "histogram",
    "Calls that pay: how long each took, and how it ended.",
    ("processor", "outcome"),
)
SETTLE_SECONDS = Definition(
    "payswitch_settle_seconds",
    "histogram",
    "From acceptance until the ledger had the payment.",
    ("processor",),
)
SETTLED = Definition(
    "payswitch_settled_total", "counter", "Payments that this worker settled.", ("processor",)
)
JOBS = Definition(
    "payswitch_jobs_total",
    "counter",
    "Jobs by how they ended: complete, retried (given back), failed (Redis was away, or a bug).",
    ("result",),
)
BREAKER = Definition(
    "payswitch_breaker_state",
    "gauge",
    "1 for the state in which this worker's circuit breaker is: closed, open or half-open.",
    ("processor", "state"),
)
REFUSING = Definition(
    "payswitch_breaker_refusing",
    "gauge",
    "1 while this worker's circuit breaker is open because the processor refuses most payments.",
    ("processor",),
)
CALLS_IN_FLIGHT = Definition(
    "payswitch_calls_in_flight",
    "gauge",
    "Payments on their way to a processor in this worker.",
    ("processor",),
)
SLOTS_USED = Definition("payswitch_slots_used", "gauge", "Payments that this worker has in hand.")
SLOTS = Definition("payswitch_slots", "gauge", "Payments that this worker may have in hand.")

# The whole, by the health worker.
OVERVIEW_AT = Definition(
    "payswitch_overview_timestamp_seconds",
    "gauge",
    "When Redis was last read for what follows, by Redis' clock. Without an answer for 5 s the "
    "metrics of the whole are left out.",
)
BACKLOG = Definition(
    "payswitch_backlog", "gauge", "Payments that are neither settled nor dead letters."
)
OLDEST_AGE = Definition(
    "payswitch_oldest_age_seconds",
    "gauge",
    "How long the oldest unpaid payment has waited; 0 without one.",
)
IN_FLIGHT = Definition("payswitch_in_flight", "gauge", "Payments in the hands of all workers.")
DEAD_LETTERS = Definition("payswitch_dead_letters", "gauge", "Payments that can't be paid.")
INCIDENTS = Definition(
    "payswitch_incidents", "gauge", "Proofs of payment that match no pin, kept for a person."
)
LEDGER_PAYMENTS = Definition(
    "payswitch_ledger_payments_total",
    "counter",
    "Payments in the ledger; a purge begins anew.",
    ("processor",),
)
LEDGER_AMOUNT = Definition(
    "payswitch_ledger_amount_total",
    "counter",
    "What the ledger's payments add up to, in the currency's unit; a purge begins anew.",
    ("processor",),
)
FEES = Definition(
    "payswitch_fees",
    "gauge",
    "What the processors take of what is in the ledger, in the currency's unit: paid, and default "
    "if all had gone through that one. Left out while the fees aren't known.",
    ("through",),
)
SELECTED = Definition(
    "payswitch_selected",
    "gauge",
    "1 for the processor that the health check has chosen; none where its choice has expired.",
    ("processor",),
)
SELECTION_HEALTHY = Definition(
    "payswitch_selection_healthy",
    "gauge",
    "1 while the health check's choice is healthy, 0 where nothing is or nothing is chosen.",
)
SELECTION_AT = Definition(
    "payswitch_selection_timestamp_seconds", "gauge", "When the health check chose so."
)
OVERRIDE = Definition(
    "payswitch_override",
    "gauge",
    "1 for the processor that an operator has chosen.",
    ("processor",),
)
PAUSED = Definition("payswitch_paused", "gauge", "1 while an operator has paused the workers.")
PROCESSOR_HEALTHY = Definition(
    "payswitch_processor_healthy",
    "gauge",
    "1 where the processor said last that it is not failing; 0 where it said so, or nothing.",
    ("processor",),
)
PROCESSOR_LEAST_SECONDS = Definition(
    "payswitch_processor_min_response_seconds",
    "gauge",
    "The least answer time that the processor said last.",
    ("processor",),
)
HEALTH_CHECK_AT = Definition(
    "payswitch_health_check_timestamp_seconds",
    "gauge",
    "When the processor was last asked for its health.",
    ("processor",),
)
DIFFERENCES = Definition(
    "payswitch_reconcile_differences",
    "gauge",
    "Differences that the last reconciliation found; left out before the first.",
)
RECONCILED_AT = Definition(
    "payswitch_reconcile_timestamp_seconds", "gauge", "When that reconciliation was."
)
PROCESSES = Definition(
    "payswitch_processes",
    "gauge",
    "Processes that have said within 5 s that they live.",
    ("part",),
)


def build_info(part: str) -> Metric:
    """What runs here."""
    return BUILD_INFO.by({(part, version("payswitch")): 1})


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """A registry with these and what the process itself takes: CPU, memory, files."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """The text of a scrape, in Prometheus' text format 0.0.4 (`CONTENT_TYPE`)."""
    return generate_latest(registry)


class Facts(Collector):
    """A collector that asks a function at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        """What the function says now."""
        return self._collect()

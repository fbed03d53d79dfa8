"""The definitions of all metrics, and collectors for a scrape.

Names and units follow Prometheus' rules: the prefix of the application, base units (seconds, the
currency's unit), `_total` for counters. No label holds a payment's id. Where
the library's own objects would cost the hot path too much, a scrape reads counts that exist anyway.
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
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from payswitch.telemetry.histogram import Histogram

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The type of `generate_latest`'s text."""

disable_created_metrics()  # type: ignore[no-untyped-call]

Labelled = Mapping[tuple[str, ...], float]
"""Values by label values, in the labels' order."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric's name, type, meaning and labels."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    meaning: str
    labels: tuple[str, ...] = ()

    def one(self, value: float) -> Metric:
        """The metric with one value, without labels."""
        return self.by({(): value})

    def by(self, values: Labelled) -> Metric:
        """The metric with a value for each combination of label values."""
        family = self._family()
        for labels, value in values.items():
            family.add_sample(self.name, self._named(labels), value)
        return family

    def histograms(self, histograms: Mapping[tuple[str, ...], Histogram]) -> Metric:
        """The metric with a histogram for each combination of label values."""
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
        # The library adds a counter's ending itself.
        return Metric(self.name.removesuffix("_total"), self.meaning, self.kind)

    def _named(self, values: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self.labels, values, strict=True))


BUILD_INFO = Definition(
    "payswitch_build_info",
    "gauge",
    "Always 1; its labels name the part and the version.",
    ("part", "version"),
)
REDIS_FAILURES = Definition(
    "payswitch_redis_failures_total",
    "counter",
    "Turns of the process' main loop that Redis refused or did not answer.",
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
    "Redis' verdicts on payments: new, same (accepted before), other (accepted with another "
    "amount), full (the backlog), sum (the ledger's largest sum is reached), broken (the key holds "
    "something else), late (past the time limit).",
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
    "Payments answered 503, by reason: redis (it can't be used), memory (Redis is short of it), "
    "backlog (it is full), ledger (its largest sum is reached), refused (by Redis), silent (Redis "
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
    "Redis' used part of its maxmemory; 0 if unknown.",
)
REDIS_MEMORY_LIMIT = Definition(
    "payswitch_redis_memory_limit_bytes",
    "gauge",
    "Redis' maxmemory; 0 if unlimited or unknown.",
)

# A payments worker.
QUEUE_WAIT_SECONDS = Definition(
    "payswitch_queue_wait_seconds",
    "histogram",
    "From a payment's acceptance to its first claim by a worker.",
)
CALL_SECONDS = Definition(
    "payswitch_processor_call_seconds",
    "histogram",
    "Durations of calls that pay, by processor and outcome.",
    ("processor", "outcome"),
)
SETTLE_SECONDS = Definition(
    "payswitch_settle_seconds",
    "histogram",
    "From a payment's acceptance to its entry in the ledger.",
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
    "1 for the state of this worker's circuit breaker: closed, open or half-open.",
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
SLOTS_USED = Definition("payswitch_slots_used", "gauge", "Payments that this worker holds.")
SLOTS = Definition("payswitch_slots", "gauge", "The most payments that this worker may hold.")

# The whole, by the health worker.
OVERVIEW_AT = Definition(
    "payswitch_overview_timestamp_seconds",
    "gauge",
    "When Redis was last read for the metrics of the whole, by its clock. They are left out if "
    "that is more than 5 s ago.",
)
BACKLOG = Definition(
    "payswitch_backlog", "gauge", "Payments that are neither settled nor dead letters."
)
OLDEST_AGE = Definition(
    "payswitch_oldest_age_seconds",
    "gauge",
    "Age of the oldest unpaid payment; 0 without one.",
)
IN_FLIGHT = Definition("payswitch_in_flight", "gauge", "Payments that all workers hold.")
DEAD_LETTERS = Definition(
    "payswitch_dead_letters", "gauge", "Dead letters that nobody has replayed or resolved."
)
INCIDENTS = Definition(
    "payswitch_incidents",
    "gauge",
    "Incidents that nobody has resolved: proofs of payment that match no pin.",
)
LEDGER_PAYMENTS = Definition(
    "payswitch_ledger_payments_total",
    "counter",
    "Payments in the ledger; a purge resets it.",
    ("processor",),
)
LEDGER_AMOUNT = Definition(
    "payswitch_ledger_amount_total",
    "counter",
    "Sum of the ledger's payments, in the currency's unit; a purge resets it.",
    ("processor",),
)
FEES = Definition(
    "payswitch_fees",
    "gauge",
    "The processors' fees on the ledger's payments, in the currency's unit: paid, and default as "
    "if all had gone through that one. Left out while the fees are unknown.",
    ("through",),
)
SELECTED = Definition(
    "payswitch_selected",
    "gauge",
    "1 for the processor that the health check has chosen; none after its choice has expired.",
    ("processor",),
)
SELECTION_HEALTHY = Definition(
    "payswitch_selection_healthy",
    "gauge",
    "1 while the health check's choice is healthy; 0 if nothing is healthy or chosen.",
)
SELECTION_AT = Definition(
    "payswitch_selection_timestamp_seconds", "gauge", "When the health check made its choice."
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
    "1 if the processor last said that it is not failing; 0 if it is failing or did not say.",
    ("processor",),
)
PROCESSOR_LEAST_SECONDS = Definition(
    "payswitch_processor_min_response_seconds",
    "gauge",
    "The least response time that the processor last reported.",
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
    "payswitch_reconcile_timestamp_seconds", "gauge", "When the last reconciliation ran."
)
PROCESSES = Definition(
    "payswitch_processes",
    "gauge",
    "Processes with a heartbeat in the last 5 s.",
    ("part",),
)


def build_info(part: str) -> Metric:
    """The part and version of this process."""
    return BUILD_INFO.by({(part, version("payswitch")): 1})


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """A registry with these collectors and the process' own CPU, memory and files."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


class Facts(Collector):
    """A collector that asks a function at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

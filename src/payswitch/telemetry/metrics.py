"""The definitions of all metrics, and collectors for a scrape.

Names and units follow Prometheus' rules: the prefix of the application, base units (seconds, the
currency's unit), `_total` for counters. No label holds a payment's id. Where
the library's own objects would cost the hot path too much, a scrape reads counts that exist anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
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

    kind: str
    """`counter`, `gauge` or `histogram`."""
    name: str
    meaning: str
    labels: tuple[str, ...] = ()

    def one(self, value: float) -> Metric:
        """The metric with one value, without labels."""
        return self.by({(): value})

    def by(self, values: Labelled) -> Metric:
        """The metric with a value for each combination of label values."""
        new = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = new(self.name, self.meaning, labels=self.labels)
        for labels, value in values.items():
            family.add_metric(labels, value)
        return family

    def histograms(self, histograms: Mapping[tuple[str, ...], Histogram]) -> Metric:
        """The metric with a histogram for each combination of label values."""
        family = HistogramMetricFamily(self.name, self.meaning, labels=self.labels)
        for labels, histogram in histograms.items():
            buckets = [
                ("+Inf" if bound == math.inf else str(bound), count)
                for bound, count in histogram.cumulative()
            ]
            family.add_metric(labels, buckets, histogram.sum_ms / 1000)
        return family


_counter = partial(Definition, "counter")
_gauge = partial(Definition, "gauge")
_histogram = partial(Definition, "histogram")

BUILD_INFO = _gauge(
    "payswitch_build_info",
    "Always 1; its labels name the part and the version.",
    ("part", "version"),
)
REDIS_FAILURES = _counter(
    "payswitch_redis_failures_total",
    "Turns of the process' main loop that Redis refused or did not answer.",
)

# The ingress.
ACCEPT_SECONDS = _histogram(
    "payswitch_accept_seconds",
    "From POST /payments to its answer; result is accepted (202), refused (4xx), "
    "unavailable (503) or failed (500).",
    ("result",),
)
ACCEPTANCES = _counter(
    "payswitch_acceptances_total",
    "Redis' verdicts on payments: new, same (accepted before), other (accepted with another "
    "amount), metadata (accepted with other metadata), full (the backlog), sum (the ledger's "
    "largest sum is reached), broken (the key holds something else), late (past the time limit).",
    ("verdict",),
)
REFUSALS = _counter(
    "payswitch_refusals_total",
    "Answers to POST /payments other than 202, by their HTTP status.",
    ("status",),
)
UNAVAILABLE = _counter(
    "payswitch_unavailable_total",
    "Payments answered 503, by reason: redis (it can't be used), memory (Redis is short of it), "
    "backlog (it is full), ledger (its largest sum is reached), refused (by Redis), silent (Redis "
    "gave no answer).",
    ("reason",),
)
SHORT_OF_MEMORY = _gauge(
    "payswitch_redis_short_of_memory",
    "1 while this ingress refuses payments because Redis is short of memory.",
)
DURABILITY = _gauge(
    "payswitch_durability",
    "1 if Redis keeps what this ingress promises by a 202 (disk or process), 0 if it may keep "
    "less.",
    ("promise",),
)
REDIS_MEMORY = _gauge(
    "payswitch_redis_memory_bytes", "Redis' used part of its maxmemory; 0 if unknown."
)
REDIS_MEMORY_LIMIT = _gauge(
    "payswitch_redis_memory_limit_bytes", "Redis' maxmemory; 0 if unlimited or unknown."
)

# A payments worker.
QUEUE_WAIT_SECONDS = _histogram(
    "payswitch_queue_wait_seconds", "From a payment's acceptance to its first claim by a worker."
)
CALL_SECONDS = _histogram(
    "payswitch_processor_call_seconds",
    "Durations of calls that pay, by processor and outcome.",
    ("processor", "outcome"),
)
SETTLE_SECONDS = _histogram(
    "payswitch_settle_seconds",
    "From a payment's acceptance to its entry in the ledger.",
    ("processor",),
)
SETTLED = _counter("payswitch_settled_total", "Payments that this worker settled.", ("processor",))
JOBS = _counter(
    "payswitch_jobs_total",
    "Jobs by how they ended: complete, retried (given back), failed (Redis was away, or a bug).",
    ("result",),
)
BREAKER = _gauge(
    "payswitch_breaker_state",
    "1 for the state of this worker's circuit breaker: closed, open or half-open.",
    ("processor", "state"),
)
REFUSING = _gauge(
    "payswitch_breaker_refusing",
    "1 while this worker's circuit breaker is open because the processor refuses most payments.",
    ("processor",),
)
CALLS_IN_FLIGHT = _gauge(
    "payswitch_calls_in_flight",
    "Payments on their way to a processor in this worker.",
    ("processor",),
)
SLOTS_USED = _gauge("payswitch_slots_used", "Payments that this worker holds.")
SLOTS = _gauge("payswitch_slots", "The most payments that this worker may hold.")

# The whole, by the health worker.
NODE_UP = _gauge(
    "payswitch_redis_node_up",
    "1 if a node of the cluster that serves partitions answers; a replica is none of them.",
    ("node",),
)
NODE_REPLICAS = _gauge(
    "payswitch_redis_node_replicas", "Replicas of a node that are in step with it.", ("node",)
)
NODE_REPLICAS_WANTED = _gauge(
    "payswitch_redis_node_replicas_wanted", "Replicas that each node needs to accept payments."
)
PARTITIONS_CLOSED = _gauge(
    "payswitch_partitions_closed",
    "Partitions that take no payments, as their node is away or lacks replicas.",
)
OVERVIEW_AT = _gauge(
    "payswitch_overview_timestamp_seconds",
    "When Redis was last read for the metrics of the whole, by its clock. They are left out if "
    "that is more than 5 s ago.",
)
BACKLOG = _gauge("payswitch_backlog", "Payments that are neither settled nor dead letters.")
OLDEST_AGE = _gauge(
    "payswitch_oldest_age_seconds", "Age of the oldest unpaid payment; 0 without one."
)
IN_FLIGHT = _gauge("payswitch_in_flight", "Payments that all workers hold.")
HELD = _gauge("payswitch_held", "Payments that wait until a processor works again.", ("processor",))
DECLINED = _counter(
    "payswitch_declined_total",
    "Payments that a processor has declined; a purge resets it.",
    ("processor",),
)
DEAD_LETTERS = _gauge(
    "payswitch_dead_letters", "Dead letters that nobody has replayed or resolved."
)
INCIDENTS = _gauge(
    "payswitch_incidents",
    "Incidents that nobody has resolved: proofs of payment that match no pin.",
)
LEDGER_PAYMENTS = _counter(
    "payswitch_ledger_payments_total", "Payments in the ledger; a purge resets it.", ("processor",)
)
LEDGER_AMOUNT = _counter(
    "payswitch_ledger_amount_total",
    "Sum of the ledger's payments, in the currency's unit; a purge resets it.",
    ("processor",),
)
FEES = _gauge(
    "payswitch_fees",
    "The processors' fees on the ledger's payments, in the currency's unit: paid, and preferred as "
    "if all had gone through the first processor. Left out while the fees are unknown.",
    ("through",),
)
SELECTED = _gauge(
    "payswitch_selected",
    "1 for the processor that the health check has chosen; none after its choice has expired.",
    ("processor",),
)
SELECTION_HEALTHY = _gauge(
    "payswitch_selection_healthy",
    "1 while the health check's choice is healthy; 0 if nothing is healthy or chosen.",
)
SELECTION_AT = _gauge(
    "payswitch_selection_timestamp_seconds", "When the health check made its choice."
)
OVERRIDE = _gauge(
    "payswitch_override", "1 for the processor that an operator has chosen.", ("processor",)
)
PAUSED = _gauge("payswitch_paused", "1 while an operator has paused the workers.")
PROCESSOR_HEALTHY = _gauge(
    "payswitch_processor_healthy",
    "1 if the processor last said that it is not failing; 0 if it is failing or did not say.",
    ("processor",),
)
PROCESSOR_LEAST_SECONDS = _gauge(
    "payswitch_processor_min_response_seconds",
    "The least response time that the processor last reported.",
    ("processor",),
)
HEALTH_CHECK_AT = _gauge(
    "payswitch_health_check_timestamp_seconds",
    "When the processor was last asked for its health.",
    ("processor",),
)
DIFFERENCES = _gauge(
    "payswitch_reconcile_differences",
    "Differences that the last reconciliation found; left out before the first.",
)
RECONCILED_AT = _gauge("payswitch_reconcile_timestamp_seconds", "When the last reconciliation ran.")
PROCESSES = _gauge("payswitch_processes", "Processes with a heartbeat in the last 5 s.", ("part",))


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

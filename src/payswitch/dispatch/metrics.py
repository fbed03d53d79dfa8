"""The metrics of a payments worker, read from its own counts at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric

from payswitch.dispatch.counts import SettleCounts
from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.dispatch.routing import BreakerState
from payswitch.processors.outcomes import (
    Ended,
    NotPaid,
    NotSentInTime,
    Outcome,
    Paid,
    Refused,
    Unknown,
)
from payswitch.telemetry import metrics
from payswitch.telemetry.histogram import Histogram
from payswitch.telemetry.metrics import Facts

if TYPE_CHECKING:
    from payswitch.dispatch.payment_worker import PaymentWorker

_OUTCOMES: Mapping[type[Outcome], str] = {
    Paid: "paid",
    Refused: "refused",
    Ended: "ended",
    NotPaid: "not_paid",
    NotSentInTime: "not_sent",
    Unknown: "unknown",
}


def worker_registry(
    worker: PaymentWorker, dispatcher: Dispatcher, settled: SettleCounts
) -> CollectorRegistry:
    """All metrics of one worker."""
    names = dispatcher.router.breakers.keys()

    def collect() -> Iterable[Metric]:
        yield metrics.build_info("worker")
        yield metrics.REDIS_FAILURES.one(worker.redis_failures)
        yield metrics.QUEUE_WAIT_SECONDS.histograms({(): worker.claims.waits})
        yield metrics.CALL_SECONDS.histograms(_calls(dispatcher))
        yield metrics.SETTLE_SECONDS.histograms(
            {(name,): settled.times.get(name, Histogram()) for name in names}
        )
        yield metrics.SETTLED.by({(name,): settled.by_processor[name] for name in names})
        yield from _of_jobs(worker)
        yield from _of_breakers(dispatcher)

    return metrics.registry_of(Facts(collect))


def _calls(dispatcher: Dispatcher) -> dict[tuple[str, ...], Histogram]:
    """Every outcome, even with count 0, so that the first of its kind shows as an increase."""
    return {
        (name, outcome): dispatcher.calls.get((name, kind), Histogram())
        for name in dispatcher.router.breakers
        for kind, outcome in _OUTCOMES.items()
    }


def _of_jobs(worker: PaymentWorker) -> Iterable[Metric]:
    yield metrics.JOBS.by(
        {
            ("complete",): worker.jobs_complete,
            ("retried",): worker.jobs_retried,
            ("failed",): worker.jobs_failed,
        }
    )
    yield metrics.SLOTS_USED.one(len(worker.tasks))
    yield metrics.SLOTS.one(worker.max_jobs)


def _of_breakers(dispatcher: Dispatcher) -> Iterable[Metric]:
    breakers = dispatcher.router.breakers
    yield metrics.BREAKER.by(
        {
            (name, state.value): breaker.state is state
            for name, breaker in breakers.items()
            for state in BreakerState
        }
    )
    yield metrics.REFUSING.by({(name,): breaker.refusing for name, breaker in breakers.items()})
    yield metrics.CALLS_IN_FLIGHT.by(
        {(name,): breaker.in_flight for name, breaker in breakers.items()}
    )

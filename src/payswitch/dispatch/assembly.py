"""Builds the parts of a payments worker from the settings."""

from __future__ import annotations

import httpx
from redis.asyncio import Redis

from payswitch.dispatch.counts import SettleCounts
from payswitch.dispatch.dispatcher import Dispatcher, Pauses
from payswitch.dispatch.routing import Breaker, BreakerLimits, Router
from payswitch.payments.claims import Claim
from payswitch.payments.ledger import Ledger
from payswitch.payments.tries import Tries
from payswitch.processors.processor import make_processors
from payswitch.settings import Settings
from payswitch.telemetry.heartbeat import Fields, Heartbeat
from payswitch.telemetry.histogram import merged
from payswitch.telemetry.tracing import PaymentTrace, Traces


def worker_heartbeat(redis: Redis, dispatcher: Dispatcher, settled: SettleCounts) -> Heartbeat:
    """The heartbeat of a payments worker."""

    def collect() -> Fields:
        fields: dict[str, str | int] = {"settle_times": merged(settled.times.values()).text}
        for name, breaker in dispatcher.router.breakers.items():
            fields[f"breaker:{name}"] = ": ".join(filter(None, (breaker.state.value, breaker.why)))
            fields[f"in_flight:{name}"] = breaker.in_flight
        for name, count in settled.by_processor.items():
            fields[f"settled:{name}"] = count
        for (name, outcome), calls in dispatcher.calls.items():
            fields[f"tries:{name}:{outcome.__name__}"] = calls.total
        return fields

    heartbeat = Heartbeat(redis, "worker", collect)
    settled.redis_ahead_ms = lambda: heartbeat.redis_ahead_ms
    return heartbeat


def make_dispatcher(
    settings: Settings,
    redis: Redis,
    transport: httpx.AsyncBaseTransport,
    settled: SettleCounts | None = None,
    limits: BreakerLimits = BreakerLimits(),  # noqa: B008
) -> Dispatcher:
    """A payments worker's dispatcher, which counts in `settled`."""
    breakers = {
        name: Breaker(slots=settings.processor_slots, limits=limits)
        for name in settings.processor_urls
    }
    return Dispatcher(
        processors=make_processors(settings, transport),
        tries=Tries(
            redis,
            max_delay_ms=settings.processor_max_delay_ms,
            lease_ms=settings.lease_ms,
            retention_ms=settings.retention_ms,
        ),
        ledger=Ledger(
            redis,
            processors=list(settings.processor_urls),
            retention_ms=settings.retention_ms,
            on_settled=None if settled is None else settled.add,
        ),
        router=Router(breakers, probe_ms=limits.probe_ms, patience_ms=settings.patience_ms),
        pauses=Pauses(settings.retry_base_ms, settings.retry_cap_ms),
        lease_margin_ms=settings.lease_margin_ms,
    )


def payment_trace(
    traces: Traces, claim: Claim, traceparent: object, *, due_at: int
) -> PaymentTrace:
    """The trace of a claimed payment whose job carries this `traceparent`. Until the first try the
    wait counts from acceptance; later from `due_at` (ms by Redis' clock)."""
    began = due_at if claim.tries else claim.accepted_at
    return traces.payment(
        claim.correlation_id,
        traceparent,
        claim=claim.job_try,
        began_ms=min(began, claim.claimed_at),
        ended_ms=claim.claimed_at,
    )

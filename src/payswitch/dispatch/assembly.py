"""Puts the parts together from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from redis.asyncio import Redis

from payswitch.dispatch.dispatcher import Dispatcher, Pauses
from payswitch.dispatch.routing import Breaker, Router
from payswitch.http.transport import Transport
from payswitch.payments.ledger import Ledger
from payswitch.payments.tries import Tries
from payswitch.processors.books import ProcessorBooks
from payswitch.processors.processor import Processor
from payswitch.selection.health_check import HealthCheck
from payswitch.selection.selector import Limits, Selector
from payswitch.settings import Settings
from payswitch.telemetry.tracing import open_traces
from payswitch.telemetry.vitals import Fields, SettleCounts, Vitals

if TYPE_CHECKING:
    from payswitch.telemetry.traces import Traces

_BEYOND_THE_DELAY_MS = 500


def transport(settings: Settings) -> Transport:
    """The process' one pool of connections, to both processors.

    A payment leaves before the lease's margin begins, and what isn't acknowledged within the margin
    is dropped: so none reaches its processor after the lease.
    """
    # Questions (GET) go beside the payments.
    return Transport(
        max_connections_per_host=2 * settings.processor_slots,
        acknowledge_timeout=settings.lease_margin_ms / 1000,
    )


def processors(settings: Settings, transport: httpx.AsyncBaseTransport) -> dict[str, Processor]:
    """Both processors by name. A call is given up only after the processor's longest delay:
    hanging up earlier stops nothing over there and only makes unknowns."""
    return {
        name: Processor(
            name,
            url,
            transport,
            pay_limit_ms=settings.processor_max_delay_ms + _BEYOND_THE_DELAY_MS,
            find_limit_ms=settings.processor_find_limit_ms,
            connect_limit_ms=settings.processor_connect_limit_ms,
        )
        for name, url in settings.processor_urls.items()
    }


def books(settings: Settings, transport: httpx.AsyncBaseTransport) -> dict[str, ProcessorBooks]:
    """Both processors' books by name."""
    return {
        name: ProcessorBooks(
            name,
            url,
            transport,
            token=settings.processor_admin_token,
            connect_limit_ms=settings.processor_connect_limit_ms,
            limit_ms=settings.processor_find_limit_ms,
        )
        for name, url in settings.processor_urls.items()
    }


def worker_vitals(redis: Redis, dispatcher: Dispatcher, settled: SettleCounts) -> Vitals:
    """What a payments worker writes of itself."""

    def collect() -> Fields:
        fields: dict[str, str | int] = {"settle_times": settled.times.text}
        for name, breaker in dispatcher.router.breakers.items():
            fields[f"breaker:{name}"] = ": ".join(filter(None, (breaker.state.value, breaker.why)))
            fields[f"in_flight:{name}"] = breaker.in_flight
        for name, count in settled.by_processor.items():
            fields[f"settled:{name}"] = count
        for (name, outcome), tally in dispatcher.calls.items():
            fields[f"tries:{name}:{outcome.__name__}"] = tally.total
        return fields

    vitals = Vitals(redis, "worker", collect)
    settled.redis_ahead_ms = lambda: vitals.redis_ahead_ms
    return vitals


def dispatcher(
    settings: Settings,
    redis: Redis,
    transport: httpx.AsyncBaseTransport,
    settled: SettleCounts | None = None,
) -> Dispatcher:
    """What a payments worker works with; what it settles is counted in `settled`."""
    breakers = {
        name: Breaker(
            slots=settings.processor_slots,
            failures=settings.breaker_failures,
            refusals=settings.breaker_refusals,
            probe_ms=settings.breaker_probe_ms,
        )
        for name in settings.processor_urls
    }
    return Dispatcher(
        processors=processors(settings, transport),
        tries=Tries(
            redis, max_delay_ms=settings.processor_max_delay_ms, lease_ms=settings.lease_ms
        ),
        ledger=Ledger(
            redis,
            processors=list(settings.processor_urls),
            retention_ms=settings.retention_ms,
            on_settled=None if settled is None else settled.add,
        ),
        router=Router(breakers, probe_ms=settings.breaker_probe_ms),
        pauses=Pauses(settings.retry_base_ms, settings.retry_cap_ms),
        lease_margin_ms=settings.lease_margin_ms,
    )


def worker_traces(settings: Settings) -> Traces | None:
    """Where a payments worker writes down what it does; None where nobody asked for it."""
    return open_traces(settings, "payswitch-worker", settings.processor_urls)


def health_check(
    settings: Settings, redis: Redis, transport: httpx.AsyncBaseTransport
) -> HealthCheck:
    """What a health worker works with."""
    return HealthCheck(
        redis,
        list(processors(settings, transport).values()),
        Selector(
            redis,
            Limits(settings.fast_enough_ms, settings.fallback_advantage_ms),
            life_ms=settings.selection_ms,
        ),
        throttle_ms=settings.health_throttle_ms,
        lock_ms=settings.health_lock_ms,
        limit_ms=settings.health_limit_ms,
    )

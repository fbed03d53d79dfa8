"""The health check for arq: a cron function that runs every second. It has a queue and a process of
its own, so that it never waits behind payments.

Run it with `payswitch health`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from arq.cron import cron

from payswitch.dispatch.arq_worker import arq_redis_settings
from payswitch.operations.fees import FeeWatch
from payswitch.operations.history import HistoryWriter
from payswitch.operations.metrics import health_registry
from payswitch.processors.processor import make_processors, make_transport
from payswitch.selection.health_check import HealthCheck, Times, make_health_check
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.telemetry.heartbeat import Heartbeat
from payswitch.telemetry.metrics_server import MetricsServer

settings = Settings.from_environment()


async def check_health(ctx: dict[Any, Any]) -> None:
    """Check and select, if a check is due and no other process runs one."""
    health_check: HealthCheck = ctx["health_check"]
    await health_check.check()


async def startup(ctx: dict[Any, Any]) -> None:
    """Make the health check, the watches and the metrics server."""
    redis = ctx["redis"]
    ctx["transport"] = make_transport(settings)
    processors = make_processors(settings, ctx["transport"])
    ctx["health_check"] = make_health_check(settings, redis, list(processors.values()))
    history = HistoryWriter(redis, list(processors))
    ctx["watches"] = [Heartbeat(redis, "health", dict), history]
    if settings.processor_fees == "ask":
        ctx["watches"].append(FeeWatch(redis, processors))
    for watch in ctx["watches"]:
        watch.start()
    ctx["metrics"] = MetricsServer(health_registry(history, settings.currency))
    await ctx["metrics"].start(settings.metrics_host, settings.metrics_port)


async def shutdown(ctx: dict[Any, Any]) -> None:
    """Stop the watches and close the connections to the processors."""
    if "metrics" in ctx:
        await ctx["metrics"].close()
    for watch in ctx.get("watches", ()):
        await watch.close()
    if "transport" in ctx:
        await ctx["transport"].aclose()


class WorkerSettings:
    """arq's settings of the health queue."""

    cron_jobs = (
        cron(
            check_health,
            name="check_health",
            second=set(range(60)),
            microsecond=0,
            run_at_startup=True,
            # With job ids made from the wall clock, a clock set back would block the check.
            unique=False,
            timeout=Times().lock_ms / 1000,
            keep_result=0,
        ),
    )
    queue_name = keys.HEALTH_QUEUE
    redis_settings = arq_redis_settings(settings.redis_url)
    on_startup = startup
    on_shutdown = shutdown
    currency_code = settings.currency_code
    redis_trust = settings.redis_trust
    durability = settings.durability
    # arq also serializes the exception of a job whose key has expired.
    job_serializer = partial(orjson.dumps, default=repr)
    job_deserializer = orjson.loads
    keep_result = 0
    max_tries = 1
    health_check_interval = 1

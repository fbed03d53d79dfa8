"""The payments queue for arq: its job function and `WorkerSettings`.

Run it with `payswitch worker`. On a single Redis, `arq --check workers.payments.WorkerSettings`
tells whether a worker is alive.
"""

from __future__ import annotations

from typing import Any, cast

import orjson
from arq.typing import WorkerCoroutine
from arq.worker import func

from payswitch.dispatch.arq_worker import arq_redis_settings
from payswitch.dispatch.assembly import make_dispatcher, payment_trace, worker_heartbeat
from payswitch.dispatch.counts import SettleCounts
from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.dispatch.metrics import worker_registry
from payswitch.payments.accepting import JOB_FUNCTION
from payswitch.payments.claims import Claim
from payswitch.payments.known_processors import KnownProcessors
from payswitch.processors.processor import make_transport
from payswitch.settings import Settings
from payswitch.store import keys
from payswitch.telemetry.metrics_server import MetricsServer
from payswitch.telemetry.open_traces import open_traces

settings = Settings.from_environment()


async def pay(
    ctx: dict[Any, Any], /, *_: object, traceparent: object = None, **_others: object
) -> None:
    """Take the claim's payment as far as possible now. If an ingress traces it, the job has a
    `traceparent`. All other arguments are ignored, so that a job from a later version, or with
    foreign arguments, is paid."""
    dispatcher: Dispatcher = ctx["dispatcher"]
    claim: Claim = ctx["claim"]
    trace = payment_trace(ctx["traces"], claim, traceparent, due_at=ctx["score"])
    await dispatcher.dispatch(claim, trace, probe=ctx["probe"])


async def startup(ctx: dict[Any, Any]) -> None:
    """Make the dispatcher, traces, heartbeat and metrics server. Raises `SystemExit` under arq's
    own worker, which would delete unpaid payments, and `StrandedPaymentsError`."""
    if "payments_worker" not in ctx:
        raise SystemExit("arq's own worker would lose payments; start it as: payswitch worker")
    redis = ctx["redis"]
    ctx["transport"] = make_transport(settings)
    settled = SettleCounts()
    dispatcher = make_dispatcher(settings, redis, ctx["transport"], settled)
    # After all that may be wrong in the settings: other workers compare theirs with what it writes.
    await KnownProcessors(redis, settings.processor_urls).check()
    ctx["dispatcher"] = dispatcher
    ctx["traces"] = open_traces(settings, "payswitch-worker", settings.processor_urls)
    ctx["heartbeat"] = worker_heartbeat(redis, ctx["dispatcher"], settled)
    ctx["heartbeat"].start()
    ctx["metrics"] = MetricsServer(
        worker_registry(ctx["payments_worker"], ctx["dispatcher"], settled)
    )
    await ctx["metrics"].start(settings.metrics_host, settings.metrics_port)


async def shutdown(ctx: dict[Any, Any]) -> None:
    """Stop heartbeats and metrics, close the connections to the processors, send the last spans."""
    if "metrics" in ctx:
        await ctx["metrics"].close()
    if "heartbeat" in ctx:
        await ctx["heartbeat"].close()
    if "transport" in ctx:
        await ctx["transport"].aclose()
    if "traces" in ctx:
        await ctx["traces"].close()


class WorkerSettings:
    """arq's settings of the payments queue, and those of `PaymentWorker`."""

    # The cast: arq's type names the first parameter. `pay` has it positional-only, so that no
    # argument of a job can take its place.
    functions = (func(cast(WorkerCoroutine, pay), name=JOB_FUNCTION),)
    queue_name = keys.QUEUE
    redis_settings = arq_redis_settings(settings.redis_url)
    on_startup = startup
    on_shutdown = shutdown
    currency_code = settings.currency_code
    redis_trust = settings.redis_trust
    durability = settings.durability
    job_serializer = orjson.dumps
    job_deserializer = orjson.loads
    max_jobs = settings.worker_slots
    poll_delay = 0
    keep_result = 0
    health_check_interval = 1
    job_completion_wait = settings.stop_limit_ms // 1000
    processors = tuple(settings.processor_urls)
    claim_pause_ms = settings.claim_pause_ms
    lease_ms = settings.lease_ms
    deadline_ms = settings.payment_deadline_ms
    max_delay_ms = settings.processor_max_delay_ms
    probe_limit_ms = settings.processor_max_delay_ms + settings.processor_find_limit_ms + 1000
    sweep_ms = settings.sweep_ms

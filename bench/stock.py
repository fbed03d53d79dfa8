"""The stock configuration in `bench.pipeline`: the same service in plain Starlette, arq and httpx.

It stores payments in Redis and pays once if nothing fails, but promises less than payswitch: a
payment whose answer is lost may be paid twice, and one that fails five times is gone. Only arq's
slots and poll delay aren't at their defaults: those would hold it at 200 payments a second,
whatever their cost. Ten or a hundred slots made no difference beyond the noise, as arq starts its
jobs one after another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
from arq import Retry, create_pool
from arq.connections import RedisSettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

REDIS = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))
PROCESSOR = os.environ.get("PAYMENT_PROCESSOR_URL_DEFAULT", "http://127.0.0.1:8001")
SETTLED = "settled:default"


async def payments(request: Request) -> Response:
    """`POST /payments`: queue the payment."""
    payment = await request.json()
    correlation_id, amount = payment["correlationId"], payment["amount"]
    await request.app.state.redis.enqueue_job("pay", correlation_id, amount, _job_id=correlation_id)
    return JSONResponse({"status": "queued"}, status_code=202)


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.redis = await create_pool(REDIS)
    yield
    await app.state.redis.aclose()


app = Starlette(routes=[Route("/payments", payments, methods=["POST"])], lifespan=_lifespan)


async def pay(ctx: dict[str, Any], correlation_id: str, amount: float) -> None:
    """Pay through the processor and record it."""
    requested_at = datetime.now(UTC)
    instant = requested_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = {"correlationId": correlation_id, "amount": amount, "requestedAt": instant}
    try:
        response = await ctx["http"].post("/payments", json=body)
        response.raise_for_status()
    except httpx.HTTPError:
        raise Retry(defer=1) from None
    async with ctx["redis"].pipeline(transaction=True) as pipe:
        pipe.hset(f"payment:{correlation_id}", mapping={**body, "processor": "default"})
        pipe.zadd(SETTLED, {correlation_id: requested_at.timestamp()})
        await pipe.execute()


async def startup(ctx: dict[str, Any]) -> None:
    """Open the client."""
    ctx["http"] = httpx.AsyncClient(base_url=PROCESSOR)


async def shutdown(ctx: dict[str, Any]) -> None:
    """Close it."""
    await ctx["http"].aclose()


class WorkerSettings:
    """For `arq bench.stock.WorkerSettings`."""

    functions = (pay,)
    redis_settings = REDIS
    on_startup = startup
    on_shutdown = shutdown
    max_jobs = 20
    poll_delay = 0.01

"""The ASGI application of the ingress: routes, and a short cut for `POST /payments`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from payswitch.ingress import openapi, page
from payswitch.ingress.accept import Headers, require_own
from payswitch.ingress.endpoints import Ingress
from payswitch.ingress.payments_port import PaymentsPort
from payswitch.ingress.problems import (
    Problem,
    answer_bug,
    answer_http_exception,
    answer_problem,
    answer_redis_away,
)
from payswitch.settings import Settings
from payswitch.telemetry.tracing import Traces

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


class App(Starlette):
    """Starlette, except that `POST /payments` skips its middleware and router."""

    def __init__(
        self,
        pay: ASGIApp,
        require_own: Callable[[str, Headers], None],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._pay = pay
        self._require_own = require_own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan of the process."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        try:
            if scope["path"] == "/payments" and scope["method"] == "POST":
                await self._pay(scope, receive, send)
                return
            self._require_own(scope["method"], dict(scope["headers"]))
            await super().__call__(scope, receive, send)
        except Problem as problem:
            await problem.response()(scope, receive, send)
        except asyncio.CancelledError:
            logger.debug("a client hung up before its answer")


def create_app(
    settings: Settings,
    stopping: asyncio.Event | None = None,
    traces: Traces | None = None,
    payments_at: tuple[str, int] | None = None,
) -> Starlette:
    """The ASGI application. `stopping` ends the live page's streams. `traces` are closed with the
    application. `payments_at` (host, port) is a second port for payments, open for its lifespan."""
    ingress = Ingress(settings, stopping or asyncio.Event(), traces or Traces())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await ingress.open()
        payments_port = PaymentsPort(ingress.pay_whole, ingress.ready_whole)
        if payments_at is not None:
            await payments_port.open(*payments_at)
        yield
        await payments_port.close()
        await ingress.close()

    within = partial(_within, settings.accept_limit_ms / 1000)
    routes: list[tuple[str, str, Endpoint]] = [
        ("GET", "/payments/{id}", within(ingress.payment)),
        ("GET", "/payments-summary", within(ingress.summary)),
        ("POST", "/purge-payments", ingress.purge),
        ("GET", "/healthz", ingress.alive),
        ("GET", "/readyz", within(ingress.ready)),
        ("GET", "/metrics", ingress.metrics),
    ]
    pages = page.routes(lambda: ingress.live) if settings.page == "on" else []
    app = App(
        ingress.pay,
        partial(require_own, host_names=settings.allowed_host_names),
        routes=[
            Route("/payments", ingress.pay, methods=["POST"]),  # only for the 405 of other methods
            *(Route(path, endpoint, methods=[method]) for method, path, endpoint in routes),
            *openapi.routes(ingress.rules),
            *pages,
        ],
        lifespan=lifespan,
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_http_exception,
            RedisError: answer_redis_away,
            OSError: answer_redis_away,
            Exception: answer_bug,
        },
    )
    app.router.redirect_slashes = False
    return app


def _within(limit_s: float, endpoint: Endpoint) -> Endpoint:
    """The endpoint with a time limit: while Redis is frozen, each of several connections would use
    up its own limit, one after another."""

    async def bounded(request: Request) -> Response:
        async with asyncio.timeout(limit_s):
            return await endpoint(request)

    return bounded

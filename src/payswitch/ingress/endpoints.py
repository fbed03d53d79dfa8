"""All endpoints: each turns a request into calls of the domain, and the result into an answer."""

from __future__ import annotations

import asyncio
import hmac
import re
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from payswitch.http.server import Exchange
from payswitch.ingress.accept import PaymentsEndpoint
from payswitch.ingress.bodies import read_body
from payswitch.ingress.live import Live
from payswitch.ingress.metrics import IngressMetrics
from payswitch.ingress.problems import JSON, Answer, Problem, try_later
from payswitch.instants import format_instant, parse_instant_us
from payswitch.payments.accepting import AcceptQueue
from payswitch.payments.audit import Signature
from payswitch.payments.ledger import Ledger, summary_json
from payswitch.payments.payment import InvalidPaymentError, PaymentRules, parse_correlation_id
from payswitch.payments.purge import Purge, PurgeError
from payswitch.payments.records import Unreadable, read_record
from payswitch.process import collect_seldom
from payswitch.settings import Settings
from payswitch.store.client import connect
from payswitch.store.watch import RedisWatch
from payswitch.telemetry.heartbeat import Fields, Heartbeat
from payswitch.telemetry.metrics import CONTENT_TYPE
from payswitch.telemetry.tracing import Traces

_SPACE_OF_AN_OFFSET = re.compile(r" (?=\d\d(:?\d\d)?$)", re.ASCII)


class Ingress:
    """The endpoints over one Redis connection pool. Call `open` before the first request."""

    def __init__(self, settings: Settings, stopping: asyncio.Event, traces: Traces) -> None:
        self._settings = settings
        self._traces = traces
        self._stopping = stopping
        self._metrics = IngressMetrics(lambda: self._watch)
        self.rules = PaymentRules(settings.currency, settings.unknown_members == "ignore")

    async def open(self) -> None:
        """Start everything that the endpoints use; Redis may be away."""
        collect_seldom()
        settings = self._settings
        self._redis = connect(
            settings.redis_url,
            limit_s=settings.accept_limit_ms / 1000,
            deployment=settings.deployment,
        )
        self._queue = AcceptQueue(
            self._redis,
            limit_ms=settings.accept_limit_ms,
            max_backlog=settings.max_backlog,
            on_verdicts=self._metrics.verdicts,
        )
        self._ledger = Ledger(
            self._redis,
            processors=list(settings.processor_urls),
            retention_ms=settings.retention_ms,
        )
        self._purge = Purge(
            self._redis, list(settings.processor_urls), limit_ms=settings.accept_limit_ms
        )
        self._watch = RedisWatch(
            self._redis,
            currency=settings.currency_code,
            demand=settings.redis_trust == "require",
            durability=settings.durability,
            max_percent=settings.max_memory_percent,
            max_backlog=settings.max_backlog,
        )
        self._watch.start()
        self.payments = PaymentsEndpoint(
            self._queue,
            self._watch,
            self._metrics,
            self._traces,
            settings.allowed_host_names,
            self.rules,
        )
        self._heartbeat = Heartbeat(self._redis, "ingress", self._counts)
        self._heartbeat.start()
        self.live = Live(
            self._redis,
            list(settings.processor_urls),
            self._stopping,
            currency=self.rules.currency,
        )

    async def close(self) -> None:
        """Stop everything that `open` started."""
        await self.live.close()
        await self._heartbeat.close()
        await self._watch.close()
        await self._purge.close()
        await self._redis.aclose(close_connection_pool=True)
        await self._traces.close()

    async def pay(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /payments` as plain ASGI: Starlette's request and response would add a third to its
        cost."""
        headers = dict(scope["headers"])
        body = partial(read_body, receive, headers.get(b"content-length"))
        answer = await self.payments.accept(headers, body)
        start = {"status": answer.status, "headers": answer.headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": answer.body})

    async def pay_whole(self, exchange: Exchange) -> Answer:
        """`POST /payments` at the payments port, which reads requests whole."""

        async def read_body() -> bytes:
            return bytes(exchange.body)

        return await self.payments.accept(exchange.headers, read_body)

    async def ready_whole(self, exchange: Exchange) -> Answer:
        """`GET /readyz` at the payments port."""
        try:
            async with asyncio.timeout(self._settings.accept_limit_ms / 1000):
                body = await self._ready_body()
        except Problem as problem:
            return problem.answer()
        except (RedisError, OSError):
            return try_later("Redis does not answer").answer()
        length = str(len(body)).encode()
        return Answer(200, [(b"content-length", length), (b"content-type", JSON.encode())], body)

    async def payment(self, request: Request) -> Response:
        """`GET /payments/{id}`: one payment's record."""
        try:
            correlation_id = parse_correlation_id(request.path_params["id"])
        except InvalidPaymentError:
            raise Problem(HTTPStatus.NOT_FOUND, "no payment has such an id: not a UUID") from None
        record = await read_record(self._redis, correlation_id, confirm=True)
        if isinstance(record, Unreadable):
            raise Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"the record of payment {correlation_id} can't be read: {record.problem}",
            )
        if record is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"payment {correlation_id} is unknown")
        return Response(record.public_json(self.rules.currency), media_type=JSON)

    async def summary(self, request: Request) -> Response:
        """`GET /payments-summary`: totals by processor; both bounds are inclusive and optional. If
        the ledger is folded there, `Payswitch-Window` names the window of the totals."""
        first_us, last_us = _instant(request, "from"), _instant(request, "to")
        if first_us is not None and last_us is not None and first_us > last_us:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "`from` is after `to`")
        first_ms = None if first_us is None else -(-first_us // 1000)
        last_ms = None if last_us is None else last_us // 1000
        found = await self._ledger.window(first_ms, last_ms)
        headers = {}
        if (found.first, found.last) != (first_ms, last_ms):
            headers["payswitch-window"] = f"{_bound(found.first)}/{_bound(found.last)}"
        return Response(
            summary_json(found.totals, self.rules.currency), headers=headers, media_type=JSON
        )

    async def purge(self, request: Request) -> Response:
        """`POST /purge-payments`: forget everything, if `PAYSWITCH_PURGE` allows it."""
        settings = self._settings
        if settings.purge == "off":
            raise Problem(HTTPStatus.FORBIDDEN, "purging is switched off (PAYSWITCH_PURGE=off)")
        if settings.purge == "token":
            given = request.headers.get("authorization", "")
            wanted = f"Bearer {settings.purge_token}"
            if not hmac.compare_digest(given.encode(), wanted.encode()):
                raise Problem(
                    HTTPStatus.UNAUTHORIZED,
                    "purging needs the bearer token of PAYSWITCH_PURGE_TOKEN",
                    {"www-authenticate": "Bearer"},
                )
        client = request.client.host if request.client else "a unix socket"
        try:
            generation = await self._purge.run(Signature(f"{client} (HTTP)"))
        except PurgeError as error:
            raise try_later(f"{error}; repeat the purge") from None
        return Response(orjson.dumps({"generation": generation}), media_type=JSON)

    async def alive(self, request: Request) -> Response:
        """`GET /healthz`: the process is alive."""
        return Response(b'{"status":"alive"}', media_type=JSON)

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: ready to accept payments, and what a 202 stands for."""
        return Response(await self._ready_body(), media_type=JSON)

    async def _ready_body(self) -> bytes:
        """Raises `Problem` unless a payment would be accepted now, and a worker could take it."""
        await self._watch.look()
        reason = self._watch.not_ready
        if reason is not None:
            raise try_later(reason)
        kept = self._watch.is_kept
        ready: dict[str, Any] = {
            "status": "ready",
            "durability": {"promise": self._watch.durability, "kept": kept},
        }
        if refusals := self._watch.refusals:  # of some nodes of a cluster
            ready["refusals"] = refusals
        return orjson.dumps(ready)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics` for Prometheus, for all processes at this address."""
        return Response(self._metrics.scrape(), headers={"content-type": CONTENT_TYPE})

    def _counts(self) -> Fields:
        watch = self._watch
        return {
            "durability": watch.durability,
            "redis:may_lose_payments": int(not watch.is_kept),
            "redis:short_of_memory": int(watch.is_short),
            **self._metrics.counted(),
        }


def _bound(ms: int | None) -> str:
    """A bound of an ISO-8601 interval."""
    return ".." if ms is None else format_instant(ms)


def _instant(request: Request, name: str) -> int | None:
    texts = request.query_params.getlist(name)
    if len(texts) > 1:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"`{name}` is given twice")
    if not texts or not texts[0]:
        return None
    # A + that isn't encoded as %2B arrives as a space, the only one in an instant.
    text = _SPACE_OF_AN_OFFSET.sub("+", texts[0])
    try:
        return parse_instant_us(text)
    except (ValueError, OverflowError):
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"`{name}` must be an ISO-8601 instant in UTC such as 2026-07-10T12:34:56.000Z, "
            f"not {texts[0][:64]!r}",
        ) from None

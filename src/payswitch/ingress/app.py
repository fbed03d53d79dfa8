"""The ingress: parse, validate, accept, answer.

Thin: it speaks HTTP on one side and the domain's functions on the other, and spells no Redis
command.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import orjson
from redis.exceptions import RedisError, ResponseError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from payswitch.http.server import Exchange
from payswitch.ingress import openapi, page
from payswitch.ingress.live import Live
from payswitch.ingress.metrics import IngressMetrics
from payswitch.ingress.payments_port import MAX_BODY_BYTES, WHOLE_BODY, Answer, PaymentsPort
from payswitch.ingress.problem import MEDIA_TYPE, problem_json
from payswitch.instants import format_instant, parse_instant_us
from payswitch.origins import foreign_host, foreign_post
from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.ledger import Ledger, summary_json
from payswitch.payments.payment import (
    InvalidPaymentError,
    MalformedPaymentError,
    Payment,
    parse_correlation_id,
    parse_payment,
)
from payswitch.payments.purge import Purge
from payswitch.payments.records import UnreadableRecordError, read_record
from payswitch.process import collect_seldom
from payswitch.settings import Settings
from payswitch.store.client import connect
from payswitch.store.watch import RedisWatch
from payswitch.telemetry.metrics import CONTENT_TYPE
from payswitch.telemetry.vitals import Fields, Vitals

if TYPE_CHECKING:
    from payswitch.telemetry.traces import Step, Traces

logger = logging.getLogger(__name__)

BODY_LIMIT_S = 5.0
RETRY_AFTER_S = 1

_JSON = "application/json"
_CLOSE = {"connection": "close"}
_SPACE_OF_AN_OFFSET = re.compile(r" (?=\d\d(:?\d\d)?$)", re.ASCII)

Endpoint = Callable[[Request], Awaitable[Response]]


class Problem(Exception):  # noqa: N818 - RFC 9457's own name for it
    """An error answer as problem JSON (RFC 9457)."""

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers

    def response(self) -> Response:
        """The answer itself."""
        body = problem_json(self.status, self.detail)
        return Response(body, self.status, headers=self.headers, media_type=MEDIA_TYPE)


class Ingress:
    """The endpoints, over one Redis connection pool. `open` comes before the first request."""

    def __init__(
        self, settings: Settings, stopping: asyncio.Event, traces: Traces | None = None
    ) -> None:
        self._settings = settings
        self._host_names = settings.allowed_host_names
        self._traces = traces
        self._stopping = stopping
        self._metrics = IngressMetrics(lambda: self._watch)
        self._refused: Counter[int] = Counter()

    async def open(self) -> None:
        """Prepare the connections; Redis may be away."""
        collect_seldom()
        settings = self._settings
        self._redis = connect(settings.redis_url, limit_s=settings.accept_limit_ms / 1000)
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
        self._purge = Purge(self._redis, limit_ms=settings.accept_limit_ms)
        self._watch = RedisWatch(
            self._redis,
            demand=settings.redis_trust == "require",
            max_percent=settings.max_memory_percent,
            max_backlog=settings.max_backlog,
        )
        self._watch.start()
        self._vitals = Vitals(self._redis, "ingress", self._vital_signs)
        self._vitals.start()
        self.live = Live(self._redis, self._stopping)

    async def close(self) -> None:
        """Close the connections."""
        await self.live.close()
        await self._vitals.close()
        await self._watch.close()
        await self._purge.close()
        await self._redis.aclose(close_connection_pool=True)
        if self._traces is not None:
            await self._traces.close()

    async def pay_traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`pay`, as a span of the client's trace or of a new one."""
        assert self._traces is not None
        with self._traces.request(_header(scope, b"traceparent")) as step:

            async def watched_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    step.served(message["status"])
                await send(message)

            await self.pay(scope, receive, watched_send, step)

    async def pay(
        self, scope: Scope, receive: Receive, send: Send, step: Step | None = None
    ) -> None:
        """`POST /payments`: 202 once Redis holds the payment.

        Plain ASGI, as Starlette's request and response cost a third of the whole.
        """
        began = perf_counter()
        try:
            headers = dict(scope["headers"])
            self.require_own("POST", headers)
            _demand_json(headers.get(b"content-type"))
            payment = _read(await _read_body(scope, receive, headers.get(b"content-length")))
            if step is not None:
                step.is_for(payment.correlation_id)
            if self._watch.refusal is not None:
                await self._watch.look_again()
            self._require_redis()
            self._demand_acceptance(payment, await self._accept(payment, step))
        except Exception as error:
            await self._refusal(error, began)(scope, receive, send)
            return
        # Before it is sent: who has the answer finds it counted.
        self._metrics.accepted(perf_counter() - began)
        answered = _headers_of(payment)
        await send({"type": "http.response.start", "status": 202, "headers": answered})
        await send({"type": "http.response.body", "body": b""})

    def pay_at_once(self, exchange: Exchange, answer: Answer) -> None:
        """`POST /payments` whose body is whole, without a task and what ASGI takes between its ends
        (docs/performance.md). No answer comes before this returns."""
        began = perf_counter()
        try:
            self.require_own("POST", exchange.headers)
            _demand_json(exchange.headers.get(b"content-type"))
            payment = _read(bytes(exchange.body))
            if self._watch.refusal is None:
                self._queue.put(payment, partial(self._put, payment, began, answer))
            else:
                self._watch.after_look(partial(self._put_if_usable, payment, began, answer))
        except Exception as error:
            # Else who sends many bad requests at once had an answer to each, and nobody else one.
            asyncio.get_running_loop().call_soon(self._refuse, error, began, answer)

    def _put_if_usable(self, payment: Payment, began: float, answer: Answer) -> None:
        try:
            self._require_redis()
            self._queue.put(payment, partial(self._put, payment, began, answer))
        except Exception as error:
            self._refuse(error, began, answer)

    def _put(
        self, payment: Payment, began: float, answer: Answer, outcome: Acceptance | BaseException
    ) -> None:
        try:
            self._demand_acceptance(payment, outcome)
            headers = _headers_of(payment)
            # Before it is sent: who has the answer finds it counted.
            self._metrics.accepted(perf_counter() - began)
        except Exception as error:
            self._refuse(error, began, answer)
        else:
            answer(202, headers, b"")

    def _refuse(self, error: Exception, began: float, answer: Answer) -> None:
        response = self._refusal(error, began)
        answer(response.status_code, response.raw_headers, bytes(response.body))

    def _refusal(self, error: Exception, began: float) -> Response:
        """The answer to a payment that is not accepted, once it is counted."""
        if not isinstance(error, Problem):
            logger.error("a payment could not be accepted", exc_info=error)
            self._metrics.refused(500, perf_counter() - began)
            return _bug().response()
        self._refused[error.status.value] += 1
        self._metrics.refused(error.status.value, perf_counter() - began)
        return error.response()

    def require_own(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Raises `Problem` for a request that a browser sends for another site's page, or that is
        meant for another host. Header names are in lower case."""
        foreign = foreign_post(headers) if method == "POST" else None
        if foreign is None and self._host_names:
            foreign = foreign_host(headers, self._host_names)
        if foreign is not None:
            raise Problem(foreign.status, foreign.detail)

    def _require_redis(self) -> None:
        """Raises `Problem` where Redis can't be used, or is short of memory."""
        reason = self._watch.refusal
        if reason is not None:
            self._metrics.unavailable("redis" if self._watch.unusable else "memory")
            raise _try_later(f"the payment was not accepted: {reason}")

    async def _accept(self, payment: Payment, step: Step | None) -> Acceptance | NotAcceptedError:
        try:
            return await self._queue.accept(payment, None if step is None else step.traceparent)
        except NotAcceptedError as error:
            return error

    def _demand_acceptance(self, payment: Payment, outcome: Acceptance | BaseException) -> None:
        """Raises `Problem` unless Redis holds the payment."""
        match outcome:
            case Acceptance.NEW | Acceptance.SAME:
                return
            case NotAcceptedError():
                self._metrics.unavailable("refused" if outcome.refused else "silent")
                said = (
                    "the payment was not accepted"
                    if outcome.refused
                    else "it is not known whether the payment was accepted, so send it again"
                )
                raise _try_later(f"{said}: {outcome}")
            case Acceptance.OTHER_AMOUNT:
                raise Problem(
                    HTTPStatus.CONFLICT,
                    f"payment {payment.correlation_id} was accepted with another amount",
                )
            case Acceptance.BACKLOG_FULL:
                self._metrics.unavailable("backlog")
                raise _try_later("the payment was not accepted: too many are waiting")
            case Acceptance.LEDGER_FULL:
                self._metrics.unavailable("ledger")
                raise _try_later(
                    "the payment was not accepted: the ledger has reached its largest sum, "
                    "40,000,000,000,000,000.00"
                )
            case Acceptance.BROKEN:
                raise Problem(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    f"Redis holds something else under the key of {payment.correlation_id}",
                )
            case _:
                raise outcome

    async def payment(self, request: Request) -> Response:
        """`GET /payments/{id}`: what is known of one payment."""
        try:
            correlation_id = parse_correlation_id(request.path_params["id"])
        except InvalidPaymentError:
            raise Problem(HTTPStatus.NOT_FOUND, "no payment has such an id: not a UUID") from None
        try:
            record = await read_record(self._redis, correlation_id)
        except UnreadableRecordError as error:
            raise Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"the record of payment {correlation_id} can't be read: {error}",
            ) from None
        if record is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"payment {correlation_id} is unknown")
        return Response(record.as_json(), media_type=_JSON)

    async def summary(self, request: Request) -> Response:
        """`GET /payments-summary`: totals by processor, both bounds inclusive and optional. Where
        the ledger was folded, `Payswitch-Window` says which window was summed instead."""
        first_us, last_us = _instant(request, "from"), _instant(request, "to")
        if first_us is not None and last_us is not None and first_us > last_us:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "`from` is after `to`")
        first_ms = None if first_us is None else -(-first_us // 1000)
        last_ms = None if last_us is None else last_us // 1000
        found = await self._ledger.window(first_ms, last_ms)
        headers = {}
        if (found.first, found.last) != (first_ms, last_ms):
            headers["payswitch-window"] = f"{_bound(found.first)}/{_bound(found.last)}"
        return Response(summary_json(found.totals), headers=headers, media_type=_JSON)

    async def purge(self, request: Request) -> Response:
        """`POST /purge-payments`: forget everything. `PAYSWITCH_PURGE` says who may."""
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
        generation = await self._purge.run()
        return Response(orjson.dumps({"generation": generation}), media_type=_JSON)

    async def alive(self, request: Request) -> Response:
        """`GET /healthz`: the process is alive."""
        return Response(b'{"status":"alive"}', media_type=_JSON)

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: a payment would be accepted, and a worker could take it."""
        await self._watch.look()
        reason = self._watch.not_ready
        if reason is not None:
            raise _try_later(reason)
        return Response(b'{"status":"ready"}', media_type=_JSON)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: what Prometheus reads; of all processes at this address."""
        return Response(self._metrics.scrape(), headers={"content-type": CONTENT_TYPE})

    def _vital_signs(self) -> Fields:
        fields: dict[str, str | int] = {"redis:short_of_memory": int(self._watch.is_short)}
        fields |= {f"accepted:{verdict}": n for verdict, n in self._queue.verdicts.items()}
        fields |= {f"refused:{status}": n for status, n in self._refused.items()}
        return fields


class _PlainEndpoint:
    """Tells Starlette that an endpoint speaks ASGI itself: an object, not a function."""

    def __init__(self, endpoint: ASGIApp) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope, receive, send)


class App(Starlette):
    """What Starlette routes; but `POST /payments` goes past its middleware and router."""

    def __init__(
        self,
        pay: ASGIApp,
        require_own: Callable[[str, Mapping[bytes, bytes]], None],
        **options: Any,
    ) -> None:
        plain = Route("/payments", _PlainEndpoint(pay), methods=["POST"])
        super().__init__(routes=[plain, *options.pop("routes")], **options)
        self._pay = pay
        self._require_own = require_own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the process."""
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
    """The ASGI application. `stopping` ends what would never end by itself, the live page's
    streams. `traces` are closed with it. `payments_at` (host, port) takes payments besides, from
    its start to its end."""
    ingress = Ingress(settings, stopping or asyncio.Event(), traces)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await ingress.open()
        # A trace's step is a context of its own, which only a task has.
        payments_port = PaymentsPort(app, ingress.pay_at_once if traces is None else None)
        if payments_at is not None:
            await payments_port.start(*payments_at)
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
    pages = page.routes(lambda: ingress.live, _too_many) if settings.page == "on" else []
    app = App(
        ingress.pay if traces is None else ingress.pay_traced,
        ingress.require_own,
        routes=[
            *(Route(path, endpoint, methods=[method]) for method, path, endpoint in routes),
            *openapi.routes(),
            *pages,
        ],
        lifespan=lifespan,
        exception_handlers={
            Problem: _answer_problem,
            HTTPException: _answer_http_exception,
            RedisError: _answer_redis_away,
            OSError: _answer_redis_away,
            Exception: _answer_bug,
        },
    )
    app.router.redirect_slashes = False
    return app


def _within(limit_s: float, endpoint: Endpoint) -> Endpoint:
    """The endpoint, given up after the limit: while Redis is frozen, connections to it are opened
    one after another, and each takes its whole time limit."""

    async def bounded(request: Request) -> Response:
        async with asyncio.timeout(limit_s):
            return await endpoint(request)

    return bounded


def _bound(ms: int | None) -> str:
    """A bound of a window as ISO 8601 has it."""
    return ".." if ms is None else format_instant(ms)


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return cast(bytes, value)
    return None


def _read(body: bytes) -> Payment:
    """The payment in a body. Raises `Problem`."""
    try:
        return parse_payment(body)
    except MalformedPaymentError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None
    except InvalidPaymentError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None


def _headers_of(payment: Payment) -> list[tuple[bytes, bytes]]:
    """Those of a payment's acceptance."""
    location = b"/payments/" + payment.correlation_id.encode()
    return [(b"location", location), (b"content-length", b"0")]


def _demand_json(content_type: bytes | None) -> None:
    if content_type is None or content_type == _JSON.encode():
        return
    media_type = content_type.decode("latin-1").partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type must be {_JSON}, or be left out; it is {media_type[:64]!r}",
            {"accept": _JSON},
        )


async def _read_body(scope: Scope, receive: Receive, announced: bytes | None) -> bytes:
    """The whole body, of which `Content-Length` has announced so many bytes. Raises `Problem`; the
    connection is closed then, as the rest of the body would be taken for a request."""
    if WHOLE_BODY in (scope.get("extensions") or ()):
        return cast(bytes, (await receive())["body"])
    body = b""
    # What is complete by its announced length is not asked for more: that costs 6 µs.
    expected = MAX_BODY_BYTES + 1 if announced is None else int(announced)
    _require_size(0 if announced is None else expected)
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            is_complete = False
            while not is_complete:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(HTTPStatus.BAD_REQUEST, "the client hung up", _CLOSE)
                body += message.get("body", b"")
                _require_size(len(body))
                is_complete = len(body) >= expected or not message.get("more_body")
    except TimeoutError:
        detail = f"the body must come within {BODY_LIMIT_S:g} s"
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, detail, _CLOSE) from None
    return body


def _require_size(size: int) -> None:
    if size > MAX_BODY_BYTES:
        detail = f"the body must be at most {MAX_BODY_BYTES} bytes"
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, _CLOSE)


def _instant(request: Request, name: str) -> int | None:
    texts = request.query_params.getlist(name)
    if len(texts) > 1:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"`{name}` is given twice")
    if not texts or not texts[0]:
        return None
    # A + that isn't encoded as %2B arrives as a space. Nothing else in an instant is one.
    text = _SPACE_OF_AN_OFFSET.sub("+", texts[0])
    try:
        return parse_instant_us(text)
    except (ValueError, OverflowError):
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"`{name}` must be an ISO-8601 instant in UTC such as 2026-07-10T12:34:56.000Z, "
            f"not {texts[0][:64]!r}",
        ) from None


def _try_later(detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    headers = {"retry-after": str(RETRY_AFTER_S), **(headers or {})}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers)


def _too_many() -> Problem:
    return _try_later("too many watch the live page through this ingress")


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    allowed = (error.headers or {}).get("Allow", "nothing")
    details = {
        HTTPStatus.NOT_FOUND: f"there is nothing at {request.url.path[:200]}{_nearest(request)}",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method[:16]} is not allowed here, but {allowed}",
    }
    return Problem(status, details.get(status, error.detail), error.headers).response()


def _nearest(request: Request) -> str:
    """The path that was meant, where slashes and capital letters are all that is wrong."""
    path = "/" + "/".join(part for part in request.url.path[:200].lower().split("/") if part)
    scope = {**request.scope, "path": path}
    routes = request.app.routes
    meant = path != request.url.path and any(
        route.matches(scope)[0] is not Match.NONE for route in routes
    )
    return f": {path} was meant" if meant else ""


async def _answer_redis_away(request: Request, error: Exception) -> Response:
    refused = isinstance(error, ResponseError)
    return _try_later("Redis refuses" if refused else "Redis does not answer").response()


async def _answer_bug(request: Request, error: Exception) -> Response:
    return _bug().response()


def _bug() -> Problem:
    detail = "something is wrong in here; the log says what"
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)

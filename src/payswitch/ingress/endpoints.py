"""The endpoints: parse, validate, accept, answer.

Thin: they speak HTTP on one side and the domain's functions on the other, and spell no Redis
command.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, cast

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from payswitch.http.server import Exchange
from payswitch.ingress.bodies import read_body
from payswitch.ingress.live import Live
from payswitch.ingress.metrics import IngressMetrics
from payswitch.ingress.payments_port import Answer
from payswitch.ingress.problems import Problem, bug, try_later
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

_JSON = "application/json"

_SPACE_OF_AN_OFFSET = re.compile(r" (?=\d\d(:?\d\d)?$)", re.ASCII)


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
            payment = _read(await read_body(scope, receive, headers.get(b"content-length")))
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
            return bug().response()
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
            raise try_later(f"the payment was not accepted: {reason}")

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
                raise try_later(f"{said}: {outcome}")
            case Acceptance.OTHER_AMOUNT:
                raise Problem(
                    HTTPStatus.CONFLICT,
                    f"payment {payment.correlation_id} was accepted with another amount",
                )
            case Acceptance.BACKLOG_FULL:
                self._metrics.unavailable("backlog")
                raise try_later("the payment was not accepted: too many are waiting")
            case Acceptance.LEDGER_FULL:
                self._metrics.unavailable("ledger")
                raise try_later(
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
            raise try_later(reason)
        return Response(b'{"status":"ready"}', media_type=_JSON)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: what Prometheus reads; of all processes at this address."""
        return Response(self._metrics.scrape(), headers={"content-type": CONTENT_TYPE})

    def _vital_signs(self) -> Fields:
        fields: dict[str, str | int] = {"redis:short_of_memory": int(self._watch.is_short)}
        fields |= {f"accepted:{verdict}": n for verdict, n in self._queue.verdicts.items()}
        fields |= {f"refused:{status}": n for status, n in self._refused.items()}
        return fields


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

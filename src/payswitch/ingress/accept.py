"""Answers `POST /payments` once Redis holds the payment: the only way in."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from time import perf_counter

from payswitch.ingress.metrics import IngressMetrics
from payswitch.ingress.problems import JSON, Answer, Problem, bug, try_later
from payswitch.origins import foreign_host, foreign_post
from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.payment import (
    InvalidPaymentError,
    MalformedPaymentError,
    Payment,
    PaymentRules,
    parse_payment,
)
from payswitch.store.server_watch import ServerWatch
from payswitch.store.watch import RedisWatch
from payswitch.telemetry.tracing import Traces

logger = logging.getLogger(__name__)

Headers = Mapping[bytes, bytes]
"""A request's headers; names are in lower case."""


class PaymentsEndpoint:
    """Accepts payments from either port."""

    def __init__(
        self,
        queue: AcceptQueue,
        watch: RedisWatch,
        metrics: IngressMetrics,
        traces: Traces,
        host_names: frozenset[str],
        rules: PaymentRules,
    ) -> None:
        self._queue = queue
        self._watch = watch
        self._metrics = metrics
        self._traces = traces
        self._host_names = host_names
        self._rules = rules

    async def accept(self, headers: Headers, read_body: Callable[[], Awaitable[bytes]]) -> Answer:
        """The answer to a payment: 202 once Redis holds it. The body is read only if the headers
        are valid."""
        began = perf_counter()
        with self._traces.request(headers.get(b"traceparent")) as step:
            try:
                require_own("POST", headers, self._host_names)
                _require_json(headers.get(b"content-type"))
                payment = _read(await read_body(), self._rules)
                step.is_for(payment.correlation_id)
                if self._watch.of(payment.correlation_id).refusal is not None:
                    await self._watch.look_again()
                    self._require_redis(self._watch.of(payment.correlation_id))
                acceptance = await self._queue.accept(payment, step.traceparent)
                self._require_acceptance(payment, acceptance)
                location = b"/payments/" + payment.correlation_id.encode()
                answer = Answer(202, [(b"location", location), (b"content-length", b"0")])
                # Before it is sent: a client that has the answer finds it counted.
                self._metrics.accepted(perf_counter() - began)
            except Exception as error:
                answer = self._refusal(error, perf_counter() - began)
            step.served(answer.status)
        return answer

    def _refusal(self, error: Exception, seconds: float) -> Answer:
        """Count a payment that is not accepted, and answer it."""
        if isinstance(error, NotAcceptedError):
            error = self._not_accepted(error)
        if not isinstance(error, Problem):
            logger.error("a payment could not be accepted", exc_info=error)
            error = bug()
        self._metrics.refused(error.status.value, seconds)
        return error.answer()

    def _require_redis(self, server: ServerWatch) -> None:
        """Raises `Problem` if the payment's server can't be used or is short of memory."""
        reason = server.refusal
        if reason is not None:
            self._metrics.unavailable("redis" if server.unusable else "memory")
            raise try_later(f"the payment was not accepted: {reason}")

    def _require_acceptance(self, payment: Payment, acceptance: Acceptance) -> None:
        """Raises `Problem` unless Redis holds the payment."""
        match acceptance:
            case Acceptance.OTHER_AMOUNT:
                raise _conflict(payment, "another amount")
            case Acceptance.OTHER_METADATA:
                raise _conflict(payment, "other metadata")
            case Acceptance.BACKLOG_FULL:
                self._metrics.unavailable("backlog")
                raise try_later("the payment was not accepted: too many are waiting")
            case Acceptance.LEDGER_FULL:
                self._metrics.unavailable("ledger")
                raise try_later(
                    "the payment was not accepted: the ledger has reached its largest sum"
                )
            case Acceptance.BROKEN:
                raise Problem(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    f"Redis holds something else under the key of {payment.correlation_id}",
                )

    def _not_accepted(self, error: NotAcceptedError) -> Problem:
        self._metrics.unavailable("refused" if error.refused else "silent")
        if error.refused:
            return try_later(f"the payment was not accepted: {error}")
        return try_later(
            f"it is not known whether the payment was accepted, so send it again: {error}"
        )


def _conflict(payment: Payment, other: str) -> Problem:
    detail = f"payment {payment.correlation_id} was accepted with {other}"
    return Problem(HTTPStatus.CONFLICT, detail)


def require_own(method: str, headers: Headers, host_names: frozenset[str]) -> None:
    """Raises `Problem` for a request that a browser sends for another site's page, or for another
    host. An empty `host_names` allows any host."""
    foreign = foreign_post(headers) if method == "POST" else None
    if foreign is None and host_names:
        foreign = foreign_host(headers, host_names)
    if foreign is not None:
        raise Problem(foreign.status, foreign.detail)


def _require_json(content_type: bytes | None) -> None:
    if content_type is None or content_type == JSON.encode():
        return
    media_type = content_type.decode("latin-1").partition(";")[0].strip().lower()
    if media_type != JSON:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type must be {JSON}, or be left out; it is {media_type[:64]!r}",
            {"accept": JSON},
        )


def _read(body: bytes, rules: PaymentRules) -> Payment:
    """The payment in a body. Raises `Problem`."""
    try:
        return parse_payment(body, rules)
    except MalformedPaymentError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None
    except InvalidPaymentError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None

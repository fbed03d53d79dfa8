"""A port of the ingress that takes payments from a load balancer, in the process' own loop.

Granian hands each request between three threads, up to twelve times, which is most of what a
payment costs in an ingress when they come one by one (docs/performance.md). Between a load balancer
that has read a request whole and an ingress little is needed of HTTP, so these go to the same
ingress without a hand-over, and payments without ASGI. Everything else, and who comes without a
load balancer, is Granian's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Scope

from payswitch.http.listening import ListenError
from payswitch.http.server import Bounds, Exchange, Listener, Reply, reply
from payswitch.ingress.problems import MEDIA_TYPE, problem_json
from payswitch.reasons import reason

logger = logging.getLogger(__name__)

IDLE_S = 5.0
MAX_BODY_BYTES = 4 * 1024
"""A payment takes 100. The worst body of this size is refused within 0.5 ms, of 64 KiB in 14 ms:
for so long nobody else is served."""
WHOLE_BODY = "payswitch.whole_body"
"""Stands among a scope's ASGI extensions where the body comes whole, within its bounds, as the
first message: asking for it takes no time, and needs no limit."""

Answer = Callable[[int, Iterable[tuple[bytes, bytes]], bytes], None]
"""Takes an answer's status, headers and body."""

_PAYMENT = (b"POST", b"/payments")
_SERVED = frozenset({_PAYMENT, (b"GET", b"/readyz")})


def _refusal(status: HTTPStatus, detail: str) -> Reply:
    return reply(status, problem_json(status, detail), content_type=MEDIA_TYPE.encode())


_NOTHING_ELSE = _refusal(
    HTTPStatus.NOT_FOUND, "there is nothing but POST /payments and GET /readyz at this port"
)
_BOUNDS = Bounds(
    body_bytes=MAX_BODY_BYTES,
    request_bytes=2 * MAX_BODY_BYTES,
    connections=1024,
    pipelining=False,
    malformed=_refusal(HTTPStatus.BAD_REQUEST, "this is no HTTP request"),
    too_large=_refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body must be at most {MAX_BODY_BYTES} bytes",
    ),
    too_slow=_refusal(HTTPStatus.REQUEST_TIMEOUT, f"the body must come within {IDLE_S:g} s"),
)


class PaymentsPort:
    """Serves `POST /payments`, and `GET /readyz` for the load balancer's checks, from an ASGI
    application whose answers are whole. Where there is a `pay`, it gets the payments instead, and
    gives each an answer after it has returned: a request that comes before is one too many.

    A connection that brings no whole request for `IDLE_S` to twice that is closed; so is the oldest
    that waits for no answer, where there are too many, and one on which the next request comes
    before an answer, after that answer.
    """

    def __init__(self, app: ASGIApp, pay: Callable[[Exchange, Answer], None] | None = None) -> None:
        self._app = app
        self._pay = pay
        self._unanswered = 0
        self._all_answered = asyncio.Event()
        self._listener = Listener(self._handle, _BOUNDS)
        self._under_way: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen there. Raises `ListenError` when the address is taken."""
        try:
            await self._listener.start(host, port)
        except OSError as error:
            raise ListenError(f"port {port}: {reason(error, host)}") from None
        self._sweeping = asyncio.create_task(self._sweep(), name="idle connections")

    async def close(self) -> None:
        """Stop listening, answer what is under way, and end the connections."""
        if self._sweeping is None:
            return
        self._sweeping.cancel()
        await asyncio.wait([self._sweeping])
        self._listener.finish()
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._all_answered.clear()
        if self._unanswered:
            await self._all_answered.wait()
        await self._listener.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S)
            self._listener.end_idle()

    def _handle(self, exchange: Exchange) -> None:
        asked = (exchange.method, exchange.path)
        if asked == _PAYMENT and self._pay is not None:
            self._unanswered += 1
            self._pay(exchange, partial(self._answer, exchange))
            return
        if asked not in _SERVED:
            exchange.close_after()
            is_head = exchange.method == b"HEAD"
            exchange.answer(_NOTHING_ELSE.without_body() if is_head else _NOTHING_ELSE)
            return
        task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def _answer(
        self,
        exchange: Exchange,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
    ) -> None:
        self._unanswered -= 1
        exchange.answer(Reply(_head(status, headers), body))
        if not self._unanswered:
            self._all_answered.set()

    async def _serve(self, exchange: Exchange) -> None:
        is_read = False
        head = b""
        body = b""

        async def receive() -> Message:
            nonlocal is_read
            if is_read:
                return {"type": "http.disconnect"}
            is_read = True
            return {"type": "http.request", "body": bytes(exchange.body), "more_body": False}

        async def send(message: Message) -> None:
            nonlocal head, body
            if message["type"] == "http.response.start":
                head = _head(message["status"], message["headers"])
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                exchange.answer(Reply(head, body))

        try:
            await self._app(_scope(exchange), receive, send)
        except Exception:
            logger.exception("Application callable raised an exception")
        if exchange.outcome is None:
            exchange.hang_up()


def _scope(exchange: Exchange) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": exchange.method.decode(),
        "scheme": "http",
        "path": exchange.path.decode(),
        "raw_path": exchange.path,
        "query_string": exchange.query,
        "root_path": "",
        "headers": list(exchange.headers.items()),
        "extensions": {WHOLE_BODY: {}},
    }


def _head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    lines = [_status_line(status)]
    lines += [name + b": " + value for name, value in headers]
    lines += (_date_line(int(time.time())), b"")
    return b"\r\n".join(lines)


@lru_cache
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()


@lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return f"date: {formatdate(second, usegmt=True)}".encode()

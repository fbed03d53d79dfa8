"""A port of the ingress that takes payments from a load balancer, in the process' own loop.

Granian hands each request between three threads, up to twelve times: most of the cost of a payment
if they come one by one (docs/performance.md). A load balancer reads requests whole, so this port
needs little of HTTP, no other thread and no ASGI. Granian serves all other requests and clients.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from payswitch.http.listening import ListenError
from payswitch.http.server import Bounds, Exchange, Listener, Reply, reply
from payswitch.ingress.bodies import MAX_BODY_BYTES
from payswitch.ingress.problems import MEDIA_TYPE, Answer, problem_json
from payswitch.reasons import reason
from payswitch.store.periodic import Periodic

logger = logging.getLogger(__name__)

IDLE_S = 5.0


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


Serve = Callable[[Exchange], Awaitable[Answer]]


class PaymentsPort(Periodic):
    """Serves `POST /payments`, and `GET /readyz` for the load balancer's checks.

    A connection that brings no whole request for `IDLE_S` to twice that is closed; so is the oldest
    that waits for no answer, where there are too many, and one on which the next request comes
    before an answer, after that answer.
    """

    def __init__(self, pay: Serve, ready: Serve) -> None:
        super().__init__("end of idle connections", IDLE_S)
        self._served = {(b"POST", b"/payments"): pay, (b"GET", b"/readyz"): ready}
        self._listener = Listener(self._handle, _BOUNDS)
        self._under_way: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> None:
        """Listen there. Raises `ListenError` when the address is taken."""
        try:
            await self._listener.start(host, port)
        except OSError as error:
            raise ListenError(f"port {port}: {reason(error, host)}") from None
        self.start()

    async def close(self) -> None:
        """Stop listening, answer what is under way, and end the connections."""
        await super().close()
        self._listener.finish()
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._listener.close()

    async def turn(self) -> None:
        """End idle connections."""
        self._listener.end_idle()

    def _handle(self, exchange: Exchange) -> None:
        serve = self._served.get((exchange.method, exchange.path))
        if serve is None:
            exchange.close_after()
            exchange.answer(_NOTHING_ELSE)
            return
        task = asyncio.get_running_loop().create_task(self._serve(exchange, serve))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _serve(self, exchange: Exchange, serve: Serve) -> None:
        try:
            answer = await serve(exchange)
        except Exception:
            logger.exception("Application callable raised an exception")
            exchange.hang_up()
        else:
            exchange.answer(Reply(_head(answer.status, answer.headers), answer.body))


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

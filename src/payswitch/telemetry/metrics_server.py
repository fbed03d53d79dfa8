"""`GET /metrics` of a worker or the health worker, at a port of its own.

It runs in the process' loop: a thread could take the interpreter's lock from payments at any time.
It uses our own HTTP server: Granian would add 1 MB to a worker's 40.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest

from payswitch.http.listening import ListenError, numeric
from payswitch.http.server import Exchange, Listener, message, reply
from payswitch.reasons import reason
from payswitch.telemetry import metrics

logger = logging.getLogger(__name__)


def check_address(host: str, port: int) -> None:
    """Raise `ListenError` unless the metrics' address is free; port 0 means no metrics."""
    if port:
        numeric(host, port, _name(host, port))


class MetricsServer:
    """Serves one registry while it is started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._listener = Listener(self._answer)

    async def start(self, host: str, port: int) -> None:
        """Listen at an address; port 0 means not at all. Raises `ListenError`."""
        if not port:
            return
        try:
            await self._listener.start(host, port)
        except OSError as error:
            raise ListenError(f"{_name(host, port)}: {reason(error, host)}") from None
        logger.info("metrics at %(address)s", {"address": f"{host}:{port}"})

    async def close(self) -> None:
        """Stop listening."""
        await self._listener.close()

    def _answer(self, exchange: Exchange) -> None:
        # A scrape takes the loop for 2 ms, and one packet could hold thousands of them.
        exchange.close_after()
        if exchange.path != b"/metrics":
            answer = message(HTTPStatus.NOT_FOUND, "there is nothing but /metrics")
        elif exchange.method not in (b"GET", b"HEAD"):
            allowed = b"Allow: GET, HEAD"
            answer = message(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is allowed here", allowed)
        else:
            text = generate_latest(self._registry)
            answer = reply(HTTPStatus.OK, text, content_type=metrics.CONTENT_TYPE.encode())
        exchange.answer(answer)


def _name(host: str, port: int) -> str:
    return f"{host}:{port} for the metrics"

"""The candidates for calls to a processor, each as one function that posts and returns the answer.

Each is tuned for the purpose: as many connections as calls, limits for every phase, no cookies, no
redirects.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pyreqwest.client import ClientBuilder
from pyreqwest.compatibility.httpx import HttpxTransport

from payswitch.http.transport import Transport

STOCK = "stock httpx"
OURS = "ours, called directly"

_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits: seconds for a call, number of connections, and bytes of a response if the candidate
    has such a limit."""

    connections: int
    connect_s: float = 60.0
    pool_s: float = 60.0
    read_s: float = 60.0
    response_bytes: int = 64 * 1024

    def for_httpx(self) -> httpx.Timeout:
        """As httpx takes them."""
        return httpx.Timeout(
            connect=self.connect_s, pool=self.pool_s, read=self.read_s, write=self.read_s
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    status: int
    content: bytes


Post = Callable[[str, bytes], Awaitable[Answer]]
"""Sends a body to a URL."""

Hook = Callable[[], object]
"""Called as closely before the write as the candidate allows; it refuses by raising."""

MakeTransport = Callable[[Limits, Hook | None], httpx.AsyncBaseTransport]


def _stock_transport(limits: Limits, hook: Hook | None) -> httpx.AsyncBaseTransport:
    connections = httpx.Limits(
        max_connections=limits.connections, max_keepalive_connections=limits.connections
    )
    return httpx.AsyncHTTPTransport(limits=connections, trust_env=False)


def _aiohttp_transport(limits: Limits, hook: Hook | None) -> httpx.AsyncBaseTransport:
    transport: httpx.AsyncBaseTransport = AiohttpTransport(client=lambda: _session(limits, hook))
    return transport


def _session(limits: Limits, hook: Hook | None) -> aiohttp.ClientSession:
    traces: list[aiohttp.TraceConfig] = []
    if hook is not None:
        traces.append(_connection_trace(hook))
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limits.connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=traces,
    )


def _connection_trace(hook: Hook) -> aiohttp.TraceConfig:
    """aiohttp's last events before it writes: a connection is at hand."""

    async def at_hand(session: object, context: object, parameters: object) -> None:
        hook()

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(at_hand)
    trace.on_connection_reuseconn.append(at_hand)
    return trace


def _pyreqwest_transport(limits: Limits, hook: Hook | None) -> httpx.AsyncBaseTransport:
    builder = (
        ClientBuilder()
        .max_connections(limits.connections)
        .connect_timeout(timedelta(seconds=limits.connect_s))
        .pool_timeout(timedelta(seconds=limits.pool_s))
        .read_timeout(timedelta(seconds=limits.read_s))
        .no_proxy()
        .http1_only()
        .follow_redirects(False)
    )
    if hook is not None:
        refuse = hook

        async def middleware(request: Any, then: Any) -> Any:
            refuse()
            return await then.run(request)

        builder = builder.with_middleware(middleware)
    transport: httpx.AsyncBaseTransport = HttpxTransport(builder.build())
    return transport


def _our_transport(limits: Limits, hook: Hook | None) -> httpx.AsyncBaseTransport:
    return Transport(
        max_connections_per_host=limits.connections, max_response_bytes=limits.response_bytes
    )


def _extensions(hook: Hook | None) -> dict[str, Any]:
    """The hook for candidates that take one for each request."""
    if hook is None:
        return {}

    async def trace(event: str, info: object) -> None:
        if event == "http11.send_request_headers.started":
            hook()

    return {"trace": trace, "before_write": hook}


@dataclass(frozen=True, slots=True)
class ThroughClient:
    """A transport under `httpx.AsyncClient`."""

    transport: MakeTransport

    @contextlib.asynccontextmanager
    async def __call__(self, limits: Limits, hook: Hook | None = None) -> AsyncIterator[Post]:
        """Open it."""
        extensions = _extensions(hook)
        transport = self.transport(limits, hook)
        async with httpx.AsyncClient(
            transport=transport, timeout=limits.for_httpx(), trust_env=False
        ) as client:

            async def post(url: str, body: bytes) -> Answer:
                response = await client.post(
                    url, content=body, headers=_HEADERS, extensions=extensions
                )
                return Answer(response.status_code, response.content)

            yield post


@dataclass(frozen=True, slots=True)
class Directly:
    """A transport without httpx' client, as `payswitch.processors.processor` calls it."""

    transport: MakeTransport

    @contextlib.asynccontextmanager
    async def __call__(self, limits: Limits, hook: Hook | None = None) -> AsyncIterator[Post]:
        """Open it."""
        extensions = {"timeout": limits.for_httpx().as_dict(), **_extensions(hook)}
        urls: dict[str, httpx.URL] = {}
        async with self.transport(limits, hook) as transport:

            async def post(url: str, body: bytes) -> Answer:
                target = urls.get(url) or urls.setdefault(url, httpx.URL(url))
                request = httpx.Request(
                    "POST",
                    target,
                    headers=[(b"host", target.netloc), (b"content-type", b"application/json")],
                    content=body,
                    extensions=extensions,
                )
                response = await transport.handle_async_request(request)
                try:
                    assert isinstance(response.stream, httpx.AsyncByteStream)
                    content = b"".join([part async for part in response.stream])
                finally:
                    await response.aclose()
                return Answer(response.status_code, content)

            yield post


@contextlib.asynccontextmanager
async def _aiohttp_itself(limits: Limits, hook: Hook | None = None) -> AsyncIterator[Post]:
    timeout = aiohttp.ClientTimeout(
        total=None, connect=limits.pool_s, sock_connect=limits.connect_s, sock_read=limits.read_s
    )
    async with _session(limits, hook) as session:

        async def post(url: str, body: bytes) -> Answer:
            async with session.post(
                url, data=body, headers=_HEADERS, timeout=timeout, allow_redirects=False
            ) as response:
                return Answer(response.status, await response.read())

        yield post


Candidate = Callable[..., AbstractAsyncContextManager[Post]]
"""Takes limits and, if wanted, a hook; gives the function that posts."""

CANDIDATES: Mapping[str, Candidate] = {
    STOCK: ThroughClient(_stock_transport),
    "httpx-aiohttp": ThroughClient(_aiohttp_transport),
    "httpx-aiohttp, called directly": Directly(_aiohttp_transport),
    "pyreqwest": ThroughClient(_pyreqwest_transport),
    "pyreqwest, called directly": Directly(_pyreqwest_transport),
    "aiohttp itself": _aiohttp_itself,
    "ours under httpx' client": ThroughClient(_our_transport),
    OURS: Directly(_our_transport),
}

"""Serves the live page at `/`: files of this package, and events.

Its content security policy allows only requests to this host and only scripts from its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from payswitch.ingress.live import EventStream, Live, TooManyViewersError
from payswitch.ingress.problems import try_later

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    tag: str

    async def serve(self, request: Request) -> Response:
        """Answer with the file, or 304 if the browser has it."""
        headers = {**_HEADERS, "etag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(None, HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def routes(live: Callable[[], Live]) -> list[Route]:
    """The page's routes. `live` is called at each request."""

    async def events(request: Request) -> Response:
        try:
            viewer = live().enter(request.client.host if request.client else "")
        except TooManyViewersError:
            raise try_later("too many watch the live page through this ingress") from None
        return EventStream(live(), viewer, request.headers.get("last-event-id"))

    folder = files("payswitch.ingress") / "page_files"
    served = [
        Route(path, _read((folder / name).read_bytes(), media_type).serve, methods=["GET"])
        for path, (name, media_type) in _FILES.items()
    ]
    return [*served, Route("/events", events, methods=["GET"])]


def _read(content: bytes, media_type: str) -> _File:
    return _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"')

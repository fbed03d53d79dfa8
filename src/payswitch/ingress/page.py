"""The live page at `/`: three files of this package, and the events that fill them.

The page asks for nothing from another host and runs nothing that isn't in its files, and its
content security policy holds it to both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from payswitch.ingress.live import EventStream, Live, TooManyViewersError

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
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


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str

    async def serve(self, request: Request) -> Response:
        """Answer with the file, or that it is what the browser has."""
        headers = {**_HEADERS, "etag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(None, HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def routes(live: Callable[[], Live], too_many: Callable[[], Exception]) -> list[Route]:
    """The page's routes. `live` is asked at each request; `too_many` makes what is raised where no
    other viewer can be served."""

    async def events(request: Request) -> Response:
        try:
            viewer = live().enter(request.client.host if request.client else "")
        except TooManyViewersError:
            raise too_many() from None
        return EventStream(live(), viewer, request.headers.get("last-event-id"))

    folder = files("payswitch.ingress") / "page_files"
    served = [
        Route(path, _read((folder / name).read_bytes(), media_type).serve, methods=["GET"])
        for path, (name, media_type) in _FILES.items()
    ]
    return [*served, Route("/events", events, methods=["GET"])]


def _read(content: bytes, media_type: str) -> _File:
    return _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"')

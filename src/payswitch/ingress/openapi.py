"""Serves the description of the public interface: `openapi.json` for programs, `docs.html` for
people."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

import orjson
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = files("payswitch.ingress")


def document() -> dict[str, Any]:
    """The document, read from the package."""
    parsed: dict[str, Any] = orjson.loads((_FOLDER / "openapi.json").read_bytes())
    return parsed


def page() -> Response:
    """The page, with a policy that allows only its own style."""
    text = (_FOLDER / "docs.html").read_bytes()
    style = text.partition(b"<style>")[2].partition(b"</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(text, headers=headers, media_type="text/html")


def routes() -> list[Route]:
    """`GET /openapi.json` and `GET /docs`, read once."""
    answers = {
        "/openapi.json": Response(orjson.dumps(document()), media_type="application/json"),
        "/docs": page(),
    }
    return [Route(path, answer, methods=["GET"]) for path, answer in answers.items()]

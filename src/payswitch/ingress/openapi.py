"""The public interface as OpenAPI 3.1 (`openapi.json`), served as it is and as a page.

`tests/integration/test_openapi.py` holds it against the running ingress and HAProxy.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import orjson
from starlette.responses import Response
from starlette.routing import Route

from payswitch.ingress.api_page import CONTENT_SECURITY_POLICY, render


def document() -> dict[str, Any]:
    """The document, read from the package."""
    text = (files("payswitch.ingress") / "openapi.json").read_bytes()
    parsed: dict[str, Any] = orjson.loads(text)
    return parsed


def routes() -> list[Route]:
    """`GET /openapi.json` and `GET /docs`, encoded once, here."""
    described = document()
    answers = {
        "/openapi.json": Response(orjson.dumps(described), media_type="application/json"),
        "/docs": Response(
            render(described),
            headers={
                "content-security-policy": CONTENT_SECURITY_POLICY,
                "referrer-policy": "no-referrer",
                "x-content-type-options": "nosniff",
            },
            media_type="text/html",
        ),
    }
    return [Route(path, answer, methods=["GET"]) for path, answer in answers.items()]

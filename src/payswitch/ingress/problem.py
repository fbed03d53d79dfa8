"""Error answers as problem JSON (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus

import orjson

MEDIA_TYPE = "application/problem+json"


def problem_json(status: HTTPStatus, detail: str) -> bytes:
    """The body of such an answer; `detail` says what to change."""
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
        }
    )

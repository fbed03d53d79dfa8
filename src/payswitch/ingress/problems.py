"""Error answers as problem JSON (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

import orjson
from redis.exceptions import ResponseError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

RETRY_AFTER_S = 1
JSON = "application/json"
MEDIA_TYPE = "application/problem+json"


class Answer(NamedTuple):
    """A whole answer, `content-length` among its headers."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes = b""


def problem_json(status: HTTPStatus, detail: str) -> bytes:
    """The body of an error answer; `detail` tells the client the cause or the remedy."""
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
        }
    )


class Problem(Exception):  # noqa: N818 - RFC 9457's own name for it
    """An error answer as problem JSON (RFC 9457)."""

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers

    def answer(self) -> Answer:
        """The whole answer."""
        body = problem_json(self.status, self.detail)
        headers = {
            **(self.headers or {}),
            "content-length": str(len(body)),
            "content-type": MEDIA_TYPE,
        }
        raw = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in headers.items()
        ]
        return Answer(self.status.value, raw, body)

    def response(self) -> Response:
        """The same, for Starlette."""
        answer = self.answer()
        response = Response(answer.body, answer.status)
        response.raw_headers = list(answer.headers)
        return response


def try_later(detail: str) -> Problem:
    """A 503 for a request that may succeed in a second."""
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers)


async def answer_problem(request: Request, error: Exception) -> Response:
    """Answer a `Problem`."""
    assert isinstance(error, Problem)
    return error.response()


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer Starlette's own errors: unknown path, wrong method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    allowed = (error.headers or {}).get("Allow", "nothing")
    details = {
        HTTPStatus.NOT_FOUND: f"there is nothing at {request.url.path[:200]}{_nearest(request)}",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method[:16]} is not allowed here, but {allowed}",
    }
    return Problem(status, details.get(status, error.detail), error.headers).response()


def _nearest(request: Request) -> str:
    """A hint at a path that differs only in slashes and capital letters."""
    path = "/" + "/".join(part for part in request.url.path[:200].lower().split("/") if part)
    scope = {**request.scope, "path": path}
    routes = request.app.routes
    meant = path != request.url.path and any(
        route.matches(scope)[0] is not Match.NONE for route in routes
    )
    return f": {path} was meant" if meant else ""


async def answer_redis_away(request: Request, error: Exception) -> Response:
    """Answer an error from Redis or its connection."""
    refused = isinstance(error, ResponseError)
    return try_later("Redis refuses" if refused else "Redis does not answer").response()


async def answer_bug(request: Request, error: Exception) -> Response:
    """Answer any other error."""
    return bug().response()


def bug() -> Problem:
    """A 500 for an error that the log describes."""
    detail = "something is wrong in here; the log says what"
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)

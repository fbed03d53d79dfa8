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

from payswitch.ingress.problems import JSON
from payswitch.money import MAX_CENTS
from payswitch.payments.payment import DEFAULT_RULES, PaymentRules

_FOLDER = files("payswitch.ingress")


def document(rules: PaymentRules = DEFAULT_RULES) -> dict[str, Any]:
    """The document, read from the package and fitted to the rules of the deployment."""
    parsed: dict[str, Any] = orjson.loads((_FOLDER / "openapi.json").read_bytes())
    schemas, scale = parsed["components"]["schemas"], rules.currency.scale
    schemas["Currency"]["const"] = rules.currency.code
    schemas["Amount"] |= {"maximum": MAX_CENTS // scale, "multipleOf": 1 / scale}
    schemas["Totals"]["properties"]["totalAmount"]["multipleOf"] = 1 / scale
    schemas["Payment"]["additionalProperties"] = rules.ignores_unknown
    example = parsed["paths"]["/payments/{id}"]["get"]["responses"]["200"]["content"][JSON]
    example["example"]["currency"] = rules.currency.code
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


def routes(rules: PaymentRules) -> list[Route]:
    """`GET /openapi.json` and `GET /docs`, read once."""
    answers = {
        "/openapi.json": Response(orjson.dumps(document(rules)), media_type=JSON),
        "/docs": page(),
    }
    return [Route(path, answer, methods=["GET"]) for path, answer in answers.items()]

"""Refuses requests that a browser sends for another site's page.

A page can make its visitor's browser send a POST to any address without asking first (WHATWG Fetch,
`no-cors`). The browser marks it: `Origin` (RFC 6454) names the page's origin, and `Sec-Fetch-Site`
(W3C Fetch Metadata) says how that relates to the address. A page can neither set nor omit them.
Other programs send neither, and pass.

DNS rebinding needs a list of our host names: it makes the page's own host name resolve to our
address, so the page has the same origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import NamedTuple

_OWN_SITE = frozenset({b"same-origin", b"none"})
_SCHEME = re.compile(rb"https?://")
_DEFAULT_PORT = re.compile(rb":(?:80|443)?$")
_PORT = re.compile(r":[0-9]*$", re.ASCII)
_HOST_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?)+", re.ASCII)
_LOOPBACK_NAME = "localhost"


class ForeignRequest(NamedTuple):
    """The status and words that refuse a request."""

    status: HTTPStatus
    detail: str


def foreign_post(headers: Mapping[bytes, bytes]) -> ForeignRequest | None:
    """The refusal of a POST for another site's page; None if it is ours. Header names are in lower
    case."""
    site = headers.get(b"sec-fetch-site")
    if site is not None and site not in _OWN_SITE:
        return _foreign("Sec-Fetch-Site", site)
    origin = headers.get(b"origin")
    if origin is not None and not _is_at(origin.lower(), headers.get(b"host", b"").lower()):
        return _foreign("Origin", origin)
    return None


def foreign_host(headers: Mapping[bytes, bytes], names: Collection[str]) -> ForeignRequest | None:
    """The refusal of a request for a host that is not in `names`; None if it is.

    Addresses and `localhost` pass because DNS can't redirect them. A request without a host passes
    because no browser sends one. Health checks use both.
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = _PORT.sub("", host).rstrip(".")
    if not name or name in names or name == _LOOPBACK_NAME or _is_address(name):
        return None
    return ForeignRequest(
        HTTPStatus.MISDIRECTED_REQUEST,
        f"nothing is served here for the host {name[:64]!r}: see PAYSWITCH_ALLOWED_HOSTS",
    )


def parse_host_names(text: str) -> frozenset[str]:
    """Read host names separated by commas; an empty text has none. Raises `ValueError`."""
    listed = text.split(",") if text else []
    names = frozenset(name.strip().lower().rstrip(".") for name in listed)
    for name in names:
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(name)
    return names


def _foreign(header: str, value: bytes) -> ForeignRequest:
    shown = value[:64].decode("latin-1")
    return ForeignRequest(
        HTTPStatus.FORBIDDEN, f"a browser sent this for another site's page ({header}: {shown})"
    )


def _is_at(origin: bytes, host: bytes) -> bool:
    """Whether an origin belongs to the host that `Host` names. The scheme and a default port don't
    count, as a proxy may speak TLS in front of us."""
    scheme = _SCHEME.match(origin)
    if scheme is None or not host:
        return False
    return _DEFAULT_PORT.sub(b"", origin[scheme.end() :]) == _DEFAULT_PORT.sub(b"", host)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True

"""Requests that a browser brings for somebody else's page, and why they are refused.

A page may have its visitor's browser send a POST to any address that the browser reaches, without
asking first (WHATWG Fetch, `no-cors`). Browsers say so: `Origin` (RFC 6454) names the page's origin
and `Sec-Fetch-Site` (W3C Fetch Metadata) how that relates to the address. No page can set or leave
out either. Programs that are no browsers send neither, and pass.

Against DNS rebinding, where the page's own host name comes to mean our address, neither helps, as
the page has the same origin then; only a list of the host names that are ours does.
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
    """Why a request is refused, as status and words."""

    status: HTTPStatus
    detail: str


def foreign_post(headers: Mapping[bytes, bytes]) -> ForeignRequest | None:
    """Why a POST is refused as another site's; None for one that isn't. Header names are in lower
    case."""
    site = headers.get(b"sec-fetch-site")
    if site is not None and site not in _OWN_SITE:
        return _foreign("Sec-Fetch-Site", site)
    origin = headers.get(b"origin")
    if origin is not None and not _is_at(origin.lower(), headers.get(b"host", b"").lower()):
        return _foreign("Origin", origin)
    return None


def foreign_host(headers: Mapping[bytes, bytes], names: Collection[str]) -> ForeignRequest | None:
    """Why a request is refused as it is for a host that is not among `names`; None where it is.

    An address passes, as does `localhost`: nobody can have these mean something else. So does a
    request without a host, which no browser sends: both are what health checks come with.
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
    """Host names that are separated by commas, none in an empty text. Raises `ValueError`."""
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
    """Whether an origin is that of a host as `Host` says it. A proxy may speak TLS before us, so
    the scheme doesn't count, nor does a port that may be left out."""
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

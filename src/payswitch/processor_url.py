"""Splits a processor's URL into base URL and credentials."""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_NAME = re.compile(r"[a-z0-9._-]+", re.ASCII | re.IGNORECASE)


class ProcessorUrl(NamedTuple):
    """A processor's base URL, and the value of its `Authorization` header, if any."""

    base: str
    """Without a slash at its end and without credentials: safe to show."""
    authorization: str | None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every call needs."""
        return {} if self.authorization is None else {"authorization": self.authorization}


def parse_processor_url(text: str) -> ProcessorUrl:
    """Read `http://user:password@host:port/path`; user, password, port and path are optional.
    Raises `ValueError` for any other text."""
    if not text.isprintable() or any(char in text for char in " ?#\\"):
        raise ValueError("a URL has no space, backslash, query or fragment")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or parts.port == 0 or not _is_host(parts.hostname):
        raise ValueError("neither http:// nor https:// with a host and a port")
    base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return ProcessorUrl(base, _basic(parts.username, parts.password))


def _is_host(name: str | None) -> bool:
    if not name:
        return False
    if ":" in name:
        return "%" not in name and bool(ipaddress.IPv6Address(name))
    if name.isascii():
        return bool(_NAME.fullmatch(name))
    import httpx

    try:
        return bool(_NAME.fullmatch(httpx.URL(scheme="http", host=name).raw_host.decode()))
    except httpx.InvalidURL:
        return False


def _basic(user: str | None, password: str | None) -> str | None:
    """The header's value (RFC 7617) in UTF-8; percent-encoding in the URL is decoded."""
    name, secret = (unquote(part or "", errors="strict") for part in (user, password))
    if ":" in name or not (name + secret).isprintable():
        raise ValueError("a user has no colon, and neither user nor password a control character")
    if not name and not secret:
        return None
    return f"Basic {base64.b64encode(f'{name}:{secret}'.encode()).decode()}"

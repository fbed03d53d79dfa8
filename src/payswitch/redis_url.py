"""Checks `REDIS_URL`: its form and its options."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit, urlunsplit

REDIS_URL = (
    "a URL starting with redis://, rediss:// or unix://, or for a cluster with redis+cluster:// or "
    "rediss+cluster://"
)
_CLUSTERS = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_MUST_BE = f"must be {REDIS_URL}"

_SWITCH = r"(?i)true|false|yes|no|1|0", "true or false"
_FILE = r".+", "the name of a file"
OPTIONS: Mapping[str, tuple[str, str]] = {
    "db": (r"[0-9]{1,9}", "a whole number"),
    "username": (r".+", "a name"),
    "password": (r".+", "a password"),
    "client_name": (r"[!-~]+", "printable ASCII without spaces"),
    "socket_keepalive": _SWITCH,
    "ssl_ca_certs": _FILE,
    "ssl_certfile": _FILE,
    "ssl_keyfile": _FILE,
    "ssl_check_hostname": _SWITCH,
    "ssl_cert_reqs": (r"none|optional|required", "none, optional or required"),
}
"""The supported options after the question mark, with the pattern of their values and its words."""

_READ_AS_BYTES = "Payswitch reads every answer as bytes"
_LIMITS = "each part has a time limit of its own"
_RETRIES = "Payswitch itself repeats what may be repeated"
_BEFORE_IT = "it belongs before the question mark"
REFUSED: Mapping[str, str] = {
    "decode_responses": _READ_AS_BYTES,
    "encoding": _READ_AS_BYTES,
    "encoding_errors": _READ_AS_BYTES,
    "protocol": "Payswitch speaks version 2 of the protocol",
    "socket_timeout": _LIMITS,
    "socket_connect_timeout": _LIMITS,
    "timeout": _LIMITS,
    "retry_on_timeout": _RETRIES,
    "retry_on_error": _RETRIES,
    "max_connections": "a payment must not wait for a connection",
    "health_check_interval": "Payswitch looks at every connection before it uses it",
    "host": _BEFORE_IT,
    "port": _BEFORE_IT,
    "path": _BEFORE_IT,
}
"""Options that redis-py supports and Payswitch doesn't, with the reason."""


class RedisUrlError(ValueError):
    """An unsupported URL. The message says why and holds no password."""


def parse_redis_url(text: str) -> str:
    """Check a URL and return it. Raises `RedisUrlError`."""
    if re.match(r"rediss?\+cluster:", text):
        _check_cluster(text)
        return text
    _check(text)
    return text


def _check_cluster(text: str) -> None:
    """Check the URL of a cluster as that of its first node, and the addresses of the others."""
    try:
        parts = urlsplit(text)
        base, _ = cluster_nodes(text)
    except ValueError:
        raise RedisUrlError(f"{_MUST_BE}, then hosts with commas between") from None
    if parts.path not in ("", "/") or "db" in parse_qs(parts.query):
        raise RedisUrlError("a Redis Cluster has no numbered databases")
    _check(f"{base}#{parts.fragment}" if parts.fragment else base)


def _check(text: str) -> None:
    try:
        parts = urlsplit(text)
        _ = parts.port
        options = parse_qs(parts.query, keep_blank_values=True)
    except ValueError:
        raise RedisUrlError(_MUST_BE) from None
    if parts.scheme not in ("redis", "rediss", "unix") or not text.isprintable() or " " in text:
        raise RedisUrlError(_MUST_BE)
    if parts.fragment:
        raise RedisUrlError(f"{_MUST_BE}; write a # in a password as %23")
    if parts.scheme == "unix":
        if not parts.path:
            raise RedisUrlError(f"{_MUST_BE}; the path of the socket is missing")
    elif not (parts.hostname and re.fullmatch(r"/?[0-9]*", parts.path, re.ASCII)):
        raise RedisUrlError(f"{_MUST_BE}, then a host and at most a database's number")
    for name, values in options.items():
        _check_option(parts.scheme, name, values)
    if ("ssl_certfile" in options) != ("ssl_keyfile" in options):
        raise RedisUrlError("the options ssl_certfile and ssl_keyfile go together")
    if parts.scheme == "rediss":
        _check_tls(text)


def is_cluster(url: str) -> bool:
    """Whether the URL names a Redis Cluster."""
    return urlsplit(url).scheme in _CLUSTERS


def cluster_nodes(url: str) -> tuple[str, list[tuple[str, int]]]:
    """Of a cluster's URL: the same URL for its first node alone, and the addresses of the nodes
    that tell of the others. Raises `ValueError`."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    addresses = []
    for each in hosts.split(","):
        node = urlsplit(f"//{each}")
        if not node.hostname or not re.fullmatch(r"[^@]*", each):
            raise ValueError("a node without a host")
        addresses.append((node.hostname, node.port or 6379))
    first = hosts.split(",")[0]
    scheme = _CLUSTERS[parts.scheme]
    return urlunsplit((scheme, f"{login}{at}{first}", "", parts.query, "")), addresses


def tls_defaults(url: str) -> dict[str, bool]:
    """Defaults for redis-py's pool: a certificate must be for the host, not only of a trusted
    authority, unless the URL turns the check off."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or parse_qs(parts.query).get("ssl_cert_reqs") == ["none"]:
        return {}
    return {"ssl_check_hostname": True}


def _check_option(scheme: str, name: str, values: list[str]) -> None:
    if name in REFUSED:
        raise RedisUrlError(f"the option {name} is not supported: {REFUSED[name]}")
    if name not in OPTIONS:
        raise RedisUrlError(f"the option {name[:40]!r} is unknown; there are {', '.join(OPTIONS)}")
    if name.startswith("ssl_") and scheme != "rediss":
        raise RedisUrlError(f"the option {name} is for rediss://")
    if name == "socket_keepalive" and scheme == "unix":
        raise RedisUrlError(f"the option {name} is for redis:// and rediss://")
    pattern, words = OPTIONS[name]
    if len(values) > 1 or not re.fullmatch(pattern, values[0]):
        raise RedisUrlError(f"the option {name} must be {words}")
    if OPTIONS[name] is _FILE and not os.access(values[0], os.R_OK):
        raise RedisUrlError(f"the option {name} names no file that can be read")


def _check_tls(text: str) -> None:
    """Read the certificates, without a connection."""
    from redis.asyncio import ConnectionPool, SSLConnection

    pool = ConnectionPool.from_url(text, **tls_defaults(text))
    connection = pool.make_connection()  # type: ignore[no-untyped-call]
    assert isinstance(connection, SSLConnection)
    try:
        connection.ssl_context.get()
    except (OSError, TypeError, ValueError) as error:
        raise RedisUrlError(f"TLS can't be set up with these options: {error}") from None

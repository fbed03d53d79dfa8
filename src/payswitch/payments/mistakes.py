"""Explains common mistakes of clients, after a body was refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import orjson

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x78\x9c": "zlib"}
_WIDE = re.compile(rb"\xff\xfe|\xfe\xff|\x00|.\x00", re.DOTALL)
"""The start of UTF-16 or UTF-32: a byte order mark, or an ASCII character without one."""
_FORM = re.compile(rb"\s*[\w.%\[\]-]+=")
_SINGLE_QUOTED_OR_BARE = re.compile(rb"(?P<quote>')|[\w$]+\s*:")
_DECIMAL_COMMA = re.compile(rb'"amount"\s*:\s*-?\d+,\d')
_ID = re.compile(r"\W*[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\W*", re.ASCII | re.IGNORECASE)


def why_no_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    """The reason why a body is not JSON; the parser's own words if there is none better."""
    if not body.strip():
        return "it is empty"
    for magic, coding in _COMPRESSED.items():
        if body.startswith(magic):
            return f"it is compressed ({coding}), which is not taken here"
    if body.startswith(b"\xef\xbb\xbf"):
        return "it begins with a byte order mark (BOM), which JSON doesn't have"
    if _WIDE.match(body):
        return "it is UTF-16 or UTF-32; JSON is UTF-8, whatever charset is declared"
    try:
        body.decode()
    except UnicodeDecodeError as flaw:
        return f"it is not UTF-8 (byte {flaw.start + 1}), whatever charset is declared"
    if _FORM.match(body):
        return "it is a form"
    if _DECIMAL_COMMA.search(body):
        return "a decimal point is needed in the amount, not a comma"
    if found := _SINGLE_QUOTED_OR_BARE.match(body.decode()[error.pos :].encode()):
        kind = "not single ones" if found["quote"] else "also around names"
        return f"double quotes are needed, {kind}: {error}"
    return str(error)


def why_no_object(document: object) -> str:
    """The reason why a JSON document is not an object; empty if unknown."""
    if isinstance(document, str) and document.lstrip().startswith("{"):
        return ": it was made JSON twice"
    return ""


def why_missing(document: Mapping[str, object], name: str) -> str:
    """The reason why a field counts as missing."""
    if name in document:
        return f"{name} is missing: it is null"
    for other in document:
        if _plain(other) == _plain(name):
            return f"{name} is missing: it is spelt {other[:64]!r}"
    return f"{name} is missing"


def why_unknown(name: str, known: Sequence[str]) -> str:
    """The reason why a member is refused."""
    for other in known:
        if _plain(other) == _plain(name):
            return f"{name[:64]!r} is unknown; {other} is spelt so"
    members = " and ".join((", ".join(known[:-1]), known[-1]))
    return f"{name[:64]!r} is unknown: the members of a payment are {members}"


def why_no_id(text: str) -> str:
    """The flaw of a text that is almost a UUID; empty for any other text."""
    return ", with four hyphens and nothing around it" if _ID.fullmatch(text) else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()

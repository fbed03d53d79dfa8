"""Text from anywhere, as a terminal may get it."""

from __future__ import annotations

from urllib.parse import urlsplit


def printable(text: str) -> str:
    """The text, what isn't printable in it spelled out as Python writes it: nothing in it moves a
    cursor, renames a window or begins a line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shown(url: str) -> str:
    """A URL without its credentials."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

"""Makes text from anywhere safe for a terminal."""

from __future__ import annotations

from urllib.parse import urlsplit


def printable(text: str) -> str:
    """The text with unprintable characters escaped as in Python, so that it can't move a cursor,
    rename a window or begin a line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shown(url: str) -> str:
    """A URL without its credentials."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

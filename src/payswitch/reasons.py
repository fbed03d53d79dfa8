"""Turns an error into words for people, without a type's name or an errno."""

from __future__ import annotations

import os
import re
import socket
import ssl

from payswitch.text import printable

_LONGEST = 300
_UNKNOWN_HOST = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)
_FOR_ANOTHER_HOST = frozenset({62, 64})
"""OpenSSL's codes for a certificate of another name or address."""

_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def reason(error: BaseException, host: str | None = None) -> str:
    """One printable line for people, such as `connection refused`.

    `host` is named if its look-up failed. An error that wraps another one keeps its message.
    """
    if isinstance(error, UnicodeError) and host is not None:  # an empty or too long label
        words = f"host name not valid: {host}"
    else:
        words = _of_system(error, host) if isinstance(error, OSError) else str(error)
    return _one_line(words) or _from_type(error)


def _of_system(error: OSError, host: str | None) -> str:
    match error:
        case socket.gaierror():
            return _of_lookup(error, host)
        case ssl.SSLCertVerificationError():
            if error.verify_code in _FOR_ANOTHER_HOST:
                return "certificate is for another host"
            return f"certificate not trusted: {error.verify_message}"
        case ssl.SSLError(reason=str(said)) if said:
            return f"TLS failed: {said.lower().replace('_', ' ')}"
    number = error.errno
    # If several addresses of a name fail, asyncio joins their messages.
    if number is None and (first := re.search(r"\[Errno (\d+)\]", str(error))):
        number = int(first[1])
    if not number or number < 0 or isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    text = os.strerror(number)  # uvloop's and asyncio's own hold addresses and numbers
    where = f": {error.filename}" if isinstance(error.filename, str) and error.filename else ""
    return f"{text[:1].lower()}{text[1:]}{where}"


def _of_lookup(error: socket.gaierror, host: str | None) -> str:
    named = f": {host}" if host else ""
    if error.errno in _UNKNOWN_HOST:
        return f"host name not known{named}"
    said = error.strerror or "no name server answers"
    return f"host name can't be looked up{named} ({said[:1].lower()}{said[1:]})"


def _one_line(text: str) -> str:
    lines = text.strip().splitlines()
    return printable(lines[0][:_LONGEST]) if lines else ""


def _from_type(error: BaseException) -> str:
    """Words for an error without a message."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return _WORD_BEGINS.sub(" ", type(error).__name__).lower()

"""Secrets in files: `NAME_FILE` is the path of a file that holds the value of the variable `NAME`,
the way Docker, Kubernetes and systemd pass secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

SUFFIX = "_FILE"

LONGEST = 65_536
"""Bytes."""


class SecretFileError(ValueError):
    """An unreadable secret. The message names variables and path, never the content."""


@dataclass(frozen=True, slots=True)
class Given:
    """The value of a variable, and the path of the file that held it, if any."""

    text: str = ""
    path: str = ""


def read_secret(environment: Mapping[str, str], name: str) -> Given:
    """The value of a secret from `NAME` or `NAME_FILE`; empty if neither is set.

    Line ends at the end of a file don't count. Raises `SecretFileError` if both are set, or if the
    file holds no value.
    """
    text, path = environment.get(name, ""), environment.get(name + SUFFIX, "")
    if not path:
        return Given(text)
    if text:
        raise SecretFileError(f"{name} and {name}{SUFFIX} are both set: set one of them")
    try:
        return Given(_content(path), path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SecretFileError(f"{name}{SUFFIX}={path!r}: {reason}") from None


def variable_of(environment: Mapping[str, str], name: str) -> str | None:
    """The form of a variable that is set: `NAME`, `NAME_FILE` or None."""
    return next((each for each in (name, name + SUFFIX) if environment.get(each)), None)


def _content(path: str) -> str:
    # A pipe has no end until its writer closes it, and a second reader finds it empty.
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a regular file")
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ValueError(f"is larger than {LONGEST} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if not (text := text.rstrip("\r\n")):
        raise ValueError("is empty")
    return text


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)

"""Explains Redis' errors in words, and recognises those of a wrong server.

Users never see the text of a Lua script or of a library: every log line, command and HTTP answer
takes its reason from `in_words`.
"""

from __future__ import annotations

import re

from redis._parsers import _AsyncHiredisParser
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.reasons import reason

_CLUSTER = "it is a node of a cluster, which is not supported"
_WRONG_SERVER = {
    "READONLY": "it is a replica, which takes no writes",
    "UNBLOCKED": "it has just become a replica",
    "MASTERDOWN": "it is a replica without its primary",
    "LOADING": "it is still loading its data",
    "CLUSTERDOWN": "it is a node of a cluster that is down",
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
}
"""By the code of the error. Redis did not execute the command."""

_REFUSALS = (
    (r"^CROSSSLOT|non local key|do not hash to the same slot", _CLUSTER),
    (
        r"^MISCONF|^Errors writing to the AOF|is configured to save RDB",
        "it can't write to its disk",
    ),
    (r"^NOREPLICAS|^Not enough good replicas", "it has too few replicas to take writes"),
    (r"^BUSY|busy running a script", "it is busy with a slow script"),
    (r"^WRONGTYPE|against a key holding the wrong kind", "a key holds data of another program"),
    (r"max number of clients", "its limit of clients is reached"),
)

_SCRIPT_DECORATIONS = (
    r"^Error running script \(call to f_[0-9a-f]{40}\): ?",
    r"^(?:@?user_script: ?\d+: ?)+",
    r" ?script: (?:[0-9a-f]{40}, )?on @?user_script:\d+\.?$",
)


class WrongServerError(RedisConnectionError):
    """The server that answered can't be used: it is a replica, say, or not up yet. Its connection
    is closed, and the next one resolves the server's name again."""

    is_starting = False
    """Whether it can be used once it has loaded its data."""


class Epoch:
    """Counts how often the server behind the name turned out to be the wrong one. A connection
    from an earlier epoch leads to the server of that time, so it isn't used again."""

    def __init__(self) -> None:
        self.number = 0

    def end(self) -> None:
        """Retire every connection that is open now."""
        self.number += 1


class Parser(_AsyncHiredisParser):
    """redis-py's parser, which also recognises the errors of a wrong server."""

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        """The exception for the text of an error."""
        code = response.partition(" ")[0]
        if code in _WRONG_SERVER:
            wrong = WrongServerError(_WRONG_SERVER[code])
            wrong.is_starting = code == "LOADING"
            return wrong
        error: Exception = super().parse_error(response)  # type: ignore[no-untyped-call]
        return error


def says_out_of_memory(error: BaseException) -> bool:
    """Whether its text says that Redis' memory is full. The code doesn't tell: a transaction's
    error has another."""
    return "used memory > 'maxmemory'" in str(error)


def in_words(error: BaseException) -> str:
    """The reason for the error, as the end of the sentence "Redis: …"."""
    text = _undecorated(str(error))
    if says_out_of_memory(error):
        return "it has no memory left"
    if isinstance(error, WrongServerError):
        return text
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return text if text.startswith("it ") else "it does not answer in time"
    if isinstance(error, AuthenticationError):
        return _of_authentication(text)
    if isinstance(error, NoPermissionError) or "ACL failure" in text or text.startswith("NOPERM"):
        denied = re.sub(r"^(?:NOPERM |ACL failure in script: )+", "", text)
        return f"its user lacks a right: {denied}"
    if "closed by server" in text or "the connection ended" in text:
        return "it ended the connection"
    if isinstance(error, RedisError):
        known = (words for pattern, words in _REFUSALS if re.search(pattern, text))
        return next(known, text or "it gives no reason")
    return unreachable(error, "") if isinstance(error, OSError) else text or "it gives no reason"


def unreachable(error: BaseException, address: str) -> str:
    """The reason why an address can't be reached."""
    if isinstance(error, ConnectionResetError | BrokenPipeError) or str(error) == "Connection lost":
        why = "it ended the connection"
    else:
        why = reason(error)
    return f"{address}: {why}" if address else why


def _undecorated(text: str) -> str:
    """The first line of a text, without Redis' remarks about the script."""
    text = (text.splitlines() or [""])[0]
    for pattern in _SCRIPT_DECORATIONS:
        text = re.sub(pattern, "", text)
    return text.removeprefix("ERR ").removeprefix("-").strip()


def _of_authentication(text: str) -> str:
    if "without any password" in text or "no password is set" in text:
        return "it has no password, but REDIS_URL names one"
    if "required" in text:
        return "it asks for a password"
    return "it does not take the user and the password"

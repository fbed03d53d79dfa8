"""Explains Redis' errors in words, and recognises those of a wrong server.

Users never see the text of a Lua script or of a library: every log line, command and HTTP answer
takes its reason from `in_words`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from redis._parsers import _AsyncHiredisParser
from redis.exceptions import (
    AuthenticationError,
    MovedError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.reasons import reason

BEHIND = "behind "
"""Before the deployment in a partition that `stop.lua` has stopped."""

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

_ELSEWHERE = {
    "MOVED": "another node serves this partition",
    "ASK": "this partition is being moved to another node",
    "TRYAGAIN": "this partition is being moved to another node",
    "CLUSTERDOWN": "the cluster is down, or has no node for this partition",
}
"""By the code of a cluster node's error. It did not execute the command."""
_IN_A_SCRIPT = (
    ("access a non local key", "ASK"),
    ("while the cluster is down", "CLUSTERDOWN"),
)
"""What the same errors say where a script's command met them: its first, which writes nothing."""

_REFUSALS = (
    (r"^CROSSSLOT|non local key|do not hash to the same slot", _CLUSTER),
    (
        r"^MISCONF|^Errors writing to the AOF|is configured to save RDB",
        "it can't write to its disk",
    ),
    (r"^NOREPLICAS|^Not enough good replicas", "it has too few replicas to take writes"),
    (r"^BUSY|busy running a script", "it is busy with a slow script"),
    (r"^WRONGTYPE|against a key holding the wrong kind", "a key holds data of another program"),
    (
        r"cluster support disabled",
        "it is no cluster: name it in REDIS_URL as redis:// or rediss://",
    ),
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


class WrongNodeError(RedisConnectionError):
    """A node of a cluster does not serve the partition now. It has executed nothing of the call,
    and its connection is fine."""

    moved_to: tuple[str, int] | None = None
    """The host and port of the node that serves the partition, if the wrong one knows it."""


class UnconfirmedError(RedisTimeoutError):
    """Redis has executed the call, but too few replicas have confirmed that they have it. After a
    failover it may be undone: it is not known."""

    answer: Any = None
    """What the call answered, for what no failover can harm."""


class OtherDeploymentError(ResponseError):
    """The partition belongs to a deployment with other settings, or to none. Nothing was done."""


class BehindError(OtherDeploymentError):
    """The partition is stopped, as its node came back without something that it had confirmed."""

    def __init__(self) -> None:
        super().__init__(
            "it came back without payments that it had confirmed (see `payswitch init --help`)"
        )


class Epoch:
    """Counts how often the server behind the name turned out to be the wrong one. A connection
    from an earlier epoch leads to the server of that time, so it isn't used again."""

    def __init__(self, doubt: Callable[[], None] = lambda: None) -> None:
        self.number = 0
        self.doubt = doubt
        """Called at each sign that another server may be the right one."""

    def end(self) -> None:
        """Retire every connection that is open now."""
        self.number += 1
        self.doubt()


def _other_deployment(text: str) -> OtherDeploymentError:
    found = text.partition(" ")[2]
    if found.startswith(BEHIND):
        return BehindError()
    if not found:
        # Another number of partitions has other keys, which are empty.
        return OtherDeploymentError(
            "it holds no deployment of these partitions: has `payswitch init` run, with the same"
            " PAYSWITCH_PARTITIONS?"
        )
    return OtherDeploymentError(f"it belongs to a deployment with other settings: {found}")


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
        if code == "OTHERDEPLOYMENT":
            return _other_deployment(response)
        error: Exception = super().parse_error(response)  # type: ignore[no-untyped-call]
        return error


class ClusterParser(Parser):
    """The parser of a connection to a node of a cluster."""

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        """The exception for the text of an error."""
        code = response.partition(" ")[0]
        inside = (of for text, of in _IN_A_SCRIPT if code == "ERR" and text in response)
        code = next(inside, code)
        if code in _ELSEWHERE:
            elsewhere = WrongNodeError(_ELSEWHERE[code])
            if code == "MOVED":
                moved = MovedError(response.partition(" ")[2])  # type: ignore[no-untyped-call]
                elsewhere.moved_to = moved.host, moved.port
            return elsewhere
        return super().parse_error(response)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether its text says that Redis' memory is full. The code doesn't tell: a transaction's
    error has another."""
    return "used memory > 'maxmemory'" in str(error)


def in_words(error: BaseException) -> str:
    """The reason for the error, as the end of the sentence "Redis: …"."""
    text = _undecorated(str(error))
    if says_out_of_memory(error):
        return "it has no memory left"
    if isinstance(error, WrongServerError | WrongNodeError | UnconfirmedError):
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

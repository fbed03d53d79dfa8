"""Redis' errors in words: no text of a script or of a library reaches a user."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import uvloop
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.store.client import connect
from payswitch.store.errors import (
    ClusterParser,
    OtherDeploymentError,
    Parser,
    WrongNodeError,
    WrongServerError,
    in_words,
    unreachable,
)
from payswitch.store.scripts import Script

SHA = "153ea0597ef66530aa3cc320cd22e1d2bcdf8527"
OF_A_SCRIPT = f" script: {SHA}, on @user_script:136."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"OOM command not allowed when used memory > 'maxmemory'.{OF_A_SCRIPT}", "no memory left"),
        (
            f"ERR Error running script (call to f_{SHA}): @user_script:136: @user_script: 136: "
            "-OOM command not allowed when used memory > 'maxmemory'.",
            "it has no memory left",
        ),
        (
            f"ERR user_script:36: payments:dead holds a string, not a zset{OF_A_SCRIPT}",
            "payments:dead holds a string, not a zset",
        ),
        (
            f"ERR Error running script (call to f_{SHA}): @user_script:36: user_script:36: "
            "payments:dead holds a string, not a zset",
            "payments:dead holds a string, not a zset",
        ),
        (
            f"WRONGTYPE Operation against a key holding the wrong kind of value{OF_A_SCRIPT}",
            "a key holds data of another program",
        ),
        (
            f"ERR ACL failure in script: No permissions to access a key{OF_A_SCRIPT}",
            "its user lacks a right: No permissions to access a key",
        ),
        (
            "NOPERM User payswitch has no permissions to run the 'get' command",
            "its user lacks a right: User payswitch has no permissions to run the 'get' command",
        ),
        ("NOAUTH Authentication required.", "it asks for a password"),
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            "it does not take the user and the password",
        ),
        (
            "MISCONF Errors writing to the AOF file: No space left on device",
            "it can't write to its disk",
        ),
        ("NOREPLICAS Not enough good replicas to write.", "it has too few replicas"),
        ("BUSY Redis is busy running a script.", "it is busy with a slow script"),
        (
            f"ERR Script attempted to access a non local key in a cluster node{OF_A_SCRIPT}",
            "it is a node of a cluster, which is not supported",
        ),
        ("READONLY You can't write against a read only replica.", "it is a replica"),
        ("LOADING Redis is loading the dataset in memory", "it is still loading its data"),
        ("ERR max number of clients reached", "its limit of clients is reached"),
        ("ERR unknown command 'EVALSHA'", "unknown command 'EVALSHA'"),
    ],
)
def test_what_redis_answers_is_said_in_words(text: str, words: str) -> None:
    said = in_words(Parser.parse_error(text))
    assert words in said
    assert "script:" not in said
    assert SHA not in said


@pytest.mark.parametrize("code", ["READONLY", "UNBLOCKED", "LOADING", "MASTERDOWN", "MOVED"])
def test_the_error_of_a_wrong_server_ends_its_connection(code: str) -> None:
    assert isinstance(Parser.parse_error(f"{code} because"), WrongServerError)


@pytest.mark.parametrize("text", ["ERR because", "OOM because", "NOPERM because", "BUSY because"])
def test_any_other_error_does_not(text: str) -> None:
    assert not isinstance(Parser.parse_error(text), RedisConnectionError)


@pytest.mark.parametrize(
    "error",
    [
        RedisTimeoutError(),
        TimeoutError(),
        RedisTimeoutError("Timeout connecting to server"),
        ConnectionResetError(),
        OSError(),
        ResponseError(),
        RedisError(),
        RedisConnectionError("Connection closed by server."),
        AuthenticationError(),
        NoPermissionError(),
    ],
)
def test_no_reason_is_empty_or_the_name_of_a_type(error: Exception) -> None:
    said = in_words(error)
    assert said
    assert "Error" not in said


def test_a_certificate_that_is_not_trusted_is_said() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = 18
    error.verify_message = "self-signed certificate"
    said = unreachable(error, "a:6379")
    assert said == "a:6379: certificate not trusted: self-signed certificate"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:1", "127.0.0.1:1: connection refused"),
        ("redis://localhost:1", "localhost:1: connection refused"),
        ("redis://payswitch.invalid", "payswitch.invalid:6379: host name not known"),
        ("unix:///nowhere/redis.sock", "/nowhere/redis.sock: no such file or directory"),
    ],
)
def test_an_address_without_a_redis_is_said_in_words(run: object, url: str, words: str) -> None:
    async def ask() -> None:
        client = connect(url, limit_s=1)
        for call in (client.ping(), Script(client, "return 1")()):
            with pytest.raises(RedisConnectionError) as caught:
                await call
            assert str(caught.value) == in_words(caught.value) == words
        await client.aclose(close_connection_pool=True)

    assert callable(run)
    run(ask())


@pytest.mark.parametrize(
    ("text", "moved_to"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("127.0.0.1", 6381)),
        ("ASK 3999 127.0.0.1:6381", None),
        ("TRYAGAIN Multiple keys request during rehashing of slot", None),
        ("CLUSTERDOWN Hash slot not served", None),
        (
            "ERR Error running script (call to f_da39a3ee5e6b4b0d3255bfef95601890afd80709): "
            "@user_script:12: Script attempted to access a non local key in a cluster node",
            None,
        ),
        (
            "ERR Script attempted to access a non local key in a cluster node script: "
            "da39a3ee5e6b4b0d3255bfef95601890afd80709, on @user_script:12.",
            None,
        ),
    ],
)
def test_a_node_that_does_not_serve_a_partition_has_done_nothing(
    text: str, moved_to: tuple[str, int] | None
) -> None:
    error = ClusterParser.parse_error(text)
    assert isinstance(error, WrongNodeError)
    assert error.moved_to == moved_to


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("OTHERDEPLOYMENT ", "has `payswitch init` run, with the same PAYSWITCH_PARTITIONS?"),
        ("OTHERDEPLOYMENT partitions=4", "other settings: partitions=4"),
    ],
)
def test_another_deployment_is_told_from_none(text: str, words: str) -> None:
    error = ClusterParser.parse_error(text)
    assert isinstance(error, OtherDeploymentError)
    assert words in in_words(error)

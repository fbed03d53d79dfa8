"""Scripts called through channels: what redis-py's own way answers, on a real Redis, and what
becomes of a channel to which something else happens."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis as blocking
import uvloop
from arq.connections import ArqRedis
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.store.client import connect
from payswitch.store.scripts import Script
from tests.support import SLACK_S, RedisServer, eventually, serves_tls

ECHO = "return { KEYS, ARGV }"
OWN = [b"payments:generation"]
"""The first key of every script."""


async def scripts_at(client: ArqRedis) -> set[str]:
    """The addresses of connections whose last command was a script."""
    found = await client.client_list()
    return {each["addr"] for each in found if each["cmd"] in ("evalsha", "eval")}


async def what_comes_of(call: Awaitable[Any]) -> str | tuple[type, str]:
    """The answer as it is written, errors in it too; or the kind and text of the error."""
    try:
        return repr(await call)
    except RedisError as error:
        return type(error), str(error)


# What is answered.


@pytest.mark.parametrize(
    ("text", "args"),
    [
        (ECHO, []),
        (ECHO, ["a", b"\x00\xff\r\n", 7, -(10**15), 1.5, "ü", ""]),
        ("return { 1, false, 'x', { 'nested', { 2 } }, {} }", []),
        ("return redis.status_reply('FINE')", []),
        ("return nil", []),
        ("return false", []),
        ("return ''", []),
        ("return redis.error_reply('SPECIAL because')", []),
        ("return redis.error_reply('READONLY not here')", []),
        ("return redis.error_reply('OOM too full')", []),
        ("return redis.error_reply('NOPERM not you')", []),
        ("return { 'before', redis.pcall('GET') }", []),
        ("return redis.call('NOSUCHCOMMAND')", []),
        ("error('out of it')", []),
        ("this is no Lua", []),
        ("return string.rep('x', 3000000)", []),
        ("return #ARGV[1]", ["y" * 3_000_000]),
        ("local t = {} for i = 1, 5000 do t[i] = i .. '' end return t", []),
    ],
)
async def test_a_script_answers_as_through_redis_py(
    redis: ArqRedis, text: str, args: list[Any]
) -> None:
    theirs = AsyncScript(redis, text)
    expected = await what_comes_of(theirs(keys=["payments:generation", "k1", "k2"], args=args))
    ours = Script(redis, text)
    assert await what_comes_of(ours(keys=["k1", "k2"], args=args)) == expected
    assert await what_comes_of(ours(keys=["k1", "k2"], args=args)) == expected


async def test_a_script_that_redis_has_forgotten_is_sent_again(redis: ArqRedis) -> None:
    script = Script(redis, ECHO)
    assert await script(args=["a"]) == [OWN, [b"a"]]
    await redis.script_flush()
    assert await script(args=["b"]) == [OWN, [b"b"]]
    assert await redis.script_exists(script._sha) == [True]


async def test_a_connection_is_greeted_with_password_and_database(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    plain = connect(server.url, limit_s=10)
    await plain.config_set("requirepass", "hunter2")
    client = connect(server.url.replace("redis://", "redis://:hunter2@")[:-1] + "3", limit_s=10)
    stranger = connect(server.url, limit_s=10)
    try:
        text = "redis.call('SET', 'key', 'value') return redis.call('CLIENT', 'INFO')"
        script = Script(client, "redis.call('SET', 'key', 'value')")
        await script()
        assert await client.get("key") == b"value"
        with pytest.raises(RedisError, match=r"[Aa]uthentication"):
            await Script(stranger, text)()
    finally:
        for each in (plain, client, stranger):
            await each.aclose(close_connection_pool=True)
        server.kill()


async def test_scripts_go_through_a_unix_socket(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:  # such a path has about 100 characters at most
        server = RedisServer(tmp_path, "--unixsocket", f"{short}/redis.sock")
        server.start()
        redis = connect(f"unix://{short}/redis.sock", limit_s=5)
        script = Script(redis, ECHO)
        for number in range(3):
            assert await script(args=[number]) == [OWN, [str(number).encode()]]
        await redis.aclose(close_connection_pool=True)
        server.kill()


@pytest.fixture
def key_and_certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Of a server named localhost, that only the certificate itself vouches for."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [openssl, *command.split(), *names, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return key, certificate


@pytest.fixture
async def with_tls(
    tmp_path: Path, key_and_certificate: tuple[Path, Path]
) -> AsyncIterator[tuple[int, Path]]:
    """The port of a Redis that speaks TLS alone, and its certificate."""
    if not serves_tls():
        pytest.skip("this Redis was built without TLS")
    key, certificate = key_and_certificate
    server = RedisServer(tmp_path)
    server.start()
    plain = connect(server.url, limit_s=10)
    files = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate}
    try:
        for name, path in files.items():
            await plain.config_set(name, str(path))
        await plain.config_set("tls-auth-clients", "no")
        await plain.config_set("port", "0")
        await plain.config_set("tls-port", str(server.port))
    finally:
        await plain.aclose(close_connection_pool=True)
    yield server.port, certificate
    server.kill()


async def is_in_time(call: Callable[[], Awaitable[object]]) -> bool:
    """Whether a call is answered; a busy machine may take more than the second that a new
    connection has, and then it is to be made again."""
    with contextlib.suppress(RedisTimeoutError):
        await call()
        return True
    return False


async def test_scripts_go_through_tls(with_tls: tuple[int, Path]) -> None:
    port, certificate = with_tls
    redis = connect(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}", limit_s=10)
    script = Script(redis, "return #ARGV[1]")
    await eventually(partial(is_in_time, partial(script, args=["x"])), what="a connection")
    for size in (1, 100_000, 2_000_000, 1):
        assert await script(args=["x" * size]) == size
    await redis.aclose(close_connection_pool=True)


async def test_a_certificate_must_be_for_the_host_unless_that_is_not_asked(
    with_tls: tuple[int, Path],
) -> None:
    port, certificate = with_tls
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
    careful, careless = (
        connect(each, limit_s=10) for each in (url, f"{url}&ssl_check_hostname=false")
    )
    await eventually(partial(is_in_time, careless.ping), what="a connection")
    with pytest.raises(RedisError, match="certificate"):
        await eventually(partial(is_in_time, careful.ping), what="a connection")
    for client in (careful, careless):
        await client.aclose(close_connection_pool=True)


# How many connections there are.


async def test_calls_one_after_another_share_a_connection(redis: ArqRedis) -> None:
    script = Script(redis, ECHO)
    for number in range(20):
        assert await script(args=[number]) == [OWN, [str(number).encode()]]
    assert len(await scripts_at(redis)) == 1


async def test_calls_at_once_get_their_own_answers(redis: ArqRedis) -> None:
    script = Script(redis, ECHO)
    for _ in range(5):
        answers = await asyncio.gather(*(script(args=[number]) for number in range(30)))
        assert answers == [[OWN, [str(number).encode()]] for number in range(30)]
    assert len(await scripts_at(redis)) <= 30


async def test_closing_the_client_ends_its_channels(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    client = connect(redis_server.url, limit_s=10)
    script = Script(client, ECHO)
    await asyncio.gather(*(script(args=[number]) for number in range(5)))
    assert await scripts_at(redis)
    await client.aclose(close_connection_pool=True)

    async def has_ended() -> bool:
        return not await scripts_at(redis)

    await eventually(has_ended, what="the channels have ended")


# What else may happen to a channel.


async def test_a_channel_that_redis_closed_while_idle_costs_no_call(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    script = Script(redis, ECHO)
    for number in range(20):
        assert await script(args=[number]) == [OWN, [str(number).encode()]]
        [channel] = cast(Any, redis).nodes._node._channels._idle
        host, port = channel._transport.get_extra_info("sockname")
        with blocking.Redis(port=redis_server.port) as other:
            other.client_kill_filter(addr=f"{host}:{port}")
        poll = select.poll()
        poll.register(channel._transport.get_extra_info("socket"), select.POLLIN)
        assert poll.poll(SLACK_S * 1000)  # the kernel knows, the loop is not let in


async def test_a_redis_that_ends_during_a_call_is_said(own_redis: RedisServer) -> None:
    client = connect(own_redis.url, limit_s=30)
    script = Script(client, "while true do end")
    try:
        calling = asyncio.create_task(script())
        await asyncio.sleep(0.1)
        own_redis.kill()
        with pytest.raises(RedisConnectionError):
            await calling
        with pytest.raises(RedisConnectionError):
            await script()
        own_redis.start()
        assert await Script(client, ECHO)(args=[1]) == [OWN, [b"1"]]
    finally:
        await client.aclose(close_connection_pool=True)


async def test_a_frozen_redis_times_out_and_its_late_answer_reaches_no_call(
    own_redis: RedisServer,
) -> None:
    client = connect(own_redis.url, limit_s=1.0)
    script = Script(client, ECHO)
    try:
        assert await script(args=["before"]) == [OWN, [b"before"]]
        own_redis.signal(signal.SIGSTOP)
        with pytest.raises(RedisTimeoutError):
            await script(args=["late"])
        own_redis.signal(signal.SIGCONT)
        for number in range(20):
            with contextlib.suppress(RedisTimeoutError):  # a slow machine
                assert await script(args=[number]) == [OWN, [str(number).encode()]]
    finally:
        own_redis.signal(signal.SIGCONT)
        await client.aclose(close_connection_pool=True)


async def test_a_call_has_its_whole_time_though_an_earlier_one_set_the_timer(
    own_redis: RedisServer,
) -> None:
    client = connect(own_redis.url, limit_s=1.0)
    script = Script(client, ECHO)
    try:
        await script(args=["earlier"])
        await asyncio.sleep(0.6)
        own_redis.signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(RedisTimeoutError):
            await script(args=["late"])
        assert time.monotonic() - began > 0.9
    finally:
        own_redis.signal(signal.SIGCONT)
        await client.aclose(close_connection_pool=True)


@pytest.mark.parametrize("turns", range(12))
async def test_the_answer_to_a_cancelled_call_reaches_no_other(redis: ArqRedis, turns: int) -> None:
    script = Script(redis, ECHO)
    await script(args=["first"])
    cancelled = asyncio.create_task(script(args=["cancelled"]))
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled], timeout=SLACK_S)
    for number in range(10):
        assert await script(args=[number]) == [OWN, [str(number).encode()]]


def test_all_this_holds_on_the_loop_that_the_parts_run_on(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        client, other = (connect(redis_server.url, limit_s=10) for _ in range(2))
        script = Script(client, ECHO)
        for number in range(20):
            assert await script(args=[number]) == [OWN, [str(number).encode()]]
            cancelled = asyncio.create_task(script(args=["cancelled"]))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait([cancelled], timeout=SLACK_S)
            for address in await scripts_at(other):
                await other.client_kill_filter(addr=address)
        for each in (client, other):
            await each.aclose(close_connection_pool=True)

    uvloop.run(scenario())


# A server that does what Redis doesn't.


@contextlib.asynccontextmanager
async def pretending(answers: list[bytes]) -> AsyncIterator[ArqRedis]:
    """A client of a server that greets as Redis does and gives a script's call the next of these
    answers; after them it says which connection it is."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        own = connections
        received = b""
        while data := await reader.read(65536):
            received += data
            while match := re.search(rb"\*\d+\r\n\$\d+\r\n(CLIENT|EVALSHA)\r\n", received):
                received = received[match.end() :]
                if match[1] == b"CLIENT":
                    writer.write(b"+OK\r\n")
                else:
                    writer.write(answers.pop(0) if answers else b":%d\r\n" % own)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = connect(f"redis://127.0.0.1:{port}/0", limit_s=SLACK_S)
    try:
        yield client
    finally:
        await client.aclose(close_connection_pool=True)
        server.close()


async def test_a_second_answer_to_one_call_is_never_the_next_ones() -> None:
    async with pretending([b"+mine\r\n+whose\r\n"]) as client:
        script = Script(client, ECHO)
        with pytest.raises(RedisConnectionError):
            await script()
        assert await script() == 2


async def test_an_answer_to_no_call_reaches_no_call() -> None:
    async with pretending([b"+mine\r\n", b"+again\r\n"]) as client:
        script = Script(client, ECHO)
        assert await script() == b"mine"
        channel = cast(Any, client).nodes._node._channels._idle[0]
        channel._transport.write(b"*1\r\n$7\r\nEVALSHA\r\n")

        async def has_arrived() -> bool:
            return not channel.is_open or channel.has_news()

        await eventually(has_arrived, what="the stray answer has arrived")
        assert await script() == 2


async def test_bytes_that_are_no_answer_end_the_channel() -> None:
    async with pretending([b"HTTP/1.1 400 Bad Request\r\n\r\n"]) as client:
        script = Script(client, ECHO)
        with pytest.raises(RedisError):
            await script()
        assert await script() == 2

"""Clients of Redis, and URLs without their credentials."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from payswitch.store.client import connect
from payswitch.text import shown

# URLs.


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:hunter2@redis:6379/0", "redis://redis:6379/0"),
        ("rediss://user:hunter2@redis/3", "rediss://redis/3"),
        ("redis://user@redis/3", "redis://redis/3"),
        ("redis://user:p@ss@redis/3", "redis://redis/3"),
        ("redis://:hunter2@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("unix://user:hunter2@/run/redis.sock", "unix:/run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url: str, text: str) -> None:
    assert shown(url) == text


@pytest.mark.parametrize("url", ["redis://redis/0?password=hunter2", "unix:/r?password=hunter2"])
def test_a_url_is_shown_without_a_password_in_its_query(url: str) -> None:
    assert "hunter2" not in shown(url)


# Connecting.


async def test_a_client_gives_a_command_up_after_its_limit() -> None:
    redis = connect("redis://127.0.0.1:1/0", limit_s=1.2)
    assert redis.connection_pool.connection_kwargs["socket_timeout"] == 1.2


@pytest.mark.parametrize(("limit_s", "connect_s"), [(0.3, 0.3), (1.2, 1.0), (10, 1.0)])
async def test_a_client_gives_connecting_up_after_a_second_at_most(
    limit_s: float, connect_s: float
) -> None:
    redis = connect("redis://127.0.0.1:1/0", limit_s=limit_s)
    assert redis.connection_pool.connection_kwargs["socket_connect_timeout"] == connect_s


async def test_jobs_go_through_a_client_as_json() -> None:
    redis = connect("redis://127.0.0.1:1/0", limit_s=1)
    assert redis.job_serializer is not None
    assert redis.job_serializer({"f": "pay"}) == b'{"f":"pay"}'


async def test_a_connection_to_a_server_that_stands_still_is_closed_without_a_word() -> None:
    may_go_on = asyncio.Event()

    async def stand_still(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await may_go_on.wait()
        writer.close()

    server = await asyncio.start_server(stand_still, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = connect(f"redis://127.0.0.1:{port}/0", limit_s=0.1).connection_pool
    pool.connection_kwargs.update(lib_name=None, lib_version=None)  # else it waits for an answer
    connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()
        connection._writer.write(bytes(32 * 1024 * 1024))
        await connection.disconnect()
        assert not connection.is_connected
    finally:
        may_go_on.set()
        server.close()

"""The Redis client on a real Redis."""

from __future__ import annotations

import asyncio
import select
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis

from payswitch.durability import Durability
from payswitch.operations.shards import read_shards
from payswitch.store.client import connect
from payswitch.store.trust import config_risks
from payswitch.store.watch import RedisWatch
from tests.support import SLACK_S, RedisServer, eventually


@pytest.mark.parametrize("turns", range(40))
async def test_a_command_never_swallows_a_cancellation(redis: ArqRedis, turns: int) -> None:
    """Whatever it is doing in this turn of the loop, also just when its send has ended."""

    async def work() -> None:
        while True:
            await redis.set("key", "value")

    await redis.ping()
    task = asyncio.create_task(work())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=30)
    assert done


async def test_a_redis_that_keeps_every_write_may_be_trusted(redis: ArqRedis) -> None:
    assert await config_risks(redis, Durability.DISK) == []


async def test_what_redis_may_lose_is_said(redis: ArqRedis) -> None:
    await redis.config_set("appendfsync", "everysec")
    try:
        [risk] = await config_risks(redis, Durability.DISK)
    finally:
        await redis.config_set("appendfsync", "always")
    assert "everysec" in risk


async def test_a_single_redis_that_is_named_as_a_cluster_is_said_to_be_none(
    redis_server: RedisServer,
) -> None:
    client = connect(redis_server.url.replace("redis://", "redis+cluster://")[:-1], limit_s=5)
    try:
        watch = RedisWatch(client, currency="BRL", demand=False)
        await watch.look()
        said = "it is no cluster: name it in REDIS_URL as redis:// or rediss://"
        assert watch.not_ready == f"Redis does not answer: {said}"
        [shard] = await read_shards(client)
        assert shard.trouble == said
    finally:
        await client.aclose(close_connection_pool=True)


async def test_a_redis_on_a_unix_socket_is_reached(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:  # such a path has about 100 characters at most
        server = RedisServer(tmp_path, "--unixsocket", f"{short}/redis.sock")
        server.start()
        redis = connect(f"unix://{short}/redis.sock", limit_s=5)
        assert await redis.ping()
        await redis.aclose(close_connection_pool=True)
        server.kill()


async def test_a_connection_that_redis_closed_costs_no_command(redis_server: RedisServer) -> None:
    client = connect(redis_server.url, limit_s=10)
    other = connect(redis_server.url, limit_s=10)
    try:
        for _ in range(20):
            name = await client.client_id()
            await other.client_kill_filter(_id=str(name))
            assert await client.set("key", "value")
            assert await client.client_id() != name
    finally:
        await client.aclose(close_connection_pool=True)
        await other.aclose(close_connection_pool=True)


async def in_the_kernel(connection: Any) -> None:
    poll = select.poll()
    poll.register(connection._writer.get_extra_info("socket"), select.POLLIN)
    assert poll.poll(SLACK_S * 1000)  # the loop is not let in


async def in_the_buffer(connection: Any) -> None:
    async def has_arrived() -> bool:
        return bool(connection._reader._buffer)

    await eventually(has_arrived, what="the answer has arrived")


async def in_the_parser(connection: Any) -> None:
    await in_the_buffer(connection)
    await connection._parser.read_from_socket()


@pytest.mark.parametrize("wait", [in_the_kernel, in_the_buffer, in_the_parser])
async def test_a_stray_answer_reaches_no_call(
    redis_server: RedisServer, wait: Callable[[Any], Awaitable[None]]
) -> None:
    client = connect(redis_server.url, limit_s=10)
    try:
        await client.set("key", "value")
        connection = await client.connection_pool.get_connection()
        await connection.send_command("PING")
        await wait(connection)
        await client.connection_pool.release(connection)
        assert await client.get("key") == b"value"
    finally:
        await client.aclose(close_connection_pool=True)

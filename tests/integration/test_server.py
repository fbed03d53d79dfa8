"""The ingress as a process of its own, on a unix socket."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from uuid import uuid4

import httpx
from arq.connections import ArqRedis

from tests.support import RedisServer, eventually


async def test_it_serves_a_unix_socket_also_where_a_killed_one_left_its_own(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    with tempfile.TemporaryDirectory() as short:  # such a path has about 100 characters at most
        path = f"{short}/ingress.sock"
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            for number in (signal.SIGKILL, signal.SIGTERM):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "payswitch", "ingress", "--uds", path),
                    env={**os.environ, "REDIS_URL": redis_server.url},
                )
                await eventually(ready, what="the ingress is ready")
                body = {"correlationId": str(uuid4()), "amount": 1.5}
                assert (await client.post("/payments", json=body)).status_code == 202
                process.send_signal(number)
                assert await asyncio.wait_for(process.wait(), 30) == (-9 if number == 9 else 0)
    assert await redis.zcard("arq:queue") == 2

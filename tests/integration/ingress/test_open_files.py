"""A low limit of open files, as shells give it, does not limit the connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys

import pytest
from arq.connections import ArqRedis

from tests.support import RedisServer, eventually, free_port

LOW = 256
CONNECTIONS = 400
_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
RAISED = min(65_536, HARD) if HARD != resource.RLIM_INFINITY else 65_536

pytestmark = pytest.mark.skipif(RAISED < 2 * CONNECTIONS, reason="the hard limit is low as well")
only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="asks the kernel for others' limits"
)


async def started(url: str, *command: str) -> asyncio.subprocess.Process:
    """A part as a process of its own, with a low limit."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "payswitch", *command),
        env={**os.environ, "REDIS_URL": url},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LOW, HARD)),
    )


async def stopped(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.parametrize("processes", [1, 2])
async def test_the_ingress_serves_more_connections_than_its_soft_limit(
    redis_server: RedisServer, processes: int
) -> None:
    port = free_port()
    options = ("--port", str(port), "--workers", str(processes))
    ingress = await started(redis_server.url, "ingress", *options)

    async def connection() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port)

    async def listens() -> bool:
        with contextlib.suppress(OSError):
            (await connection())[1].close()
            return True
        return False

    await eventually(listens, what="the ingress listens")
    # All stay open until the last one is served.
    connections = [await connection() for _ in range(CONNECTIONS)]
    async with asyncio.timeout(30):
        for reader, writer in connections:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: ingress\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    for _, writer in connections:
        writer.close()
    await stopped(ingress)


@only_linux
@pytest.mark.parametrize("part", ["worker", "health"])
async def test_a_worker_raises_its_limit(
    redis: ArqRedis, redis_server: RedisServer, part: str
) -> None:
    process = await started(redis_server.url, part)

    async def raised() -> bool:
        return resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (RAISED, HARD)

    await eventually(raised, what="the limit is raised")
    key = "arq:queue:health:health-check" if part == "health" else "arq:queue:health-check"

    async def works() -> bool:
        return bool(await redis.exists(key))

    await eventually(works, what="it works")
    await stopped(process)

"""The client of `bench.pipeline`: `python -m bench.load URL COUNT AT_ONCE` posts new payments, so
many at a time, and prints what came of it."""

from __future__ import annotations

import asyncio
import os
import time
from uuid import uuid4

import click
import httpx
import uvloop

from bench.local import BenchError, answer
from payswitch.orphans import die_with_parent
from payswitch.transport import Transport

_LIMIT_S = 60.0


async def post_payments(url: str, count: int, at_once: int) -> None:
    """Post them all, each connection its next as soon as it has an answer; what is answered 503 is
    posted again."""
    transport = Transport(max_connections_per_host=at_once, read_timeout=_LIMIT_S)
    target = httpx.URL(f"{url}/payments")
    headers = [(b"host", target.netloc), (b"content-type", b"application/json")]
    bodies = iter(
        [b'{"correlationId":"%s","amount":19.9}' % str(uuid4()).encode() for _ in range(count)]
    )

    refused = 0

    async def post() -> None:
        nonlocal refused
        for body in bodies:
            while (status := await send(body)) == 503:
                refused += 1
            if status != 202:
                raise BenchError(f"a payment was answered with status {status}")

    async def send(body: bytes) -> int:
        request = httpx.Request("POST", target, headers=headers, content=body)
        return (await transport.handle_async_request(request)).status_code

    began, used = time.monotonic(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(post())
    ended = time.monotonic()
    cpu_s = time.process_time() - used
    answer({"began": began, "ended": ended, "cpu_s": cpu_s, "refused": refused})
    await transport.aclose()


@click.command()
@click.argument("url")
@click.argument("count", type=int)
@click.argument("at_once", type=int)
def main(url: str, count: int, at_once: int) -> None:
    """Post so many payments to URL."""
    die_with_parent(os.getppid())
    uvloop.run(post_payments(url, count, at_once))


if __name__ == "__main__":
    main()

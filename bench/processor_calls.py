"""A process that calls a processor with one candidate for a while, and prints the cost as JSON:
`python -m bench.processor_calls <candidate> <url> <in flight> <seconds>`.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
import uuid

import uvloop

from bench.common import cpu_s
from bench.local import BenchError, answer
from bench.processor_candidates import CANDIDATES, Limits, Post

_WARM_UP_CALLS = 6
_WARM_UP_S = 15.0
"""Calls by each of those in flight before the measurement, and their limit in seconds. When many
calls end at once, as the first do, stock httpx needs several times its later CPU, for seconds."""

_LEAST_CALLS = 50
_LOOK_S = 0.01


class Calls:
    """Calls a processor with a constant number of calls in flight."""

    def __init__(self, post: Post, url: str) -> None:
        self._post = post
        self._url = url
        self._done = 0
        self._is_over = False

    async def measure(self, in_flight: int, seconds: float) -> None:
        """Print the cost of calls while all are in flight, without beginning and end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(self._go_on())
            await self._until(_WARM_UP_CALLS * in_flight, at_most_s=_WARM_UP_S)
            before, used, began = self._done, cpu_s(), time.perf_counter()
            await asyncio.sleep(seconds)
            await self._until(before + _LEAST_CALLS)
            wall, cpu, done = time.perf_counter() - began, cpu_s() - used, self._done - before
            self._is_over = True
            answer({"calls": done, "wall_s": wall, "cpu_s": cpu})

    async def _until(self, calls: int, *, at_most_s: float = math.inf) -> None:
        deadline = time.perf_counter() + at_most_s
        while self._done < calls and time.perf_counter() < deadline:
            await asyncio.sleep(_LOOK_S)

    async def _go_on(self) -> None:
        while not self._is_over:
            await self._call()
            self._done += 1

    async def _call(self) -> None:
        body = (
            f'{{"correlationId":"{uuid.uuid4()}","amount":19.90,'
            '"requestedAt":"2026-01-01T00:00:00.000Z"}'
        )
        found = await self._post(self._url, body.encode())
        if found.status != 200:
            raise BenchError(f"the processor answered {found.status}")


async def _measure(candidate: str, url: str, in_flight: int, seconds: float) -> None:
    async with CANDIDATES[candidate](Limits(connections=in_flight)) as post:
        await Calls(post, url).measure(in_flight, seconds)


if __name__ == "__main__":
    uvloop.run(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))

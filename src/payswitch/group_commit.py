"""Group commit: many small writes share a round trip.

The batch is what arrived while the previous flush was under way. There is no timer, so an idle
system adds no latency, and one flush is in flight at a time.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Collects items and hands them to `flush`, which answers with one result for each, in order.

    An exception of `flush` reaches every submitter of that batch. A submitter that is cancelled
    before its item was handed over takes the item with it; so does one that has waited for
    `limit_s`, which gets a `TimeoutError`.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int = 256,
        limit_s: float = math.inf,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._limit_s = limit_s
        self._limited: deque[tuple[float, asyncio.Future[Result]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Wait until the item's batch was flushed; returns its result or raises flush's error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._limit_s != math.inf:
            self._limit(future)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_all())
        return await future

    def _limit(self, future: asyncio.Future[Result]) -> None:
        """One timer serves all who wait, as their limits end in the order in which they came: a
        timer each would cost as much as everything else in here."""
        loop = asyncio.get_running_loop()
        while self._limited and self._limited[0][1].done():
            self._limited.popleft()
        self._limited.append((loop.time() + self._limit_s, future))
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._limited:
            ends_at, future = self._limited[0]
            if not future.done():
                if ends_at > loop.time():
                    self._timer = loop.call_at(ends_at, self._expire)
                    return
                future.set_exception(TimeoutError())
            self._limited.popleft()

    async def _flush_all(self) -> None:
        try:
            while self._waiting:
                await self._flush_batch(self._next_batch())
        finally:
            self._flusher = None
            # Not empty only where the flusher was cancelled.
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch

    async def _flush_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results = await self._flush([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

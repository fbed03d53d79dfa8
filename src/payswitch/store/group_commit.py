"""Group commit: many small writes share a round trip.

A batch holds the items that arrived during the previous flush. There is no timer, so an idle
system adds no latency. One flush is in flight at a time to each node of Redis.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from payswitch.store.partitions import Partition

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Collects items and hands them to `flush`, which returns one result for each, in order.

    An error among the results reaches its submitter, an error of `flush` every submitter of the
    batch. Before its item is handed over, a cancelled submitter withdraws it; so does a submitter
    that has waited for `limit_s`, which gets a `TimeoutError`.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
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
        self._flushing: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Wait until the item is flushed; returns its result or raises the error of `flush`."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, result))
        if self._limit_s != math.inf:
            self._limit(result, loop)
        if self._flushing is None:
            # It begins in the loop's next round, so items of this round share the batch.
            self._flushing = loop.create_task(self._flush_all())
        return await result

    def _limit(self, result: asyncio.Future[Result], loop: asyncio.AbstractEventLoop) -> None:
        """Let one timer serve all submitters, whose limits end in the order of their arrival. A
        timer each would cost as much as everything else here."""
        while self._limited and self._limited[0][1].done():
            self._limited.popleft()
        self._limited.append((loop.time() + self._limit_s, result))
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._limited:
            ends_at, result = self._limited[0]
            if not result.done() and ends_at > loop.time():
                self._timer = loop.call_at(ends_at, self._expire)
                return
            self._limited.popleft()
            if not result.done():
                result.set_exception(TimeoutError())

    async def _flush_all(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        try:
            while batch := self._next_batch():
                try:
                    results = await self._flush([item for item, _ in batch])
                    if len(results) != len(batch):
                        raise RuntimeError(f"{len(results)} results for {len(batch)} items")
                except Exception as error:
                    for _, waiting in batch:
                        if not waiting.done():
                            waiting.set_exception(error)
                else:
                    for (_, waiting), result in zip(batch, results, strict=True):
                        if waiting.done():
                            continue
                        if isinstance(result, Exception):
                            waiting.set_exception(result)
                        else:
                            waiting.set_result(result)
        finally:  # a submitter that still waits here does so because the loop ends
            self._flushing = None
            for _, waiting in (*batch, *self._waiting):
                waiting.cancel()

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_batch:
            item, result = self._waiting.popleft()
            if not result.done():
                batch.append((item, result))
        return batch


class CommitByNode(Generic[Item, Result]):
    """A group commit for each node of Redis, so that a slow node holds up nothing of another.
    `flush` gets the items with their partitions."""

    def __init__(
        self,
        flush: Callable[[list[tuple[Partition, Item]]], Awaitable[Sequence[Result | Exception]]],
        *,
        limit_s: float = math.inf,
    ) -> None:
        self._flush = flush
        self._limit_s = limit_s
        self._by_node: dict[str, GroupCommit[tuple[Partition, Item], Result]] = {}

    def submit(self, partition: Partition, item: Item) -> Coroutine[Any, Any, Result]:
        """As `GroupCommit.submit`."""
        home = partition.home
        commits = self._by_node.get(home)
        if commits is None:
            commits = self._by_node[home] = GroupCommit(self._flush, limit_s=self._limit_s)
        return commits.submit((partition, item))

"""Group commit: many small writes share a round trip.

The batch is what arrived while the previous flush was under way. There is no timer, so an idle
system adds no latency, and one flush is in flight at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Deliver = Callable[[Result | BaseException], None]
"""Gets a result, or the error that came instead."""

logger = logging.getLogger(__name__)

_running: set[asyncio.Future[Any]] = set()


def flush_in_a_task(
    flush: Callable[[list[Item]], Awaitable[Sequence[Result]]],
    items: list[Item],
    done: Deliver[Sequence[Result]],
) -> None:
    """Run a flush that is a coroutine; `done` gets its results, one for each item, or its error."""

    def deliver(task: asyncio.Future[Sequence[Result]]) -> None:
        _running.discard(task)
        if task.cancelled():
            done(asyncio.CancelledError())
        else:
            error = task.exception()
            done(task.result() if error is None else error)

    task = asyncio.ensure_future(flush(items))
    _running.add(task)  # the loop itself keeps no task alive
    task.add_done_callback(deliver)


class GroupCommit(Generic[Item, Result]):
    """Collects items and hands them to `flush`, which answers with one result for each, in order.

    A flush is a task, unless `begin` says that it has begun the same without one; it then gives
    results or error to `done`, later.

    An error of a flush reaches every submitter of that batch. A submitter that is cancelled before
    its item was handed over takes the item with it; so does one that has waited for `limit_s`,
    which gets a `TimeoutError`.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        begin: Callable[[list[Item], Deliver[Sequence[Result]]], bool] | None = None,
        max_batch: int = 256,
        limit_s: float = math.inf,
    ) -> None:
        self._flush = flush
        self._begin = begin
        self._max_batch = max_batch
        self._limit_s = limit_s
        self._limited: deque[tuple[float, _Waiter[Item, Result]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[_Waiter[Item, Result]] = deque()
        self._is_flushing = False

    async def submit(self, item: Item) -> Result:
        """Wait until the item's batch was flushed; returns its result or raises flush's error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._add(_Submitter(item, future))
        return await future

    def put(self, item: Item, deliver: Deliver[Result]) -> None:
        """The same for who can't wait: `deliver` gets the result or the error, later."""
        self._add(_Caller(item, deliver))

    def _add(self, waiter: _Waiter[Item, Result]) -> None:
        self._waiting.append(waiter)
        if self._limit_s != math.inf:
            self._limit(waiter)
        if not self._is_flushing:
            self._is_flushing = True
            # Who comes in the same round of the loop is in the same batch.
            asyncio.get_running_loop().call_soon(self._flush_next)

    def _limit(self, waiter: _Waiter[Item, Result]) -> None:
        """One timer serves all who wait, as their limits end in the order in which they came: a
        timer each would cost as much as everything else in here."""
        loop = asyncio.get_running_loop()
        while self._limited and self._limited[0][1].is_over:
            self._limited.popleft()
        self._limited.append((loop.time() + self._limit_s, waiter))
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._limited:
            ends_at, waiter = self._limited[0]
            if not waiter.is_over and ends_at > loop.time():
                self._timer = loop.call_at(ends_at, self._expire)
                return
            self._limited.popleft()
            waiter.end(TimeoutError())

    def _flush_next(self) -> None:
        batch = self._next_batch()
        self._is_flushing = bool(batch)
        if not batch:
            return
        items = [waiter.item for waiter in batch]
        done = partial(self._flushed, batch)
        try:
            has_begun = self._begin is not None and self._begin(items, done)
        except Exception as error:
            asyncio.get_running_loop().call_soon(done, error)
            return
        if not has_begun:
            flush_in_a_task(self._flush, items, done)

    def _next_batch(self) -> list[_Waiter[Item, Result]]:
        batch: list[_Waiter[Item, Result]] = []
        while self._waiting and len(batch) < self._max_batch:
            waiter = self._waiting.popleft()
            if not waiter.is_over:
                batch.append(waiter)
        return batch

    def _flushed(
        self, batch: list[_Waiter[Item, Result]], outcome: Sequence[Result] | BaseException
    ) -> None:
        if isinstance(outcome, asyncio.CancelledError):
            batch += self._waiting
            self._waiting.clear()
        self._flush_next()
        if isinstance(outcome, BaseException):
            for waiter in batch:
                waiter.end(outcome)
        elif len(outcome) != len(batch):
            for waiter in batch:
                waiter.end(RuntimeError(f"{len(outcome)} results for {len(batch)} items"))
        else:
            for waiter, result in zip(batch, outcome, strict=True):
                waiter.end(result)


class _Waiter(ABC, Generic[Item, Result]):
    """Who waits for the flush of an item."""

    __slots__ = ("item",)

    def __init__(self, item: Item) -> None:
        self.item = item

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether nobody waits any longer."""

    @abstractmethod
    def end(self, outcome: Result | BaseException) -> None:
        """Say what came of it, to who still waits."""


class _Submitter(_Waiter[Item, Result]):
    __slots__ = ("_future",)

    def __init__(self, item: Item, future: asyncio.Future[Result]) -> None:
        super().__init__(item)
        self._future = future

    @property
    def is_over(self) -> bool:
        return self._future.done()

    def end(self, outcome: Result | BaseException) -> None:
        if self._future.done():
            return
        if isinstance(outcome, asyncio.CancelledError):
            self._future.cancel()
        elif isinstance(outcome, BaseException):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


class _Caller(_Waiter[Item, Result]):
    __slots__ = ("_deliver",)

    def __init__(self, item: Item, deliver: Deliver[Result]) -> None:
        super().__init__(item)
        self._deliver: Deliver[Result] | None = deliver

    @property
    def is_over(self) -> bool:
        return self._deliver is None

    def end(self, outcome: Result | BaseException) -> None:
        deliver, self._deliver = self._deliver, None
        if deliver is None:
            return
        try:
            deliver(outcome)
        except Exception:
            logger.exception("what came of a write could not be said")

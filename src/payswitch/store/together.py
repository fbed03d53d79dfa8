"""Runs calls concurrently, and waits for tasks that outlive their callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def shared(task: asyncio.Task[T]) -> T:
    """The result of a task that goes on should its caller be cancelled, or of which several callers
    wait. What it raises when nobody waits any more is no news, and asyncio does not log it."""
    task.add_done_callback(_take_note)
    return await asyncio.shield(task)


def _take_note(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of concurrent calls; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise

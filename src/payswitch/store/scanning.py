"""Reads all of a key space, set or hash from Redis, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any


async def pages(scan: Callable[[int], Awaitable[tuple[int, Any]]]) -> AsyncIterator[Any]:
    """The pages of a command such as `SCAN`, which gets the cursor. Raises `RedisError`."""
    cursor = 0
    while True:
        cursor, page = await scan(cursor)
        yield page
        if cursor == 0:
            return

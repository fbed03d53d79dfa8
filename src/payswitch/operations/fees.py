"""What the processors take: asked seldom, kept in Redis for whoever sums up what was paid."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.processors.books import CannotAskError, ProcessorBooks
from payswitch.store import keys
from payswitch.store.notes import write_note

logger = logging.getLogger(__name__)

_EVERY_S = 600.0
_AGAIN_S = 15.0


class FeeWatch:
    """Asks every processor's admin summary for its fee: at start until all have said it, then every
    ten minutes."""

    def __init__(self, redis: Redis, books: Mapping[str, ProcessorBooks]) -> None:
        self._redis = redis
        self._books = books
        self._known: dict[str, str] = {}
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._asking = asyncio.create_task(self._ask_for_ever(), name="fees")

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def ask(self) -> bool:
        """Ask once and note what is known; whether all have said it. Raises `RedisError` or
        `OSError`."""
        said = 0
        for name, books in self._books.items():
            try:
                self._known[name] = str(await books.fee())
                said += 1
            except CannotAskError as error:
                logger.debug("a fee is unknown: %(error)s", {"error": str(error)})
        if said:
            at = time.time_ns() // 1_000_000
            await write_note(self._redis, keys.FEES, {"at": at, **self._known})
        return said == len(self._books)

    async def _ask_for_ever(self) -> None:
        while True:
            try:
                all_said = await self.ask()
            except (RedisError, OSError):
                all_said = False
            await asyncio.sleep(_EVERY_S if all_said else _AGAIN_S)

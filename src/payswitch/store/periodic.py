"""Periodic work of a process in the background."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from redis.exceptions import RedisError

logger = logging.getLogger(__name__)


class Periodic(ABC):
    """Takes a turn every `every_s` seconds from `start` to `close`, the first one at once.

    An error ends only its turn. It is logged with `what` the turn makes: at debug level if Redis is
    away, else with its traceback.
    """

    def __init__(self, what: str, every_s: float) -> None:
        self.every_s = every_s
        self._what = what
        self._turns: asyncio.Task[None] | None = None

    @abstractmethod
    async def turn(self) -> None:
        """Take one turn."""

    def start(self) -> None:
        """Begin to take turns."""
        self._turns = asyncio.create_task(self._take_turns(), name=self._what)

    async def close(self) -> None:
        """Cancel the turns, including the one under way."""
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])

    async def _take_turns(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                await self.turn()
            except (RedisError, OSError):
                logger.debug("no %(what)s: redis is away", {"what": self._what})
            except Exception:
                logger.exception("no %(what)s", {"what": self._what})
            due = max(due + self.every_s, loop.time())
            await asyncio.sleep(due - loop.time())

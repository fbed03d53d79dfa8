"""Reads the processors' fees from time to time and keeps them in Redis for the overview."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from redis.asyncio import Redis

from payswitch.processors.processor import CannotAskError, Processor
from payswitch.store import keys
from payswitch.store.notes import write_note
from payswitch.store.periodic import Periodic

logger = logging.getLogger(__name__)

_EVERY_S = 600.0
_AGAIN_S = 15.0


class FeeWatch(Periodic):
    """Asks every processor for its fee: every 15 s until all have answered, then
    every ten minutes."""

    def __init__(self, redis: Redis, processors: Mapping[str, Processor]) -> None:
        super().__init__("fees", _AGAIN_S)
        self._redis = redis
        self._processors = processors
        self._known: dict[str, str] = {}

    async def turn(self) -> None:
        """Ask, store the known fees, and set the time of the next turn. Raises `RedisError` or
        `OSError`."""
        self.every_s = _AGAIN_S  # also if Redis fails
        said = 0
        for name, processor in self._processors.items():
            try:
                self._known[name] = str(await processor.fee())
                said += 1
            except CannotAskError as error:
                logger.debug("a fee is unknown: %(error)s", {"error": str(error)})
        if said:
            at = time.time_ns() // 1_000_000
            await write_note(self._redis, keys.FEES, {"at": at, **self._known})
        if said == len(self._processors):
            self.every_s = _EVERY_S

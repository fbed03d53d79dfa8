"""Redis' memory: whether there is room for new payments, and how a Redis without any refuses.

The backpressure keeps a part of Redis' `maxmemory` free for what is accepted already. Whatever gets
past it is refused by Redis itself, all or nothing (`accept.lua`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

logger = logging.getLogger(__name__)

_EVERY_S = 0.5
_LIMIT_S = 1.0
_TAKES_AGAIN_BELOW = 0.95
"""The part of the mark below which payments are taken again, so that it doesn't flap."""


def says_out_of_memory(error: Exception) -> bool:
    """Whether Redis' words in it are those of one whose memory is full. The error code is no sign:
    a transaction and, before Redis 7, a script have another."""
    return "used memory > 'maxmemory'" in str(error)


def is_short(memory: Mapping[str, object], *, max_percent: int, was_short: bool) -> bool:
    """Judge the answer to `INFO memory` (bytes) as Redis itself does: its buffers for the
    append-only file and for replicas do not count, and without a `maxmemory` there is no limit."""
    limit = _number(memory, "maxmemory")
    used = _number(memory, "used_memory") - _number(memory, "mem_not_counted_for_evict")
    mark = limit * max_percent / 100
    return limit > 0 and used > (mark * _TAKES_AGAIN_BELOW if was_short else mark)


class MemoryWatch:
    """Looks at Redis' memory twice a second beside the requests, so that none waits for it.

    While Redis is away the last look stands. Where `INFO` is not allowed, memory is never short.
    """

    def __init__(self, redis: Redis, *, max_percent: int) -> None:
        self.is_short = False
        self._redis = redis
        self._max_percent = max_percent
        self._is_allowed = True
        self._is_away = False
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._looking = asyncio.create_task(self._look_for_ever(), name="memory watch")

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def look(self) -> None:
        """Look once, for a second at most."""
        try:
            async with asyncio.timeout(_LIMIT_S):
                memory = await self._redis.info("memory")
        except ResponseError as error:
            self._note(False)
            if self._is_allowed:
                self._is_allowed = False
                logger.warning(
                    "redis: its memory can't be watched, so it may fill up: %(error)s",
                    {"error": error},
                )
            self._note_away(None)
        except (RedisError, OSError) as error:
            self._note_away(error)
        else:
            self._note_away(None)
            self._note(is_short(memory, max_percent=self._max_percent, was_short=self.is_short))

    async def _look_for_ever(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    def _note_away(self, error: Exception | None) -> None:
        """Say when Redis goes and when it is back; nothing else in an ingress does."""
        if error is not None and not self._is_away:
            logger.warning("redis is away: %(error)s", {"error": str(error) or repr(error)})
        elif self._is_away and error is None:
            logger.info("redis is back")
        self._is_away = error is not None

    def _note(self, is_short: bool) -> None:
        if is_short and not self.is_short:
            logger.warning(
                "redis uses over %(percent)d %% of its maxmemory: new payments are refused",
                {"percent": self._max_percent},
            )
        elif self.is_short and not is_short:
            logger.info("redis has memory again: new payments are taken")
        self.is_short = is_short


def _number(memory: Mapping[str, object], name: str) -> int:
    value = memory.get(name)
    return value if isinstance(value, int) else 0

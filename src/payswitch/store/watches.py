"""A watch for each node of Redis, so that a node that fails takes nothing from the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from redis.exceptions import RedisError

from payswitch.durability import Durability
from payswitch.store.client import Client
from payswitch.store.memory import Memory
from payswitch.store.partitions import Partition
from payswitch.store.periodic import Periodic
from payswitch.store.watch import RedisWatch

_EVERY_S = 0.5
_STARTS_WITHIN_S = 1.5
"""A part that starts waits so long for the looks at further nodes: somewhat longer than a look."""


class Watches(Periodic):
    """Watches the nodes that have partitions now. `make` makes the watch of a node by its name."""

    def __init__(self, redis: Client, make: Callable[[str], RedisWatch]) -> None:
        super().__init__("follow the nodes of redis", _EVERY_S)
        self._partitions = redis.partitions
        self._make = make
        self._by_home: dict[str, RedisWatch] = {}
        self._is_started = False
        self._ending: set[asyncio.Task[None]] = set()

    def of(self, partition: Partition) -> RedisWatch:
        """The watch of the partition's node."""
        home = partition.home
        found = self._by_home.get(home)
        if found is None:
            found = self._by_home[home] = self._make(home)
            if self._is_started:
                found.start()
        return found

    def every(self) -> list[RedisWatch]:
        """The watches of all nodes that have payments' partitions."""
        return list({id(watch): watch for watch in map(self.of, self._partitions)}.values())

    @property
    def not_ready(self) -> str | None:
        """The reason why no payment is accepted, whatever its partition; None if some are."""
        reasons = [watch.not_ready for watch in self.every()]
        return None if None in reasons else reasons[0]

    @property
    def is_short(self) -> bool:
        """Whether some node is short of memory."""
        return any(watch.is_short for watch in self.every())

    @property
    def is_kept(self) -> bool:
        """Whether all nodes keep what the durability promises."""
        return all(watch.is_kept for watch in self.every())

    @property
    def durability(self) -> Durability:
        """What a 202 stands for, if it `is_kept`."""
        return self.every()[0].durability

    @property
    def memory(self) -> Memory:
        """The memory of the fullest node."""
        return max((watch.memory for watch in self.every()), key=lambda each: each.share)

    def start(self) -> None:
        """Begin to watch."""
        self._is_started = True
        for watch in self._by_home.values():
            watch.start()
        super().start()

    async def close(self) -> None:
        """Stop watching."""
        await super().close()
        await asyncio.gather(*(watch.close() for watch in self._by_home.values()), *self._ending)

    async def turn(self) -> None:
        """Watch the nodes that are new, and no longer those that have no partition."""
        with contextlib.suppress(RedisError, OSError):
            await self._partitions.common.locate()
        self.every()
        homes = {each.home for each in (*self._partitions, self._partitions.common)}
        for home in self._by_home.keys() - homes:
            task = asyncio.create_task(self._by_home.pop(home).close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def look(self) -> None:
        """Look until some node takes payments, or all have been looked at."""
        looks = [asyncio.create_task(watch.look()) for watch in self.every()]
        for look in asyncio.as_completed(looks):
            await look
            if self.not_ready is None:
                return

    async def check_trust(self) -> None:
        """As `RedisWatch.check_trust`, for the nodes that answer; waits for one of them."""
        await self.turn()
        checks = [asyncio.create_task(watch.check_trust()) for watch in self.every()]
        try:
            await asyncio.wait(checks, return_when=asyncio.FIRST_COMPLETED)
            done, _ = await asyncio.wait(checks, timeout=_STARTS_WITHIN_S)
            for check in done:
                check.result()
        finally:
            for check in checks:
                check.cancel()
            await asyncio.gather(*checks, return_exceptions=True)

    async def until_usable(self) -> None:
        """Wait until some node can be used; the log gives the reasons. Raises
        `UntrustworthyRedisError` as `check_trust` does."""
        while True:
            await self.check_trust()
            if any(watch.unusable is None for watch in self.every()):
                return
            await asyncio.sleep(_EVERY_S)

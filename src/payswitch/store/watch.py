"""Checks twice a second whether Redis can be used, so that no payment waits for the check.

An ingress accepts a payment only if a worker could take it: Redis must take writes, grant its user
every right that some part needs, hold payments of the same currency, have room, and, with
`PAYSWITCH_REDIS_TRUST=require`, keep what `PAYSWITCH_DURABILITY` promises. Workers may be absent:
they pay when they come back.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable

from redis.exceptions import RedisError

from payswitch.durability import Durability
from payswitch.store.client import Client
from payswitch.store.errors import in_words
from payswitch.store.memory import Memory
from payswitch.store.partitions import Partition
from payswitch.store.periodic import Periodic
from payswitch.store.server_watch import UNSEEN, Demands, ServerWatch
from payswitch.store.topology import Topology
from payswitch.store.trust import UntrustworthyRedisError

logger = logging.getLogger(__name__)

_EVERY_S = 0.5
_LIMIT_S = 1.0
_FRESH_S = 0.05
"""A look that ended this recently still counts as current."""
_TOPOLOGY_EVERY = 10
"""Looks from one reading of a cluster's topology to the next."""


class RedisWatch(Periodic):
    """Looks at Redis twice a second, and on request: in a cluster at each node with partitions.
    While a server is away, the last look at it stands.

    `currency` is the code of this process' currency, by which it reads and writes amounts.
    `max_percent` is the share of `maxmemory` up to which payments are accepted. With `demand`, a
    Redis is refused that may keep less than `durability` promises.
    """

    def __init__(
        self,
        redis: Client,
        *,
        currency: str,
        demand: bool,
        durability: Durability = Durability.DISK,
        max_percent: int = 100,
        max_backlog: float = math.inf,
    ) -> None:
        super().__init__("look at redis", _EVERY_S)
        self.durability = durability
        """What a 202 stands for, if it `is_kept`."""
        self._redis = redis
        self._demands = Demands(currency, demand, durability, max_percent)
        self._max_backlog = max_backlog
        self._is_checking = False
        self._servers: dict[str, ServerWatch] = {}
        self._unknown = ServerWatch(redis, "", self._demands)
        """Stands for the only server, and for all of a cluster until its topology is known."""
        self._looks = 0
        self._changes = 0
        self._look: asyncio.Task[None] | None = None
        self._looked_at = -math.inf

    @property
    def servers(self) -> Iterable[ServerWatch]:
        """All servers, as last seen."""
        return self._servers.values() or (self._unknown,)

    def at(self, partition: Partition) -> ServerWatch:
        """The server of a partition, as last seen."""
        return self._servers.get(partition.home, self._unknown)

    def of(self, correlation_id: str) -> ServerWatch:
        """The server of a payment, as last seen."""
        return self.at(self._redis.partitions.of(correlation_id))

    @property
    def unusable(self) -> str | None:
        """The reason why no part can work with any server; None if all can with one."""
        return _common(each.unusable for each in self.servers)

    @property
    def refusal(self) -> str | None:
        """The reason why no payment may be accepted, by the last look; None if some may."""
        return _common(each.refusal for each in self.servers)

    @property
    def refusals(self) -> list[str]:
        """The reasons of servers whose partitions accept no payment, by the last look."""
        found = ((name, self._why_not_ready(each)) for name, each in self._servers.items())
        return [f"{name}: {why}" for name, why in found if why is not None]

    @property
    def not_ready(self) -> str | None:
        """The reason why this process is not ready to accept payments; None if it is ready to
        accept some."""
        return _common(map(self._why_not_ready, self.servers))

    def _why_not_ready(self, server: ServerWatch) -> str | None:
        if server.away is not None:
            return f"Redis does not answer: {server.away}"
        if server.refusal is None and server.backlog >= self._max_backlog:
            return "too many payments wait"
        return server.refusal

    @property
    def is_short(self) -> bool:
        """Whether a server is short of memory."""
        return any(each.is_short for each in self.servers)

    @property
    def is_kept(self) -> bool:
        """Whether Redis keeps what the durability promises, by the last look; the log has its
        risks."""
        return not any(each.risks for each in self.servers)

    @property
    def memory(self) -> Memory:
        """The memory of all servers; without a limit if one has none."""
        found = [each.memory for each in self.servers]
        limits = [each.limit for each in found]
        return Memory(sum(each.used for each in found), sum(limits) if all(limits) else 0)

    async def turn(self) -> None:
        """Look once."""
        await self.look()

    async def close(self) -> None:
        """Stop looking."""
        await super().close()
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])

    async def until_usable(self) -> None:
        """Wait until Redis can be used; the log gives the reason. Raises
        `UntrustworthyRedisError` as `check_trust` does."""
        while True:
            await self.check_trust()
            if self.unusable is None:
                return
            await asyncio.sleep(_EVERY_S)

    async def check_trust(self) -> None:
        """Look, and with `demand` wait until Redis has answered. Raises `UntrustworthyRedisError`
        if `demand` is set and Redis may keep less than the durability promises."""
        self._is_checking = self._demands.must_keep
        await self.look()
        while self._is_checking and all(each.away is not None for each in self.servers):
            await asyncio.sleep(_EVERY_S)
            await self.look()
        self._is_checking = False
        missing = any(each.missing for each in self.servers)
        if self._demands.must_keep and self.unusable is not None and not missing:
            raise UntrustworthyRedisError(f"Redis can't be used: {self.unusable}")

    async def look(self) -> None:
        """Look once, for a second at most; concurrent callers share one look."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_once(), name="look at redis")
        await asyncio.shield(self._look)

    async def look_again(self) -> None:
        """Look, unless a look has just ended."""
        if asyncio.get_running_loop().time() - self._looked_at >= _FRESH_S:
            await self.look()

    def note_away(self, error: Exception) -> None:
        """Note that the only server did not answer; log it once until a look succeeds."""
        if isinstance(self._redis.nodes, Topology):
            logger.debug("redis: %(error)s", {"error": in_words(error)})
        else:
            self._server_at(self._redis.partitions[0].home).note_away(error)

    async def _look_once(self) -> None:
        if isinstance(self._redis.nodes, Topology) and not await self._know(self._redis.nodes):
            self._looked_at = asyncio.get_running_loop().time()
            return
        by_home: dict[str, list[Partition]] = {}
        for partition in self._redis.partitions:
            by_home.setdefault(partition.home, []).append(partition)
        looks = [(self._server_at(home), own) for home, own in by_home.items()]
        for gone in self._servers.keys() - by_home.keys():
            del self._servers[gone]
        await asyncio.gather(*(server.look(own, _LIMIT_S) for server, own in looks))
        self._looked_at = asyncio.get_running_loop().time()

    async def _know(self, topology: Topology) -> bool:
        """Read a cluster's topology from time to time; False if it isn't known at all."""
        self._looks += 1
        is_due = self._looks % _TOPOLOGY_EVERY == 1
        if is_due:
            try:
                async with asyncio.timeout(_LIMIT_S):
                    await topology.read_again()
            except (RedisError, OSError) as error:
                self._unknown.note_away(error)
                return bool(self._servers)
        has_moved = topology.changes != self._changes
        self._changes = topology.changes
        for server in self._servers.values():
            if has_moved or (is_due and server.risks):  # it may have its replicas by now
                server.judge_config_again()
        return True

    def _server_at(self, home: str) -> ServerWatch:
        server = self._servers.get(home)
        if server is None:
            is_in_cluster = isinstance(self._redis.nodes, Topology)
            server = ServerWatch(self._redis, home if is_in_cluster else "", self._demands)
            self._servers[home] = server
        server.is_checking = self._is_checking
        return server


def _common(reasons: Iterable[str | None]) -> str | None:
    """None if one server has no reason; else the first of them that is known."""
    found = list(reasons)
    if None in found:
        return None
    return next((each for each in found if each is not UNSEEN), UNSEEN)

"""The nodes of a cluster as operators see them: partitions, replicas, and what is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from payswitch.store import scripts
from payswitch.store.client import ClusterClient
from payswitch.store.errors import OtherDeploymentError, in_words
from payswitch.store.partitions import Partition

_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Shard:
    """A node that serves partitions."""

    address: str
    """Its host and port; empty for partitions that no known node serves."""
    partitions: Sequence[int]
    """By number; none if it only serves the keys of the deployment as a whole."""
    replicas: int | None
    """The number of replicas that are in step; None if it doesn't say."""
    wanted_replicas: int
    """So many replicas must confirm a payment."""
    problem: str | None = None
    """The reason why it is away, or refuses."""

    @property
    def served(self) -> str:
        """Its partitions in words."""
        numbers = ", ".join(map(str, self.partitions))
        return f"partitions {numbers}" if numbers else "no partition"

    @property
    def lacks_replicas(self) -> bool:
        """Whether it has too few replicas to accept payments."""
        return self.replicas is not None and self.replicas < self.wanted_replicas

    @property
    def trouble(self) -> str | None:
        """What is wrong with it, in words; None if nothing is."""
        if self.problem is not None:
            what = "is away" if self.replicas is None else "can't be used"
            return f"{self.address} {what}: {self.problem}" if self.address else self.problem
        if self.lacks_replicas:
            return f"{self.address} has {self.replicas} of {self.wanted_replicas} replicas"
        return None


async def read_shards(redis: Redis) -> list[Shard]:
    """The nodes that serve partitions; none on a single Redis. A node that does not answer within a
    second is away."""
    if not isinstance(redis, ClusterClient):
        return []
    partitions = redis.partitions
    by_home: dict[str, list[Partition]] = {}
    unknown = ""
    for each in (*partitions, partitions.common):
        if not each.home:
            try:
                await each.locate()
            except (RedisError, OSError) as error:
                unknown = in_words(error)
        by_home.setdefault(each.home, []).append(each)
    return await asyncio.gather(
        *(_read(redis, home, served, unknown) for home, served in by_home.items())
    )


async def _read(
    redis: ClusterClient, home: str, served: Sequence[Partition], unknown: str
) -> Shard:
    """`unknown` is said of partitions without a known node."""
    wanted = redis.deployment.replicas
    numbers = [each.number for each in served if each.number >= 0]
    if not home:
        return Shard(home, numbers, None, wanted, unknown)
    try:
        async with asyncio.timeout(_LIMIT_S):
            said = await served[0].redis.info("replication")
            problem = await _refusal(redis, served[0])
    except ResponseError:  # its user may not ask
        return Shard(home, numbers, None, wanted)
    except (RedisError, OSError) as error:
        return Shard(home, numbers, None, wanted, in_words(error).removeprefix(f"{home}: "))
    replicas = [each for name, each in said.items() if name.removeprefix("slave").isdecimal()]
    in_step = sum(isinstance(each, dict) and each.get("state") == "online" for each in replicas)
    return Shard(home, numbers, in_step, wanted, problem)


async def _refusal(redis: Redis, partition: Partition) -> str | None:
    """The reason why a node refuses this deployment; None if it doesn't. Raises `RedisError`."""
    try:
        await scripts.load(redis, "ping")(at=partition)
    except OtherDeploymentError as error:
        return in_words(error)
    return None

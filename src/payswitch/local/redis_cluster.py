"""A Redis Cluster on this machine: three primaries with a replica each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.local.append_only import cut_open_transaction
from payswitch.local.cluster_topology import (
    NODES,
    Address,
    Step,
    View,
    Views,
    has_failed_over,
    is_whole,
    members_of,
    next_steps,
)
from payswitch.local.machine import LOCAL

NODE_TIMEOUT_MS = 2000
"""The silence after which a node counts as failed, and its replica may be promoted."""

_MEMORY = "nodes.conf"
"""The file in which a node keeps its id, its slots and the other nodes."""
_ANSWER_LIMIT_S = 1.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class RedisNode:
    """A node: its place and the folder of its files."""

    name: str
    address: Address
    folder: Path

    @property
    def url(self) -> str:
        """The URL of this node alone."""
        return f"redis://{self.address.host}:{self.address.port}/0"

    def settings(self) -> dict[str, str]:
        """Its settings as a node of the cluster."""
        return {
            "cluster-enabled": "yes",
            "cluster-config-file": _MEMORY,
            "cluster-port": str(self.address.bus),
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            # A shard that is down takes nothing from the others.
            "cluster-require-full-coverage": "no",
            # A replica of another shard, not yet in step, could win an election.
            "cluster-allow-replica-migration": "no",
            "cluster-replica-validity-factor": "10",
            "repl-diskless-sync-delay": "0",
            # Without a password it would answer loopback addresses only.
            "protected-mode": "yes" if self.address.host == LOCAL else "no",
        }

    @property
    def is_new(self) -> bool:
        """Whether it has no files: it never ran, or it has lost them."""
        file = self.folder / _MEMORY
        return not file.is_file() or not file.stat().st_size


class LocalCluster:
    """The nodes, and the commands that form them to a cluster and keep it whole.

    Each has one of the `hosts`. They listen on `first_port` and the ports after it; the ports of
    the bus come after those.
    """

    def __init__(self, hosts: Sequence[str], first_port: int, folder: Path) -> None:
        self.nodes = [
            RedisNode(
                f"redis-{number + 1}",
                Address(host, first_port + number, first_port + NODES + number),
                folder / str(number + 1),
            )
            for number, host in enumerate(hosts)
        ]
        self._was_formed = False

    @property
    def addresses(self) -> list[Address]:
        """The nodes' places."""
        return [node.address for node in self.nodes]

    @property
    def url(self) -> str:
        """The URL that names all nodes."""
        nodes = ",".join(f"{each.host}:{each.port}" for each in self.addresses)
        return f"redis+cluster://{nodes}"

    async def prepare(self, node: RedisNode) -> None:
        """Must come before each start of a node. A node without files waits until its shard was
        failed over: as an empty primary under its old address it would hide the failure from the
        others, and none of them would promote the replica."""
        node.folder.mkdir(0o700, parents=True, exist_ok=True)
        cut_open_transaction(node.folder)
        while node.is_new and any(not other.is_new for other in self.nodes):
            if has_failed_over(node.address, await self.views()):
                return
            await asyncio.sleep(_POLL_S)

    async def tend(self) -> None:
        """Form the cluster, and take nodes back that have lost their files, until cancelled."""
        while True:
            self._was_formed |= await self._step()
            await asyncio.sleep(_POLL_S)

    async def was_formed(self) -> bool:
        """Whether `tend` has seen the cluster whole."""
        return self._was_formed

    async def form(self) -> None:
        """Return once the cluster is whole."""
        while not await self._step():
            await asyncio.sleep(_POLL_S)

    async def is_whole(self) -> bool:
        """Whether all nodes serve their part and each replica is in step."""
        return is_whole(self.addresses, await self.views())

    async def views(self) -> Views:
        """The cluster as each node sees it that answers."""
        found = await asyncio.gather(*map(_view, self.addresses))
        pairs = zip(self.addresses, found, strict=True)
        return {address: view for address, view in pairs if view is not None}

    async def _step(self) -> bool:
        """Do what can be done now; returns whether the cluster is whole."""
        views = await self.views()
        steps = next_steps(self.addresses, views)
        await asyncio.gather(*map(_carry_out, steps))
        return not steps and is_whole(self.addresses, views)


async def _view(node: Address) -> View | None:
    try:
        members, info, replication = await _ask(
            node, [("CLUSTER", "NODES"), ("CLUSTER", "INFO"), ("INFO", "replication")]
        )
    except (RedisError, OSError):
        return None
    works = b"cluster_state:ok" in info and replication.get("master_link_status", "up") == "up"
    return View(members_of(members.decode()), works)


async def _carry_out(step: Step) -> None:
    # The next look shows whether it was of use.
    with contextlib.suppress(RedisError, OSError):
        await _ask(step.node, [step.command])


async def _ask(node: Address, commands: Sequence[Sequence[str | int]]) -> list[Any]:
    redis = Redis(host=node.host, port=node.port, socket_timeout=_ANSWER_LIMIT_S)
    async with redis, redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute())

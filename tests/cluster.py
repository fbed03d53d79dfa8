"""A real Redis Cluster for tests: three primaries with a replica each, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from redis import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from payswitch.chaos.island import Island
from payswitch.durability import Deployment, Durability
from payswitch.local.cluster_topology import CLUSTER_PORTS, NODES, Address, primary_of
from payswitch.local.redis_cluster import LocalCluster, RedisNode
from payswitch.store.beginning import begin
from payswitch.store.client import Client, connect
from tests.support import SLACK_S, RedisServer, eventually, free_port, free_row, wait_until

SAFE = Deployment(8, Durability.REPLICAS, 1)


class ClusterServer:
    """A cluster whose nodes can be killed, frozen, and robbed of their files."""

    def __init__(self, folder: Path, island: Island | None = None) -> None:
        hosts = island.hosts.redis if island else ["127.0.0.1"] * NODES
        self.local = LocalCluster(hosts, free_row(CLUSTER_PORTS), folder)
        self.url = self.local.url
        self._servers: dict[Address, RedisServer] = {}
        for node in self.local.nodes:
            self._servers[node.address] = RedisServer(
                node.folder,
                *_options(node.settings()),
                host=node.address.host,
                port=node.address.port,
                within=island.within(node.name) if island else (),
            )

    async def start_nodes(self) -> None:
        """Start the nodes that don't run, thaw the others, and wait until the cluster is whole."""
        for server in self._servers.values():
            if server.is_running:
                server.signal(signal.SIGCONT)
        await asyncio.gather(*map(self.start_node, self.local.addresses))
        await self.whole()

    async def start_node(self, address: Address) -> None:
        """Start a node that doesn't run, as `payswitch up` does: one without files waits for its
        failover."""
        if self._servers[address].is_running:
            return
        await self.local.prepare(self._node(address))
        await asyncio.to_thread(self._servers[address].start)

    async def whole(self) -> None:
        """Wait until all nodes work and each replica is in step."""
        async with asyncio.timeout(SLACK_S):
            await self.local.form()

    def signal(self, address: Address, number: signal.Signals) -> None:
        """Send a node a signal such as SIGSTOP."""
        self._servers[address].signal(number)

    def kill(self, address: Address) -> None:
        """SIGKILL a node."""
        self._servers[address].kill()

    def wipe(self, address: Address) -> None:
        """SIGKILL a node, and its files are gone."""
        self.kill(address)
        shutil.rmtree(self._node(address).folder)

    @contextlib.contextmanager
    def older(self, address: Address) -> Iterator[None]:
        """When the context ends, the node is killed and starts at once with its files as they were
        at the context's start."""
        data = self._node(address).folder / "appendonlydir"
        before = shutil.copytree(data, data.with_name("before"))
        yield
        self.kill(address)
        shutil.rmtree(data)
        before.rename(data)
        self._servers[address].start()

    def restart(self, address: Address) -> None:
        """SIGKILL a node; it starts at once with all its files."""
        self.kill(address)
        self._servers[address].start()

    @contextlib.asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        """While the context lasts, nodes that end are started again, as `payswitch up` does, and
        are taken back into the cluster."""

        async def keep(address: Address) -> None:
            while True:
                await self.start_node(address)
                await asyncio.sleep(0.1)

        tasks = [asyncio.create_task(keep(address)) for address in self.local.addresses]
        tasks.append(asyncio.create_task(self.local.tend()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def pid(self, name: str) -> int | None:
        """The process of the node with this name; None while there is none."""
        address = next(node.address for node in self.local.nodes if node.name == name)
        return self._servers[address].pid

    def kill_all(self) -> None:
        """SIGKILL all nodes."""
        for server in self._servers.values():
            if server.is_running:
                server.kill()

    async def primary_of(self, slot: int) -> Address:
        """The node that serves a slot, once most nodes agree and it answers."""
        found: list[Address] = []

        async def is_known() -> bool:
            primary = primary_of(slot, await self.local.views())
            found.extend([primary] if primary else [])
            return primary is not None

        await eventually(is_known, what=f"slot {slot} is served")
        return found[-1]

    async def replica_of(self, slot: int) -> Address:
        """The replica of the node that serves a slot, once it is told: Redis leaves out one whose
        offset it has not heard yet."""
        ports: list[int] = []

        async def is_told() -> bool:
            async with self.client() as redis:
                ports[:] = [int(each.port) for each in redis.nodes_manager.slots_cache[slot]]
            return len(ports) == 2

        await eventually(is_told, what=f"the replica of slot {slot} is told")
        return next(each for each in self.local.addresses if each.port == ports[1])

    async def promoted(self, old: Address, slot: int) -> Address:
        """Wait until another node than `old` serves the slot; returns it."""

        async def elsewhere() -> bool:
            return await self.primary_of(slot) != old

        await eventually(elsewhere, what=f"{old.port} is failed over")
        return await self.primary_of(slot)

    def client(self) -> RedisCluster:
        """A client that knows all nodes."""
        nodes = [ClusterNode(each.host, each.port) for each in self.local.addresses]
        client: RedisCluster = RedisCluster(startup_nodes=nodes)
        return client

    async def flush(self) -> None:
        """Empty all nodes."""
        async with self.client() as redis:
            await redis.flushall()

    def _node(self, address: Address) -> RedisNode:
        return self.local.nodes[self.local.addresses.index(address)]


@contextlib.asynccontextmanager
async def begun(cluster: ClusterServer) -> AsyncIterator[Client]:
    """A client of a cluster on which `SAFE` has begun."""
    client = connect(cluster.url, limit_s=SLACK_S, deployment=SAFE)
    await begin(client)
    yield client
    await client.aclose(close_connection_pool=True)


def _options(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def one_node(folder: Path) -> RedisServer:
    """A cluster of one node that has all slots: it starts at once, and has as many partitions as a
    test wants."""
    server = RedisServer(folder, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server.url = f"redis+cluster://127.0.0.1:{server.port}/"
    return server


def take_all_slots(server: RedisServer) -> None:
    """Let the only node serve the whole cluster."""
    with Redis(port=server.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_until(
            lambda: client.cluster("info")["cluster_state"] == "ok", what="the cluster is whole"
        )

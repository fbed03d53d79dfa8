"""Connections to Redis."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

import orjson
from arq.connections import ArqRedis
from arq.jobs import Job
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection, UnixDomainSocketConnection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from payswitch.durability import Deployment
from payswitch.redis_url import cluster_nodes, is_cluster, tls_defaults
from payswitch.store import keys
from payswitch.store.errors import (
    ClusterParser,
    Epoch,
    Parser,
    WrongNodeError,
    WrongServerError,
    unreachable,
)
from payswitch.store.marks import Marks
from payswitch.store.nodes import OneServer, PlainNode, ServerNode
from payswitch.store.partitions import Partition, Partitions, tags
from payswitch.store.topology import SlotPool, Topology


class _OwnConnection(AbstractConnection):
    """A connection that isn't reused once its server turned out to be the wrong one (`Epoch`).

    It sends without `asyncio.wait_for`, which costs a task for every command. Before Python 3.12 it
    also swallows a cancellation that comes just as the send ends (python/cpython issue 86296), so
    that a worker would never stop.
    """

    def __init__(self, *args: Any, epoch: Epoch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = epoch
        self._opened_in = epoch.number

    async def connect(self) -> None:
        """Connect, unless it is connected; note the epoch."""
        if not self.is_connected:
            self._opened_in = self.epoch.number
        await super().connect()  # type: ignore[no-untyped-call]

    @property
    def is_stale(self) -> bool:
        """Whether its server has turned out to be the wrong one."""
        return self._opened_in != self.epoch.number

    async def can_read_destructive(self) -> bool:
        """Whether the pool must reconnect it before its next use."""
        return self.is_stale or bool(await super().can_read_destructive())  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read the answer to a command; a wrong server ends the epoch."""
        try:
            return await super().read_response(*args, **kwargs)
        except WrongServerError:
            self.epoch.end()
            raise
        except WrongNodeError:
            self.epoch.doubt()
            raise

    async def disconnect(self, nowait: bool = False) -> None:
        """Disconnect; from a server that stands still without a word, as nobody waits for it."""
        with contextlib.suppress(RedisTimeoutError):
            await super().disconnect(nowait)

    def _error_message(self, exception: BaseException) -> str:
        return unreachable(exception, self._host_error())

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if not self.is_connected:
            await self.connect()
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        parts = command.encode() if isinstance(command, str) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([parts] if isinstance(parts, bytes) else parts)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(self._error_message(error)) from error
        except BaseException:
            await self.disconnect(nowait=True)
            raise


class _PolledConnection(_OwnConnection):
    """Checks before each use whether Redis has closed the connection or sent stray bytes: in the
    kernel, in the loop's buffer and in the parser. redis-py's own check reads until a timer fires
    at once, which takes a quarter of a command's CPU. TLS connections keep it, because there the
    unread bytes may be a session ticket."""

    async def can_read_destructive(self) -> bool:
        if self._writer is None or self.is_stale:
            return True
        buffer: Any = self._reader
        parser: Any = self._parser
        if buffer._buffer or parser._reader.has_data():
            return True
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))


class _TcpConnection(_PolledConnection, Connection):
    pass


class _TlsConnection(_OwnConnection, SSLConnection):
    async def connect(self) -> None:
        try:
            await super().connect()
        except RedisTimeoutError:
            # A Redis without TLS takes the greeting for half a command and waits for the rest.
            raise RedisTimeoutError("it does not answer in time: does it speak TLS?") from None


class _UnixConnection(_PolledConnection, UnixDomainSocketConnection):
    pass


_CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class Client(ArqRedis):
    """An `ArqRedis` that leads to the keys of the deployment as a whole; `partitions` leads to the
    others, and to the scripts."""

    def __init__(self, pool: ConnectionPool, nodes: OneServer | Topology) -> None:
        super().__init__(
            pool_or_conn=pool, job_serializer=orjson.dumps, job_deserializer=orjson.loads
        )
        self.epoch: Epoch = pool.connection_kwargs["epoch"]
        self.nodes = nodes
        self.marks = Marks()
        self.deployment = Deployment(1)
        only = Partition(0, "", self, nodes)
        self.partitions = Partitions([only], only, "")

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections and channels."""
        await self.nodes.aclose()
        await super().aclose(close_connection_pool)


class _Following:
    """Sends a command once more if its keys have moved to another node: it was not executed."""

    topology: Topology

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's."""
        try:
            return await super().execute_command(*args, **options)  # type: ignore[misc]
        except WrongNodeError:
            await self.topology.read_again()
            return await super().execute_command(*args, **options)  # type: ignore[misc]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As redis-py's. Without a transaction it must only read, as it may be sent twice."""
        pipe = _FollowingPipeline(
            self.connection_pool,  # type: ignore[attr-defined]
            self.response_callbacks,  # type: ignore[attr-defined]
            transaction,
            shard_hint,
        )
        pipe.topology = self.topology
        return pipe


class _FollowingPipeline(Pipeline):
    """Sends its commands once more if their keys have moved to another node. Of a transaction
    nothing was executed; one that watches keys ends with a `WatchError` instead."""

    topology: Topology

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = self.command_stack
        try:
            return await super().execute(raise_on_error)
        except WrongNodeError:
            await self.topology.read_again()
            self.command_stack = commands
            return await super().execute(raise_on_error)

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Such as WATCH."""
        try:
            return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except WrongNodeError:
            await self.topology.read_again()
            return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]


class _PartitionRedis(_Following, ArqRedis):  # type: ignore[misc]  # redis-py's own
    """Leads to the node of one partition."""


class ClusterClient(_Following, Client):  # type: ignore[misc]  # redis-py's own
    """A client of a deployment in a Redis Cluster."""

    def __init__(
        self,
        options: Mapping[str, Any],
        topology: Topology,
        deployment: Deployment,
        marks: Marks,
    ) -> None:
        self.topology = topology
        common = Partition(-1, keys.SELECTION, self, topology)
        super().__init__(SlotPool(topology, common.slot, **options), topology)
        every = [
            Partition(number, tag, self._at(tag, options, topology), topology)
            for number, tag in enumerate(tags(deployment.partitions))
        ]
        self.partitions = Partitions(every, common, str(deployment))
        self.deployment = deployment
        self.marks = marks

    def _at(self, tag: str, options: Mapping[str, Any], topology: Topology) -> ArqRedis:
        pool = SlotPool(topology, key_slot(tag.encode()), **options)
        redis = _PartitionRedis(pool, self.job_serializer, self.job_deserializer)
        redis.topology = topology
        return redis

    async def enqueue_job(
        self, *args: Any, _job_id: str | None = None, **kwargs: Any
    ) -> Job | None:
        """As arq's; the job's keys are in the slot of the health check's queue."""
        job_id = f"{self.partitions.common.tag}{_job_id or uuid4().hex}"
        return await super().enqueue_job(*args, _job_id=job_id, **kwargs)


def partitions_of(redis: Redis) -> Partitions:
    """The partitions of a client; any other than `Client` has one."""
    found: Partitions | None = getattr(redis, "partitions", None)
    if found is not None:
        return found
    only = Partition(0, "", redis, OneServer(PlainNode(redis)))
    return Partitions([only], only, "")


def connect(url: str, *, limit_s: float, deployment: Deployment | None = None) -> Client:
    """A client for `url`; each command times out after `limit_s`. A cluster must be one of this
    `deployment`.

    It connects on first use. It writes arq's jobs as JSON and calls scripts through lean channels
    (`payswitch.store.channels`). If a server answers that it is the wrong one, no open connection
    is used again.
    """
    if not is_cluster(url):
        pool = _pool(url, limit_s, Parser, Epoch())
        return Client(pool, OneServer(ServerNode(pool, limit_s=limit_s)))
    return _connect_cluster(url, limit_s, deployment or Deployment())


def _connect_cluster(url: str, limit_s: float, deployment: Deployment) -> Client:
    base, addresses = cluster_nodes(url)
    marks = Marks()

    def make_node(address: str, topology: Topology) -> ServerNode:
        pool = _pool(base, limit_s, ClusterParser, Epoch(lambda: topology.doubt(address)))
        host, _, port = address.rpartition(":")
        pool.connection_kwargs.update(host=host, port=int(port))
        return ServerNode(
            pool, limit_s=limit_s, replicas=deployment.replicas, address=address, marks=marks
        )

    pool = _pool(base, limit_s, ClusterParser, Epoch())
    options = {**pool.connection_kwargs, "connection_class": pool.connection_class}
    given = [f"{host}:{port}" for host, port in addresses]
    return ClusterClient(options, Topology(given, make_node), deployment, marks)


def _pool(url: str, limit_s: float, parser: type[Parser], epoch: Epoch) -> ConnectionPool:
    pool: ConnectionPool = ConnectionPool.from_url(
        url,
        socket_timeout=limit_s,
        socket_connect_timeout=min(limit_s, 1.0),
        parser_class=parser,
        epoch=epoch,
        **tls_defaults(url),
    )
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return pool

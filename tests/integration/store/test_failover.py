"""Another server behind the name: a failover, a restart, a replica, a cluster, one that loads.

Two real Redis stand behind a proxy that leads new connections elsewhere while old ones stay open,
as a name in DNS does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis as blocking

from payswitch.ingress.app import create_app
from payswitch.settings import Settings
from payswitch.store.client import connect
from payswitch.store.scripts import Script
from payswitch.store.trust import UntrustworthyRedisError
from payswitch.store.watch import RedisWatch
from tests.integration.harness import bench, worker_process
from tests.support import RedisServer, eventually, free_port, wait_until


class Name:
    """A name that leads to a server: its new connections do, its old ones stay where they are."""

    def __init__(self, port: int) -> None:
        self.leads_to = port
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []
        self._served: set[asyncio.Task[None] | None] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._served.add(asyncio.current_task())
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self.leads_to)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, ours]
        await asyncio.gather(self._copy(reader, ours), self._copy(theirs, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Name]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*(each for each in self._served if each is not None))


def admin(server: RedisServer) -> Any:
    return blocking.Redis(port=server.port, decode_responses=True)


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica, in step."""
    quick = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
    servers = [RedisServer(tmp_path_factory.mktemp("redis"), *quick) for _ in range(2)]
    for server in servers:
        server.start()
    primary, replica = servers
    with admin(primary) as of_primary, admin(replica) as of_replica:
        of_replica.replicaof("127.0.0.1", primary.port)
        # The replica says first that it is in step; a failover wants to hear it from the primary.
        wait_until(lambda: replica_states(of_primary) == ["online"], what="the replica is in step")
    yield primary, replica
    for server in servers:
        server.kill()


def role(client: Any) -> str:
    return str(client.info("replication")["role"])


def replica_states(of_primary: Any) -> list[str]:
    """The state of each replica, as its primary sees it."""
    seen = of_primary.info("replication")
    return [seen[f"slave{n}"]["state"] for n in range(seen["connected_slaves"])]


def fail_over(primary: RedisServer, replica: RedisServer) -> None:
    """Hand over to the replica, and wait until it is the primary."""
    with admin(primary) as old, admin(replica) as new:
        old.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port)
        wait_until(lambda: (role(old), role(new)) == ("slave", "master"), what="the failover")


@contextlib.asynccontextmanager
async def serving(url: str, trust: str = "warn") -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(redis_url=url, redis_trust=trust))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            yield client


async def pay(client: httpx.AsyncClient, correlation_id: str | None = None) -> httpx.Response:
    payment = {"correlationId": correlation_id or str(uuid4()), "amount": 19.9}
    return await client.post("/payments", json=payment)


async def test_after_a_failover_ingress_and_worker_go_on_at_the_new_primary(
    pair: tuple[RedisServer, RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    primary, replica = pair
    async with Name(primary.port).running() as name, serving(name.url) as client:
        redis = connect(name.url, limit_s=5)
        async with bench(redis) as b, worker_process(b, name.url):
            for answer in await asyncio.gather(*(pay(client) for _ in range(20))):
                assert answer.status_code == 202
            fail_over(primary, replica)
            assert (await client.get("/readyz")).status_code == 503  # the name has not followed yet
            assert (await pay(client)).status_code == 503
            name.leads_to = replica.port

            async def is_ready() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await eventually(is_ready, what="the ingress is ready again")
            payment = str(uuid4())
            assert (await pay(client, payment)).status_code == 202

            async def is_settled() -> bool:
                return bool((await client.get(f"/payments/{payment}")).json()["state"] == "settled")

            await eventually(is_settled, what="the worker pays it")
        await redis.aclose(close_connection_pool=True)
    assert "redis can't be used: it is a replica, which takes no writes" in caplog.messages
    assert "redis: a replica has taken the place of the one that was there" in caplog.messages
    assert any("it was a replica until it was promoted" in each for each in caplog.messages)


async def test_where_trust_is_required_a_promoted_replica_gets_no_payment(
    pair: tuple[RedisServer, RedisServer],
) -> None:
    primary, replica = pair
    with admin(replica) as client_of_replica:
        client_of_replica.replicaof("NO", "ONE")
        with admin(primary) as client_of_primary:
            wait_until(lambda: replica_states(client_of_primary) == [], what="the replica has left")
    async with Name(primary.port).running() as name, serving(name.url, "require") as client:
        assert (await client.get("/readyz")).status_code == 200
        primary.kill()
        name.leads_to = replica.port

        async def is_judged() -> bool:
            return "promoted" in (await client.get("/readyz")).text

        await eventually(is_judged, what="the new server is judged")
        refused = await pay(client)
        assert refused.status_code == 503
        assert refused.json()["detail"].startswith("the payment was not accepted: Redis can't be")
        primary.start()


@contextlib.asynccontextmanager
async def watching(url: str, *, demand: bool) -> AsyncIterator[RedisWatch]:
    client = connect(url, limit_s=5)
    yield RedisWatch(client, currency="BRL", demand=demand)
    await client.aclose(close_connection_pool=True)


async def test_replicas_are_a_risk_and_a_replica_is_never_used(
    pair: tuple[RedisServer, RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    primary, replica = pair
    async with watching(primary.url, demand=False) as watch:
        await watch.look()
        assert watch.unusable is None
        assert any("it has 1 replica(s)" in each for each in caplog.messages)
    caplog.clear()
    async with watching(primary.url, demand=True) as watch:
        with pytest.raises(UntrustworthyRedisError, match=r"it has 1 replica\(s\)"):
            await watch.check_trust()
    async with watching(replica.url, demand=False) as watch:
        await watch.look()
        assert watch.not_ready == "Redis can't be used: it is a replica, which takes no writes"
    async with watching(replica.url, demand=True) as watch:
        caplog.clear()
        with pytest.raises(UntrustworthyRedisError, match="it is a replica"):
            await watch.check_trust()
    assert caplog.messages == []  # who raises says it
    with admin(replica) as client:
        client.config_set("replica-read-only", "no")
    async with watching(replica.url, demand=False) as watch:
        await watch.look()
        assert "it is a replica" in str(watch.unusable)


async def test_a_node_of_a_cluster_is_never_used(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server = RedisServer(tmp_path_factory.mktemp("redis"), *options)
    server.start()
    async with watching(server.url, demand=False) as watch:
        await watch.look()
        assert "a node of a cluster" in str(watch.unusable)
    server.kill()


async def test_a_restart_is_noticed_and_the_server_judged_again(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with watching(own_redis.url, demand=True) as watch:
        await watch.look()
        assert watch.not_ready is None
        own_redis.kill()
        await watch.look()
        assert str(watch.not_ready).startswith("Redis does not answer: ")
        own_redis._options = ("--appendfsync", "everysec")
        own_redis.start()
        await watch.look()
        assert "appendfsync is everysec" in str(watch.unusable)
    assert "redis has restarted, or another one is there in its place" in caplog.messages
    assert caplog.messages.count("redis is back") == 1


async def test_once_another_server_is_seen_no_connection_to_the_old_one_is_used(
    own_redis: RedisServer, redis_server: RedisServer
) -> None:
    async with Name(own_redis.port).running() as name:
        client = connect(name.url, limit_s=5)
        watch = RedisWatch(client, currency="BRL", demand=False)
        await watch.look()
        old = (await client.info("server"))["run_id"]
        name.leads_to = redis_server.port
        with admin(own_redis) as their:
            for each in their.client_list():
                if each["cmd"] in ("eval", "evalsha"):
                    their.client_kill_filter(_id=each["id"])

        async def leads_to_the_other() -> bool:
            await watch.look()
            return bool((await client.info("server"))["run_id"] != old)

        await eventually(leads_to_the_other, what="the pool has left the old one")
        await client.aclose(close_connection_pool=True)


async def test_where_trust_is_required_a_redis_that_is_away_is_waited_for(
    own_redis: RedisServer,
) -> None:
    own_redis.kill()
    async with watching(own_redis.url, demand=True) as watch:
        waiting = asyncio.create_task(watch.check_trust())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        own_redis.start()
        await waiting
        assert watch.unusable is None


# A server that says that it is the wrong one.

WRONG = {
    b"-READONLY You can't write against a read only replica.\r\n": "it is a replica",
    b"-UNBLOCKED force unblock from blocking operation\r\n": "it has just become a replica",
    b"-LOADING Redis is loading the dataset in memory\r\n": "it is still loading its data",
    b"-MASTERDOWN Link with MASTER is down\r\n": "it is a replica without its primary",
    b"-CLUSTERDOWN Hash slot not served\r\n": "it is a node of a cluster",
    b"-MOVED 3999 127.0.0.1:6381\r\n": "it is a node of a cluster",
}


@contextlib.asynccontextmanager
async def pretending(answer: bytes) -> AsyncIterator[Any]:
    """A client of a server that gives the very first command this answer, and to all others says
    which connection they came by."""
    connections = 0
    answers = [answer]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        own = b":%d\r\n" % connections
        while data := await reader.read(65536):
            for command in data.split(b"*")[1:]:
                is_greeting = b"CLIENT" in command
                writer.write(own if is_greeting or not answers else answers.pop())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", limit_s=5)
    try:
        yield client
    finally:
        await client.aclose(close_connection_pool=True)
        server.close()


@pytest.mark.parametrize("answer", WRONG)
@pytest.mark.parametrize("way", ["command", "script"])
async def test_a_connection_to_the_wrong_server_is_closed(answer: bytes, way: str) -> None:
    async with pretending(answer) as client:
        script = Script(client, "return 1")

        async def call() -> Any:
            return await (script() if way == "script" else client.execute_command("INCR", "n"))

        with pytest.raises(blocking.ConnectionError, match=WRONG[answer]):
            await call()
        assert await call() == 2


async def test_one_wrong_answer_ends_every_connection_that_was_open() -> None:
    async with pretending(b":0\r\n") as client:
        script = Script(client, "return 1")
        assert (await script(), await script()) == (0, 1)
        assert await client.execute_command("INCR", "n") == 2
        client.epoch.end()
        assert (await script(), await client.execute_command("INCR", "n")) == (3, 4)

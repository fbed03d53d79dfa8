"""A real Redis, and a real Redis Cluster, for the integration tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from payswitch.durability import Deployment
from payswitch.store.beginning import begin
from payswitch.store.client import Client, connect
from tests.cluster import ClusterServer, one_node, take_all_slots
from tests.integration.command import stop_forking
from tests.support import SLACK_S, RedisServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs against a Redis of the tests: CI runs it once for each server."""
    for item in items:
        if {"shared_redis", "own_redis", "shared_cluster", "shared_node"} & {
            *getattr(item, "fixturenames", ())
        }:
            item.add_marker(pytest.mark.store)


def pytest_sessionfinish() -> None:
    """Leave no process behind."""
    stop_forking()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for all tests that leave it running. It syncs every write, which costs a disk a
    third of the time of these tests, so its file is in memory where there is room."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


def in_memory() -> str | None:
    """A folder in memory; None where Linux has none, or one as small as a container's."""
    folder = "/dev/shm"
    with contextlib.suppress(OSError):
        if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 256 * 1024 * 1024:
            return folder
    return None


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """The shared Redis, empty."""
    shared_redis.flush()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[ClusterServer]:
    """One cluster for all tests that need one."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
        server = ClusterServer(Path(folder))
        yield server
        server.kill_all()


@pytest.fixture
async def cluster(shared_cluster: ClusterServer) -> ClusterServer:
    """The shared cluster, whole and empty. A test may kill, freeze and wipe its nodes."""
    await shared_cluster.start_nodes()
    await shared_cluster.flush()
    return shared_cluster


@pytest.fixture(scope="session")
def shared_node() -> Iterator[RedisServer]:
    """A cluster of one node for all tests that only need partitions."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
        server = one_node(Path(folder))
        server.start()
        take_all_slots(server)
        yield server
        server.kill()


@pytest.fixture
async def partitioned(shared_node: RedisServer) -> AsyncIterator[Client]:
    """A client of a new deployment of 16 partitions, on one node."""
    shared_node.flush()
    client = connect(shared_node.url, limit_s=SLACK_S, deployment=Deployment(16))
    await begin(client)
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[ArqRedis]:
    """A client of the shared Redis, which is empty."""
    client = connect(redis_server.url, limit_s=SLACK_S)
    yield client
    await client.aclose(close_connection_pool=True)

"""A Redis for the model: it forgets, so that it is fast."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.model.stepped import Store
from tests.support import RedisServer


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A Redis of the model's own."""
    folder = tmp_path_factory.mktemp("model")
    server = RedisServer(folder, "--appendonly", "no", "--unixsocket", str(folder / "redis.sock"))
    server.start()
    path = str(folder / "redis.sock")
    with (
        redis.Redis(unix_socket_path=path, single_connection_client=True) as client,
        redis.Redis(unix_socket_path=path, single_connection_client=True, db=1) as spare,
        redis.Redis(unix_socket_path=path, single_connection_client=True, db=2) as other,
    ):
        yield Store(client, Store(spare, Store(other)))
    server.kill()

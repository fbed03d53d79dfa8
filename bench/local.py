"""Processes that a bench starts: a Redis as in production, and Python modules beside it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import redis
from redis.cluster import RedisCluster

from bench.common import cpu_s
from tests.support import RedisServer

DURABLE = "appendonly yes, appendfsync always"
"""The persistence of `running_redis`, as in production."""

Store = redis.Redis | RedisCluster
"""A client of what holds the payments."""

_STOP_LIMIT_S = 30
_SHOWN_BYTES = 4000


class BenchError(RuntimeError):
    """A process of a bench failed, or did less than it should have."""


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[tuple[str, redis.Redis]]:
    """Start an empty Redis on a free port; yields its URL and a client."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            with redis.Redis.from_url(server.url) as client:
                yield server.url, client
        finally:
            server.kill()


def redis_cpu_s(client: Store) -> float:
    """The CPU time of all of Redis' threads, in seconds; in a cluster of all servers."""
    if isinstance(client, RedisCluster):
        return sum(redis_cpu_s(client.get_redis_connection(node)) for node in client.get_nodes())
    used: dict[str, Any] = client.info("cpu")  # type: ignore[assignment]
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def tree_cpu_s(pid: int) -> float:
    """The CPU time of a process and its living descendants, in seconds (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_s(pid) + sum(tree_cpu_s(int(child)) for child in children)


@contextlib.contextmanager
def running(
    *command: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python command (`-m module …`) with its output in a pipe, and end it with the context,
    by SIGTERM first. Its log is shown only if the context fails."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            yield process
        except BenchError:
            log.seek(max(0, log.tell() - _SHOWN_BYTES))
            shown = log.read().decode(errors="replace")
            print(f"--- {shlex.join(command)}\n{shown}", file=sys.stderr)
            raise
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def read_answer(process: subprocess.Popen[bytes]) -> Any:
    """The next line of JSON that a process prints. Raises `BenchError` if it ends instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"a process ended without an answer, exit code {process.wait()}")
    return orjson.loads(line)


def answer(document: Any) -> None:
    """Print a line of JSON for `read_answer`."""
    sys.stdout.buffer.write(orjson.dumps(document) + b"\n")
    sys.stdout.buffer.flush()

"""What survives when Redis or its machine dies, by `appendfsync`.

A killed Redis leaves what it handed to the kernel (`write`). A power cut leaves what the disk was
told to keep (`fdatasync`): strace notes both, and the append-only file is cut back to what an
`fdatasync` had covered, the worst that a power cut can do to it. What is not shown here: a disk
that says it has kept what it hasn't.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.payment import Payment
from payswitch.store.client import connect
from tests.support import RedisServer, eventually, find_redis

pytestmark = pytest.mark.store

_CALL = re.compile(
    r"(?P<pid>\d+) +(?P<call>write|fdatasync)\(\d+<[^>]*/appendonly\.aof(\.\d+\.incr\.aof)?>"
)
_RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. (?P<call>write|fdatasync) resumed>")
_WRITE_WITHOUT_RESULT = re.compile(
    r"write\(\d+<[^>]*/appendonly\.aof[^>]*>, .*?(\d+)(?:\) += \?| <unfinished \.\.\.>)"
)
_RESULT = re.compile(r"\) += (\d+)(?: \(DELAYED\))?$")


def may_trace() -> bool:
    """Whether strace is installed and may trace."""
    program = shutil.which("strace")
    return program is not None and not subprocess.call([program, "-o", "/dev/null", "true"])


needs_strace = pytest.mark.skipif(not may_trace(), reason="strace is missing or may not trace")


class TracedRedis(RedisServer):
    """A Redis under strace, on a disk that takes a while to sync. `program` starts it."""

    def __init__(self, folder: Path, *options: str, sync_takes_s: float) -> None:
        self._data = folder / "data"
        self._data.mkdir()
        super().__init__(self._data, *options)
        self._log = folder / "strace.log"
        self.program = str(folder / "redis-server")
        delay = f"fdatasync:delay_enter={sync_takes_s * 1e6:.0f}"
        command = ["strace", "-D", "-f", "-y", "-s0", "-e", "trace=write,fdatasync"]
        command += ["-e", f"inject={delay}", "-o", str(self._log), find_redis()]
        Path(self.program).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        Path(self.program).chmod(0o755)

    def calls(self) -> list[tuple[str, int | None]]:
        """The calls for the append-only file: name, and result or None where one has only begun;
        a call during which others were noted is there twice."""
        calls: list[tuple[str, int | None]] = []
        under_way: set[str] = set()
        for line in self._log.read_text().splitlines():
            call = _CALL.match(line) or _RESUMED.match(line)
            if call is None or (call.re is _RESUMED and call["pid"] not in under_way):
                continue
            result = _RESULT.search(line)
            calls.append((call["call"], int(result[1]) if result else None))
            (under_way.discard if result else under_way.add)(call["pid"])
        return calls

    def has_begun_to_sync(self) -> bool:
        """Whether an `fdatasync` of the append-only file was begun."""
        return any(name == "fdatasync" for name, _ in self.calls())

    def bytes_written_and_safe(self) -> tuple[int, int]:
        """How much of the append-only file was written, and how much of that an `fdatasync` that
        has ended had found there when it began."""
        written = safe = 0
        found: int | None = None
        for name, result in self.calls():
            if name == "write":
                written += result or 0
            elif result is None:
                found = written
            else:
                safe, found = (written if found is None else found), None
        return written, safe

    def bytes_under_way(self) -> int:
        """The size of the last write, if strace did not see its result: the kill came first."""
        last = 0
        for line in self._log.read_text().splitlines():
            if (size := _WRITE_WITHOUT_RESULT.search(line)) is not None:
                last = int(size[1])
            elif _RESUMED.match(line) and "write" in line and _RESULT.search(line):
                last = 0
        return last

    async def cut_power(self) -> None:
        """Kill it, and forget all unsynced bytes. `start` then goes on without strace."""
        self.kill()

        async def has_ended() -> bool:
            last = dict(line.split(maxsplit=1) for line in self._log.read_text().splitlines())
            return len(last) > 0 and all(line.startswith("+++ ") for line in last.values())

        await eventually(has_ended, what="strace has noted the end of each thread")
        written, safe = self.bytes_written_and_safe()
        [file] = self._data.rglob("*.aof")
        assert file.stat().st_size in (written, written + self.bytes_under_way())
        with file.open("r+b") as stream:
            stream.truncate(safe)
        self.program = find_redis()


@pytest.fixture
def traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, float], TracedRedis]]:
    """Starts a traced Redis with this `appendfsync`, on a disk that takes so long to sync (s)."""
    servers: list[TracedRedis] = []

    def start(appendfsync: str, sync_takes_s: float) -> TracedRedis:
        options = ("--appendfsync", appendfsync)
        server = TracedRedis(tmp_path, *options, sync_takes_s=sync_takes_s)
        monkeypatch.setattr("tests.support.find_redis", lambda: server.program)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()


@contextlib.asynccontextmanager
async def accept_queue(server: RedisServer) -> AsyncIterator[AcceptQueue]:
    redis = connect(server.url, limit_s=10)
    yield AcceptQueue(redis, limit_ms=10_000, max_backlog=10**6)
    await redis.aclose(close_connection_pool=True)


async def accepted(queue: AcceptQueue, count: int) -> set[str]:
    """Accept so many new payments at once; returns their ids once all are acknowledged."""
    ids = [str(uuid4()) for _ in range(count)]
    answers = await asyncio.gather(*(queue.accept(Payment(each, 1990)) for each in ids))
    assert set(answers) == {Acceptance.NEW}
    return set(ids)


async def acknowledged_under_load(
    server: RedisServer, chance: random.Random, end: Callable[[], None]
) -> set[str]:
    """Two ingress take payments as fast as they can until Redis meets its end, at a random
    instant; returns the ids that were acknowledged."""
    acknowledged: set[str] = set()
    enough = chance.randrange(100, 600)
    ending: asyncio.TimerHandle | None = None

    async def pay(queue: AcceptQueue) -> None:
        nonlocal ending
        with contextlib.suppress(NotAcceptedError):
            while True:
                correlation_id = str(uuid4())
                await queue.accept(Payment(correlation_id, 1990))
                acknowledged.add(correlation_id)
                if ending is None and len(acknowledged) >= enough:
                    loop = asyncio.get_running_loop()
                    ending = loop.call_later(chance.uniform(0, 0.03), end)

    async with accept_queue(server) as one, accept_queue(server) as other:
        await asyncio.gather(*(pay(queue) for queue in (one, other) for _ in range(20)))
    return acknowledged


async def held(server: RedisServer) -> set[str]:
    """The payments that Redis holds; fails if it holds one by half."""
    redis = connect(server.url, limit_s=10)
    records = {key.decode()[8:] for key in await redis.keys("payment:*")}
    jobs = {key.decode()[8:] for key in await redis.keys("arq:job:*")}
    queue = {each.decode() for each in await redis.zrange("arq:queue", 0, -1)}
    backlog = {each.decode() for each in await redis.zrange("payments:open", 0, -1)}
    await redis.aclose(close_connection_pool=True)
    assert records == jobs == queue == backlog
    return records


@pytest.mark.parametrize("seed", range(5))
async def test_with_always_a_kill_at_any_instant_loses_nothing_acknowledged(
    own_redis: RedisServer, seed: int
) -> None:
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for _ in range(2):
        acknowledged |= await acknowledged_under_load(own_redis, chance, own_redis.kill)
        own_redis.start()
        assert acknowledged <= await held(own_redis)


@needs_strace
@pytest.mark.parametrize("seed", range(3))
async def test_with_always_a_power_cut_at_any_instant_loses_nothing_acknowledged(
    traced: Callable[[str, float], TracedRedis], seed: int
) -> None:
    redis = traced("always", 0.01)
    acknowledged = await acknowledged_under_load(redis, random.Random(seed), redis.kill)
    await redis.cut_power()
    redis.start()
    assert acknowledged <= await held(redis)


@needs_strace
async def test_with_everysec_a_power_cut_loses_what_was_acknowledged_since_the_last_sync(
    traced: Callable[[str, float], TracedRedis],
) -> None:
    redis = traced("everysec", 0.5)
    async with accept_queue(redis) as queue:
        early = await accepted(queue, 50)

        async def all_is_safe() -> bool:
            written, safe = redis.bytes_written_and_safe()
            return 0 < written == safe

        await eventually(all_is_safe, what="the first payments are synced")
        await accepted(queue, 50)
        await redis.cut_power()
    redis.start()
    assert await held(redis) == early


@needs_strace
async def test_with_everysec_on_a_busy_disk_even_a_kill_loses_what_was_acknowledged(
    traced: Callable[[str, float], TracedRedis],
) -> None:
    """While a sync is under way, Redis puts off even the `write`, for up to 2 s."""
    redis = traced("everysec", 2.0)
    async with accept_queue(redis) as queue:
        early = await accepted(queue, 50)

        async def syncs() -> bool:
            return redis.has_begun_to_sync()

        await eventually(syncs, what="a sync begins")
        await accepted(queue, 50)
        redis.kill()
    redis.program = find_redis()
    redis.start()
    assert await held(redis) == early


async def test_with_everysec_on_an_idle_disk_a_kill_loses_nothing(
    tmp_path: Path,
) -> None:
    redis = RedisServer(tmp_path, "--appendfsync", "everysec")
    redis.start()
    async with accept_queue(redis) as queue:
        acknowledged = await accepted(queue, 50)
        redis.kill()
    redis.start()
    assert await held(redis) == acknowledged
    redis.kill()

"""What survives when Redis or its machine dies, by durability and by `appendfsync`.

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

from payswitch.durability import Durability
from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.payment import Payment
from payswitch.store.client import connect
from payswitch.store.trust import UntrustworthyRedisError
from payswitch.store.watch import RedisWatch
from tests.support import RedisServer, eventually, find_redis

pytestmark = pytest.mark.store

_CALL = re.compile(
    r"(?P<pid>\d+) +(?P<call>write|fdatasync)\(\d+<[^>]*/appendonly\.aof(\.\d+\.incr\.aof)?>"
)
_REPLY = re.compile(r"\d+ +writev?\(\d+<(socket|TCP|UNIX).*")
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
        command = ["strace", "-D", "-f", "-y", "-s0", "-e", "trace=write,writev,fdatasync"]
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

    def order(self) -> str:
        """The calls in their order: `w` and `s` for a write and a sync of the append-only file
        that have ended, `r` for a reply to a client."""
        letters = ""
        for line in self._log.read_text().splitlines():
            if (call := _CALL.match(line)) is not None and _RESULT.search(line):
                letters += {"write": "w", "fdatasync": "s"}[call["call"]]
            elif _REPLY.match(line):
                letters += "r"
        return letters

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

    async def has_ended(self) -> None:
        """Wait until strace has noted the end of each thread."""

        async def is_noted() -> bool:
            last = dict(line.split(maxsplit=1) for line in self._log.read_text().splitlines())
            return len(last) > 0 and all(line.startswith("+++ ") for line in last.values())

        await eventually(is_noted, what="strace has noted the end of each thread")

    async def cut_power(self) -> None:
        """Kill it, and forget all unsynced bytes. `start` then goes on without strace."""
        self.kill()
        await self.has_ended()
        written, safe = self.bytes_written_and_safe()
        [file] = self._data.rglob("*.aof")
        assert file.stat().st_size in (written, written + self.bytes_under_way())
        with file.open("r+b") as stream:
            stream.truncate(safe)
        self.program = find_redis()


@pytest.fixture
def redis_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Starts a Redis that keeps what a durability promises."""
    servers: list[RedisServer] = []

    def start(durability: Durability) -> RedisServer:
        folder = tmp_path_factory.mktemp("redis")
        server = RedisServer(folder, "--appendfsync", durability.appendfsync[0])
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("durability", Durability)
async def test_a_kill_at_any_instant_loses_nothing_acknowledged(
    redis_of: Callable[[Durability], RedisServer], durability: Durability, seed: int
) -> None:
    redis = redis_of(durability)
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for _ in range(2):
        acknowledged |= await acknowledged_under_load(redis, chance, redis.kill)
        redis.start()
        assert acknowledged <= await held(redis)


@needs_strace
@pytest.mark.parametrize(
    ("durability", "turn"), [(Durability.DISK, "wsr"), (Durability.PROCESS, "wr")]
)
async def test_each_answer_comes_after_what_it_stands_for(
    traced: Callable[[str, float], TracedRedis], durability: Durability, turn: str
) -> None:
    redis = traced(durability.appendfsync[0], 0.0)
    count = 20
    async with accept_queue(redis) as queue:
        for _ in range(1 + count):  # the first one also connects and loads the script
            await accepted(queue, 1)
        redis.kill()
        await redis.has_ended()
    assert redis.order().endswith(turn * count)


@needs_strace
async def test_with_process_a_power_cut_takes_all_that_redis_left_to_the_kernel(
    traced: Callable[[str, float], TracedRedis],
) -> None:
    redis = traced(Durability.PROCESS.appendfsync[0], 0.0)
    async with accept_queue(redis) as queue:
        await accepted(queue, 50)
        await redis.cut_power()
    redis.start()
    assert await held(redis) == set()


async def test_with_process_a_full_disk_and_then_a_kill_lose_what_only_memory_held(
    redis_of: Callable[[Durability], RedisServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one exception to what `process` promises: Redis acknowledges the turn in which its write
    fails, and refuses every later one."""
    program = tmp_path / "redis-server"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 40\nexec {find_redis()} \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setattr("tests.support.find_redis", lambda: str(program))
    redis = redis_of(Durability.PROCESS)
    acknowledged: set[str] = set()
    async with accept_queue(redis) as queue:
        with contextlib.suppress(NotAcceptedError):
            while True:
                acknowledged |= await accepted(queue, 1)
        with pytest.raises(NotAcceptedError):
            await accepted(queue, 1)
    redis.kill()
    monkeypatch.undo()
    redis.start()
    assert len(acknowledged - await held(redis)) == 1


@needs_strace
@pytest.mark.parametrize("seed", range(3))
async def test_with_disk_a_power_cut_at_any_instant_loses_nothing_acknowledged(
    traced: Callable[[str, float], TracedRedis], seed: int
) -> None:
    redis = traced(Durability.DISK.appendfsync[0], 0.01)
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


async def test_a_part_starts_only_on_a_redis_that_keeps_what_is_promised(
    own_redis: RedisServer,
) -> None:
    kept: set[tuple[str, str]] = set()
    redis = connect(own_redis.url, limit_s=10)
    for appendfsync in ("always", "everysec", "no"):
        await redis.config_set("appendfsync", appendfsync)
        for durability in (Durability.DISK, Durability.PROCESS):
            watch = RedisWatch(redis, currency="BRL", demand=True, durability=durability)
            with contextlib.suppress(UntrustworthyRedisError):
                await watch.check_trust()
                kept.add((durability, appendfsync))
    await redis.aclose(close_connection_pool=True)
    assert kept == {("disk", "always"), ("process", "always"), ("process", "no")}

"""The history: a sample a second over the last minutes. One process of the cluster writes it, so a
page has its charts as soon as it opens."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from payswitch.operations.controls import Controls
from payswitch.operations.order_log import OrderLog
from payswitch.operations.overview import Overview, read_overview
from payswitch.operations.shards import Shard, read_shards
from payswitch.store import keys, scripts
from payswitch.store.client import partitions_of
from payswitch.store.partitions import Argument
from payswitch.store.periodic import Periodic
from payswitch.telemetry.heartbeat import Process
from payswitch.telemetry.histogram import Histogram, merged

EVERY_S = 1.0
FRESH_S = 5.0
KEPT = 300
"""Samples: five minutes."""
WINDOW_S = 10
"""Span of the times to settle: over one second a single payment would look like a spike."""

_BEAT_MS = 950
"""Less than a second, so that a writer's own beat has ended by its next turn."""
_FAILED = ("NotPaid", "Ended", "Unknown")
"""The outcomes of failed tries."""
_KEPT_MS = int(KEPT * EVERY_S * 1000)


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of the history. Counts are totals, so a missed sample loses no count."""

    at: int
    accepted: int
    settled: Mapping[str, int]
    """By processor."""
    backlog: int
    oldest_ms: int
    in_flight: int
    dead: int
    selected: str | None
    healthy: bool
    failed: Mapping[str, int]
    """Failed tries of the last second, by processor."""
    unavailable: int
    """Payments that were answered 503 in the last second."""
    p50_ms: float | None
    """Time to settle, over `WINDOW_S`; None if nothing was settled."""
    p99_ms: float | None


def parse_sample(raw: bytes) -> Sample | None:
    """Read a sample; None for anything else."""
    try:
        document: dict[str, Any] = orjson.loads(raw)
        sample = Sample(**document)
    except (ValueError, TypeError):
        return None
    return sample if _is_sample(sample) else None


def _is_sample(sample: Sample) -> bool:
    counts = (sample.at, sample.accepted, sample.unavailable)
    times = (sample.p50_ms, sample.p99_ms)
    return (
        all(type(count) is int for count in counts)
        and all(time is None or type(time) in (int, float) for time in times)
        and all(
            isinstance(by_name, dict) and all(type(count) is int for count in by_name.values())
            for by_name in (sample.settled, sample.failed)
        )
    )


class Changes:
    """Makes samples from the differences between successive overviews."""

    def __init__(self) -> None:
        self._before: dict[str, Process] | None = None
        self._settle_times: deque[Histogram] = deque(maxlen=WINDOW_S)

    def sample(self, overview: Overview) -> Sample:
        """The sample of this overview; earlier ones are taken into account."""
        processes = {each.name: each for each in overview.processes}
        before = processes if self._before is None else self._before  # the first has no changes
        self._before = processes
        settle_times: list[Histogram] = []
        counts = Counter[str]()
        for name, now in processes.items():
            then = before.get(name)
            settle_times.append(now.settle_times.since(then.settle_times if then else Histogram()))
            counts.update(now.counts)
            counts.subtract(then.counts if then else {})
        self._settle_times.append(merged(settle_times))
        times = merged(self._settle_times)
        choice = overview.choice
        return Sample(
            at=overview.at,
            accepted=overview.accepted,
            settled={name: total.count for name, total in overview.settled.items()},
            backlog=overview.backlog,
            oldest_ms=overview.oldest_age_ms or 0,
            in_flight=overview.in_flight,
            dead=overview.dead,
            selected=choice.processor if choice else None,
            healthy=choice is None or choice.healthy,
            failed={
                name: sum(counts[f"tries:{name}:{outcome}"] for outcome in _FAILED)
                for name in overview.settled
            },
            unavailable=counts["refused:503"],
            p50_ms=times.quantile(0.5),
            p99_ms=times.quantile(0.99),
        )


class HistoryWriter(Periodic):
    """Adds a sample a second, in one process of the cluster at a time."""

    def __init__(self, redis: Redis, processors: Sequence[str]) -> None:
        super().__init__("sample", EVERY_S)
        self._processors = processors
        self._take = scripts.load(redis, "take")
        self._append = scripts.load(redis, "history")
        self._redis = redis
        self._controls = Controls(redis)
        self._changes = Changes()
        self._orders = OrderLog()
        self._read: Overview | None = None
        self._read_at = float("-inf")
        self._shards: Sequence[Shard] = ()
        self._shards_at = float("-inf")
        self.failures = 0
        """Turns that Redis refused or did not answer."""

    @property
    def latest(self) -> Overview | None:
        """The last overview; None if it is older than `FRESH_S`."""
        return self._read if time.monotonic() - self._read_at <= FRESH_S else None

    @property
    def shards(self) -> Sequence[Shard]:
        """The nodes of a cluster as last seen, also while one is away; none on a single Redis, and
        none if they were seen longer than `FRESH_S` ago."""
        return self._shards if time.monotonic() - self._shards_at <= FRESH_S else ()

    async def turn(self) -> None:
        """Write, and count failures. Raises `RedisError` or `OSError`."""
        try:
            await self.write()
        except (RedisError, OSError):
            self.failures += 1
            self._see(await read_shards(self._redis))
            raise

    async def write(self) -> bool:
        """Add a sample unless another process has just done so. The overview is read in any case,
        as the next turn may be this process'. Raises `RedisError` or `OSError`."""
        common = self._take.partitions.common
        is_mine = await self._take(keys=[common.key(keys.BEAT)], args=["1", _BEAT_MS])
        self._read = await read_overview(self._redis, self._processors)
        self._read_at = time.monotonic()
        self._see(self._read.shards)
        self._orders.see(self._read)
        sample = self._changes.sample(self._read)
        if is_mine:
            args: list[Argument] = [orjson.dumps(sample), KEPT, _KEPT_MS]
            await self._append(keys=[common.key(keys.HISTORY)], args=args)
            await self._controls.spread_pause(self._read.astray)
        return bool(is_mine)

    def _see(self, shards: Sequence[Shard]) -> None:
        self._shards, self._shards_at = shards, time.monotonic()


async def read_history(redis: Redis, newest: int = KEPT) -> list[bytes]:
    """The newest samples in their raw form, the oldest first; none if the key is of another type.
    Raises `RedisError` or `OSError`."""
    common = partitions_of(redis).common
    try:
        kept: list[bytes] = await common.redis.lrange(common.key(keys.HISTORY), -newest, -1)  # type: ignore[misc]
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return []
    return kept

"""`python -m bench.failover`: what the loss of a primary costs, with its disk.

The whole system as `payswitch up --redis cluster` starts it, under a steady rate. In each round the
primary of another shard is killed and its files are removed, so that it comes back as an empty
replica after its failover. The same span before, in which no node is lost, is the baseline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import orjson
from redis.crc import key_slot
from rich.progress import Progress

from bench.common import (
    RESULTS,
    Measure,
    Result,
    Values,
    new_figure,
    print_table,
    progress_bar,
    write_json,
)
from bench.local import BenchError, read_answer, running
from bench.steady import Answer
from bench.summary import percentile
from payswitch.chaos.books import Auditor
from payswitch.chaos.plan import PRIMARY
from payswitch.chaos.redis_nodes import RedisNodes
from payswitch.chaos.system import ChaosSystem
from payswitch.chaos.system import running as running_system
from payswitch.local.cluster_topology import PRIMARIES, SLOTS, Views, primary_of
from payswitch.local.machine import MachineError
from payswitch.local.redis_cluster import NODE_TIMEOUT_MS, LocalCluster
from payswitch.local.supervisor import PartNotStartedError
from payswitch.store.partitions import partition_of, tags

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WHOLE, LOST = "no node is lost", "a primary is lost"
MEASURES = (
    Measure("promoted_s", "promoted, s", 2),
    Measure("in_step_s", "new replica, s", 2),
    Measure("refused_s", "503s until, s", 2),
    Measure("refused", "not 202"),
    Measure("settled_s", "settled, s", 1),
    Measure("others_refused", "others: not 202"),
    Measure("others_p50", "others: p50, ms", 2),
    Measure("others_p99", "others: p99, ms", 2),
    Measure("others_worst", "others: worst, ms", 1),
)
_NAME = "failover"
_WARM_UP_S = 3.0
_POLL_S = 0.1
_SETTLED_WITHIN_S = 90.0
_SHORTEST_S = 1.0
_COLORS = {202: "#2a78b5", 503: "#c0392b"}
_OTHER_COLOR = "#d9822b"


@dataclass(frozen=True, slots=True)
class State:
    """A shard at an instant, as its nodes see it."""

    at: float
    primary: str
    """Its port; empty while no node that answers serves the shard."""
    in_step: bool
    """Whether the primary has a replica with all of its writes."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round's answers, and what became of the shard. Instants are those of `time.monotonic`."""

    shard: int
    seconds: float
    """The length of each span."""
    lost_at: float
    own: Sequence[Answer]
    """Of the partitions of the shard that lost its primary."""
    others: Sequence[Answer]
    states: Sequence[State]
    settled_s: float
    """From the loss until all that was accepted before it was settled."""

    @property
    def promoted_s(self) -> float | None:
        """From the loss until another node served the shard; None if none did."""
        before = [each.primary for each in self.states if each.at < self.lost_at]
        return self._first([each for each in self.states if each.primary not in ("", before[-1])])

    @property
    def in_step_s(self) -> float | None:
        """From the loss until that one had a replica in step; None if it had none."""
        promoted_s = self.promoted_s
        if promoted_s is None:
            return None
        after = [each for each in self.states if each.at >= self.lost_at + promoted_s]
        return self._first([each for each in after if each.in_step])

    def _first(self, states: Sequence[State]) -> float | None:
        return next((each.at - self.lost_at for each in states if each.at > self.lost_at), None)

    @property
    def refused_s(self) -> float:
        """From the loss until the shard's last answer other than 202."""
        refused = [each for each in self._within(self.own, 0, self.seconds) if each.status != 202]
        return max((each.at + each.ms / 1000 for each in refused), default=self.lost_at) - (
            self.lost_at
        )

    def whole(self) -> Values:
        """The span before the loss."""
        return self._values(-self.seconds)

    def lost(self) -> Values:
        """The span after it."""
        found = dict(self._values(0))
        found |= {"refused_s": self.refused_s, "settled_s": self.settled_s}
        known = {"promoted_s": self.promoted_s, "in_step_s": self.in_step_s}
        return found | {name: each for name, each in known.items() if each is not None}

    def _values(self, begins_s: float) -> dict[str, float]:
        """Refusals in the whole span; latencies for as long as the shard was refused after the
        loss, before it as after it."""
        ends_s = begins_s + self.seconds
        others = self._within(self.others, begins_s, begins_s + max(self.refused_s, _SHORTEST_S))
        waited = [each.ms for each in others]
        if not waited:
            raise BenchError("no payment was sent to another shard")
        return {
            "refused": _refused(self._within(self.own, begins_s, ends_s)),
            "others_refused": _refused(self._within(self.others, begins_s, ends_s)),
            "others_p50": percentile(waited, 0.5),
            "others_p99": percentile(waited, 0.99),
            "others_worst": max(waited),
        }

    def _within(self, answers: Sequence[Answer], begins_s: float, ends_s: float) -> list[Answer]:
        begins, ends = self.lost_at + begins_s, self.lost_at + ends_s
        return [each for each in answers if begins <= each.at < ends]

    def as_document(self) -> dict[str, Any]:
        """For the JSON file: its figures, and the reasons of the refusals."""
        return {
            "shard": self.shard + 1,
            WHOLE: self.whole(),
            LOST: self.lost(),
            "reasons": _reasons(self.own),
            "reasonsOfOthers": _reasons(self.others),
            "states": [asdict(each) | {"at": each.at - self.lost_at} for each in self.states],
        }


def _refused(answers: Sequence[Answer]) -> int:
    return sum(each.status != 202 for each in answers)


def _reasons(answers: Sequence[Answer]) -> dict[str, int]:
    """How often each reason was told."""
    return dict(Counter(_reason(each) for each in answers if each.status != 202))


def _reason(answer: Answer) -> str:
    try:
        text = orjson.loads(answer.why)["detail"]
    except (orjson.JSONDecodeError, KeyError):
        text = answer.why
    return f"{answer.status}: {text}"


class Bench:
    """Loses primaries of a running system under load."""

    def __init__(self, system: ChaosSystem, rate: float, seconds: float) -> None:
        assert system.cluster is not None
        self._system = system
        self._cluster: LocalCluster = system.cluster
        self._rate, self._seconds = rate, seconds
        self._nodes = RedisNodes(system.settings, system.cluster)
        self._auditor = Auditor(system)
        slots = [key_slot(tag.encode()) for tag in tags(system.settings.partitions)]
        self._shards = [slot * PRIMARIES // SLOTS for slot in slots]
        """Of each partition."""

    async def close(self) -> None:
        """Close the connections."""
        await self._nodes.close()
        await self._auditor.close()

    async def round(self, shard: int) -> Round:
        """One span without a loss and one after the loss of a shard's primary. Raises `BenchError`,
        or `MachineError` if the cluster doesn't become whole again."""
        await self._nodes.until_whole()
        where = urlsplit(self._system.endpoint)
        seconds = _WARM_UP_S + 2 * self._seconds
        load = ("-m", "bench.steady", f"{where.hostname}", f"{where.port}", str(self._rate))
        with running(*load, str(seconds)) as client:
            began = (await asyncio.to_thread(read_answer, client))["began"]
            states: list[State] = []
            observing = asyncio.create_task(self._observe(shard, states))
            await asyncio.sleep(began + _WARM_UP_S + self._seconds - time.monotonic())
            lost_at = time.monotonic()
            lost_at_ms = await self._lose(shard)
            settled = asyncio.create_task(self._settled(lost_at_ms))
            answers = [Answer(*each) for each in await asyncio.to_thread(read_answer, client)]
            settled_at = await settled
            await self._settled(None)
            observing.cancel()
            await asyncio.wait([observing])
        own = [each for each in answers if self._shard_of(each) == shard]
        others = [each for each in answers if self._shard_of(each) != shard]
        settled_s = settled_at - lost_at
        return Round(shard, self._seconds, lost_at, own, others, states, settled_s)

    def _shard_of(self, answer: Answer) -> int:
        return self._shards[partition_of(answer.correlation_id, len(self._shards))]

    async def _lose(self, shard: int) -> int:
        """Kill the primary and remove its files; returns the instant by Redis' clock."""
        lost_at_ms = await self._auditor.redis_now_ms()
        [part] = await self._nodes.parts(f"{PRIMARY}{shard + 1}")
        pid = self._system.pid(part)
        assert pid is not None
        self._system.signal(pid, signal.SIGSTOP)  # or it would write its files once more
        self._nodes.forget_files(part)
        self._system.signal(pid, signal.SIGKILL)
        return lost_at_ms

    async def _observe(self, shard: int, states: list[State]) -> None:
        while True:
            states.append(_state(SLOTS * shard // PRIMARIES, await self._cluster.views()))
            await asyncio.sleep(_POLL_S)

    async def _settled(self, accepted_until_ms: int | None) -> float:
        """Wait until the payments accepted until then are settled; returns that instant."""
        async with asyncio.timeout(_SETTLED_WITHIN_S):
            while await self._auditor.backlog(accepted_until_ms) != 0:
                await asyncio.sleep(_POLL_S)
        return time.monotonic()


def _state(slot: int, views: Views) -> State:
    primary = primary_of(slot, views)
    if primary is None:
        return State(time.monotonic(), "", in_step=False)
    node_id = views[primary].me.node_id
    in_step = any(each.works and each.me.primary_id == node_id for each in views.values())
    return State(time.monotonic(), str(primary.port), in_step)


async def measure(
    folder: Path, rounds: int, rate: float, seconds: float, bar: Progress
) -> list[Round]:
    """Run the system and lose a primary in each round, of one shard after another."""
    task = bar.add_task(_NAME, total=rounds)
    found = []
    async with (
        running_system(
            folder, workers=2, clocks=False, environment=os.environ, redis="cluster"
        ) as system,
        contextlib.AsyncExitStack() as stack,
    ):
        bench = Bench(system, rate, seconds)
        stack.push_async_callback(bench.close)
        for number in range(rounds):
            bar.update(task, description=f"{_NAME}: round {number + 1}")
            found.append(await bench.round(number % PRIMARIES))
            bar.advance(task)
    return found


def draw(rounds: Sequence[Round], title: str) -> Path:
    """Draw `bench/results/failover.png`: each payment of all rounds, around the loss."""
    figure = new_figure(9.0, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    _draw_answers(above, [(each, each.own) for each in rounds])
    _draw_answers(below, [(each, each.others) for each in rounds])
    for found in rounds:
        for at, color in ((found.promoted_s, "#4c9a5b"), (found.in_step_s, "#7d5ba6")):
            if at is not None:
                above.axvline(at, color=color, linewidth=0.8)
    above.set_title("its partitions (lines: replica promoted, new replica in step)", fontsize=10)
    below.set_title("all other partitions", fontsize=10)
    below.set_xlabel("seconds after the loss of the primary")
    figure.suptitle(title)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{_NAME}.png"
    figure.savefig(path, dpi=110)
    return path


def _draw_answers(axes: Axes, found: Sequence[tuple[Round, Sequence[Answer]]]) -> None:
    points: dict[int, list[tuple[float, float]]] = {}
    for each, answers in found:
        for answer in answers:
            after_s = answer.at - each.lost_at
            if after_s >= -each.seconds:
                points.setdefault(answer.status, []).append((after_s, answer.ms))
    for status, own in sorted(points.items()):
        color = _COLORS.get(status, _OTHER_COLOR)
        at, ms = zip(*own, strict=True)
        axes.scatter(at, ms, s=2, color=color, label=str(status or "no answer"))
    axes.set_yscale("log")
    axes.set_ylabel("answered after, ms")
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.legend(frameon=False, markerscale=4, fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


@click.command()
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(1))
@click.option("--rate", default=200.0, show_default=True, type=click.FloatRange(1))
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Before the loss of a primary, and after it.",
)
def main(rounds: int, rate: float, seconds: float) -> None:
    """The partitions' 503s after the loss of a primary with its disk, and the other partitions'
    latency meanwhile."""
    logging.getLogger("payswitch").addHandler(logging.NullHandler())  # it would break the bar
    with progress_bar() as bar, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            found = asyncio.run(measure(Path(folder), rounds, rate, seconds, bar))
        except (MachineError, PartNotStartedError) as error:
            raise click.ClickException(str(error)) from None
    result = Result(
        _NAME,
        f"The loss of a primary with its disk, at {rate:g} payments a second",
        MEASURES,
        {WHOLE: [each.whole() for each in found], LOST: [each.lost() for each in found]},
        notes=(
            f"Three primaries with a replica each; node time-out {NODE_TIMEOUT_MS / 1000:g} s.",
            "Others: the partitions of the other shards, for as long as the shard was refused.",
            "Settled: all payments that were accepted before the loss.",
        ),
        distributions=("arq", "redis", "hiredis", "uvloop"),
        more={"rounds": [each.as_document() for each in found]},
    )
    write_json(_NAME, result.as_document())
    print_table(result)
    draw(found, result.title)


if __name__ == "__main__":
    main()

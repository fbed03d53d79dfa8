"""What stands where a Redis client does in a process of the model: each script waits at a gate.

In a cluster the real `ServerNode` has it confirmed, and the real `ServerWatch` looks at the node.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol, cast

import redis
from redis.asyncio import ConnectionPool, Redis

from payswitch.durability import Durability
from payswitch.store import keys, scripts
from payswitch.store.channels import Commands
from payswitch.store.client import Client
from payswitch.store.errors import Epoch
from payswitch.store.marks import Marks
from payswitch.store.partitions import Argument, Call, Confirm, Partition, Partitions
from payswitch.store.server_watch import Demands, ServerWatch
from payswitch.store.topology import Topology
from tests.model.stepped import SCRIPTS, Node, Process, ScriptCall, Surroundings, Told
from tests.model.variants import Protocol as Variant

_PAYMENT = re.compile(r"(?:\{.*\})?(pay-\d+)")
_LIMIT_S = 5.0
_KNOWN_AFTER_S = 2.0
"""By then all processes have met a run of the node, and marks grow."""
_DEMANDS = Demands("BRL", True, Durability.REPLICAS, 100)


class ClusterSurroundings(Surroundings, Protocol):
    """What else a client lives in."""

    protocol: Variant

    def write_mark(self, node: Node, text: str, key: Argument, by: Argument) -> Any:
        """Let the mark of a partition grow by 0 or 1; gives it."""

    def wait_for_replica(self, node: Node) -> int:
        """`WAIT`: how many replicas have what was written. It ends in time, unless the model wants
        otherwise."""

    def note_confirmed(self) -> int:
        """Count a call that the replica has confirmed; gives its number."""

    def hear(self, process: Process, name: str, confirmed: int, *, knows: bool) -> None:
        """A process is told that what this script did is confirmed."""


@cache
def _names(deployment: str) -> Mapping[str, tuple[str, str]]:
    """The name of each script and the deployment in it, by its digest."""
    return {
        hashlib.sha1(scripts.source(name, each).encode()).hexdigest(): (name, each)
        for each in ("", deployment)
        for name in SCRIPTS
    }


def _payments_among(args: Sequence[Any]) -> set[str]:
    """The payments that a call is about, for its label."""
    found = (_PAYMENT.fullmatch(arg) for arg in args if isinstance(arg, str))
    return {match[1] for match in found if match}


@dataclass
class _Receipt:
    """What came of commands on one connection."""

    answers: list[Any] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    """Of each script."""
    confirmed: int = 0
    """The number of the confirmed call; 0 if it is not confirmed."""
    knows: bool = False
    """Whether marks grew by it."""


class SteppedChannels:
    """Stands where the connections to one node do."""

    is_connected = True

    def __init__(
        self,
        process: Process,
        around: ClusterSurroundings,
        node: Node,
        meet: Callable[[str], None] = lambda run: None,
    ) -> None:
        self._process = process
        self._around = around
        self._node = node
        self._meet = meet
        self._run = 0
        self._since_s: float | None = None
        """When this run of the node first confirmed a call of this process."""
        self.receipt = _Receipt()
        """Of the call that has just ended."""

    @property
    def has_met(self) -> bool:
        """Whether it knows the node's present run."""
        return self._run == self._node.run

    async def call(
        self,
        commands: Commands | Callable[[], Commands],
        then: Callable[[list[Any]], Commands] | None = None,
    ) -> list[Any]:
        """As `payswitch.store.channels.Channels.call`."""
        if self._run != self._node.run:
            self._run, self._since_s = self._node.run, None
            self._meet(f"run {self._run}")
        if callable(commands):
            commands = commands()
        calls = [self._script_call(each, commands) for each in commands if each[0] == "EVALSHA"]
        self.receipt = await self._pass(commands, calls, "")
        more = () if then is None else then(self.receipt.answers)
        if more:
            told = self.receipt
            confirmed = await self._pass(more, [replace(calls[0], confirm=True)], "confirm ")
            told.answers += confirmed.answers
            told.confirmed, told.knows = confirmed.confirmed, confirmed.knows
            self.receipt = told
        return self.receipt.answers

    async def _pass(self, commands: Commands, calls: Sequence[ScriptCall], what: str) -> _Receipt:
        sent_at_s = self._now_s()
        first = calls[0]
        payments: set[str] = set().union(*(_payments_among(each.args) for each in calls))
        receipt: _Receipt = await self._process.pass_gate(
            "claim" if first.name == "claim" else "redis",
            " ".join([f"{what}{first.name}", *sorted(payments)]),
            lambda: self._perform(commands, calls),
            first,
        )
        if receipt.confirmed:
            if self._since_s is None:
                self._since_s = self._now_s()
            receipt.knows = sent_at_s >= self._since_s + _KNOWN_AFTER_S
        return receipt

    def _now_s(self) -> float:
        """By a clock that nobody sets."""
        return self._around.redis_now(self._node) / 1000 - self._node.ahead / 1000

    def _script_call(self, command: Sequence[Argument], commands: Commands) -> ScriptCall:
        _, sha, count, *rest = command
        assert isinstance(count, int)
        name, deployment = _names(self._process.layout.deployment)[str(sha)]
        confirm = any(each[0] == "WAIT" for each in commands)
        return ScriptCall(name, rest[:count], rest[count:], self._node, confirm, deployment)

    def _perform(self, commands: Commands, calls: Sequence[ScriptCall]) -> _Receipt:
        receipt = _Receipt()
        own = iter(calls)
        for name, *args in commands:
            if name == "EVALSHA":
                answer, told = self._run_script(next(own))
                receipt.answers.append(answer)
                receipt.told.append(told)
            elif name == "EVAL":
                text, _, key, by = args
                receipt.answers.append(self._around.write_mark(self._node, str(text), key, by))
            elif name == "WAIT":
                count = self._around.wait_for_replica(self._node)
                receipt.confirmed = self._around.note_confirmed() if count else 0
                receipt.answers.append(count)
            else:
                assert name == "PING"
                receipt.answers.append(b"PONG")
        return receipt

    def _run_script(self, call: ScriptCall) -> tuple[Any, Told]:
        try:
            return self._around.run_script(call)
        except redis.RedisError as error:
            return error, lambda: None


class SteppedNode:
    """Stands where a single Redis does."""

    is_connected = True

    def __init__(self, process: Process, around: ClusterSurroundings, node: Node) -> None:
        self.channels = SteppedChannels(process, around, node)

    async def run(
        self, text: str, sha: str, calls: Sequence[Call], *, confirm: Confirm
    ) -> list[Any]:
        """As `payswitch.store.partitions.Node.run`."""
        answers: list[Any] = []
        for own_keys, args in calls:
            command = ("EVALSHA", sha, len(own_keys), *own_keys, *args)
            answers += await self.channels.call([command])
            _tell(answers[-1:], self.channels.receipt)
        return answers


def _tell(answers: Sequence[Any], receipt: _Receipt) -> bool:
    """Note what the process is told by these answers; whether that is anything."""
    is_told = False
    for answer, told in zip(answers, receipt.told, strict=True):
        if not isinstance(answer, Exception):
            is_told = True
            told()
    return is_told


class SteppedClusterNode:
    """The real `ServerNode`, but for its connections."""

    is_connected = True

    def __init__(
        self, process: Process, around: ClusterSurroundings, node: Node, marks: Marks
    ) -> None:
        self._process = process
        self._around = around
        pool = cast(ConnectionPool, SimpleNamespace(connection_kwargs={"epoch": Epoch()}))
        self._server = around.protocol.server(pool, limit_s=_LIMIT_S, replicas=1, marks=marks)
        self.channels = SteppedChannels(process, around, node, self._server._meet)
        self._server._channels = cast(Any, self.channels)

    async def run(
        self, text: str, sha: str, calls: Sequence[Call], *, confirm: Confirm
    ) -> list[Any]:
        """As `payswitch.store.partitions.Node.run`."""
        name, _ = _names(self._process.layout.deployment)[sha]
        if name in self._around.protocol.unconfirmed:
            confirm = False
        answers = await self._server.run(text, sha, calls, confirm=confirm)
        receipt = self.channels.receipt
        if _tell(answers, receipt) and receipt.confirmed:
            self._around.hear(self._process, name, receipt.confirmed, knows=receipt.knows)
        return answers


class SteppedNodes(Topology):
    """Leads to the node that a process takes for the primary."""

    def __init__(self, process: Process, around: ClusterSurroundings, marks: Marks) -> None:
        self._process = process
        self._around = around
        self._marks = marks
        self._found: dict[Node, SteppedNode | SteppedClusterNode] = {}

    def has_met(self, node: Node) -> bool:
        """Whether it has called the node's present run."""
        return node in self._found and self._found[node].channels.has_met

    def home(self, slot: int) -> str:
        """As `payswitch.store.partitions.Nodes.home`."""
        return "the model"

    async def locate(self, slot: int) -> Any:
        """As `payswitch.store.partitions.Nodes.locate`."""
        node, process = self._process.node, self._process
        if node not in self._found:
            self._found[node] = (
                SteppedClusterNode(process, self._around, node, self._marks)
                if process.layout.deployment
                else SteppedNode(process, self._around, node)
            )
        return self._found[node]

    async def locate_again(self, slot: int, wrong: Exception) -> None:
        """As `payswitch.store.partitions.Nodes.locate_again`: there is no other."""

    async def read_again(self) -> None:
        """As `Topology.read_again`: the model says when a process learns of another primary."""


class SteppedRedis:
    """Stands where a Redis client is handed in. Scripts wait at gates; plain reads, which change
    nothing, don't."""

    def __init__(self, process: Process, around: ClusterSurroundings) -> None:
        self._process = process
        self._around = around
        self.marks = around.protocol.marks()
        redis, self.nodes = cast(Redis, self), SteppedNodes(process, around, self.marks)
        layout = process.layout
        every = [Partition(n, tag, redis, self.nodes) for n, tag in enumerate(layout.tags)]
        common = Partition(0, keys.SELECTION, redis, self.nodes) if layout.tags[0] else every[0]
        self.partitions = Partitions(every, common, layout.deployment)

    @property
    def has_met_primary(self) -> bool:
        """Whether it has called the present run of the node that it takes for the primary."""
        return self.nodes.has_met(self._process.node)

    async def time(self) -> tuple[int, int]:
        """Redis' virtual clock: seconds and microseconds."""
        now = self._around.redis_now(self._process.node)
        return now // 1000, now % 1000 * 1000

    async def get(self, key: str) -> Any:
        """As redis-py's."""
        return self._process.node.store.client.get(key)

    async def mget(self, names: list[str]) -> Any:
        """As redis-py's."""
        return self._process.node.store.client.mget(names)

    async def pttl(self, key: str) -> Any:
        """As redis-py's."""
        return self._process.node.store.client.pttl(key)

    async def hmget(self, key: str, fields: list[str]) -> Any:
        """As redis-py's."""
        return self._process.node.store.client.hmget(key, fields)

    async def zcount(self, key: str, low: float | str, high: float | str) -> Any:
        """As redis-py's."""
        return self._process.node.store.client.zcount(key, low, high)


class SteppedWatch(ServerWatch):
    """The real look at a node, but for its settings, which are right."""

    def __init__(self, redis: SteppedRedis) -> None:
        super().__init__(cast(Client, redis), "the model", _DEMANDS)
        self._own = list(redis.partitions)

    async def look_once(self) -> None:
        """As `RedisWatch` does twice a second."""
        await self.look(self._own, 1.0)

    async def _judge_server(self, partition: Partition, info: Mapping[str, str]) -> None:
        self._server = info

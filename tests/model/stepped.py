"""Asynchronous code, one step at a time: an event loop whose clock stands still until it is moved,
and a Redis whose every script call waits at a gate until somebody says what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol, TypeVarTuple, Unpack

import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from payswitch.store import scripts

_CLOCK = """
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
"""
_MODEL_CLOCK = """
  return tonumber(KEYS[#KEYS])
"""

Arguments = TypeVarTuple("Arguments")
Replacements = Mapping[str, Sequence[tuple[str, str]]]
"""By a script's name: what to put for which text."""


def replace_once(text: str, old: str, new: str) -> str:
    """Replace what must be there exactly once."""
    if text.count(old) != 1:
        raise LookupError(f"{text.count(old)} times in the script: {old!r}")
    return text.replace(old, new)


def on_model_clock(text: str) -> str:
    """A script that takes the time from its last key where it would read Redis' clock."""
    changed = replace_once(text, _CLOCK, _MODEL_CLOCK)
    if "'TIME'" in changed:
        raise LookupError("the script reads Redis' clock elsewhere, too")
    return changed


class SteppedLoop(asyncio.SelectorEventLoop):
    """Runs what is ready and then stops; its time is set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._calls = 0

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def call_soon(
        self,
        callback: Callable[[Unpack[Arguments]], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """As the base class; counted, so that `drain` sees when all is quiet."""
        self._calls += 1
        return super().call_soon(callback, *args, context=context)

    def drain(self) -> None:
        """Run until every task waits for a gate or for a later time."""
        quiet = False
        while not quiet:
            before = self._calls
            super().call_soon(self.stop)
            self.run_forever()
            quiet = self._calls == before

    def close(self) -> None:
        """End whatever still runs."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.drain()
        super().close()


_COPY = """
for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('COPY', key, key, 'DB', ARGV[1]) end
"""


class Store:
    """The real Redis behind the model, reached synchronously: each call is one atomic step.
    `spare` is another database of it, which may
    have one in turn."""

    def __init__(self, client: redis.Redis, spare: Store | None = None) -> None:
        self.client = client
        self.spare = spare
        self._digests: dict[str, str] = {}

    def copy_to(self, other: Store) -> None:
        """Make the other database the same as this one."""
        other.client.flushdb()
        self.run(_COPY, [], [other.client.get_connection_kwargs()["db"]])

    def run(self, text: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script. Raises `RedisError`."""
        digest = self._digests.get(text)
        if digest is None:
            digest = self._digests[text] = str(self.client.script_load(text))
        return self.client.evalsha(digest, len(keys), *keys, *args)


@dataclass(eq=False)
class Node:
    """A Redis node: what it holds, and by how much its clock is ahead (ms)."""

    store: Store
    ahead: int
    run: int = 1
    """Its run: each restart cuts its connections and begins another one."""


@dataclass(frozen=True)
class Layout:
    """How a process divides the payments: its partitions' hash tags, and what it demands that each
    says of the deployment. A single Redis is one partition without a tag."""

    tags: tuple[str, ...] = ("",)
    deployment: str = ""


@dataclass(frozen=True)
class ScriptCall:
    """A script on its way to a node, by one that demands this deployment."""

    name: str
    keys: Sequence[Any]
    args: Sequence[Any]
    node: Node
    confirm: bool
    """Whether `WAIT` follows, or may."""
    deployment: str


Told = Callable[[], None]
"""What to note once the process has the answer."""


class Gate:
    """Where a task waits for the model: to let it do its step, to fail it, or to do the step and
    lose the answer."""

    def __init__(
        self,
        kind: str,
        label: str,
        perform: Callable[[], Any],
        call: ScriptCall | None,
    ) -> None:
        self.kind = kind
        self.label = label
        self.call = call
        """The step, if it is a script."""
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.performed = False
        self._perform = perform
        self._answer: Any = None
        self._error: Exception | None = None

    def perform(self) -> None:
        """Do the step, whose answer stays on its way."""
        self.performed = True
        try:
            self._answer = self._perform()
        except redis.RedisError as error:
            self._error = error

    def pass_on(self) -> None:
        """Do the step, unless it is done, and bring its answer."""
        if not self.performed:
            self.perform()
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.answer(self._answer)

    def answer(self, value: Any) -> None:
        """Bring this answer, whatever became of the step."""
        self.future.set_result(value)

    def lose(self) -> None:
        """Do the step, unless it is done, and lose its answer."""
        if not self.performed:
            self.perform()
        self.fail()

    def fail(self) -> None:
        """The connection breaks; the step has not been done."""
        self.future.set_exception(RedisConnectionError("cut by the model"))


class Surroundings(Protocol):
    """What a process of the model lives in."""

    gates: list[Gate]
    ghosts: list[Gate]
    free: bool
    node: Node
    """The primary."""

    layout: Layout

    def run_script(self, call: ScriptCall) -> tuple[Any, Told]:
        """Run a script on its node, on virtual time."""

    def redis_now(self, node: Node) -> int:
        """A node's virtual clock, in ms."""


class Process:
    """A process of the model: it can die, and its gates die with it.

    A script call that had left it is carried out by Redis, or not: it becomes a ghost.
    """

    def __init__(self, around: Surroundings, name: str, layout: Layout | None = None) -> None:
        self.name = name
        self.dead = False
        self.layout = layout or around.layout
        self.gates: list[Gate] = []
        self.node = around.node
        """What it takes for the primary."""
        self.knows = 0
        """The latest confirmed call of which it must know that it was confirmed."""
        self._around = around

    async def pass_gate(
        self,
        kind: str,
        label: str,
        perform: Callable[[], Any],
        call: ScriptCall | None = None,
    ) -> Any:
        """Wait until the model lets this step pass; returns its answer."""
        if self.dead:
            raise asyncio.CancelledError
        if self._around.free:
            return perform()
        gate = Gate(kind, f"{self.name}: {label}", perform, call)
        self.gates.append(gate)
        self._around.gates.append(gate)
        try:
            return await gate.future
        except asyncio.CancelledError:
            if kind in ("redis", "claim") and not gate.performed:
                self._around.ghosts.append(gate)
            raise
        finally:
            self.gates.remove(gate)
            self._around.gates.remove(gate)

    def die(self) -> None:
        """SIGKILL: nothing of it runs on."""
        self.dead = True
        for gate in self.gates:
            gate.future.cancel()


_IN_A_MOVING_SLOT = """
local real = redis
local redis = setmetatable({}, { __index = real })
local function is_elsewhere(...)
  local keys = real.pcall('COMMAND', 'GETKEYS', ...)
  for _, key in ipairs(keys.err and {} or keys) do
    if string.sub(key, 1, 8) == 'payment:' or real.call('EXISTS', key) == 0 then return true end
  end
end
function redis.call(...)
  if is_elsewhere(...) then error('ELSEWHERE') end
  return real.call(...)
end
function redis.pcall(...)
  if is_elsewhere(...) then return { err = 'ELSEWHERE' } end
  return real.pcall(...)
end
"""


def in_a_moving_slot(text: str) -> str:
    """A script as a node carries it out whose slot is being moved away, and whose records have left
    already: a command that touches a key which isn't there fails, as it is the other node's."""
    return _IN_A_MOVING_SLOT + text


SCRIPTS = sorted(
    entry.name.removesuffix(".lua")
    for entry in (files("payswitch") / "lua").iterdir()
    if entry.name.endswith(".lua") and entry.name != "common.lua"
)
"""Every script of the protocol."""


def model_scripts(replacements: Replacements, deployment: str) -> dict[str, str]:
    """The text of every script, on the model's clock and with these replacements."""
    texts = {name: on_model_clock(scripts.source(name, deployment)) for name in SCRIPTS}
    for name, pairs in replacements.items():
        for old, new in pairs:
            texts[name] = replace_once(texts[name], old, new)
    return texts

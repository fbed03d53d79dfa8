"""Runs scripts on one Redis server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

from payswitch.store import marks
from payswitch.store.channels import Channels
from payswitch.store.errors import Epoch, OtherDeploymentError, UnconfirmedError
from payswitch.store.marks import Marks
from payswitch.store.partitions import Argument, Call, Confirm, Node

_WAIT_SHARE = 0.8
"""The part of a call's limit that replicas get to confirm it."""
_LONGEST_WAIT_S = 0.8
"""A replica that takes longer counts as gone: each shard's calls wait for its slowest replica."""
_SETTLE_S = 2.0
"""The time in which each process looks at a node that has restarted, before anybody relies on it:
some looks (`store/watch.py`)."""


class ServerNode:
    """A server with its own connections: a pool for ordinary commands, and channels for scripts.
    A confirmed call waits for `replicas` replicas, if there are any.

    If the node has restarted, nothing is confirmed at first: meanwhile each process compares its
    `marks` with the node's, and one that misses some stops the node's partitions for all.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        limit_s: float,
        replicas: int = 0,
        address: str = "",
        marks: Marks | None = None,
    ) -> None:
        self.pool = pool
        self.address = address
        self.epoch: Epoch = pool.connection_kwargs["epoch"]
        self._channels = Channels(pool, limit_s=limit_s, meet=self._meet if replicas else None)
        self._replicas = replicas
        self._marks = marks or Marks()
        self._run_id = ""
        self._settles_at = -math.inf
        """By the loop's clock, for the run that it has met; infinite until that takes a mark."""
        self._is_suspect = False
        """Whether this run followed another one without an election."""
        self._wait: Sequence[Argument] = (
            "WAIT",
            replicas,
            int(1000 * min(limit_s * _WAIT_SHARE, _LONGEST_WAIT_S)),
        )

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes through a connection that is open already."""
        return self._channels.is_connected

    async def ask(self, *command: str) -> Any:
        """The answer to an ordinary command. Raises `RedisError`."""
        redis = Redis(connection_pool=self.pool)
        return await redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def run(
        self, text: str, sha: str, calls: Sequence[Call], *, confirm: Confirm
    ) -> list[Any]:
        """As `Node.run`. If Redis has forgotten the script, it is sent again."""
        try:
            return await self._load_and_run(text, sha, calls, confirm=confirm)
        except (RedisError, OSError):
            self.epoch.doubt()
            raise

    def forget_run(self) -> None:
        """It serves nothing now. Should it do so again, an election has found it worthy."""
        self._run_id = ""

    def _meet(self, run_id: str) -> None:
        """A connection is open to this run of the node."""
        if run_id != self._run_id:
            self._settles_at = math.inf
            self._is_suspect = self._run_id != ""
        self._run_id = run_id

    async def _load_and_run(
        self, text: str, sha: str, calls: Sequence[Call], *, confirm: Confirm
    ) -> list[Any]:
        answers = await self._send("EVALSHA", sha, calls, confirm=confirm)
        forgotten = [
            number for number, each in enumerate(answers) if isinstance(each, NoScriptError)
        ]
        if forgotten:
            again = [calls[number] for number in forgotten]
            sent = await self._send("EVAL", text, again, confirm=confirm)
            for number, answer in zip(forgotten, sent, strict=True):
                answers[number] = answer
        return answers

    async def _send(
        self, command: str, script: str, calls: Sequence[Call], *, confirm: Confirm
    ) -> list[Any]:
        commands: list[Sequence[Argument]] = [
            (command, script, len(keys), *keys, *args) for keys, args in calls
        ]
        if not self._replicas or confirm is False:
            return await self._channels.call(commands)
        key, known = Marks.key(calls[0][0][0]), 0
        sent_at = asyncio.get_running_loop().time()

        def confirmation() -> Sequence[Sequence[Argument]]:
            nonlocal known
            known = self._marks.at(key)
            return self._confirmation(calls)

        if confirm is True or confirm == "twice":
            # On the same connection: another run or node may lack what the call has written.
            again = self._once_more if confirm == "twice" else None
            answers = await self._channels.call(lambda: [*commands, *confirmation()], again)
        else:
            needs = confirm
            answers = await self._channels.call(
                commands, lambda found: confirmation() if _any_needs(needs, found) else []
            )
        if len(answers) == len(calls):
            return answers
        marked, *counts = answers[len(calls) :]
        del answers[len(calls) :]
        why = self._why_unconfirmed(marked, known, counts[-1], sent_at)
        if why is None:
            # A partition that is stopped has a mark above all others: the right files lack it.
            if not isinstance(answers[0], OtherDeploymentError):
                self._marks.confirm(key, marked)
            return answers
        self.epoch.doubt()
        return [_short(why, each) for each in answers]

    def _why_unconfirmed(self, marked: Any, known: int, count: Any, sent_at: float) -> str | None:
        """The reason why a mark, or what came before it, does not count as confirmed by so many
        replicas; None if it does. `known` was confirmed before the mark was sent: later calls may
        be answered first. An answer that took long tells nothing new of a node that has restarted:
        what counts is `sent_at`."""
        if not (isinstance(marked, int) and self._suffices(count)):
            return f"it has no confirmation of {self._replicas} replica(s)"
        if marked < known:
            self._settles_at = math.inf
            return "it lacks something that it had confirmed"
        if self._settles_at == math.inf:
            self._settles_at = asyncio.get_running_loop().time() + _SETTLE_S
        if self._is_suspect and sent_at < self._settles_at:
            return "it has just restarted: first it must turn out to have everything"
        return None

    def _suffices(self, count: Any) -> bool:
        return isinstance(count, int) and count >= self._replicas

    def _once_more(self, answers: Sequence[Any]) -> list[Sequence[Argument]]:
        return [] if self._suffices(answers[-1]) else [("PING",), self._wait]

    def _confirmation(self, calls: Sequence[Call]) -> list[Sequence[Argument]]:
        """The commands that have replicas confirm what the calls have written and read."""
        [generation, *_], _ = calls[0]
        is_settled = asyncio.get_running_loop().time() >= self._settles_at
        return [("EVAL", marks.WRITE, 1, Marks.key(generation), int(is_settled)), self._wait]

    async def aclose(self) -> None:
        """Close every connection."""
        self._channels.close()
        await self.pool.disconnect()


class PlainNode:
    """Any redis-py client, such as that of fakeredis."""

    is_connected = True

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts: dict[str, AsyncScript] = {}

    async def run(
        self, text: str, sha: str, calls: Sequence[Call], *, confirm: Confirm
    ) -> list[Any]:
        """As `Node.run`, one call after another; nothing is confirmed."""
        script = self._scripts.get(sha)
        if script is None:
            script = self._scripts[sha] = self._redis.register_script(text)
        return [await _outcome(script, call) for call in calls]


def _short(why: str, answer: Any) -> RedisError:
    """Stands for an answer that is not confirmed."""
    if isinstance(answer, RedisError):
        return answer
    short = UnconfirmedError(why)
    short.answer = answer
    return short


def _any_needs(needs: Callable[[Any], bool], answers: Sequence[Any]) -> bool:
    return any(needs(each) for each in answers if not isinstance(each, RedisError))


async def _outcome(script: AsyncScript, call: Call) -> Any:
    keys, args = call
    try:
        return await script(keys=keys, args=args)
    except (RedisError, OSError) as error:
        return error


class OneServer:
    """The nodes of a deployment on a single Redis: there is one."""

    def __init__(self, node: PlainNode | ServerNode) -> None:
        self._node = node

    def home(self, slot: int) -> str:
        """As `Nodes.home`."""
        return "redis"

    async def locate(self, slot: int) -> Node:
        """As `Nodes.locate`."""
        return self._node

    async def locate_again(self, slot: int, wrong: Exception) -> Node | None:
        """As `Nodes.locate_again`."""
        return None

    async def aclose(self) -> None:
        """Close its channels."""
        if isinstance(self._node, ServerNode):
            await self._node.aclose()

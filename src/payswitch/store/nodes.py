"""Runs scripts on one Redis server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

from payswitch.store import keys
from payswitch.store.channels import Channels
from payswitch.store.errors import Epoch, UnconfirmedError
from payswitch.store.partitions import Argument, Call, Confirm, Node

_WAIT_SHARE = 0.8
"""The part of a call's limit that replicas get to confirm it."""
_LONGEST_WAIT_S = 0.8
"""A replica that takes longer counts as gone: each shard's calls wait for its slowest replica."""
_MARK = "redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], '1')"
"""A write for `WAIT`: since Redis 7.2 it waits for the connection's last write alone, so after a
call that only reads it would not wait for what the call has read. `DEL` comes first, so that it
works out of memory."""


class ServerNode:
    """A server with its own connections: a pool for ordinary commands, and channels for scripts.
    A confirmed call waits for `replicas` replicas, if there are any."""

    def __init__(
        self, pool: ConnectionPool, *, limit_s: float, replicas: int = 0, address: str = ""
    ) -> None:
        self.pool = pool
        self.address = address
        self.epoch: Epoch = pool.connection_kwargs["epoch"]
        self._channels = Channels(pool, limit_s=limit_s)
        self._replicas = replicas
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
            return await self._run(text, sha, calls, confirm=confirm)
        except (RedisError, OSError):
            self.epoch.doubt()
            raise

    async def _run(
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
        if confirm is True:
            answers = await self._channels.call([*commands, *self._confirmation(calls)])
        else:
            needs = confirm
            answers = await self._channels.call(
                commands,
                lambda found: self._confirmation(calls) if _any_needs(needs, found) else [],
            )
        if len(answers) == len(calls):
            return answers
        marked, count = answers[len(calls) :]
        del answers[len(calls) :]
        if not isinstance(marked, Exception) and isinstance(count, int) and count >= self._replicas:
            return answers
        self.epoch.doubt()
        short = UnconfirmedError(f"it has no confirmation of {self._replicas} replica(s)")
        return [each if isinstance(each, RedisError) else short for each in answers]

    def _confirmation(self, calls: Sequence[Call]) -> list[Sequence[Argument]]:
        """The commands that have replicas confirm what the calls have written and read."""
        [generation, *_], _ = calls[0]
        mark = generation.replace(keys.GENERATION, keys.CONFIRMED)
        return [("EVAL", _MARK, 1, mark), self._wait]

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

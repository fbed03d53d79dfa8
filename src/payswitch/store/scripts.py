"""Loads and calls the Lua scripts of `payswitch/lua`, each after `common.lua`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from payswitch.store.client import partitions_of
from payswitch.store.errors import WrongNodeError
from payswitch.store.partitions import Argument, Call, Confirm, Node, Partition

Item = TypeVar("Item")
Result = TypeVar("Result")


class Script:
    """A script on the partitions of a deployment. Its first key is each partition's generation."""

    def __init__(self, redis: Redis, text: str) -> None:
        self.partitions = partitions_of(redis)
        self._text = text
        self._sha = hashlib.sha1(text.encode()).hexdigest()

    async def __call__(
        self,
        args: Sequence[Argument] = (),
        keys: Sequence[str] = (),
        *,
        at: Partition | None = None,
        confirm: Confirm = False,
        follow: bool = True,
    ) -> Any:
        """The answer of one partition, by default of the deployment's common keys. `keys` follow
        its generation key. With `confirm`, the answer is only given once the replicas have all that
        it tells. Raises `RedisError`; an `UnconfirmedError` means that it is not known."""
        partition = self.partitions.common if at is None else at
        call: Call = ((partition.generation, *keys), args)
        node = await partition.locate()
        [answer] = await node.run(self._text, self._sha, [call], confirm=confirm)
        if isinstance(answer, WrongNodeError):
            answer = await self._elsewhere(partition, call, answer, confirm=confirm, follow=follow)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def call_each(
        self,
        calls: Sequence[tuple[Partition, Sequence[Argument]]],
        *,
        confirm: Confirm = False,
        follow: bool = True,
    ) -> list[Any]:
        """The answer of each call, or its error: in one write for each node. A partition that has
        moved is called at its new node, unless `follow` is off: what is counted by the first node's
        clock must not go to another."""
        answers: list[Any] = [None] * len(calls)
        by_node: dict[Node, list[int]] = {}
        for number, (partition, _) in enumerate(calls):
            try:
                by_node.setdefault(await partition.locate(), []).append(number)
            except (RedisError, OSError) as error:
                answers[number] = error
        runs = (
            self._run(node, numbers, calls, answers, confirm=confirm, follow=follow)
            for node, numbers in by_node.items()
        )
        if len(by_node) == 1:
            await next(iter(runs))
        else:
            await asyncio.gather(*runs)
        return answers

    async def _run(
        self,
        node: Node,
        numbers: Sequence[int],
        calls: Sequence[tuple[Partition, Sequence[Argument]]],
        answers: list[Any],
        *,
        confirm: Confirm,
        follow: bool,
    ) -> None:
        """Run some of the calls on one node; fills in their answers."""
        own: list[Call] = [((calls[i][0].generation,), calls[i][1]) for i in numbers]
        try:
            found = await node.run(self._text, self._sha, own, confirm=confirm)
        except (RedisError, OSError) as error:
            found = [error] * len(own)
        for i, call, answer in zip(numbers, own, found, strict=True):
            if isinstance(answer, WrongNodeError):
                answer = await self._elsewhere(
                    calls[i][0], call, answer, confirm=confirm, follow=follow
                )
            answers[i] = answer

    async def _elsewhere(
        self,
        partition: Partition,
        call: Call,
        wrong: WrongNodeError,
        *,
        confirm: Confirm,
        follow: bool = True,
    ) -> Any:
        """Call once more if another node has the partition: the first one executed nothing."""
        try:
            node = await partition.locate_again(wrong)
            if node is None or not follow:
                return wrong
            [answer] = await node.run(self._text, self._sha, [call], confirm=confirm)
        except (RedisError, OSError) as error:
            return error
        return answer


async def _call_one(
    script: Script,
    items: Sequence[tuple[Partition, Item]],
    arguments: Callable[[Partition, list[Item]], Sequence[Argument]],
    read: Callable[[list[Item], Any], Sequence[Result]],
    *,
    confirm: Confirm,
    follow: bool,
) -> list[Result | Exception]:
    """As `call_grouped` where there is one partition: no payment pays for the places of others."""
    group = [item for _, item in items]
    partition = items[0][0]
    try:
        args = arguments(partition, group)
        answer = await script(args, at=partition, confirm=confirm, follow=follow)
    except (RedisError, OSError) as error:
        return [error] * len(group)
    return list(read(group, answer))


async def call_grouped(
    script: Script,
    items: Sequence[tuple[Partition, Item]],
    arguments: Callable[[Partition, list[Item]], Sequence[Argument]],
    read: Callable[[list[Item], Any], Sequence[Result]],
    *,
    confirm: Confirm = False,
    follow: bool = True,
) -> list[Result | Exception]:
    """Call a script with the items of each partition; gives each item's result, or its error."""
    if not items:
        return []
    if len(script.partitions) == 1:
        return await _call_one(script, items, arguments, read, confirm=confirm, follow=follow)
    places: dict[Partition, list[int]] = {}
    for place, (partition, _) in enumerate(items):
        places.setdefault(partition, []).append(place)
    groups = [[items[place][1] for place in own] for own in places.values()]
    calls = [
        (partition, arguments(partition, group))
        for partition, group in zip(places, groups, strict=True)
    ]
    answers = await script.call_each(calls, confirm=confirm, follow=follow)
    results: list[Any] = [None] * len(items)
    for own, group, answer in zip(places.values(), groups, answers, strict=True):
        found = [answer] * len(own) if isinstance(answer, Exception) else read(group, answer)
        for place, result in zip(own, found, strict=True):
            results[place] = result
    return results


def require_all(answers: list[Any]) -> list[Any]:
    """The answers, if none is an error: no sum of a part of the partitions is told. Raises the
    first error."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def load(redis: Redis, name: str) -> Script:
    """The script `name` on this Redis, called by its digest."""
    return Script(redis, source(name, partitions_of(redis).deployment))


def named(answer: Sequence[Any]) -> dict[str, Any]:
    """A dictionary of an answer that alternates names and values."""
    return {name.decode(): value for name, value in zip(answer[::2], answer[1::2], strict=True)}


@cache
def source(name: str, deployment: str = "") -> str:
    """The whole text of a script, as Redis gets it: it refuses a partition of another deployment,
    unless `deployment` is empty."""
    room = files("payswitch") / "lua"
    parts = [(room / f"{part}.lua").read_text() for part in ("common", name)]
    return "\n".join((f"local DEPLOYMENT = '{deployment}'", *parts))

"""Begins a deployment in a cluster: every partition gets to know what it is begun with."""

from __future__ import annotations

from collections.abc import Sequence

from payswitch.errors import StartError
from payswitch.store import keys
from payswitch.store.client import Client
from payswitch.store.errors import BEHIND
from payswitch.store.partitions import Partition
from payswitch.store.scripts import Script, source

_BEGINNING = "beginning "
"""Before the deployment in the common keys, until every partition has it."""
_NEVER = "-"
"""What no partition holds: then the script only reads."""


class OtherDeploymentFoundError(StartError):
    """The cluster holds another deployment, or a part of this one is lost."""


async def begin(redis: Client, *, accept_loss: bool = False) -> bool:
    """Begin the client's deployment, or end what was interrupted; False if it was begun before.
    Nothing changes on a single Redis, which has one partition. With `accept_loss`, partitions that
    were stopped because their node came back older go on.

    Raises `OtherDeploymentFoundError` if the cluster holds another deployment, if a partition of
    this one is stopped, or if one has lost it: an empty partition must not pass for a new one.
    Raises `RedisError`.
    """
    partitions = redis.partitions
    text = partitions.deployment
    if not text:
        return False
    script = Script(redis, source("begin"))

    async def write(partition: Partition, new: str, expected: str, confirm: bool = True) -> str:
        key = partition.key(keys.DEPLOYMENT)
        found = await script([new, expected], [key], at=partition, confirm=confirm)
        return str(found.decode())

    async def read(partition: Partition) -> str:
        return await write(partition, _NEVER, _NEVER, confirm=False)

    stopped = [each for each in partitions.with_common if await read(each) == BEHIND + text]
    if stopped and not accept_loss:
        numbers = ", ".join(str(each.number) for each in stopped if each.number >= 0)
        raise OtherDeploymentFoundError(
            f"partitions {numbers} came back without payments that they had confirmed: they are "
            "stopped until `payswitch init --accept-loss`"
        )
    for each in stopped:
        await write(each, text, BEHIND + text)
    common = await read(partitions.common)
    found = [await read(each) for each in partitions]
    beginning = _BEGINNING + text
    if common == text:
        _require(found, {text})
        await write(partitions.common, _NEVER, _NEVER)
        return False
    if common == beginning:
        _require(found, {text, ""})
    else:
        _require([common, *found], {""})
        common = await write(partitions.common, beginning, "")
    for partition in partitions:
        _require([await write(partition, text, "")], {text})
    _require([await write(partitions.common, text, beginning)], {text})
    return True


def _require(found: Sequence[str], allowed: set[str]) -> None:
    """Raises `OtherDeploymentFoundError` unless all that was found is allowed."""
    others = sorted({each for each in found if each} - allowed)
    if others:
        raise OtherDeploymentFoundError(f"the cluster holds another deployment: {others[0]}")
    if "" not in allowed and "" in found:
        lost = ", ".join(str(number) for number, each in enumerate(found) if not each)
        raise OtherDeploymentFoundError(
            f"partitions {lost} are empty, but the deployment was begun: their payments are lost"
        )

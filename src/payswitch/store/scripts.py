"""Loads the Lua scripts of `payswitch/lua`, each after `common.lua`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript


def load(redis: Redis, name: str) -> AsyncScript:
    """The script `name` on this Redis, called by its digest."""
    return redis.register_script(source(name))


def named(answer: Sequence[Any]) -> dict[str, Any]:
    """A dictionary of an answer that alternates names and values."""
    return {name.decode(): value for name, value in zip(answer[::2], answer[1::2], strict=True)}


@cache
def source(name: str) -> str:
    """The whole text of a script, as Redis gets it."""
    room = files("payswitch") / "lua"
    return "\n".join((room / f"{part}.lua").read_text() for part in ("common", name))

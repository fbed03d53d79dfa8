"""JSON documents in Redis, and notes that parts leave there for operators."""

from __future__ import annotations

from typing import Any

import orjson
from redis.asyncio import Redis

from payswitch.store import scripts


async def write_note(redis: Redis, name: str, document: dict[str, Any]) -> None:
    """Write a note of this name in `keys`, even if Redis is out of memory. Raises `RedisError` or
    `OSError`."""
    note = scripts.load(redis, "note")
    key = note.partitions.common.key(name)
    await note(keys=[key], args=[orjson.dumps(document)])


def read_note(raw: bytes | None) -> dict[str, Any]:
    """The document; an empty one if there is none, or something else."""
    try:
        document = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}

"""Runs `payswitch` as an operator does: a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, which must be one JSON document."""
        return orjson.loads(self.out)


@dataclass
class Payswitch:
    """Runs commands against one Redis."""

    redis_url: str
    environment: dict[str, str] = field(default_factory=dict)

    async def __call__(self, *arguments: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "payswitch", *arguments),
            env={**os.environ, "REDIS_URL": self.redis_url, **self.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())

"""Periodic work continues after any error of a turn, and ends when it is closed."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis.exceptions import RedisError

from payswitch.store.periodic import Periodic


class Turns(Periodic):
    """Raises what it is given, one a turn; `over` is set once there is nothing left."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__("news", 0.001)
        self.errors = list(errors)
        self.over = asyncio.Event()

    async def turn(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.over.set()
        await asyncio.Event().wait()


async def test_an_error_ends_its_turn_alone_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="payswitch")
    turns = Turns(RedisError("gone"), OSError("gone"), ZeroDivisionError("a bug"))
    turns.start()
    await turns.over.wait()
    await turns.close()
    assert [
        (each.levelname, each.getMessage(), bool(each.exc_info)) for each in caplog.records
    ] == [
        ("DEBUG", "no news: redis is away", False),
        ("DEBUG", "no news: redis is away", False),
        ("ERROR", "no news", True),
    ]


async def test_closing_ends_the_turn_under_way() -> None:
    turns = Turns()
    await turns.close()  # before its start it does nothing
    turns.start()
    await turns.over.wait()
    await asyncio.wait_for(turns.close(), 10)

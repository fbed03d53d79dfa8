"""Tasks that outlive those who wait for them."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from payswitch.store.together import shared


async def test_what_a_task_raises_once_nobody_waits_is_not_logged() -> None:
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    may_fail = asyncio.Event()

    async def fail() -> None:
        await may_fail.wait()
        raise OSError("late")

    async def abandon() -> None:
        task = asyncio.create_task(fail())
        caller = asyncio.create_task(shared(task))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        assert not task.done()
        may_fail.set()
        await asyncio.wait([task])

    await abandon()
    gc.collect()
    assert logged == []


async def test_those_who_wait_get_what_a_task_raises() -> None:
    async def fail() -> None:
        raise OSError("now")

    task = asyncio.create_task(fail())
    for _ in range(2):
        with pytest.raises(OSError, match="now"):
            await shared(task)

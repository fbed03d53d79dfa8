"""Operators' orders are in the health worker's log, once."""

from __future__ import annotations

import logging

import pytest
from arq.connections import ArqRedis

from payswitch.operations.controls import Controls
from payswitch.operations.history import HistoryWriter
from payswitch.payments.audit import Signature
from tests.support import ANA, PROCESSORS


async def test_each_order_is_said_once_when_it_begins_and_when_it_ends(
    redis: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "payswitch.operations.order_log")
    controls, writer = Controls(redis), HistoryWriter(redis, PROCESSORS)

    async def said() -> list[str]:
        caplog.clear()
        for _ in range(2):
            await writer.write()
        return caplog.messages

    assert await said() == []
    await controls.select("fallback", life_ms=60_000, signature=Signature("ann", "a test"))
    assert await said() == ["ann has chosen fallback: a test"]
    await controls.select("default", life_ms=90_000, signature=Signature("ann"))
    assert await said() == ["ann has chosen default: no reason given"]
    await controls.pause(life_ms=60_000, signature=Signature("bea", "lunch"))
    assert await said() == ["bea has paused the workers: lunch"]
    await controls.resume(ANA)
    assert await said() == ["the workers are no longer paused"]
    await controls.select_automatically(ANA)
    assert await said() == ["the health check's selection counts again"]

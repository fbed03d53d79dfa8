"""How the accept queue reads Redis' answers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError

from payswitch.payments.accepting import Acceptance, AcceptQueue, NotAcceptedError
from payswitch.payments.payment import Payment

IDS = [f"4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b{n}" for n in range(3)]


class ScriptedRedis:
    """A Redis whose script answers one after another of these, or fails with them."""

    def __init__(self, *answers: list[bytes] | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[list[str]] = []

    def register_script(self, script: str) -> Any:
        return self._answer

    async def time(self) -> tuple[int, int]:
        return 1_764_000_000, 0

    async def _answer(self, keys: list[str], args: list[Any]) -> list[bytes]:
        self.asked.append(args[1::5])
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [b"1764000000000", *answer]


async def accept_all(redis: ScriptedRedis) -> list[Acceptance | BaseException]:
    queue = AcceptQueue(cast(Redis, redis), limit_ms=5000, max_backlog=10)
    payments = [Payment(each, 100) for each in IDS]
    return await asyncio.gather(*map(queue.accept, payments), return_exceptions=True)


async def test_only_payments_refused_as_late_are_retried() -> None:
    redis = ScriptedRedis([b"late", b"new", b"late"], [b"same", b"late"], [b"new"])
    assert await accept_all(redis) == [Acceptance.SAME, Acceptance.NEW, Acceptance.NEW]
    assert redis.asked == [IDS, [IDS[0], IDS[2]], [IDS[2]]]


@pytest.mark.parametrize(
    "error", [OutOfMemoryError("used memory > 'maxmemory'"), RedisError("away"), OSError("away")]
)
async def test_an_accepted_payment_is_confirmed_even_if_the_retry_of_a_late_one_fails(
    error: Exception,
) -> None:
    first, second, third = await accept_all(ScriptedRedis([b"new", b"late", b"same"], error))
    assert (first, third) == (Acceptance.NEW, Acceptance.SAME)
    assert isinstance(second, NotAcceptedError)
    assert not second.refused


async def test_a_connection_that_ended_costs_nothing() -> None:
    redis = ScriptedRedis(RedisConnectionError("closed"), [b"new"] * 3)
    assert await accept_all(redis) == [Acceptance.NEW] * 3


async def test_an_answer_that_cannot_be_read_is_an_error_for_all() -> None:
    outcomes = await accept_all(ScriptedRedis([b"\xff"] * 3))
    assert [type(outcome) for outcome in outcomes] == [UnicodeDecodeError] * 3

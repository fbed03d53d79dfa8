"""A host's addresses: one lookup for all who ask at once, and nothing remembered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from payswitch.http.addresses import Address, Addresses

V4 = Address(socket.AF_INET, "127.0.0.1")
V6 = Address(socket.AF_INET6, "::1")
MOVED = Address(socket.AF_INET, "127.0.0.2")


class Names:
    """A name server: its lookups wait until they are answered."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Sequence[Address]]] = []

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        """As the loop's."""
        assert (host, port) == ("processor", 8080)
        answer: asyncio.Future[Sequence[Address]] = asyncio.get_running_loop().create_future()
        self.asked.append(answer)
        return [
            (each.family, socket.SOCK_STREAM, 6, "", (each.host, port)) for each in await answer
        ]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", made.getaddrinfo)
    return made


@pytest.fixture
async def known(names: Names) -> Addresses:
    return Addresses("processor", 8080)


async def asked(known: Addresses, callers: int = 1) -> list[asyncio.Task[list[Address]]]:
    """Callers that wait for the addresses."""
    tasks = [asyncio.create_task(known.get()) for _ in range(callers)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_all_who_ask_at_once_share_one_lookup(names: Names, known: Addresses) -> None:
    tasks = await asked(known, 50)
    [answer] = names.asked
    answer.set_result([V6, V4])
    assert await asyncio.gather(*tasks) == [[V6, V4]] * 50


async def test_what_was_found_is_not_remembered(names: Names, known: Addresses) -> None:
    for count, address in enumerate([V4, MOVED]):
        [task] = await asked(known)
        names.asked[count].set_result([address])
        assert await task == [address]


async def test_a_failure_reaches_all_who_wait_and_nobody_else(
    names: Names, known: Addresses
) -> None:
    tasks = await asked(known, 2)
    names.asked[0].set_exception(socket.gaierror("no such name"))
    for task in tasks:
        with pytest.raises(socket.gaierror):
            await task
    [task] = await asked(known)
    names.asked[1].set_result([V4])
    assert await task == [V4]


async def test_a_lookup_that_does_not_come_back_holds_up_nobody_who_comes_later(
    names: Names, known: Addresses
) -> None:
    [stuck] = await asked(known)
    known.give_up()
    [task] = await asked(known)
    names.asked[1].set_result([MOVED])
    assert await task == [MOVED]
    assert not stuck.done()
    names.asked[0].set_result([V4])
    assert await stuck == [V4]


async def test_who_is_cancelled_takes_the_lookup_from_nobody(
    names: Names, known: Addresses
) -> None:
    gone, task = await asked(known, 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    names.asked[0].set_result([V4])
    assert await task == [V4]


async def test_closing_fails_who_waits_and_is_no_cancellation_of_theirs(
    names: Names, known: Addresses
) -> None:
    task, cancelled = await asked(known, 2)
    known.close()
    cancelled.cancel()
    with pytest.raises(OSError, match="ended"):
        await task
    with pytest.raises(asyncio.CancelledError):
        await cancelled

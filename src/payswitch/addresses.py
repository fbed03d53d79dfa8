"""A host's addresses, looked up once for many connections.

A payment that finds no idle connection opens one, and a burst of payments opens many. A lookup for
each takes several questions to the name server and a thread: in containers a burst of them kept one
of two cores busy for up to 17 ms (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

_REMEMBERED_S = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to, in numbers."""

    family: int
    host: str


@dataclass(frozen=True, slots=True)
class _Found:
    addresses: list[Address]
    until: float
    """The loop's time, s."""


class Addresses:
    """The addresses of one host, remembered for ten seconds, or until `forget` is called as nobody
    answers there. Who asks while a lookup is under way shares it."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._lookup: asyncio.Task[_Found] | None = None

    async def get(self) -> list[Address]:
        """The addresses, in the order in which to try them. Raises `OSError` or `UnicodeError`
        where there is none; that is not remembered."""
        lookup = self._lookup
        if lookup is None or self._is_over(lookup):
            lookup = self._lookup = self._loop.create_task(self._look_up(), name="lookup")
        try:
            return (await asyncio.shield(lookup)).addresses
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if lookup.cancelled() and caller is not None and not caller.cancelling():
                raise OSError("the lookup was ended") from None
            raise

    def forget(self) -> None:
        """Look up anew the next time, also where a lookup is under way and does not come back."""
        self._lookup = None

    def close(self) -> None:
        """End a lookup that is under way; who waits for it gets an `OSError`."""
        if self._lookup is not None:
            self._lookup.cancel()

    def _is_over(self, lookup: asyncio.Task[_Found]) -> bool:
        """Whether it has failed, or has found what is no longer remembered."""
        if not lookup.done():
            return False
        if lookup.cancelled() or lookup.exception() is not None:
            return True
        return self._loop.time() >= lookup.result().until

    async def _look_up(self) -> _Found:
        found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        addresses = [Address(family, str(sockaddr[0])) for family, *_, sockaddr in found]
        return _Found(addresses, self._loop.time() + _REMEMBERED_S)

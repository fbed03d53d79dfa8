"""A host's addresses, looked up once for all connections that are opened at the same time.

A payment that finds no idle connection opens one, and a burst of payments opens many. Each lookup
takes a thread and several questions to the name server.

Nothing is remembered beyond the lookup: in a network of containers an address may be another
processor's a few seconds later, and a payment or a question would reach the wrong one.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """A host's address in numbers."""

    family: int
    host: str


class Addresses:
    """The addresses of one host. All callers share the lookup that is under way."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._lookup: asyncio.Task[list[Address]] | None = None

    async def get(self) -> list[Address]:
        """The addresses, in the order in which to try them. Raises `OSError` or `UnicodeError`
        if there is none."""
        lookup = self._lookup
        if lookup is None or lookup.done():
            lookup = self._lookup = self._loop.create_task(self._look_up(), name="lookup")
        try:
            return await asyncio.shield(lookup)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if lookup.cancelled() and caller is not None and not caller.cancelling():
                raise OSError("the lookup was ended") from None
            raise

    def give_up(self) -> None:
        """Drop a lookup that does not come back: the next caller begins another."""
        self._lookup = None

    def close(self) -> None:
        """End a lookup that is under way; its callers get an `OSError`."""
        if self._lookup is not None:
            self._lookup.cancel()

    async def _look_up(self) -> list[Address]:
        found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return [Address(family, str(sockaddr[0])) for family, *_, sockaddr in found]

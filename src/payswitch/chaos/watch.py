"""Looks on during a run: samples for the timeline, and audits of past windows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import httpx

from payswitch.chaos.books import Auditor, ComparedWindow
from payswitch.chaos.clients import Clients

SAMPLE_S = 0.25
_PATIENCE_S = 0.5
_AUDIT_S = 2.0
_WINDOW_MS, _OVER_MS = 15_000, 2_000
"""A window as the challenge's auditor asks for it: it ended 2 s ago."""
_AGREE_WITHIN_S = 1.0
_ASK_AGAIN_S = 0.005


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The system at one instant (s since the load began); None without an answer."""

    at_s: float
    accepted: int
    settled: dict[str, int] | None
    backlog: int | None


@dataclass(frozen=True, slots=True)
class Audit:
    """The comparison of a window during the run."""

    at_s: float
    agreed_after_ms: float | None
    """The time for which summary and books differed: 0 for never, None for over a second."""
    window: ComparedWindow


class Watch:
    """Takes samples and, with `audits`, compares windows during the run."""

    def __init__(self, auditor: Auditor, clients: Clients, *, audits: bool) -> None:
        self.samples: list[LoadSample] = []
        self.audits: list[Audit] = []
        self._auditor = auditor
        self._clients = clients
        self._audits = audits
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Look on until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample())
            if self._audits:
                group.create_task(self._audit())

    async def _sample(self) -> None:
        while True:
            at_s, accepted = self.elapsed_s, self._clients.accepted
            backlog, settled = await asyncio.gather(self._auditor.backlog(), self._settled())
            self.samples.append(LoadSample(at_s, accepted, settled, backlog))
            await asyncio.sleep(max(0.0, at_s + SAMPLE_S - self.elapsed_s))

    async def _settled(self) -> dict[str, int] | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                totals = await self._auditor.ours()
        except (httpx.HTTPError, TimeoutError):
            return None
        return {name: total.count for name, total in totals.items()}

    async def _audit(self) -> None:
        while True:
            await asyncio.sleep(_AUDIT_S)
            with contextlib.suppress(httpx.HTTPError):  # a processor is gone just now
                self.audits.append(await self._compare())

    async def _compare(self) -> Audit:
        """Compare a window again and again until it agrees: we settle a payment some milliseconds
        after its processor has recorded it."""
        now_ms = time.time_ns() // 1_000_000
        first_ms, last_ms = now_ms - _WINDOW_MS, now_ms - _OVER_MS
        began = asked = self.elapsed_s
        while True:
            window = await self._auditor.window(first_ms, last_ms)
            if window.ours == window.theirs:
                return Audit(began, (asked - began) * 1000, window)
            if asked - began > _AGREE_WITHIN_S:
                return Audit(began, None, window)
            await asyncio.sleep(_ASK_AGAIN_S)
            asked = self.elapsed_s

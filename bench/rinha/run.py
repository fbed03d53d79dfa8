"""One scored run from reset to verdict."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.rinha.host import Host, Ticks
from bench.rinha.load import Load, users_of
from bench.rinha.referee import Observer, Referee
from bench.rinha.sampler import Sampler
from bench.rinha.scenario import Scenario
from bench.rinha.score import (
    Audit,
    Score,
    Totals,
    count_inconsistencies,
    count_strictly,
    judge,
    percentile,
)
from bench.rinha.site import Site, SiteError, Usage, Usages
from bench.rinha.stalls import Stall, find_stalls
from payswitch.money import Total

_CHECK_S = 0.5
_RECENT_S = 2.0
_READY_LIMIT_S = 60.0
_READY_POLL_S = 0.2
REST_LIMIT_S = 30.0
_REST_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """How things stood at one instant (s since the first payment)."""

    at_s: float
    users: int
    accepted: int
    failed: int
    booked: dict[str, int] | None
    """Payments by processor; None where one didn't say."""
    p50_ms: float | None
    """Of the payments of the last 2 s, as is the p99; None where none succeeded."""
    p99_ms: float | None
    selected: str | None
    inconsistencies: int

    @property
    def backlog(self) -> int | None:
        """Accepted and in no processor's book. What a client hasn't heard of yet may be booked."""
        if self.booked is None:
            return None
        return max(0, self.accepted - sum(self.booked.values()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that is known of a run that has ended."""

    scenario: Scenario
    site: Site
    durability: str
    """What a 202 stands for: `disk`, `process`, `none` or `unknown`."""
    score: Score
    failed: dict[str, int]
    p50_ms: float
    strict: Total
    """Over all audits: requests and cents, by processor, nothing cancelled."""
    audits: list[Audit]
    samples: list[Sample]
    problems: list[str]
    rested_after_s: float | None
    """From the end of the run until everything accepted was in a book; None if it never was."""
    at_rest: Total
    """How backend and processors differ after that: requests and cents."""
    usages: dict[str, Usage]
    host: Host | None
    seconds: float
    stalls: list[Stall]


Show = Callable[[Sample], None]


async def run(
    site: Site, scenario: Scenario, show: Show, *, rest_limit_s: float = REST_LIMIT_S
) -> Outcome:
    """Reset the site, run the scenario, score it. There is no warm-up: nothing but the check that
    everything answers precedes the first payment. After the score was taken, wait `rest_limit_s`
    at most until everything is paid and the books agree.

    Raises `SiteError` or `LoadError`.
    """
    referee, observer = Referee(site, scenario), Observer(site)
    try:
        await _wait_until_ready(site, observer)
        durability = await observer.durability()
        await referee.reset()
        # What a build has written would go to the disk half a minute later, in the run.
        await asyncio.to_thread(os.sync)
        async with users_of(scenario, site.endpoint) as load:
            before = await _usages(site, load)
            ticks = Ticks.read()
            watch = _Watch(site, scenario, referee, observer, load, show)
            with Sampler(_pids(before, load)) as sampler:
                at_end, seconds = await watch.run()
            usages = {name: each.since(before.get(name)) for name, each in at_end.usages.items()}
            host = Host.between(ticks, at_end.ticks)
            rested_after_s, at_rest = await _rest(observer, load.accepted, rest_limit_s)
    finally:
        await referee.close()
        await observer.close()
    milliseconds = load.milliseconds() + referee.milliseconds
    totals = at_end.totals
    score = judge(
        scenario,
        processed=totals.ours if scenario.totals_from_backend else totals.theirs,
        accepted=load.accepted,
        inconsistencies=count_inconsistencies(scenario, referee.audits),
        p99_ms=percentile(milliseconds, 0.99),
    )
    return Outcome(
        scenario=scenario,
        site=site,
        durability=durability,
        score=score,
        failed=dict(load.failed),
        p50_ms=percentile(milliseconds, 0.5),
        strict=count_strictly(referee.audits),
        audits=referee.audits,
        samples=watch.samples,
        problems=[*referee.problems, *(f"no totals from {name}" for name in totals.failed)],
        rested_after_s=rested_after_s,
        at_rest=at_rest,
        usages=usages,
        host=host,
        seconds=seconds,
        stalls=find_stalls(
            load.slow,
            lambda first_s, last_s: sampler.busy(watch.began + first_s, watch.began + last_s),
        ),
    )


@dataclass(frozen=True, slots=True)
class _End:
    totals: Audit
    usages: dict[str, Usage]
    ticks: Ticks | None


class _Watch:
    """The run itself, and the samples that are taken meanwhile."""

    def __init__(
        self,
        site: Site,
        scenario: Scenario,
        referee: Referee,
        observer: Observer,
        load: Load,
        show: Show,
    ) -> None:
        self.samples: list[Sample] = []
        self.began = 0.0
        """The instant of the monotonic clock."""
        self._site = site
        self._scenario = scenario
        self._referee = referee
        self._observer = observer
        self._load = load
        self._show = show

    async def run(self) -> tuple[_End, float]:
        """Let the users pay; returns totals and usage at the end, and how long it took (s)."""
        began = self.began = time.monotonic()
        others = [
            asyncio.create_task(self._referee.set_stages(began)),
            asyncio.create_task(self._referee.audit_regularly(began)),
            asyncio.create_task(self._sample_regularly(began)),
        ]
        try:
            await self._pay(began, others)
            totals = await self._referee.totals()
            seconds = time.monotonic() - began
        finally:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
        return _End(totals, await _usages(self._site, self._load), Ticks.read()), seconds

    async def _pay(self, began: float, others: list[asyncio.Task[None]]) -> None:
        paying = asyncio.create_task(self._load.run(began))
        try:
            while not paying.done():
                await asyncio.wait([paying], timeout=_CHECK_S)
                self._site.check()
                for task in others:
                    if task.done():
                        task.result()
            await paying
        finally:
            paying.cancel()

    async def _sample_regularly(self, began: float) -> None:
        while True:
            # With a report that has just come: books of now against payments of half a second
            # ago would make the backlog negative.
            await self._load.reported.wait()
            self._load.reported.clear()
            sample = await self._sample(time.monotonic() - began)
            self.samples.append(sample)
            self._show(sample)

    async def _sample(self, at_s: float) -> Sample:
        accepted, failed = self._load.accepted, sum(self._load.failed.values())
        recent = self._load.milliseconds(since_s=at_s - _RECENT_S)
        booked = await self._observer.booked()
        return Sample(
            at_s=round(at_s, 3),
            users=self._load.users,
            accepted=accepted,
            failed=failed,
            booked=_counts(booked),
            p50_ms=round(percentile(recent, 0.5), 3) if recent else None,
            p99_ms=round(percentile(recent, 0.99), 3) if recent else None,
            selected=await self._site.selection(),
            inconsistencies=count_inconsistencies(self._scenario, self._referee.audits),
        )


async def _wait_until_ready(site: Site, observer: Observer) -> None:
    try:
        async with asyncio.timeout(_READY_LIMIT_S):
            while (await observer.books()).failed:
                await asyncio.sleep(_READY_POLL_S)
    except TimeoutError:
        raise SiteError(f"{site.endpoint} or a processor gives no summary") from None


async def _rest(observer: Observer, accepted: int, limit_s: float) -> tuple[float | None, Total]:
    """Wait until everything is paid, with the processors as the last stage left them, and the
    books agree; returns when the first was (s) and by how much they differ then."""
    began = time.monotonic()
    rested_after_s = None
    while True:
        books = await observer.books()
        elapsed_s = time.monotonic() - began
        paid = sum(total.count for total in books.theirs.values())
        if rested_after_s is None and paid >= accepted:
            rested_after_s = round(elapsed_s, 3)
        # What a processor has just recorded is settled by the backend some milliseconds later.
        if (rested_after_s is not None and not books.strict.count) or elapsed_s > limit_s:
            return rested_after_s, books.strict
        await asyncio.sleep(_REST_POLL_S)


async def _usages(site: Site, load: Load) -> dict[str, Usage]:
    """What the site's parts have used, and what stands beside it to measure it."""
    beside = {"(users)": load.cpu_s, "(referee)": time.process_time()}
    return {**await site.usages(), **{name: Usage(cpu_s=used) for name, used in beside.items()}}


def _pids(usages: Usages, load: Load) -> dict[str, int]:
    parts = {name: usage.process for name, usage in usages.items() if usage.process is not None}
    return {**parts, "(users)": load.pid}


def _counts(totals: Totals | None) -> dict[str, int] | None:
    return None if totals is None else {name: total.count for name, total in totals.items()}

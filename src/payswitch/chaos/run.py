"""One chaos run from start to verdict."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from payswitch.chaos.audit import RunVerdict, Spread, Violation, audit
from payswitch.chaos.books import Auditor, Books
from payswitch.chaos.clients import Clients, Sent
from payswitch.chaos.inject import Injector
from payswitch.chaos.island import Island
from payswitch.chaos.plan import PlannedFault, Scale, is_clean, plan
from payswitch.chaos.system import ChaosSystem, running
from payswitch.chaos.watch import Audit, LoadSample, Watch
from payswitch.durability import Durability
from payswitch.local.cluster_topology import PRIMARIES

_SETTLED_WITHIN_S = 30.0
"""And a horizon more where payments are declined: one that has a try of unknown outcome as well
waits for it."""
_REST_LIMIT_S = 90.0
_SWEPT = re.compile(r"payment (\S+) had left the queue unpaid")
_REST_POLL_S = 0.05
_WINDOWS = 50

Progress = Callable[[float, str], None]
"""Gets the seconds that have passed, and the present stage."""


@dataclass(frozen=True, slots=True)
class RunOrder:
    """The parameters of a run. `minutes` is the time under load; settling comes after it."""

    seed: int
    minutes: float
    kinds: frozenset[str]
    rate: float
    processors: int
    workers: int
    redis: str
    """`single` or `cluster`."""
    folder: Path

    @property
    def seconds(self) -> float:
        """The time under load."""
        return self.minutes * 60


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The result of a run, with all its data."""

    order: RunOrder
    durability: Durability
    plan: list[PlannedFault]
    verdict: RunVerdict
    settled_after_s: float | None
    """From the end of the last fault to an empty backlog; None if it never was empty."""
    answers_ms: Spread | None
    audits: list[Audit]
    samples: list[LoadSample]
    sent: dict[str, Sent]
    books: Books

    def without_payments(self) -> RunOutcome:
        """The same without the data of single payments, so that many can be kept."""
        books = replace(self.books, records={}, booked={}, journals={})
        return replace(self, sent={}, books=books)


async def run(order: RunOrder, environment: Mapping[str, str], progress: Progress) -> RunOutcome:
    """Run the system under load and faults, let it come to rest, audit it.

    Raises `MachineError`, `SettingsError` or `PartNotStartedError` when it can't be started.
    """
    order.folder.mkdir(parents=True, exist_ok=True)
    progress(0, "starting")
    async with running(
        order.folder,
        workers=order.workers,
        clocks="clock" in order.kinds,
        environment=environment,
        processors=order.processors,
        redis=order.redis,
        island=Island(os.getpid()) if "cut-off" in order.kinds else None,
    ) as system:
        return await _run_on(system, order, progress)


async def _run_on(system: ChaosSystem, order: RunOrder, progress: Progress) -> RunOutcome:
    shards = PRIMARIES if system.cluster else 0
    scale = Scale.of(system.settings, order.workers, shards)
    events = plan(order.seed, order.seconds, order.kinds, scale)
    auditor = Auditor(system)
    clients = Clients(
        system.endpoint, system.ingresses, rate=order.rate, seed=order.seed, kinds=order.kinds
    )
    watch = Watch(auditor, clients, audits=is_clean(order.kinds))
    injector = Injector(system, events, seed=order.seed)
    background: list[asyncio.Task[None]] = []
    try:
        await injector.prepare()
        watching = asyncio.create_task(watch.run())
        background.append(watching)
        paying = asyncio.create_task(clients.run())
        background.append(paying)
        await _break(system, order, paying, injector, watch, progress)
        clients.stop()
        accepted_until_ms = await auditor.redis_now_ms()
        settled_after_s = await _rest(auditor, watch, progress, accepted_until_ms)
        await paying
        if settled_after_s is not None:
            # All of them: while Redis' clock was ahead, payments were accepted in the future.
            await _rest(auditor, watch, progress, None)
        if watching.done():
            watching.result()
        watching.cancel()
        await asyncio.wait([watching])
        progress(watch.elapsed_s, "auditing")
        books = await auditor.collect(windows=_WINDOWS, seed=order.seed)
    finally:
        for task in background:
            task.cancel()
            await asyncio.wait([task])
        await injector.close()
        await auditor.close()
    verdict = audit(
        clients.sent,
        books,
        wrong_answers=clients.wrong_answers,
        clocks_were_set="clock" in order.kinds,
        all_should_pass=is_clean(order.kinds),
    )
    within_s = _SETTLED_WITHIN_S + (scale.lease_s + scale.max_delay_s if verdict.declined else 0)
    verdict.violations.extend(_late(settled_after_s, watch.audits, within_s=within_s))
    verdict.violations.extend(_swept(order.folder / "system.log"))
    return RunOutcome(
        order,
        system.settings.durability,
        events,
        verdict,
        settled_after_s,
        Spread.of(clients.latencies_ms),
        watch.audits,
        watch.samples,
        clients.sent,
        books,
    )


async def _break(
    system: ChaosSystem,
    order: RunOrder,
    paying: asyncio.Task[None],
    injector: Injector,
    watch: Watch,
    progress: Progress,
) -> None:
    """Break things until the time is over and everything is whole again."""
    breaking = asyncio.create_task(injector.run())
    began = time.monotonic()
    try:
        while (elapsed_s := time.monotonic() - began) < order.seconds:
            progress(elapsed_s, _standing(watch))
            await asyncio.wait(
                [paying, breaking, system.ended], timeout=0.2, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in (paying, breaking):
                if task.done():
                    task.result()
            if system.is_stopping:
                raise KeyboardInterrupt  # its supervisor was stopped, as by Ctrl-C
        await breaking
    finally:
        breaking.cancel()  # frozen processes go on, and can be stopped in order
        await asyncio.wait([breaking])


async def _rest(
    auditor: Auditor, watch: Watch, progress: Progress, accepted_until_ms: int | None
) -> float | None:
    """Wait until the payments accepted until an instant of Redis' clock, or all, are paid. Returns
    the time that took, in s."""
    began = time.monotonic()
    while (elapsed_s := time.monotonic() - began) < _REST_LIMIT_S:
        if await auditor.backlog(accepted_until_ms) == 0:
            return elapsed_s
        progress(watch.elapsed_s, f"settling the rest, {_standing(watch)}")
        await asyncio.sleep(_REST_POLL_S)
    return None


def _standing(watch: Watch) -> str:
    if not watch.samples:
        return ""
    sample = watch.samples[-1]
    backlog = "?" if sample.backlog is None else f"{sample.backlog:,}"
    return f"{sample.accepted:,} accepted, backlog {backlog}"


def _late(
    settled_after_s: float | None, audits: list[Audit], *, within_s: float
) -> list[Violation]:
    found = []
    if settled_after_s is None or settled_after_s > within_s:
        detail = f"unpaid payments were left {within_s:.0f} s after the last fault"
        found.append(Violation("not settled in time", detail))
    found += [
        Violation("differs during the run", f"{each.at_s:.1f} s: {each.window}")
        for each in audits
        if each.agreed_after_ms is None
    ]
    return found


def _swept(log: Path) -> list[Violation]:
    """Nothing relies on the sweep: a payment that it had to repair was lost until then."""
    return [
        Violation("swept", "it had left the queue unpaid", payment)
        for payment in _SWEPT.findall(log.read_text())
    ]

"""One chaos run from start to verdict."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from payswitch.chaos.audit import RunVerdict, Spread, Violation, audit
from payswitch.chaos.books import Auditor, Books
from payswitch.chaos.clients import Clients, Sent
from payswitch.chaos.inject import Injector
from payswitch.chaos.plan import DECISIONS, PROCESSORS, PlannedFault, Scale, is_clean, plan
from payswitch.chaos.system import ChaosSystem, running
from payswitch.chaos.watch import Audit, LoadSample, Watch
from payswitch.local.machine import MachineError
from payswitch.settings import Settings

_SETTLED_WITHIN_S = 30.0
_DECIDED_WITHIN_S = 60.0
"""The same where payments are pending: a question about one comes after half its age."""
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
    workers: int
    folder: Path

    @property
    def seconds(self) -> float:
        """The time under load."""
        return self.minutes * 60


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The result of a run, with all its data."""

    order: RunOrder
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
    order = _possible(order, Settings.from_environment(environment))
    order.folder.mkdir(parents=True, exist_ok=True)
    progress(0, "starting")
    async with running(
        order.folder,
        workers=order.workers,
        clocks="clock" in order.kinds,
        environment=environment,
    ) as system:
        return await _run_on(system, order, progress)


def _possible(order: RunOrder, settings: Settings) -> RunOrder:
    """The order without decisions, unless both processors have words for them. Raises
    `MachineError` if nothing is left."""
    connectors = {each.connector for each in settings.processors if each.name in PROCESSORS}
    if DECISIONS not in order.kinds or connectors == {"charges"}:
        return order
    if order.kinds == {DECISIONS}:
        raise MachineError(f"{DECISIONS}: set PAYSWITCH_CONNECTOR_DEFAULT and _FALLBACK to charges")
    return replace(order, kinds=order.kinds - {DECISIONS})


async def _run_on(system: ChaosSystem, order: RunOrder, progress: Progress) -> RunOutcome:
    events = plan(order.seed, order.seconds, order.kinds, Scale.of(system.settings, order.workers))
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
        settled_after_s = await _rest(auditor, watch, progress)
        await paying
        if settled_after_s is not None:
            await _rest(auditor, watch, progress)
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
    limit_s = _DECIDED_WITHIN_S if DECISIONS in order.kinds else _SETTLED_WITHIN_S
    verdict.violations.extend(_late(settled_after_s, limit_s, watch.audits))
    verdict.violations.extend(_swept(order.folder / "system.log"))
    return RunOutcome(
        order,
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


async def _rest(auditor: Auditor, watch: Watch, progress: Progress) -> float | None:
    """Wait until all payments accepted by now are paid. Returns the time that took, in s."""
    began, until_ms = time.monotonic(), await auditor.redis_now_ms()
    while (elapsed_s := time.monotonic() - began) < _REST_LIMIT_S:
        if await auditor.backlog(until_ms) == 0:
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


def _late(settled_after_s: float | None, limit_s: float, audits: list[Audit]) -> list[Violation]:
    found = []
    if settled_after_s is None or settled_after_s > limit_s:
        detail = f"unpaid payments were left {limit_s:.0f} s after the last fault"
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

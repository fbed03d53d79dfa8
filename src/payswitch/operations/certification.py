"""The rules on which exactly-once rests, checked against a provider's sandbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from payswitch.operations.trial import RuleBrokenError, Trial, UncheckableError, in_words
from payswitch.processors.outcomes import (
    Declined,
    FindOutcome,
    Found,
    Missing,
    NotPaid,
    Outcome,
    Paid,
    Pending,
    Refused,
    Unclear,
)
from payswitch.processors.processor import CannotAskError, Processor

AMOUNTS = (1, 10, 1999)
"""In cents."""
_AMOUNT = 101
_AT_ONCE = 5
_GIVEN_UP_AFTER = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Shares of the time that a payment takes."""
_INVALID = (0, -100)
_LOOKED_UP = 5
HEALTH_PACE_S = 5.1
"""How often the health check asks."""
_HEALTH_LIMIT_MS = 2500


class Ruling(Enum):
    """What came of a rule."""

    PASS = "pass"
    FAIL = "FAIL"
    WARNING = "warning"
    UNCHECKED = "can't check"


class UnreachableError(Exception):
    """No payment can be sent to the provider; the message says why."""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule's result. `measured` says what was seen, or what is wrong."""

    rule: str
    requires: str
    ruling: Ruling
    measured: str


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A provider to check, and what is known of it."""

    url: str
    processor: Processor
    stranger: Processor
    """The same one, called with a wrong token."""
    max_delay_ms: int
    """`PAYSWITCH_PROCESSOR_MAX_DELAY_MS`."""
    declined_cents: int | None = None
    """An amount that it declines."""
    health_pace_s: float = HEALTH_PACE_S


class Certification:
    """One run of all rules."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.trial = Trial(sandbox.processor, max_delay_ms=sandbox.max_delay_ms)

    async def run(self, on_rule: Callable[[str], None] = lambda _: None) -> list[RuleResult]:
        """Check one rule after the other. `on_rule` gets the name of each before it begins. Raises
        `UnreachableError`."""
        results = []
        for rule in RULES:
            on_rule(rule.name)
            try:
                ruling, measured = await rule.check(self)
            except RuleBrokenError as error:
                ruling, measured = Ruling.FAIL, str(error)
            except (UncheckableError, CannotAskError) as error:
                ruling, measured = Ruling.UNCHECKED, str(error)
            results.append(RuleResult(rule.name, rule.requires, ruling, measured))
        return results


Checked = tuple[Ruling, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, in a word and in a sentence."""

    name: str
    requires: str
    check: Callable[[Certification], Awaitable[Checked]]


async def _pays(run: Certification) -> Checked:
    """Also finds out whether the provider can be reached, and how long a payment takes."""
    trial = run.trial
    if (unprepared := await trial.processor.prepare()) is not None:
        raise UnreachableError(unprepared)
    with _reachable():
        payment = await trial.new(_AMOUNT)
    began = time.monotonic()
    outcome = await trial.pay(payment)
    trial.latency_s = time.monotonic() - began
    if isinstance(outcome, NotPaid):
        raise UnreachableError(outcome.reason)
    found = outcome if isinstance(outcome, Paid) else await trial.decided(payment)
    if isinstance(found, Paid | Found):
        return Ruling.PASS, f"{in_words(found)}, after {_ms(trial.latency_s)}"
    amount = trial.amount(_AMOUNT)
    raise RuleBrokenError(f"{amount} is {in_words(outcome)}; looked up: {in_words(found)}")


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except CannotAskError as error:
        raise UnreachableError(str(error)) from None


async def _amount(run: Certification) -> Checked:
    amount = run.trial.amount
    for cents in AMOUNTS:
        payment, _ = await run.trial.paid(cents)
        finding = await run.trial.seen(payment)
        if not isinstance(finding, Found):
            raise UncheckableError(f"the look-up says: {in_words(finding)}")
        if finding.cents != cents:
            raise RuleBrokenError(f"{amount(cents)} was sent, and {amount(finding.cents)} is found")
        if finding.requested_at != payment.requested_at:
            by_ms = finding.requested_at - payment.requested_at
            raise RuleBrokenError(f"its instant is found {by_ms:+} ms from the one that was sent")
        count = await run.trial.count(payment)
        if count is not None and count.count == 1 and count.cents != cents:
            raise RuleBrokenError(
                f"{amount(cents)} was sent, and the totals have {amount(count.cents)}"
            )
    return Ruling.PASS, f"{', '.join(map(amount, AMOUNTS))} are found as they were sent"


async def _repeat(run: Certification) -> Checked:
    payment, first = await run.trial.paid(_AMOUNT)
    second = await run.trial.pay(payment)
    _require_no_decline([second])
    once = await run.trial.require_once(payment, [first, second])
    return Ruling.PASS, f"{once}; the second answer: {in_words(second)}"


async def _simultaneous(run: Certification) -> Checked:
    payment = await run.trial.new(_AMOUNT)
    outcomes = await asyncio.gather(*(run.trial.pay(payment) for _ in range(_AT_ONCE)))
    paid = sum(isinstance(each, Paid) for each in outcomes)
    answers = outcomes if paid else [await run.trial.require_paid(payment)]
    _require_no_decline(outcomes)
    once = await run.trial.require_once(payment, answers)
    return Ruling.PASS, f"{once}; {paid} of {_AT_ONCE} answers said paid"


def _require_no_decline(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Declined):
            raise RuleBrokenError(f"a payment that is paid was answered as {in_words(outcome)}")


async def _hang_up(run: Certification) -> Checked:
    hung_up, once = 0, ""
    for share in _GIVEN_UP_AFTER:
        payment = await run.trial.new(_AMOUNT)
        hung_up += await run.trial.give_up(payment, share * run.trial.latency_s) is None
        once = await run.trial.require_once(payment, [await run.trial.require_paid(payment)])
    if not hung_up:
        raise UncheckableError("every answer came before the connection was ended")
    return Ruling.PASS, f"{once}; {hung_up} of {len(_GIVEN_UP_AFTER)} hung up on"


async def _find_recorded(run: Certification) -> Checked:
    slowest_s = 0.0
    for _ in range(_LOOKED_UP):
        payment = await run.trial.new(_AMOUNT)
        outcome = await run.trial.pay(payment)
        if not isinstance(outcome, Paid | Pending):
            raise UncheckableError(f"a payment was {in_words(outcome)}")
        expected = Found if isinstance(outcome, Paid) else Found | Pending | Declined
        answered, denied = time.monotonic(), False
        finding: FindOutcome = await run.trial.find(payment)
        if isinstance(finding, Missing):
            denied = True
        if not isinstance(finding, expected):
            finding = await run.trial.seen(payment)
        visible_s = time.monotonic() - answered
        if denied and isinstance(finding, expected):
            raise RuleBrokenError(
                f"it said that it doesn't have a payment, and had it {_ms(visible_s)} after its own"
                " answer"
            )
        if not isinstance(finding, expected):
            raise RuleBrokenError(f"{in_words(outcome)}; looked up: {in_words(finding)}")
        slowest_s = max(slowest_s, visible_s)
    return Ruling.PASS, f"visible {_ms(slowest_s)} after the answer"


async def _find_unknown(run: Certification) -> Checked:
    never_sent = await run.trial.new(_AMOUNT)
    run.trial.made.remove(never_sent)
    finding = await run.trial.find(never_sent)
    if not isinstance(finding, Missing):
        raise RuleBrokenError(f"a payment that was never sent is {in_words(finding)}")
    return Ruling.PASS, "a payment that was never sent is missing"


async def _given_up(run: Certification) -> Checked:
    async def one(share: float) -> tuple[bool, float | None]:
        """Whether its call was given up, and how long after it the payment came to be there."""
        payment = await run.trial.new(_AMOUNT)
        sent = time.monotonic()
        given_up = await run.trial.give_up(payment, share * run.trial.latency_s) is None
        missing_s = 0.0
        while (waited_s := time.monotonic() - sent) < run.trial.watch_s:
            finding = await run.trial.find(payment)
            if isinstance(finding, Found | Declined):
                if missing_s > run.trial.max_delay_s:
                    raise RuleBrokenError(
                        f"recorded {_ms(missing_s)} or more after its call; the limit is "
                        f"{_ms(run.trial.max_delay_s)} (PAYSWITCH_PROCESSOR_MAX_DELAY_MS)"
                    )
                return given_up, time.monotonic() - sent
            if isinstance(finding, Missing):
                missing_s = waited_s
            await asyncio.sleep(run.trial.max_delay_s / 50)
        return given_up, None

    # All come to their end before the first that broke the rule is told.
    ended = await asyncio.gather(*map(one, _GIVEN_UP_AFTER), return_exceptions=True)
    found = []
    for each in ended:
        if isinstance(each, BaseException):
            raise each
        found.append(each)
    times = [recorded_s for given_up, recorded_s in found if given_up]
    if not times:
        raise UncheckableError("every answer came before the call was given up")
    recorded = [recorded_s for recorded_s in times if recorded_s is not None]
    last = f", the last within {_ms(max(recorded))}" if recorded else ""
    return Ruling.PASS, f"{len(recorded)} of {len(times)} were recorded{last}"


async def _invalid(run: Certification) -> Checked:
    seen = []
    for cents in _INVALID:
        payment = await run.trial.new(cents)
        run.trial.made.remove(payment)
        amount, outcome = run.trial.amount(cents), await run.trial.pay(payment)
        if isinstance(outcome, NotPaid):
            raise UncheckableError(f"{amount}: {outcome.reason}")
        is_recorded = await run.trial.is_recorded(payment)
        if isinstance(outcome, Paid) and not is_recorded:
            raise RuleBrokenError(f"{amount} is answered as paid, and not recorded")
        if not isinstance(outcome, Paid) and is_recorded:
            raise RuleBrokenError(f"{amount} is {in_words(outcome)}, and recorded all the same")
        seen.append(f"{amount}: {in_words(outcome)}")
    return Ruling.PASS, "; ".join(seen)


async def _token(run: Certification) -> Checked:
    payment = await run.trial.new(_AMOUNT)
    ours, theirs = run.sandbox.processor.connector, run.sandbox.stranger.connector
    if ours.pay(payment) == theirs.pay(payment) and ours.prepare(0) == theirs.prepare(0):
        run.trial.made.remove(payment)
        raise UncheckableError("the connector sends no token with a payment")
    outcome = await run.trial.pay(payment, run.sandbox.stranger)
    run.trial.made.remove(payment)
    if isinstance(outcome, Paid):
        raise RuleBrokenError("a payment with a wrong token is paid")
    if await run.trial.is_recorded(payment):
        raise RuleBrokenError(f"it is {in_words(outcome)}, and recorded all the same")
    if isinstance(outcome, Refused | Declined):
        raise RuleBrokenError(
            f"a wrong token reads as {in_words(outcome)}: an expired one would end payments"
        )
    return Ruling.PASS, f"{in_words(outcome)}, and nothing is recorded"


async def _decline(run: Certification) -> Checked:
    cents = run.sandbox.declined_cents
    if cents is None:
        raise UncheckableError("--declined names no amount that the sandbox declines")
    payment = await run.trial.new(cents)
    run.trial.made.remove(payment)
    outcome = await run.trial.pay(payment)
    if not isinstance(outcome, Declined):
        raise RuleBrokenError(f"{run.trial.amount(cents)} is {in_words(outcome)}")
    again = await run.trial.pay(payment)
    if isinstance(again, Paid):
        raise RuleBrokenError(f"{in_words(outcome)} at first, and paid when it was sent again")
    if await run.trial.is_recorded(payment):
        raise RuleBrokenError(f"{in_words(outcome)}, and recorded all the same")
    return Ruling.PASS, f"{in_words(outcome)}; sent again: {in_words(again)}"


async def _books(run: Certification) -> Checked:
    """After all others, so that it sees what came late."""
    if not run.sandbox.processor.tells_totals:
        raise UncheckableError("the connector reads no totals")
    amount, number = run.trial.amount, 0
    for payment in run.trial.made:
        finding, count = await run.trial.find(payment), await run.trial.count(payment)
        assert count is not None
        if isinstance(finding, Unclear):
            raise RuleBrokenError(f"the look-up says: {finding.reason}")
        if count.count > 1:
            raise RuleBrokenError(f"the totals hold {payment.correlation_id} {count.count} times")
        if isinstance(finding, Found) and (count.count, count.cents) != (1, finding.cents):
            raise RuleBrokenError(
                f"{payment.correlation_id} is found with {amount(finding.cents)}, and the "
                f"totals hold {count.count} with {amount(count.cents)}"
            )
        number += count.count
    return Ruling.PASS, f"each of {number} payments once"


async def _health(run: Certification) -> Checked:
    processor, pace_s = run.sandbox.processor, run.sandbox.health_pace_s
    if not processor.tells_health:
        raise UncheckableError("the connector asks for no report")
    began = time.monotonic()
    report = await processor.health(_HEALTH_LIMIT_MS)
    if report is None:
        raise RuleBrokenError(f"no report within {_HEALTH_LIMIT_MS} ms")
    if report.failing:
        raise RuleBrokenError("it says that it fails, while it takes payments")
    at_once = await processor.health(_HEALTH_LIMIT_MS)
    await asyncio.sleep(max(0.0, began + pace_s - time.monotonic()))
    if await processor.health(_HEALTH_LIMIT_MS) is None:
        raise RuleBrokenError(f"no report at one call in {pace_s:g} s, the health check's pace")
    refused = "" if at_once is not None else "; a second call at once gets none"
    return Ruling.PASS, f"healthy, {report.min_response_ms} ms{refused}"


async def _tls(run: Certification) -> Checked:
    if run.sandbox.url.startswith("https:"):
        return Ruling.PASS, "https, and its certificate is valid"
    return Ruling.WARNING, "http: anybody on the way can read and change payments"


RULES = (
    Rule("pays", "a payment is answered as paid", _pays),
    Rule("amount", "amount and instant are recorded as they were sent", _amount),
    Rule("repeat", "the same id twice is recorded once", _repeat),
    Rule("simultaneous", "the same id several times at once is recorded once", _simultaneous),
    Rule("hang-up", "the same id after a hang-up is recorded once", _hang_up),
    Rule("find-recorded", "what it has answered as paid or pending can be looked up from then on",
         _find_recorded),
    Rule("find-unknown", "the look-up denies what was never sent", _find_unknown),
    Rule("given-up", "a call that was given up is recorded within the longest delay, or never",
         _given_up),
    Rule("invalid", "an invalid payment is not answered as paid unless it is recorded", _invalid),
    Rule("token", "a wrong token ends a call, and says nothing of the payment", _token),
    Rule("decline", "a declined payment stays declined", _decline),
    Rule("books", "the totals hold every payment once, with its amount", _books),
    Rule("health", "a true report at the health check's pace", _health),
    Rule("tls", "payments travel encrypted", _tls),
)  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"

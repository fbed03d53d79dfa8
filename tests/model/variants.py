"""Protocols that are broken on purpose: what the model must catch, or it proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from payswitch.dispatch.dispatcher import Dispatcher
from payswitch.dispatch.quiet_watch import QuietWatch
from payswitch.dispatch.work import Work
from payswitch.payments.claims import Batch, Claim, Claims, OpenTry, Routed
from payswitch.payments.ids import random_id
from payswitch.payments.tries import Findings, Tries
from payswitch.processors.outcomes import Ended, Missing, NotPaid, Outcome, Refused, Unknown
from payswitch.store.marks import Marks
from payswitch.store.nodes import ServerNode
from payswitch.store.partitions import Argument, Call
from payswitch.telemetry.tracing import NO_TRACE, PaymentTrace
from tests.model.stepped import SCRIPTS, Replacements


@dataclass(frozen=True)
class Protocol:
    """The code that the model drives. Without arguments: the real one."""

    name: str = "as it is"
    scripts: Replacements = field(default_factory=dict)
    dispatcher: type[Dispatcher] = Dispatcher
    tries: type[Tries] = Tries
    claims: type[Claims] = Claims
    watch: Callable[[], QuietWatch] = QuietWatch
    numbers_tries: bool = False
    """Whether a try's id is its number: a failover or a purge makes it that of another one."""
    unconfirmed: frozenset[str] = frozenset()
    """Scripts that don't wait for the replica."""
    short_is_done: bool = False
    """Whether a `WAIT` that ended too early counts as confirmed."""
    waits_for_own_writes: bool = False
    """Whether a call that wrote nothing waits for nothing, as Redis' `WAIT` alone would do."""
    marks: type[Marks] = Marks
    server: type[ServerNode] = ServerNode
    temper: Mapping[str, object] = field(default_factory=dict)
    """What is given of the world's temper, because the fault shows nowhere else."""
    rare: bool = False
    """It takes so many steps in the right order that random search finds it once in thousands of
    runs; `test_schedules.py` has them written out."""
    steer: Mapping[str, float] = field(default_factory=dict)
    """How much more often what is called so is tried: the way to where the fault shows."""


class _RecordsTheTryAfterTheSend(Tries):
    """Says to whom to send and writes the try down when the answer has come."""

    async def open(self, claim: Claim, processor: str, findings: Findings) -> Routed | None:
        still_open = {each.id for each in claim.open_tries} - findings.closed
        at, number = int(claim.token) % 10**12, claim.tries + 1
        if still_open and claim.processor is not None and claim.requested_at is not None:
            processor, at = claim.processor, claim.requested_at
        return Routed(processor, at, random_id(), number)

    async def record(self, claim: Claim, processor: str, findings: Findings) -> Routed | None:
        """What `open` should have done."""
        return await super().open(claim, processor, findings)


class _OpensLate(Dispatcher):
    async def _conclude(self, work: Work, routed: Routed, outcome: Outcome) -> None:
        tries = cast(_RecordsTheTryAfterTheSend, self._tries)
        recorded = await tries.record(work.claim, routed.processor, work.findings)
        if recorded is not None:
            routed = replace(routed, id=recorded.id)
            await super()._conclude(work, routed, outcome)


class _UnpinsOnATimeout(Dispatcher):
    async def _conclude(self, work: Work, routed: Routed, outcome: Outcome) -> None:
        if isinstance(outcome, Unknown):
            work.findings.closed.add(routed.id)
        await super()._conclude(work, routed, outcome)


class _UnpinsOnThe500OfASecondTry(Dispatcher):
    async def _after_end(self, work: Work, routed: Routed, outcome: Ended) -> None:
        findings = _ClosesAllWithOne(work.claim, work.findings)
        await super()._after_end(replace(work, findings=findings), routed, outcome)


class _ClosesOnA429(Dispatcher):
    async def _conclude(self, work: Work, routed: Routed, outcome: Outcome) -> None:
        if isinstance(outcome, Ended) and outcome.status == 429:
            outcome = NotPaid("status 429")
        await super()._conclude(work, routed, outcome)


class _TakesARefusalFor404(Dispatcher):
    async def _after_refusal(self, work: Work, routed: Routed, outcome: Refused) -> None:
        unknown = replace(outcome, finding=Missing())
        await super()._after_refusal(work, routed, unknown)


class _ClosesOnA404AfterA503(Dispatcher):
    async def _conclude(self, work: Work, routed: Routed, outcome: Outcome) -> None:
        if outcome == Unknown("status 503", 5000):
            outcome = Ended(503, 5000)
        await super()._conclude(work, routed, outcome)


class _ClosesAllWithOne(Findings):
    """Findings whose every closed try closes those before it, too."""

    def __init__(self, claim: Claim, findings: Findings) -> None:
        super().__init__(findings.closed, findings.ended)
        self._before = {each.id for each in claim.open_tries}

    def arguments(self) -> tuple[str, str]:
        closed = self.closed | self._before if self.closed else self.closed
        return Findings(closed, self.ended).arguments()


class _SendsWithoutALease(Dispatcher):
    async def _send(self, work: Work, routed: Routed) -> Outcome:
        claim = replace(work.claim, expires_at=float("inf"))
        return await super()._send(replace(work, claim=claim), routed)


class _CountsFromTheFirstSight(QuietWatch):
    """Counts from when it first saw the payment, though newer tries were sent since."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, float] = {}

    def passed(self, claim: Claim, now_ms: float) -> bool:
        first = self._first.setdefault(claim.correlation_id, now_ms)
        return now_ms - first >= claim.quiet_ms


class _WatchesByNumber(QuietWatch):
    """Tells tries by the number of tries so far."""

    def passed(self, claim: Claim, now_ms: float) -> bool:
        numbered = OpenTry(str(claim.tries), ended=False)
        return super().passed(replace(claim, open_tries=(numbered,)), now_ms)


class _CountsTokens(Claims):
    """Takes its token from a counter in Redis, as the script of this variant does."""

    async def take(self, limit: int, **options: Any) -> Batch:
        batch = await super().take(limit, **options)
        redis = self._script.partitions.common.redis
        token = (await redis.get("payments:token")).decode()
        taken = [replace(each, claim=replace(each.claim, token=token)) for each in batch.taken]
        return replace(batch, taken=taken)


class _TrustsRedisClockAlone(QuietWatch):
    def passed(self, claim: Claim, now_ms: float) -> bool:
        return True


class _CountsTheLeaseFromTheAnswer(Claims):
    async def take(self, limit: int, **options: Any) -> Batch:
        batch = await super().take(limit, **options)
        ends = self._clock() + self._lease_ms
        return replace(
            batch,
            taken=[
                replace(each, claim=replace(each.claim, expires_at=ends)) for each in batch.taken
            ],
        )


class _ForgetsThatItIsPending(Dispatcher):
    async def dispatch(
        self, claim: Claim, trace: PaymentTrace = NO_TRACE, *, probe: str | None = None
    ) -> None:
        open_tries = tuple(replace(each, pending=False) for each in claim.open_tries)
        await super().dispatch(replace(claim, open_tries=open_tries), trace, probe=probe)


class _KnowsNoMarks(Marks):
    def at(self, key: str) -> int:
        return 0


class _LetsAnyCallLiftMarks(ServerNode):
    def _confirmation(self, calls: Sequence[Call]) -> list[Sequence[Argument]]:
        [write, wait] = super()._confirmation(calls)
        return [[*write[:-1], 1], wait]


class _TrustsALateAnswer(ServerNode):
    def _why_unconfirmed(self, marked: Any, known: int, count: Any, sent_at: float) -> str | None:
        now = asyncio.get_running_loop().time()
        return super()._why_unconfirmed(marked, known, count, now)


class _TrustsANodeThatRestarts(ServerNode):
    def _meet(self, run_id: str) -> None:
        self.forget_run()
        super()._meet(run_id)


_ONE_PAYMENT: Mapping[str, object] = {
    "payments": 1,
    "workers": 2,
    "redis_faults": False,
    "crashes": False,
    "purges": False,
    "clock_steps": False,
    "breaker_failures": 1000,
    "breaker_refusals": 1000,
    "deadline_ms": 24 * 3_600_000,
    "slow_claims": False,
    "orders": False,
    "slower": False,
    "unwilling": False,
    "strict": False,
    "sluggish": False,
    "deliberate": False,
    "failovers": False,
    "first_tries": False,
    "hasty": True,
}
"""Nothing but two workers and a processor that is hard to understand."""

_RESTARTS = {**_ONE_PAYMENT, "failovers": True, "restarts": True, "payments": 2}

_NOT_FENCED = [
    ("of ~= current or known[2] ~= token or", "of ~= current or"),
    (" and tonumber(known[7]) and ", " and "),
    ("tonumber(known[7])", "tonumber(known[7] or now)"),
]

_PENDING_DOES_NOT_STAY = ("if mark == 'p' and not is_decided then", "if false then")
_ROUTED_ALL_THE_SAME = (" or is_pending_or_declined(known) then", " then")
_ANY_DEPLOYMENT = {
    name: [("if DEPLOYMENT ~= '' and deployment ~= DEPLOYMENT then", "if false then")]
    for name in SCRIPTS
}
_NO_FIRST_TOUCH = {
    name: [("  redis.call('EXISTS', NOTHING)\n", ""), ("  redis.call('DEL', NOTHING)\n", "")]
    for name in SCRIPTS
}

VARIANTS = [
    Protocol(
        "a claim opens a try beside another",
        scripts={
            "claim": [
                (
                    "and not (tries or processor or horizon or quiet or declined)"
                    " and (open or '') == ''",
                    "",
                )
            ]
        },
        temper={**_ONE_PAYMENT, "first_tries": True},
        steer={"stays silent": 3},
    ),
    Protocol(
        "the pause not looked at",
        scripts={
            "claim": [("redis.call('EXISTS', PURGING, PAUSED)", "redis.call('EXISTS', PURGING)")]
        },
        temper={"orders": True},
    ),
    Protocol(
        "the try is recorded after the send",
        dispatcher=_OpensLate,
        tries=_RecordsTheTryAfterTheSend,
    ),
    Protocol(
        "settle without the ledger's guard",
        scripts={"settle": [("if known[2] == 'settled' then return 'known' end", "")]},
    ),
    Protocol("unpin on a timeout", dispatcher=_UnpinsOnATimeout, temper=_ONE_PAYMENT),
    Protocol(
        "unpin on the 500 of a second try",
        dispatcher=_UnpinsOnThe500OfASecondTry,
        temper=_ONE_PAYMENT,
        steer={"says 500": 4, "stays silent": 3, "records": 0, "loses": 0, "refuses": 0},
    ),
    Protocol("429 closes", dispatcher=_ClosesOnA429, temper=_ONE_PAYMENT, rare=True),
    Protocol(
        "a refusal is taken for a 404",
        dispatcher=_TakesARefusalFor404,
        temper=_ONE_PAYMENT,
        rare=True,
    ),
    Protocol(
        "404 closes at once after 503",
        dispatcher=_ClosesOnA404AfterA503,
        temper=_ONE_PAYMENT,
        rare=True,
    ),
    Protocol(
        "own limit ignored",
        scripts={
            name: [("delay and count == tries and tonumber(delay) or 0", "10 ^ 9")]
            for name in ("claim", "bury")
        },
        temper={**_ONE_PAYMENT, "slower": True},
        rare=True,
    ),
    Protocol(
        "unpin not fenced",
        scripts={"route": _NOT_FENCED},
        temper={**_ONE_PAYMENT, "sluggish": True},
    ),
    Protocol(
        "horizon counted from the pin",
        scripts={
            "route": [
                (
                    "math.max(tonumber(known[8] or '0') + later, tonumber(known[7]) + delay)",
                    "tonumber(requested_at) + lease + delay",
                )
            ]
        },
        watch=_CountsFromTheFirstSight,
        temper=_ONE_PAYMENT,
        steer={
            "stays silent": 3,
            "5000 ms": 4,
            "10000 ms": 3,
            **dict.fromkeys(("records", "loses", "refuses", "answers", "says 500"), 0),
            **dict.fromkeys(("proves", "25000 ms", "sweep", "changed"), 0),
        },
    ),
    Protocol(
        "purge without a generation",
        scripts={"purge": [("redis.call('INCR', GENERATION)", "redis.call('INCR', 'none')")]},
    ),
    Protocol(
        "settle without a look at the generation",
        scripts={
            "settle": [
                ("if of ~= current then return 'gone' end", ""),
                ("if not known.err and known[1] and known[1] ~= current then", "if false then"),
            ]
        },
        temper={"purges": True},
    ),
    Protocol(
        "bury not fenced",
        scripts={"bury": [("elseif known[2] ~= token then", "elseif false then")]},
        temper={**_ONE_PAYMENT, "payments": 2, "sluggish": True, "hasty": False},
        steer={
            "worker 1 claims": 3,
            "worker 1: ask": 3,
            "worker 1: route": 3,
            "refuses with 422": 4,
            "pays it": 3,
            **dict.fromkeys(("unclear", "proves", "says 500", "answers", "loses", "prefers"), 0),
            **dict.fromkeys(("stays silent", "changed", "sweep", "10000 ms", "14500 ms"), 0),
        },
    ),
    Protocol(
        "a resolved dead letter is replayed",
        scripts={"replay": [("if known[7] and not even_resolved then return 'resolved' end", "")]},
        temper=_ONE_PAYMENT,
        steer={"refuses with 422": 4, "resolve": 4},
    ),
    Protocol(
        "Pending re-routed",
        scripts={"route": [_ROUTED_ALL_THE_SAME]},
        dispatcher=_ForgetsThatItIsPending,
        temper={**_ONE_PAYMENT, "deliberate": True},
        steer={"pending": 4, "denies": 4, "decides": 0.1},
    ),
    Protocol(
        "a pending try gives way to an ended one",
        scripts={"release": [_PENDING_DOES_NOT_STAY]},
        temper={**_ONE_PAYMENT, "deliberate": True},
        rare=True,
    ),
    Protocol(
        "Pending sent again by one that doesn't know",
        scripts={"route": [_ROUTED_ALL_THE_SAME]},
        temper={**_ONE_PAYMENT, "deliberate": True},
        rare=True,
    ),
    Protocol(
        "Declined replayed",
        scripts={
            "replay": [
                ("    or known[2] == 'declined' then", "    then"),
                (
                    "if known[2] ~= 'dead' or",
                    "if (known[2] ~= 'dead' and known[2] ~= 'declined') or",
                ),
            ]
        },
        temper={**_ONE_PAYMENT, "deliberate": True},
        steer={"declines it": 4, "replay": 4},
    ),
    Protocol(
        "declined although an earlier try is open",
        scripts={
            "bury": [
                (
                    "if may_be_recorded_later(open) and",
                    "if state == 'dead' and may_be_recorded_later(open) and",
                )
            ]
        },
        temper={**_ONE_PAYMENT, "deliberate": True},
        steer={"stays silent": 3, "keeping nothing": 6, "pending": 0, "unheard": 0},
    ),
    Protocol(
        "a former holder's decline is dropped",
        scripts={
            "bury": [("if state == 'declined' and is_unpaid then", "if false then")],
            "route": [_ROUTED_ALL_THE_SAME],
        },
        temper={**_ONE_PAYMENT, "deliberate": True},
        rare=True,
    ),
    Protocol(
        "a former holder's decline of a dead letter is dropped",
        scripts={"bury": [(" or known[8] == 'dead'", "")]},
        temper={**_ONE_PAYMENT, "deliberate": True},
        rare=True,
    ),
    Protocol(
        "release not fenced",
        scripts={"release": [("if known[2] == token then", "if true then")]},
    ),
    Protocol(
        "the lease not checked before the write",
        dispatcher=_SendsWithoutALease,
        temper={**_ONE_PAYMENT, "sluggish": True, "hasty": False},
        steer={
            "worker 1 claims": 3,
            "worker 1: route": 3,
            "worker 1: write": 0.1,
            "unclear": 3,
            "15000 ms": 2,
            "25000 ms": 4,
            **dict.fromkeys(("proves", "sweep", "changed", "refuses", "loses", "prefers"), 0),
        },
    ),
    Protocol(
        "the lease counted from the claim's answer, the horizon by Redis' clock alone",
        claims=_CountsTheLeaseFromTheAnswer,
        watch=_TrustsRedisClockAlone,
        temper={**_ONE_PAYMENT, "slow_claims": True},
        rare=True,
    ),
    Protocol(
        "the horizon by Redis' clock alone",
        watch=_TrustsRedisClockAlone,
        temper={**_ONE_PAYMENT, "clock_steps": True},
        steer={"clock steps": 2},
    ),
    Protocol(
        "numbered tries",
        numbers_tries=True,
        temper={**_ONE_PAYMENT, "purges": True, "clock_steps": True},
        rare=True,
    ),
    Protocol(
        "tries watched by number",
        watch=_WatchesByNumber,
        temper={**_ONE_PAYMENT, "failovers": True, "clock_steps": True},
        rare=True,
    ),
    Protocol(
        "counting tokens, the horizon by Redis' clock alone",
        scripts={
            "claim": [
                ("local token = ARGV[4]", "local token = redis.call('INCR', 'payments:token')")
            ]
        },
        claims=_CountsTokens,
        watch=_TrustsRedisClockAlone,
        temper={**_ONE_PAYMENT, "failovers": True},
        rare=True,
    ),
    Protocol(
        "accept without WAIT",
        unconfirmed=frozenset({"accept"}),
        temper={**_ONE_PAYMENT, "failovers": True, "payments": 2},
    ),
    Protocol(
        "route without WAIT",
        unconfirmed=frozenset({"route"}),
        temper={**_ONE_PAYMENT, "failovers": True},
    ),
    Protocol(
        "bury without WAIT",
        unconfirmed=frozenset({"bury"}),
        temper={**_ONE_PAYMENT, "failovers": True, "deliberate": True},
        rare=True,
    ),
    Protocol(
        "a pending payment is noted without WAIT",
        unconfirmed=frozenset({"release"}),
        temper={**_ONE_PAYMENT, "failovers": True, "deliberate": True},
        rare=True,
    ),
    Protocol(
        "resolve without WAIT",
        unconfirmed=frozenset({"resolve"}),
        temper={**_ONE_PAYMENT, "failovers": True},
        rare=True,
    ),
    Protocol(
        "a short WAIT is taken for done",
        short_is_done=True,
        temper={**_ONE_PAYMENT, "failovers": True},
    ),
    Protocol(
        "a call that wrote nothing waits for nothing",
        waits_for_own_writes=True,
        temper={**_ONE_PAYMENT, "failovers": True, "payments": 2},
        rare=True,
    ),
    Protocol("marks are not checked", marks=_KnowsNoMarks, temper=_RESTARTS),
    Protocol("any call lifts marks", server=_LetsAnyCallLiftMarks, temper=_RESTARTS),
    Protocol(
        "a node that restarts is trusted at once", server=_TrustsANodeThatRestarts, temper=_RESTARTS
    ),
    Protocol("a late answer is trusted", server=_TrustsALateAnswer, temper=_RESTARTS, rare=True),
    Protocol(
        "others don't see a stop",
        scripts={
            "stop": [
                ("redis.call('SET', 'payments:deployment' .. SUFFIX, 'behind ' .. DEPLOYMENT)", "")
            ]
        },
        temper=_RESTARTS,
    ),
    Protocol(
        "another number of partitions",
        scripts=_ANY_DEPLOYMENT,
        temper={**_ONE_PAYMENT, "failovers": True, "misfit": True},
    ),
    Protocol("no first touch", scripts=_NO_FIRST_TOUCH, temper={"failovers": True, "moves": True}),
    Protocol(
        "an empty shard is taken for new",
        scripts=_ANY_DEPLOYMENT,
        temper={**_ONE_PAYMENT, "failovers": True, "loses_all": True},
        rare=True,
    ),
]

"""The status: the notes on each overview, rates from samples, and fees to the cent."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import orjson
import pytest

from payswitch.durability import Durability
from payswitch.money import BRL, Total
from payswitch.operations.controls import Order
from payswitch.operations.history import Changes, Sample, parse_sample
from payswitch.operations.overview import Choice, Overview, Reconciled, Seen
from payswitch.operations.shards import Shard
from payswitch.operations.status import (
    Level,
    Status,
    document,
    document_without_sums,
    duration,
    rates,
)
from payswitch.telemetry.heartbeat import Process
from payswitch.telemetry.histogram import Histogram

NOW = 1_795_363_500_000


def process(kind: str, pid: int = 1, **counts: int) -> Process:
    return Process(
        name="a-host:1:4f",
        kind=kind,
        host="here",
        pid=pid,
        since=NOW - 60_000,
        counts={name.replace("__", ":"): count for name, count in counts.items()},
        breakers={"default": "closed", "fallback": "closed"} if kind == "worker" else {},
        settle_times=Histogram(),
    )


WELL = Overview(
    at=NOW,
    settled={"default": Total(10, 100_000), "fallback": Total(0, 0)},
    backlog=0,
    waiting={"default": 0, "fallback": 0},
    held={"default": 0, "fallback": 0},
    held_and_paid={},
    oldest_accepted_at=None,
    in_flight=0,
    dead=0,
    resolved=0,
    declined={"default": 0, "fallback": 0},
    incidents=0,
    choice=Choice("default", True, "default 0 ms", NOW - 1000, 9000),
    health={
        "default": Seen(True, False, 0, NOW - 1000),
        "fallback": Seen(True, False, 0, NOW - 1000),
    },
    fee_rates={"default": Decimal("0.05"), "fallback": Decimal("0.15")},
    reconciled=None,
    override=None,
    paused=None,
    processes=[process("ingress"), process("worker"), process("health")],
)


def sample(at: int, *, accepted: int = 0, settled: int = 0, unavailable: int = 0) -> Sample:
    return Sample(
        at=at,
        accepted=accepted,
        settled={"default": settled, "fallback": 0},
        backlog=0,
        oldest_ms=0,
        in_flight=0,
        dead=0,
        selected="default",
        healthy=True,
        failed={"default": 1, "fallback": 0},
        unavailable=unavailable,
        p50_ms=2.0,
        p99_ms=9.0,
    )


def test_waiting_saved_the_difference_of_the_fees() -> None:
    sums = {("default", "fallback"): 10_000}
    assert replace(WELL, held_and_paid=sums).saved == 1000
    unknown = replace(WELL, held_and_paid=sums, fee_rates={"default": Decimal("0.05")})
    assert unknown.saved is None


def test_a_system_that_is_well_has_nothing_to_say() -> None:
    status = Status(WELL, None)
    assert (status.findings, status.level) == ([], Level.OK)
    assert status.headline == "Nothing to pay"


@pytest.mark.parametrize(
    ("promises", "shown"),
    [
        ([Durability.DISK, Durability.DISK], Durability.DISK),
        ([Durability.DISK, Durability.PROCESS], Durability.PROCESS),
        ([Durability.PROCESS, None], Durability.PROCESS),
        ([None], None),
        ([], None),
    ],
)
def test_the_weakest_promise_of_all_ingresses_is_shown(
    promises: list[Durability | None], shown: Durability | None
) -> None:
    ingresses = [replace(process("ingress"), durability=each) for each in promises]
    told = document(Status(replace(WELL, processes=ingresses), None), BRL)["durability"]
    assert told == (shown and {"promise": shown, "kept": True, "survives": shown.survives})


SAID = {
    "no worker": (replace(WELL, processes=[process("ingress"), process("health")]), Level.ERROR),
    "no ingress": (replace(WELL, processes=[process("worker"), process("health")]), Level.ERROR),
    "no health worker": (
        replace(WELL, processes=[process("worker"), process("ingress")]),
        Level.WARNING,
    ),
    "short of memory": (
        replace(WELL, processes=[*WELL.processes, process("ingress", 2, redis__short_of_memory=1)]),
        Level.ERROR,
    ),
    "Redis may keep less than PAYSWITCH_DURABILITY=process promises": (
        replace(
            WELL,
            processes=[
                *WELL.processes,
                replace(
                    process("ingress", 2, redis__may_lose_payments=1),
                    durability=Durability.PROCESS,
                ),
            ],
        ),
        Level.WARNING,
    ),
    "no selection": (replace(WELL, choice=None), Level.WARNING),
    "dearer fallback": (
        replace(WELL, choice=Choice("fallback", True, "default failing", NOW, 1)),
        Level.WARNING,
    ),
    "no processor is healthy": (
        replace(WELL, choice=Choice("default", False, "default failing", NOW, 1)),
        Level.ERROR,
    ),
    "default says that it is failing": (
        replace(WELL, health={"default": Seen(True, True, 0, NOW)}),
        Level.WARNING,
    ),
    "default does not say": (
        replace(WELL, health={"default": Seen(False, False, 0, NOW)}),
        Level.WARNING,
    ),
    "fallback: circuit breaker open in 1 of 2 workers": (
        replace(
            WELL,
            processes=[
                *WELL.processes,
                replace(process("worker", 2), breakers={"default": "closed", "fallback": "open"}),
            ],
        ),
        Level.WARNING,
    ),
    "fallback: circuit breaker open in 1 of 1 workers (status 429, Retry-After 9 s)": (
        replace(
            WELL,
            processes=[
                replace(
                    process("worker"),
                    breakers={"default": "closed", "fallback": "open"},
                    breaker_reasons={"default": "", "fallback": "status 429, Retry-After 9 s"},
                ),
                *(each for each in WELL.processes if each.kind != "worker"),
            ],
        ),
        Level.WARNING,
    ),
    "(refuses payments: refused with status 422)": (
        replace(
            WELL,
            processes=[
                *WELL.processes,
                replace(
                    process("worker", 2),
                    breakers={"default": "open", "fallback": "closed"},
                    breaker_reasons={"default": "refuses payments: refused with status 422"},
                ),
            ],
        ),
        Level.ERROR,
    ),
    "has waited 1 min 1 s": (
        replace(WELL, backlog=1, oldest_accepted_at=NOW - 61_000),
        Level.WARNING,
    ),
    "3 payments are waiting until default works again": (
        replace(WELL, held={"default": 3, "fallback": 0}),
        Level.NOTE,
    ),
    "2 proofs": (replace(WELL, incidents=2), Level.ERROR),
    "found 3 differences": (replace(WELL, reconciled=Reconciled(NOW, 3)), Level.ERROR),
    "1 payment dead": (replace(WELL, dead=1), Level.WARNING),
    "paused by ann (lunch), 5.0 s left": (
        replace(WELL, paused=Order("ann", None, "lunch", NOW + 5000)),
        Level.WARNING,
    ),
    "fallback was chosen by ann": (
        replace(WELL, override=Order("ann", None, None, None, "fallback")),
        Level.NOTE,
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_what_is_wrong_is_said(said: str) -> None:
    overview, level = SAID[said]
    status = Status(overview, None)
    assert [said.lower() in each.text.lower() for each in status.findings] == [True]
    assert status.level is level


@pytest.mark.parametrize(
    ("failing", "failed", "level"),
    [(False, 0, Level.NOTE), (True, 0, Level.WARNING), (False, 1, Level.WARNING)],
    ids=["well and idle", "failing", "well by its own word"],
)
def test_an_open_breaker_is_a_note_where_only_a_payment_is_lacking(
    failing: bool, failed: int, level: Level
) -> None:
    overview = replace(
        WELL,
        health={**WELL.health, "fallback": Seen(True, failing, 0, NOW)},
        processes=[
            *WELL.processes,
            replace(process("worker", 2), breakers={"default": "closed", "fallback": "open"}),
        ],
    )
    samples = [replace(sample(at), failed={"fallback": failed}) for at in (NOW - 1000, NOW)]
    found = Status(overview, rates(samples, NOW)).findings
    [breaker] = [each for each in found if "breaker" in each.text]
    assert breaker.level is level
    assert breaker.text.endswith("the next payment sent there probes it")


def test_the_worst_comes_first() -> None:
    found = Status(replace(WELL, dead=1, incidents=1), None).findings
    assert [each.level for each in found] == [Level.ERROR, Level.WARNING]


def test_refused_payments_and_a_backlog_that_stands_still_are_errors() -> None:
    still = [sample(NOW - 1000, accepted=5), sample(NOW, accepted=9, unavailable=7)]
    status = Status(replace(WELL, backlog=4, oldest_accepted_at=NOW), rates(still, NOW))
    assert status.headline == "No money flows, 4 payments are waiting"
    assert {each.text for each in status.findings} == {
        "7 payments refused with 503 just now",
        "Nothing is being settled, 4 payments are waiting",
    }


def test_rates_are_those_of_the_last_seconds() -> None:
    samples = [
        sample(NOW - 8000 + 1000 * n, accepted=100 * n, settled=50 * n, unavailable=1)
        for n in range(9)
    ]
    now = rates(samples, NOW)
    assert now is not None
    assert (now.accepted_per_s, now.settled_per_s) == (100, {"default": 50, "fallback": 0})
    assert (now.unavailable, now.failed["default"]) == (5, 5)
    assert (now.p50_ms, now.p99_ms) == (2, 9)
    assert Status(WELL, now).headline == "50 payments/s through default"


@pytest.mark.parametrize(
    ("names", "through"),
    [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c"), ("abcd", "4 processors")],
)
def test_the_headline_names_the_processors_unless_they_are_many(names: str, through: str) -> None:
    samples = [
        replace(sample(NOW - 1000 + 1000 * n), settled={**dict.fromkeys(names, n), "idle": 0})
        for n in range(2)
    ]
    headline = Status(WELL, rates(samples, NOW)).headline
    assert headline == f"{len(names)} payments/s through {through}"


def test_a_purge_makes_no_negative_rate() -> None:
    now = rates([sample(NOW - 1000, accepted=9, settled=9), sample(NOW)], NOW)
    assert now is not None
    assert (now.accepted_per_s, now.all_settled_per_s) == (0, 0)


@pytest.mark.parametrize(
    "samples",
    [[], [sample(NOW)], [sample(NOW - 9000), sample(NOW - 8000)]],
    ids=["none", "one", "old ones"],
)
def test_without_a_fresh_history_rates_are_unknown(samples: list[Sample]) -> None:
    assert rates(samples, NOW) is None
    assert document(Status(WELL, None), BRL)["settled"]["perSecond"] is None


def test_fees_are_exact_and_compared_with_all_by_the_preferred_one() -> None:
    settled = {"default": Total(1, 1990), "fallback": Total(1, 1001)}
    fees = replace(WELL, settled=settled).fees
    assert fees is not None
    assert fees.paid == Decimal("249.65")
    assert fees.extra == Decimal("100.1")
    shown = orjson.loads(orjson.dumps(document(Status(replace(WELL, settled=settled), None), BRL)))
    assert shown["fees"] == {
        "paid": 2.5,
        "allPreferred": 1.5,
        "extra": 1.0,
        "saved": 0.0,
        "share": 0.08347,
    }


def test_fees_are_unknown_while_one_in_question_is() -> None:
    only_default = {"default": Decimal("0.05")}
    assert replace(WELL, fee_rates=only_default).fees is not None
    used = {"default": Total(1, 1), "fallback": Total(1, 1)}
    assert replace(WELL, fee_rates=only_default, settled=used).fees is None


def test_what_a_process_had_counted_before_the_first_look_is_no_seconds_work() -> None:
    changes = Changes()
    worker = process("worker", tries__default__Unknown=7)
    assert changes.sample(replace(WELL, processes=[worker])).failed["default"] == 0
    again = process("worker", tries__default__Unknown=9)
    anew = replace(process("worker", tries__default__Ended=2), name="a-host:1:5e")
    assert changes.sample(replace(WELL, processes=[again])).failed["default"] == 2
    assert changes.sample(replace(WELL, processes=[anew])).failed["default"] == 2
    assert changes.sample(replace(WELL, processes=[])).failed["default"] == 0


def test_times_to_settle_are_those_of_the_window() -> None:
    changes, worker = Changes(), process("worker")
    changes.sample(replace(WELL, processes=[worker]))
    settled = Histogram()
    settled.add(100)
    busy = replace(worker, settle_times=settled)
    first = changes.sample(replace(WELL, processes=[busy]))
    assert first.p50_ms == pytest.approx(100, rel=0.2)
    for _ in range(10):
        last = changes.sample(replace(WELL, processes=[busy]))
    assert last.p50_ms is None


def test_a_sample_is_read_as_it_was_written_and_nothing_else_is() -> None:
    written = sample(NOW, accepted=3)
    assert parse_sample(orjson.dumps(written)) == written
    for raw in (b"", b"[]", b"{}", b'"x"', b"7", b'{"at":1}'):
        assert parse_sample(raw) is None


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (60_000, "1 min"), (90_061_000, "1 d 1 h")],
)
def test_durations_are_for_people(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_a_node_that_lacks_replicas_is_an_error() -> None:
    well, poor = Shard("a:7000", [0, 1], 1, 1), Shard("b:7000", [2, 3], 0, 1)
    assert Status(replace(WELL, shards=[well]), None).level is Level.OK
    [finding] = Status(replace(WELL, shards=[well, poor]), None).findings
    text = "b:7000 has 0 of 1 replicas; partitions 2, 3 take no payments"
    assert (finding.level, finding.text) == (Level.ERROR, text)


def test_a_node_that_refuses_is_not_said_to_be_away() -> None:
    refusing = Shard("b:7000", [2, 3], 1, 1, "it came back older")
    [finding] = Status(replace(WELL, shards=[refusing]), None).findings
    text = "b:7000 can't be used: it came back older; partitions 2, 3 take no payments"
    assert (finding.level, finding.text) == (Level.ERROR, text)


def test_a_node_that_does_not_say_its_replicas_is_no_finding() -> None:
    assert Status(replace(WELL, shards=[Shard("a:7000", [0], None, 1)]), None).findings == []


def test_while_a_node_is_away_the_page_names_it_and_has_no_sums() -> None:
    away = Shard("b:7000", [2, 3], None, 1, "it does not answer in time")
    shown = document_without_sums([Shard("a:7000", [0, 1], 1, 1), away])
    assert shown["headline"] == "A part of the cluster does not answer"
    text = "b:7000 is away: it does not answer in time; partitions 2, 3 take no payments"
    assert shown["findings"] == [{"level": "error", "text": text}]
    assert [each["address"] for each in shown["cluster"]["nodes"]] == ["a:7000", "b:7000"]
    assert "settled" not in shown
    assert document_without_sums([])["headline"] == "Redis does not answer"

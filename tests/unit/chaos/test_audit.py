"""The audit of a chaos run: it passes what is right, and every single wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.chaos.audit import Spread, audit
from payswitch.chaos.books import Booked, Books, ComparedWindow
from payswitch.chaos.clients import HUNG_UP, Sent
from payswitch.money import Total

REQUESTED_MS = 1_795_000_000_000
CENTS = {"a": 100, "b": 250, "c": 5}


def sent() -> dict[str, Sent]:
    """Three payments; the client of the third never heard of it."""
    return {name: Sent(name, cents, acknowledged=name != "c") for name, cents in CENTS.items()}


def settled(name: str, processor: str) -> dict[str, str]:
    return {
        "state": "settled",
        "cents": str(CENTS[name]),
        "processor": processor,
        "requested_at": str(REQUESTED_MS),
        "settled_at": str(REQUESTED_MS + 20),
    }


def booked(name: str) -> Booked:
    return Booked(CENTS[name], REQUESTED_MS * 1000, (REQUESTED_MS + 15) * 1000)


def right() -> Books:
    """Books after everything was paid once."""
    totals = {"default": Total(2, 105), "fallback": Total(1, 250)}
    return Books(
        records={
            "a": settled("a", "default"),
            "b": settled("b", "fallback"),
            "c": settled("c", "default"),
        },
        booked={
            "default": {"a": booked("a"), "c": booked("c")},
            "fallback": {"b": booked("b")},
        },
        ours=dict(totals),
        theirs=dict(totals),
        windows=[ComparedWindow(0, REQUESTED_MS, dict(totals), dict(totals))],
        incidents=[],
    )


def lose(books: Books) -> Books:
    del books.records["a"]
    return books


def leave_queued(books: Books) -> Books:
    books.records["b"]["state"] = "queued"
    return books


def pay_twice(books: Books) -> Books:
    books.booked["fallback"]["a"] = booked("a")
    return books


def settle_unpaid(books: Books) -> Books:
    del books.booked["default"]["a"]
    return books


def pay_other_amount(books: Books) -> Books:
    books.booked["default"]["a"] = replace(booked("a"), cents=101)
    return books


def pay_at_another_instant(books: Books) -> Books:
    books.booked["default"]["a"] = replace(booked("a"), requested_at_us=REQUESTED_MS * 1000 + 1000)
    return books


def pay_what_nobody_sent(books: Books) -> Books:
    books.booked["default"]["x"] = Booked(1, REQUESTED_MS * 1000, REQUESTED_MS * 1000)
    return books


def bury_what_is_paid(books: Books) -> Books:
    books.records["a"] |= {"state": "dead", "reason": "refused"}
    return books


def bury_without_reason(books: Books) -> Books:
    books.records["a"]["state"] = "dead"
    del books.booked["default"]["a"]
    return books


def miss_a_cent(books: Books) -> Books:
    books.ours["default"] = Total(2, 104)
    return books


def miss_a_cent_in_a_window(books: Books) -> Books:
    books.windows[0].ours["fallback"] = Total(1, 249)
    return books


def find_an_incident(books: Books) -> Books:
    books.incidents.append("{}")
    return books


def leave_an_entry(books: Books) -> Books:
    return replace(books, left={"arq:queue": 0, "payments:open": 1})


def die(books: Books, fault: str = "422-unknown") -> Books:
    """The third becomes a dead letter, as it should."""
    books.records["c"] = {"state": "dead", "reason": "refused", "cents": "5"}
    del books.booked["default"]["c"]
    books.ours["default"] = books.theirs["default"] = Total(1, 100)
    refusal = {"correlationId": "c", "event": "answered", "fault": fault, "status": 422}
    return replace(books, dead=frozenset({"c"}), journals={"default": [refusal], "fallback": []})


def decline(books: Books) -> Books:
    """The third is declined, as it should be."""
    books = die(books)
    books.records["c"] = {"state": "declined", "declined": "card_declined", "cents": "5"}
    decision = {"correlationId": "c", "event": "declined", "fault": None, "status": None}
    return replace(books, dead=frozenset(), journals={"default": [decision], "fallback": []})


def decline_unheard(books: Books) -> Books:
    return replace(decline(books), journals={})


def decline_without_code(books: Books) -> Books:
    books = decline(books)
    del books.records["c"]["declined"]
    return books


def decline_another_amount(books: Books) -> Books:
    books = decline(books)
    books.records["c"]["cents"] = "6"
    return books


def decline_what_is_paid(books: Books) -> Books:
    books = decline(books)
    books.booked["fallback"]["c"] = booked("c")
    return books


def pay_what_is_declined(books: Books) -> Books:
    return replace(right(), journals=decline(books).journals)


def bury_what_is_declined(books: Books) -> Books:
    return replace(die(books), journals=decline(right()).journals)


def die_unrefused(books: Books) -> Books:
    return replace(die(books), journals={})


def die_unlisted(books: Books) -> Books:
    return replace(die(books), dead=frozenset())


def die_with_another_amount(books: Books) -> Books:
    books = die(books)
    books.records["c"]["cents"] = "6"
    return books


def request_before_acceptance(books: Books) -> Books:
    books.records["a"]["accepted_at"] = str(REQUESTED_MS + 1)
    return books


def test_what_is_right_passes() -> None:
    verdict = audit(sent(), right())
    assert verdict.holds
    assert verdict.accepted == 2
    assert verdict.unacknowledged_paid == 1
    assert verdict.settled == {"default": 2, "fallback": 1}
    assert verdict.settle_gap == Spread(5, 5, 5)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lose, "lost"),
        (leave_queued, "lost"),
        (pay_twice, "paid twice"),
        (settle_unpaid, "not paid"),
        (pay_other_amount, "differs"),
        (pay_at_another_instant, "differs"),
        (pay_what_nobody_sent, "never sent"),
        (bury_what_is_paid, "not settled"),
        (bury_without_reason, "no reason"),
        (miss_a_cent, "books differ"),
        (miss_a_cent_in_a_window, "window differs"),
        (find_an_incident, "incident"),
        (leave_an_entry, "left over"),
        (die_unrefused, "no cause"),
        (die_unlisted, "dead letters differ"),
        (decline_unheard, "no cause"),
        (decline_without_code, "no reason"),
        (decline_another_amount, "differs"),
        (decline_what_is_paid, "not settled"),
        (pay_what_is_declined, "not declined"),
        (bury_what_is_declined, "not declined"),
        (die_with_another_amount, "differs"),
        (request_before_acceptance, "out of order"),
    ],
)
def test_every_wrong_is_found(spoil: Callable[[Books], Books], what: str) -> None:
    verdict = audit(sent(), spoil(right()))
    assert not verdict.holds
    assert what in {violation.what for violation in verdict.violations}


def test_a_client_that_hung_up_is_owed_no_answer() -> None:
    payments = sent()
    payments["c"].tries.append((0.1, HUNG_UP))
    assert audit(payments, right(), all_should_pass=True).holds


def test_a_lost_and_a_doubled_payment_are_counted() -> None:
    verdict = audit(sent(), lose(pay_twice(right())))
    assert (verdict.lost, verdict.double) == (1, 1)


def test_a_difference_counts_in_cents_whatever_its_sign() -> None:
    books = right()
    books.ours.update(default=Total(2, 108), fallback=Total(1, 248))
    assert audit(sent(), books).difference_cents == 5


@pytest.mark.parametrize("fault", ["422-unknown", "400"])
def test_a_dead_letter_that_a_processor_refused_is_no_violation(fault: str) -> None:
    verdict = audit(sent(), die(right(), fault))
    assert verdict.holds
    assert verdict.dead_by_reason == {"refused": 1}
    assert verdict.faults_met == {fault: 1}


def test_a_payment_that_a_processor_declined_is_no_violation_and_is_counted() -> None:
    books = decline(right())
    payments = sent()
    payments["c"].acknowledged = True
    verdict = audit(payments, books)
    assert verdict.holds
    assert (verdict.declined, verdict.dead, verdict.lost) == (1, 0, 0)
    assert verdict.faults_met == {"declined": 1}


@pytest.mark.parametrize("fault", ["422-unknown", "400"])
def test_a_refused_payment_that_is_paid_in_the_end_is_no_violation(fault: str) -> None:
    refusal = {"correlationId": "c", "event": "answered", "fault": fault, "status": 400}
    journals = {"default": [refusal], "fallback": [refusal]}
    assert audit(sent(), replace(right(), journals=journals)).holds


def test_where_nothing_is_accepted_nothing_is_proved() -> None:
    nobody = {name: replace(each, acknowledged=False) for name, each in sent().items()}
    assert [each.what for each in audit(nobody, right()).violations] == ["refused"]


def test_where_all_should_pass_a_refused_payment_is_a_violation() -> None:
    verdict = audit(sent(), right(), all_should_pass=True)
    assert [each.what for each in verdict.violations] == ["refused"]


def test_a_client_that_was_answered_something_else_is_a_violation() -> None:
    verdict = audit(sent(), right(), wrong_answers=[("a", "500")])
    assert [violation.what for violation in verdict.violations] == ["wrong answer"]


def test_no_gap_is_told_where_clocks_were_set() -> None:
    assert audit(sent(), right(), clocks_were_set=True).settle_gap is None


@given(st.lists(st.floats(0, 1e6), min_size=2))
def test_a_spread_is_ordered(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread is not None
    assert spread.p50 <= spread.p99 <= spread.worst


def test_a_single_value_has_no_spread() -> None:
    assert Spread.of([1.0]) is None

"""The words of a payment's history, from what its record holds."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.payments.history import Event, Fate, parse_history

AT = 1_795_363_500_123


def words(*entry: object) -> str:
    [event] = parse_history({"history:7": orjson.dumps([AT, *entry]).decode()})
    assert event.at == AT
    return event.what


@pytest.mark.parametrize(
    ("fate", "became"),
    [
        (Fate.UNSENT, "closed, as nothing was sent"),
        (Fate.MISSING, "closed, as default doesn't have the payment"),
        (Fate.DECLINED, "closed, as default will not take the payment"),
        (Fate.PENDING, "open: default will decide"),
        (Fate.ENDED, "open: it may have been recorded"),
        (Fate.OPEN, "open: it may still be recorded"),
    ],
)
def test_a_try_tells_its_processor_its_outcome_and_what_closed_it(fate: Fate, became: str) -> None:
    assert words("tried", "default", "status 500", fate.value, 3) == (
        f"try 3 at default: status 500; {became}"
    )


def test_tries_that_ended_alike_share_their_words() -> None:
    assert words("tried", "default", "status 500", "missing", 3, 17, AT + 60_000) == (
        "tries 3 to 17 at default: status 500; closed, as default doesn't have the payment, "
        "the last at 2026-11-22T16:06:00.123Z"
    )


@pytest.mark.parametrize(
    ("closed", "tries"),
    [
        (1, "an earlier try"),
        (2, "2 earlier tries"),
        ([3], "an earlier try"),  # the numbers, in records of an older version
        ([1, 3, 7], "3 earlier tries"),
    ],
)
def test_tries_that_are_closed_later_tell_by_what(closed: int | list[int], tries: str) -> None:
    assert words("closed", "default", closed, "missing") == (
        f"{tries}: closed, as default doesn't have the payment"
    )
    assert words("closed", "default", closed, "declined") == (
        f"{tries}: closed, as default will not take the payment"
    )


def test_acts_of_operators_tell_who_and_why() -> None:
    assert words("dead", "default: status 422") == "dead letter: default: status 422"
    assert words("resolved", "ana", "refunded") == "resolved by ana: refunded"
    assert words("replayed", "ana", "") == "put back by ana"
    assert words("replayed", "ana", "mended") == "put back by ana: mended"


def test_entries_come_in_their_order_and_without_what_is_none() -> None:
    fields = {
        "history": "10",
        "history:10": f'[{AT},"replayed","ana",""]',
        "history:9": f'[{AT},"dead","why"]',
        "history:8": "nonsense",
        "history:x": f'[{AT},"dead","why"]',
        "state": "queued",
    }
    assert parse_history(fields) == (Event(AT, "dead letter: why"), Event(AT, "put back by ana"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(
    st.sampled_from(["tried", "closed", "dead", "resolved", "replayed"]),
    st.lists(VALUES | st.sampled_from([each.value for each in Fate]), max_size=7),
    st.integers(-(2**60), 2**60),
)
def test_no_foreign_entry_hides_the_rest(kind: str, rest: list[object], at: int) -> None:
    fields = {"history:1": json.dumps([at, kind, *rest]), "history:2": f'[{AT},"dead","why"]'}
    assert parse_history(fields)[-1] == Event(AT, "dead letter: why")

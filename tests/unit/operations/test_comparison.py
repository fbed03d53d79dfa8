"""Comparing totals and payments: values only."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.money import Total
from payswitch.operations.comparison import (
    Difference,
    DifferenceKind,
    Differing,
    Window,
    compared_windows,
    judge,
    may_differ,
    unexplained,
)
from payswitch.payments.records import Record
from payswitch.processors.outcomes import Found

ENDS = Window(0, 10_000)
NOW = 5000
GAP_MS = 100
WHOLE = Window(0, 999)
IDS = st.integers(0, 10**6).map(str)
INSTANTS = st.integers(0, 999)
CENTS = st.integers(1, 10**12)
FOUND = st.none() | st.builds(Found, CENTS, INSTANTS)


def record(
    state: str = "settled",
    *,
    processor: str | None = "default",
    requested_at: int | None = 10,
    cents: int = 1990,
    accepted_at: int = 0,
    settled_at: int | None = None,
) -> Record:
    return Record(
        correlation_id="4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3",
        state=state,
        cents=cents,
        accepted_at=accepted_at,
        processor=processor,
        requested_at=requested_at,
        tries=1,
        open_tries=(),
        horizon=None,
        quiet_ms=None,
        lease_until=None,
        last_error=None,
        reason=None,
        dead_at=None,
        replayed_at=None,
        settled_at=settled_at,
    )


OURS = Found(1990, 10)


@pytest.mark.parametrize(
    ("state", "default", "fallback", "kind"),
    [
        ("settled", OURS, None, None),
        ("settled", None, None, DifferenceKind.UNKNOWN_THERE),
        ("settled", Found(1991, 10), None, DifferenceKind.OTHER_DETAILS),
        ("settled", Found(1990, 11), None, DifferenceKind.OTHER_DETAILS),
        ("settled", None, OURS, DifferenceKind.ELSEWHERE),
        ("settled", OURS, OURS, DifferenceKind.PAID_TWICE),
        ("queued", None, None, None),
        ("dead", OURS, None, DifferenceKind.NOT_SETTLED),
        ("processing", None, OURS, DifferenceKind.NOT_SETTLED),
        ("dead", OURS, OURS, DifferenceKind.PAID_TWICE),
    ],
)
def test_how_a_payment_differs(
    state: str, default: Found | None, fallback: Found | None, kind: DifferenceKind | None
) -> None:
    assert judge(record(state), {"default": default, "fallback": fallback}) is kind


@pytest.mark.parametrize(
    ("first", "last", "windows"),
    [
        (None, None, [Window(0, NOW), Window(NOW + 101, 10_000)]),
        (10, 20, [Window(10, 20)]),
        (10, NOW, [Window(10, NOW)]),
        (10, NOW + 100, [Window(10, NOW)]),
        (10, NOW + 101, [Window(10, NOW), Window(NOW + 101, NOW + 101)]),
        (NOW + 1, None, [Window(NOW + 1, 10_000)]),
        (-5, 20_000, [Window(0, NOW), Window(NOW + 101, 10_000)]),
    ],
)
def test_what_is_compared_ends_now_and_begins_again_later(
    first: int | None, last: int | None, windows: list[Window]
) -> None:
    assert compared_windows(first, last, NOW, ends=ENDS, gap_ms=GAP_MS) == windows


@given(st.integers(-(10**14), 10**14), st.integers(1, 10**14))
def test_halves_make_up_the_whole(first: int, length: int) -> None:
    window = Window(first, first + length)
    left, right = window.cut(Window(window.middle, window.middle))
    assert (left.first, right.last) == (window.first, window.last)
    assert left.first <= left.last == right.first - 1 < right.last
    assert abs((left.last - left.first) - (right.last - right.first)) <= 1


def test_a_window_whose_middle_lies_in_its_first_entry_is_cut_behind_that() -> None:
    assert Window(0, 1200).cut(Window(0, 999)) == (Window(0, 999), Window(1000, 1200))


@given(st.integers(0, 10**6), st.integers(1, 50), st.sampled_from([1, 10_000]))
def test_a_window_is_cut_between_entries_until_one_is_left(
    first: int, entries: int, width: int
) -> None:
    found = []
    level = [Window(first * width, (first + entries) * width - 1)]
    while level:
        window = level.pop()
        start = window.middle // width * width
        cut = window.cut(Window(start, start + width - 1))
        level += cut
        found += [] if cut else [window.first]
    assert sorted(found) == [(first + number) * width for number in range(entries)]


@pytest.mark.parametrize(
    ("of", "is_looked_up"),
    [
        (record(requested_at=150, accepted_at=140, settled_at=160), True),
        (record(requested_at=90, accepted_at=80, settled_at=100), True),
        (record(requested_at=90, accepted_at=80, settled_at=99), False),
        (record(requested_at=210, accepted_at=201, settled_at=220), False),
        (record(requested_at=150, accepted_at=300, settled_at=400), True),
        (record("queued", requested_at=900, accepted_at=900), True),
        (record("dead", requested_at=900, accepted_at=1100), True),
        (record("dead", requested_at=1100, accepted_at=1100), False),
        (record("queued", processor=None, requested_at=None), False),
    ],
)
def test_what_is_looked_up(of: Record, is_looked_up: bool) -> None:
    """The windows that differ are within 100 and 200, those that are compared up to 1000."""
    assert may_differ(of, [Window(100, 200)], [Window(0, 1000)]) is is_looked_up


@given(
    payments=st.lists(
        st.tuples(st.sampled_from(["settled", "dead"]), CENTS, INSTANTS, FOUND, FOUND), max_size=20
    ),
    strangers=st.lists(st.tuples(st.sampled_from(["default", "fallback"]), CENTS, INSTANTS)),
    cuts=st.sets(st.integers(1, 999), max_size=5),
)
def test_the_rest_after_all_differing_payments_is_from_unknown_payments(
    payments: list[tuple[str, int, int, Found | None, Found | None]],
    strangers: list[tuple[str, int, int]],
    cuts: set[int],
) -> None:
    ours: list[tuple[str, int, int]] = []
    theirs = list(strangers)
    differing: list[Differing] = []
    for state, cents, at, default, fallback in payments:
        found = {"default": default, "fallback": fallback}
        of = record(state, cents=cents, requested_at=at)
        ours += [("default", cents, at)] if state == "settled" else []
        theirs += [(name, each.cents, each.requested_at) for name, each in found.items() if each]
        if (kind := judge(of, found)) is not None:
            differing.append(Differing(kind, of, found))
    edges = [0, *sorted(cuts), 1000]
    parts = [Window(first, past - 1) for first, past in pairwise(edges)]

    def measure(windows: list[Window]) -> list[Difference]:
        return [
            Difference(name, window, sum_of(ours, name, window), sum_of(theirs, name, window))
            for name in ("default", "fallback")
            for window in windows
        ]

    narrow = [each for each in measure(parts) if each.ours != each.theirs]
    left = unexplained(measure([WHOLE]), narrow, differing)
    for name in ("default", "fallback"):
        mine = [each for each in left if each.processor == name]
        assert add(each.missing_here for each in mine) == sum_of(strangers, name, WHOLE)
        exact = {each.window: each.missing_here for each in mine if each.window != WHOLE}
        for each in narrow:
            if each.processor == name and each.window != WHOLE:
                expected = sum_of(strangers, name, each.window)
                assert exact.get(each.window, Total()) == expected


def add(totals: Iterable[Total]) -> Total:
    counted = list(totals)
    return Total(sum(each.count for each in counted), sum(each.cents for each in counted))


def sum_of(entries: list[tuple[str, int, int]], processor: str, window: Window) -> Total:
    cents = [cents for name, cents, at in entries if name == processor and window.holds(at)]
    return Total(len(cents), sum(cents))

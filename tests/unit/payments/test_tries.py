"""Open tries as the record has them, what was found of them, and the worker's own horizon."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.dispatch.quiet_watch import QuietWatch
from payswitch.payments.claims import Claim, OpenTry, parse_open_tries
from payswitch.payments.tries import Findings

ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
OTHER_ID = "00000000-0000-0000-0000-000000000001"
QUIET_MS = 25_000
IDS = st.integers(0, 2**64 - 1).map(str)
OPEN_TRIES = st.lists(st.builds(OpenTry, IDS, st.booleans()), max_size=8)


def claim_of(*tries: str, correlation_id: str = ID, quiet_ms: int = QUIET_MS) -> Claim:
    open_tries = tuple(OpenTry(each, False) for each in tries)
    return Claim(correlation_id, 1990, "9", "0", 0.0, open_tries=open_tries, quiet_ms=quiet_ms)


# Open tries.


@pytest.mark.parametrize(
    ("text", "open_tries"),
    [
        ("", ()),
        ("1", (OpenTry("1", False),)),
        ("1e", (OpenTry("1", True),)),
        ("1p", (OpenTry("1", False, True),)),
        ("83 27e", (OpenTry("83", False), OpenTry("27", True))),
        ("83e 27", (OpenTry("83", True), OpenTry("27", False))),
        ("9 8 17e", (OpenTry("9", False), OpenTry("8", False), OpenTry("17", True))),
    ],
)
def test_open_tries_are_read_from_the_record(text: str, open_tries: tuple[OpenTry, ...]) -> None:
    assert parse_open_tries(text) == open_tries


@given(OPEN_TRIES)
def test_any_open_tries_are_read_as_they_were_written(open_tries: list[OpenTry]) -> None:
    assert parse_open_tries(" ".join(each.text for each in open_tries)) == tuple(open_tries)


# Findings.


@pytest.mark.parametrize(
    ("closed", "ended", "pending", "arguments"),
    [
        (set(), set(), set(), ("", "")),
        ({"1"}, set(), set(), ("1", "")),
        (set(), {"2"}, set(), ("", "2e")),
        (set(), set(), {"2"}, ("", "2p")),
        (set(), {"2"}, {"2"}, ("", "2p")),
        ({"10", "9", "2"}, {"11", "3"}, {"4"}, ("10,2,9", "11e,3e,4p")),
    ],
)
def test_findings_are_lists_of_ids_in_order(
    closed: set[str], ended: set[str], pending: set[str], arguments: tuple[str, str]
) -> None:
    assert Findings(closed, ended, pending).arguments() == arguments


def test_two_findings_share_nothing() -> None:
    Findings().closed.add("1")
    assert Findings().arguments() == ("", "")


# The quiet time.


@pytest.mark.parametrize("quiet_ms", [0, 1, QUIET_MS])
def test_the_quiet_time_has_not_passed_when_a_try_is_first_seen(quiet_ms: int) -> None:
    assert not QuietWatch().passed(claim_of("3", quiet_ms=quiet_ms), 10**9)


@pytest.mark.parametrize(
    ("later_ms", "has_passed"),
    [(0, False), (QUIET_MS - 1, False), (QUIET_MS, True), (10 * QUIET_MS, True)],
)
def test_the_quiet_time_passes_from_the_first_sight_on(later_ms: int, has_passed: bool) -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 1000)
    assert watch.passed(claim_of("3"), 1000 + later_ms) is has_passed


def test_looking_again_does_not_restart_the_quiet_time() -> None:
    watch = QuietWatch()
    for now in range(1000, 1000 + QUIET_MS, 1000):
        watch.passed(claim_of("3"), now)
    assert watch.passed(claim_of("3"), 1000 + QUIET_MS)


def test_a_newer_try_restarts_the_quiet_time() -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 0)
    watch.passed(claim_of("4"), QUIET_MS - 1)
    assert not watch.passed(claim_of("4"), 2 * QUIET_MS - 2)


def test_the_quiet_time_of_a_newer_try_passes_from_its_own_first_sight_on() -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 0)
    watch.passed(claim_of("4"), 500)
    assert watch.passed(claim_of("4"), 500 + QUIET_MS)


def test_a_newer_try_that_is_first_seen_late_has_not_passed() -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 0)
    assert not watch.passed(claim_of("4"), 10 * QUIET_MS)


def test_a_try_that_was_sent_here_counts_from_its_sending() -> None:
    watch = QuietWatch()
    watch.saw(ID, "3", 1000)
    assert watch.passed(claim_of("3"), 1000 + QUIET_MS)


def test_another_first_try_of_the_same_payment_is_another_try() -> None:
    """A purge or a failover may undo a try, and another one is the payment's first then."""
    watch = QuietWatch()
    watch.passed(replace(claim_of("3"), tries=1), 0)
    assert not watch.passed(replace(claim_of("4"), tries=1), 10 * QUIET_MS)


def test_the_try_that_was_opened_last_counts() -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 0)
    assert not watch.passed(claim_of("3", "2"), QUIET_MS)
    assert not watch.passed(claim_of("3", "2"), 2 * QUIET_MS - 1)
    assert watch.passed(claim_of("3", "2"), 2 * QUIET_MS)


def test_a_longer_quiet_time_is_waited_for() -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 0)
    assert not watch.passed(claim_of("3", quiet_ms=2 * QUIET_MS), QUIET_MS)


def test_payments_are_watched_one_by_one() -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 0)
    assert not watch.passed(claim_of("3", correlation_id=OTHER_ID), QUIET_MS)


def test_a_forgotten_payment_is_seen_for_the_first_time_again() -> None:
    watch = QuietWatch()
    watch.passed(claim_of("3"), 0)
    watch.forget(ID)
    assert not watch.passed(claim_of("3"), QUIET_MS)


def test_an_unknown_payment_may_be_forgotten() -> None:
    QuietWatch().forget(ID)


def test_beyond_its_room_the_watch_forgets_the_oldest_sight() -> None:
    watch = QuietWatch(remembered=2)
    for number in (1, 2, 3):
        watch.saw(str(number), "7", 0)
    assert [
        watch.passed(claim_of("7", correlation_id=str(number)), QUIET_MS) for number in (3, 2, 1)
    ] == [True, True, False]


def test_a_payment_that_was_seen_again_is_not_the_oldest() -> None:
    watch = QuietWatch(remembered=2)
    watch.saw("1", "7", 0)
    watch.saw("2", "7", 0)
    watch.saw("1", "8", 0)
    watch.saw("3", "7", 0)
    assert watch.passed(claim_of("8", correlation_id="1"), QUIET_MS)

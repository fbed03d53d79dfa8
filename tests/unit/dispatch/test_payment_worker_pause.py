"""How long a worker lets others arrive: workers keep apart, whatever their phases were."""

from __future__ import annotations

import heapq
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from payswitch.dispatch.payment_worker import claim_interval

PAUSE_MS = 100.0
TURN_MS = 5.0

waits = st.floats(0, 10_000)


@given(pause=st.floats(0, 1000), waited=waits)
def test_it_is_the_pause_and_up_to_a_quarter_more(pause: float, waited: float) -> None:
    assert pause <= claim_interval(pause, waited) <= pause * 1.25


@given(waited=st.floats(PAUSE_MS / 2, 10_000))
def test_a_worker_alone_or_in_the_middle_waits_for_the_pause(waited: float) -> None:
    assert claim_interval(PAUSE_MS, waited) == PAUSE_MS


@given(starts=st.lists(st.floats(0, PAUSE_MS), min_size=2, max_size=5))
def test_workers_come_to_claim_at_even_distances(starts: list[float]) -> None:
    due = [(start, worker) for worker, start in enumerate(starts)]
    heapq.heapify(due)
    claims = [0.0]
    for _ in range(200 * len(starts)):
        now, worker = heapq.heappop(due)
        waited = now - claims[-1]
        claims.append(now)
        heapq.heappush(due, (now + TURN_MS + claim_interval(PAUSE_MS, waited), worker))
    gaps = [later - earlier for earlier, later in pairwise(claims[-2 * len(starts) :])]
    assert max(gaps) <= 1.3 * min(gaps)

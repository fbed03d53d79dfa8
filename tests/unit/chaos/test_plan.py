"""The schedule of faults: from the seed alone, and over when the time is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.chaos.inject import _sum_of
from payswitch.chaos.plan import GROUPS, KINDS, WARM_UP_S, Scale, is_clean, kinds_of, plan
from payswitch.chaos.timeline import _FAULTS

SCALE = Scale(
    lease_s=15,
    max_delay_s=10,
    workers=3,
    processors=("default", "fallback", "acme"),
    deciding=("acme",),
    shards=3,
)
SEEDS = st.integers(0, 2**32)
KIND_SETS = st.sets(st.sampled_from(sorted(KINDS)), min_size=1).map(frozenset)


@given(SEEDS, KIND_SETS, st.floats(30, 150))
def test_the_same_seed_breaks_the_same_things_at_the_same_instants(
    seed: int, kinds: frozenset[str], seconds: float
) -> None:
    assert plan(seed, seconds, kinds, SCALE) == plan(seed, seconds, kinds, SCALE)


@given(SEEDS, KIND_SETS, st.floats(30, 150))
def test_every_kind_that_was_asked_for_comes_and_no_other(
    seed: int, kinds: frozenset[str], seconds: float
) -> None:
    events = plan(seed, seconds, kinds, SCALE)
    assert {event.kind for event in events} == {kind for kind in kinds if KINDS[kind].every_s}


@given(SEEDS)
def test_processors_fail_alone_and_together_so_that_each_gets_payments(seed: int) -> None:
    events = plan(seed, 600, kinds_of("processor", cluster=True), SCALE)
    together = {"default+fallback", "default+fallback+acme"}
    assert {event.target for event in events} == {*SCALE.processors, *together}


@given(SEEDS)
def test_only_a_processor_that_can_decide_declines_payments_or_leaves_them_pending(
    seed: int,
) -> None:
    kinds = frozenset({"decline", "pending"})
    events = plan(seed, 60, kinds, SCALE)
    assert {event.kind for event in events} == kinds
    assert {event.target for event in events} == {"acme"}
    for event in events:
        assert 0 < sum(_sum_of([event], "decisions").values()) <= 1
        assert _sum_of([event]) == {}
    assert plan(seed, 60, kinds, replace(SCALE, processors=("default",), deciding=())) == []


@given(SEEDS, st.floats(6, 150))
def test_everything_is_over_when_the_time_is(seed: int, seconds: float) -> None:
    for event in plan(seed, seconds, frozenset(KINDS), SCALE):
        assert event.at_s >= WARM_UP_S
        assert event.ends_s <= seconds + 1e-9


@given(SEEDS)
def test_a_processor_that_limits_or_refuses_does_so_to_every_payment(seed: int) -> None:
    events = plan(seed, 120, frozenset({"limited", "refusing", "answers", "gateway"}), SCALE)
    for event in events:
        if event.kind in ("limited", "refusing"):
            assert list(_sum_of([event]).values()) == [1.0]


@given(SEEDS, st.integers(1, 5))
def test_what_overlaps_is_never_more_than_certain(seed: int, many: int) -> None:
    events = plan(seed, 60, kinds_of("processor", cluster=True) - {"health"}, SCALE)
    assert sum(_sum_of(events[:many]).values()) <= 1


@given(SEEDS)
def test_a_frozen_worker_outlasts_its_lease(seed: int) -> None:
    freezes = plan(seed, 120, frozenset({"freeze"}), SCALE)
    assert all(event.lasts_s > SCALE.lease_s for event in freezes)


def test_other_seeds_break_other_things() -> None:
    assert plan(1, 120, frozenset(KINDS), SCALE) != plan(2, 120, frozenset(KINDS), SCALE)


def test_a_kind_comes_at_the_same_instants_whatever_else_is_asked_for() -> None:
    alone = plan(5, 120, frozenset({"kill"}), SCALE)
    among = plan(5, 120, frozenset(KINDS), SCALE)
    assert alone == [event for event in among if event.kind == "kill"]


def test_faults_are_named_by_group_by_kind_or_all() -> None:
    assert kinds_of("all", cluster=True) == frozenset(KINDS)
    assert kinds_of("clock", cluster=True) == {"clock"}
    assert kinds_of("redis-kill, kill", cluster=True) == {"redis-kill", "kill"}
    assert kinds_of("processor", cluster=True) > kinds_of("clean", cluster=True)
    each = [kinds_of(group, cluster=True) for group in GROUPS]
    assert frozenset().union(*each) == frozenset(KINDS)


def test_a_single_redis_has_no_faults_of_a_cluster() -> None:
    single = replace(SCALE, shards=0)
    kinds = kinds_of("all", cluster=False)
    assert frozenset(KINDS) - kinds == kinds_of("cluster", cluster=True)
    events = plan(1, 120, kinds, single)
    assert {event.target for event in events if event.kind.startswith("redis-")} == {"redis"}
    for name in ("cluster", "failover", "redis,node-wipe"):
        with pytest.raises(ValueError, match="only with --redis cluster"):
            kinds_of(name, cluster=False)


def test_in_a_cluster_each_node_has_faults_by_its_role() -> None:
    events = plan(1, 2000, kinds_of("redis,cluster", cluster=True), SCALE)
    copies = {f"{role}-{number}" for role in ("primary", "replica") for number in (1, 2, 3)}
    assert {event.target for event in events} == {*copies, "nodes", "selection", "island"}
    assert {event.target for event in events if event.kind == "node-wipe"} < copies


@pytest.mark.parametrize("text", ["", "redis,", "Kill", "everything"])
def test_an_unknown_fault_is_refused_with_the_names_that_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="redis-kill"):
        kinds_of(text, cluster=True)


def test_only_faults_without_doubt_are_clean() -> None:
    assert is_clean(kinds_of("clean,client", cluster=True))
    assert not is_clean(kinds_of("clean,kill", cluster=True))
    assert not is_clean(kinds_of("answers", cluster=True))


def test_the_timeline_has_a_color_for_each_fault_that_is_planned() -> None:
    assert {each.group for each in KINDS.values() if each.every_s} == _FAULTS.keys()

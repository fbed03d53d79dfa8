"""The deep cases, written out: each schedule leaves the promise whole, and breaks it once the code
that guards against it is taken away. They run through the same world as the model check."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.model.actions import accept, possible
from tests.model.promise import BrokenPromiseError, check, heal, read
from tests.model.stepped import Store
from tests.model.temper import Temper
from tests.model.variants import VARIANTS, Protocol
from tests.model.world import World


@dataclass(frozen=True)
class Schedule:
    """What happens, step by step, in the words of `possible`."""

    guards: str
    """The variant that it breaks."""
    steps: tuple[str, ...]
    deadline_ms: int = 24 * 3600 * 1000


_OF_A_CLUSTER = {
    "the replica takes over",
    "everything is lost",
    "accept pay-1 again",
    "the slot begins to move",
    "the primary's files are copied",
}


def play(store: Store, protocol: Protocol, schedule: Schedule) -> int:
    """Let it happen to pay-1 as far as it can, then heal; returns how many steps could not happen.
    Raises `BrokenPromiseError`."""
    impossible = 0
    temper = Temper(
        slower="the processors become slower" in schedule.steps,
        deliberate=True,
        deadline_ms=schedule.deadline_ms,
        failovers=not _OF_A_CLUSTER.isdisjoint(schedule.steps),
        restarts="the primary's files are copied" in schedule.steps,
        moves="the slot begins to move" in schedule.steps,
        loses_all="everything is lost" in schedule.steps,
        misfit=schedule.guards == "another number of partitions",
    )
    world = World(store, protocol, temper)
    try:
        accept(world, world.ingresses[0], "pay-1", 1000)
        for step in schedule.steps:
            seen = read(world)
            check(world, seen)
            labels = {action.label: action for action in possible(world, seen)}
            if step in labels:
                labels[step].happen()
                world.settle_down()
            else:
                impossible += 1
        heal(world)
    finally:
        world.close()
    return impossible


_PURGED_WHILE_IN_HAND = (
    *("worker 1 claims", "purge at once", "15000 ms pass", "worker 2 claims and sends"),
    *("ingress 1: purge", "default pays it: pay-1", "worker 2 runs"),
)

_ANOTHER_FIRST_TRY = (
    *("the replica takes over", "worker 2 finds the new primary"),
    *("worker 1 claims", "worker 1: route pay-1, answered later", "worker 1 is killed"),
    "15000 ms pass",
    *("worker 1 claims", "worker 1: ask fallback for pay-1: unclear", "worker 1 runs"),
    *("25000 ms pass", "worker 2 claims and sends", "default stays silent: pay-1"),
    *("worker 2 runs", "worker 1 finds the new primary", "Redis' clock steps 3600000 ms"),
    *("worker 1 claims and sends", "fallback pays it: pay-1", "worker 1 runs"),
    "default records it: pay-1",
)
"""Worker 1 sees a try at the former primary that was never sent, then one at the new primary."""

_CAME_BACK_OLDER = (
    *("the primary's files are copied", "5000 ms pass", "the primary's files are copied"),
    *("accept pay-2", "the primary comes back older"),
)
"""All have known the node for long; ingress 1 alone knows that pay-2 was confirmed."""

SCHEDULES = [
    Schedule(
        "unpin on a timeout",
        (
            *("worker 1 claims and sends", "fallback stays silent: pay-1", "worker 1 runs"),
            "time passes until something is due",
            *("worker 2 claims and sends", "default pays it: pay-1", "worker 2 runs"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule(
        "unpin on the 500 of a second try",
        (
            *("worker 1 claims and sends", "fallback stays silent: pay-1", "worker 1 runs"),
            "time passes until something is due",
            *("worker 1 claims and sends", "fallback says 500: pay-1", "worker 1 runs"),
            "time passes until something is due",
            *("worker 2 claims and sends", "default pays it: pay-1", "worker 2 runs"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule(
        "429 closes",
        (
            "worker 1 claims and sends",
            "fallback pays it, and the gateway says 429: pay-1",
            *("worker 1: ask fallback for pay-1: unclear", "worker 1 runs"),
            "time passes until something is due",
            *("worker 2 claims and sends", "default pays it: pay-1", "worker 2 runs"),
        ),
    ),
    Schedule(
        "a refusal is taken for a 404",
        (
            "worker 1 claims and sends",
            "fallback pays it, and the gateway says 429: pay-1",
            *("worker 1: ask fallback for pay-1: unclear", "worker 1 runs"),
            *("time passes until something is due", "worker 2 prefers fallback"),
            *("worker 2 claims and sends", "fallback pays it: pay-1", "worker 2 runs"),
        ),
    ),
    Schedule(
        "404 closes at once after 503",
        (
            "worker 1 claims and sends",
            *("fallback lives on, but the gateway says 503: pay-1", "worker 1 runs"),
            "time passes until something is due",
            *("worker 2 claims and sends", "default pays it: pay-1", "worker 2 runs"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule(
        "own limit ignored",
        (
            *("worker 1 claims and sends", "the processors become slower", "15000 ms pass"),
            *("worker 2 claims", "worker 2: ask fallback for pay-1: unclear", "worker 2 runs"),
            *("25000 ms pass", "worker 2 claims and sends", "default pays it: pay-1"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule(
        "unpin not fenced",
        (
            *("worker 2 claims and sends", "time passes until something is due"),
            *("default stays silent: pay-1", "worker 1 claims", "worker 2 runs"),
            *("worker 1: ask default for pay-1", "time passes until something is due"),
            *("worker 2 claims and sends", "default pays it: pay-1", "worker 2 runs"),
            "worker 1 runs",
        ),
    ),
    Schedule(
        "horizon counted from the pin",
        (
            *("worker 1 claims and sends", "fallback stays silent: pay-1", "worker 1 runs"),
            "time passes until something is due",
            *("worker 2 claims", "worker 2: ask fallback for pay-1: unclear", "worker 2 runs"),
            *("10000 ms pass", "14500 ms pass", "worker 1 claims and sends"),
            *("fallback stays silent: pay-1", "worker 1 runs", "5000 ms pass"),
            *("worker 2 claims and sends", "default pays it: pay-1", "worker 2 runs"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule("purge without a generation", _PURGED_WHILE_IN_HAND),
    Schedule("settle without a look at the generation", _PURGED_WHILE_IN_HAND),
    Schedule(
        "bury not fenced",
        (
            *("worker 1 claims and sends", "fallback refuses with 422: pay-1"),
            *("worker 1: ask fallback for pay-1", "15000 ms pass"),
            *("worker 2 claims and sends", "fallback pays it: pay-1", "worker 2 runs"),
            "worker 1: bury pay-1",
        ),
    ),
    Schedule(
        "a resolved dead letter is replayed",
        (
            *("worker 1 claims and sends", "fallback refuses with 422: pay-1", "worker 1 runs"),
            *("resolve pay-1", "ingress 2: resolve pay-1"),
            *("replay pay-1, which was resolved", "ingress 2: replay pay-1"),
            "100 ms pass",
        ),
    ),
    Schedule(
        "Pending re-routed",
        (
            *("worker 1 claims and sends", "fallback has it pending: pay-1", "worker 1 runs"),
            *("fallback denies it: pay-1", "time passes until something is due"),
            *("worker 2 claims and sends", "25000 ms pass"),
            *("worker 2 claims and sends", "1 ms pass"),
        ),
    ),
    Schedule(
        "a pending try gives way to an ended one",
        (
            *("worker 1 claims and sends", "fallback has it pending, unheard: pay-1"),
            *("15000 ms pass", "worker 2 claims", "worker 2 runs", "fallback answers 401: pay-1"),
            *("worker 1: ask fallback for pay-1: unclear", "worker 1 runs"),
            *("time passes until something is due", "worker 1 claims and sends"),
        ),
    ),
    Schedule(
        "Pending sent again by one that doesn't know",
        (
            *("worker 1 claims", "worker 1 runs", "10000 ms pass"),
            *("worker 1: write pay-1 to fallback", "5000 ms pass", "worker 2 claims"),
            "worker 2: ask fallback for pay-1, answered later",
            *("fallback has it pending: pay-1", "worker 1 runs"),
            *("worker 2: ask fallback for pay-1", "worker 2 runs", "1 ms pass"),
        ),
    ),
    Schedule(
        "Declined replayed",
        (
            *("worker 1 claims and sends", "fallback declines it: pay-1", "worker 1 runs"),
            *("replay pay-1, which was declined", "ingress 2: replay pay-1", "1 ms pass"),
        ),
    ),
    Schedule(
        "declined although an earlier try is open",
        (
            *("worker 1 claims and sends", "fallback stays silent: pay-1", "worker 1 runs"),
            *("time passes until something is due", "worker 1 claims and sends"),
            *("fallback declines it, keeping nothing: pay-1", "worker 1 runs"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule(
        "a former holder's decline is dropped",
        (
            "worker 1 claims and sends",
            *("fallback declines it, keeping nothing: pay-1", "15000 ms pass"),
            *("worker 2 claims", "worker 1 runs", "worker 2 runs", "1 ms pass"),
        ),
    ),
    Schedule(
        "a former holder's decline of a dead letter is dropped",
        (
            *("worker 1 claims and sends", "fallback declines it, keeping nothing: pay-1"),
            *("worker 1 is killed", "25000 ms pass", "25000 ms pass", "worker 2 claims"),
            *("worker 2: ask fallback for pay-1", "worker 2 runs", "25000 ms pass"),
            *("worker 2 claims", "worker 2: ask fallback for pay-1", "worker 2 runs"),
            *("after all, Redis does worker 1: bury pay-1", "replay pay-1"),
            *("ingress 2: replay pay-1", "worker 2 claims", "worker 2 runs"),
        ),
        deadline_ms=40_000,
    ),
    Schedule(
        "the lease not checked before the write",
        (
            *("worker 1 claims", "worker 1: route pay-1", "15000 ms pass"),
            *("worker 2 claims", "worker 2: ask fallback for pay-1: unclear", "worker 2 runs"),
            *("25000 ms pass", "worker 2 claims and sends", "default pays it: pay-1"),
            *("worker 2 runs", "worker 1: write pay-1 to fallback"),
        ),
    ),
    Schedule(
        "the lease counted from the claim's answer, the horizon by Redis' clock alone",
        (
            *("worker 1 begins to claim", "worker 1: claim, answered later", "15000 ms pass"),
            *("worker 1 runs", "10000 ms pass", "worker 2 claims and sends"),
            *("default pays it: pay-1", "worker 2 runs", "worker 1: write pay-1 to fallback"),
        ),
    ),
    Schedule(
        "the horizon by Redis' clock alone",
        (
            *("worker 1 claims and sends", "Redis' clock steps 3600000 ms"),
            *("worker 2 claims and sends", "default pays it: pay-1", "worker 2 runs"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule(
        "numbered tries",
        (
            *("worker 1 claims and sends", "fallback stays silent: pay-1", "worker 1 runs"),
            *("purge at once", "25000 ms pass", "accept pay-1, which was purged"),
            *("worker 2 claims and sends", "Redis' clock steps 3600000 ms"),
            *("worker 1 claims and sends", "fallback pays it: pay-1", "worker 1 runs"),
            "default records it: pay-1",
        ),
    ),
    Schedule("numbered tries", _ANOTHER_FIRST_TRY),
    Schedule(
        "numbered tries",
        (
            *("the replica takes over", "worker 2 finds the new primary", "worker 1 claims"),
            *("worker 1: route pay-1, answered later", "worker 1 finds the new primary"),
            *("worker 2 claims and sends", "default stays silent: pay-1", "worker 2 runs"),
            *("worker 1: route pay-1", "worker 1 runs", "time passes until something is due"),
            *("worker 1 claims and sends", "fallback pays it: pay-1", "worker 1 runs"),
            "default records it: pay-1",
        ),
    ),
    Schedule("tries watched by number", _ANOTHER_FIRST_TRY),
    Schedule(
        "counting tokens, the horizon by Redis' clock alone",
        (
            *("worker 1 claims and sends", "fallback stays silent: pay-1", "worker 1 runs"),
            *("time passes until something is due", "the replica takes over"),
            *("worker 2 finds the new primary", "worker 2 claims", "14500 ms pass"),
            *("worker 1 claims", "worker 1 finds the new primary"),
            *("worker 1: ask fallback for pay-1", "worker 1: route pay-1"),
            *("time passes until something is due", "10000 ms pass", "worker 2 claims and sends"),
            *("default pays it: pay-1", "worker 2 runs", "worker 1: write pay-1 to fallback"),
            "fallback records it: pay-1",
        ),
    ),
    Schedule(
        "accept without WAIT",
        ("the replica falls behind", "accept pay-2", "the replica takes over"),
    ),
    Schedule(
        "route without WAIT",
        ("the replica falls behind", "worker 1 claims and sends", "the replica takes over"),
    ),
    Schedule(
        "bury without WAIT",
        (
            *("worker 1 claims and sends", "fallback declines it, keeping nothing: pay-1"),
            *("the replica falls behind", "worker 1 runs", "the replica takes over"),
            *("worker 2 finds the new primary", "15000 ms pass", "worker 2 claims and sends"),
        ),
    ),
    Schedule(
        "a pending payment is noted without WAIT",
        (
            *("worker 1 claims and sends", "fallback has it pending: pay-1"),
            *("the replica falls behind", "worker 1 runs", "the replica takes over"),
            *("fallback denies it: pay-1", "worker 2 finds the new primary", "15000 ms pass"),
            *("worker 2 claims", "worker 2: ask fallback for pay-1: unclear", "worker 2 runs"),
            *("25000 ms pass", "worker 2 claims and sends", "default pays it: pay-1"),
        ),
    ),
    Schedule(
        "resolve without WAIT",
        (
            *("worker 1 claims and sends", "fallback refuses with 422: pay-1", "worker 1 runs"),
            *("resolve pay-1", "the replica falls behind", "ingress 2: resolve pay-1"),
            *("the replica takes over", "ingress 2 finds the new primary", "replay pay-1"),
            *("ingress 2: replay pay-1", "1 ms pass"),
        ),
    ),
    Schedule(
        "a short WAIT is taken for done",
        (
            *("the replica falls behind", "worker 1 claims"),
            *("worker 1: route pay-1, WAIT short", "worker 1: write pay-1 to fallback"),
            "the replica takes over",
        ),
    ),
    Schedule(
        "a call that wrote nothing waits for nothing",
        (
            *("the replica falls behind", "begin to accept pay-2"),
            *("ingress 1: accept pay-2, WAIT short", "accept pay-2 again"),
            "the replica takes over",
        ),
    ),
    Schedule("marks are not checked", (*_CAME_BACK_OLDER, "5000 ms pass", "accept pay-1 again")),
    Schedule("any call lifts marks", (*_CAME_BACK_OLDER, "accept pay-1 again", "5000 ms pass")),
    Schedule("a node that restarts is trusted at once", (*_CAME_BACK_OLDER, "accept pay-1 again")),
    Schedule(
        "a late answer is trusted",
        (
            *(*_CAME_BACK_OLDER, "worker 1 looks", "worker 1: look", "worker 1 claims"),
            *("worker 1: route pay-1, answered later", "5000 ms pass", "worker 1: route pay-1"),
        ),
    ),
    Schedule(
        "others don't see a stop",
        (
            *(*_CAME_BACK_OLDER, "ingress 1 looks", "ingress 1: look"),
            *("ingress 1: stop", "ingress 1: stop", "5000 ms pass", "accept pay-1 again"),
            *("the loss is accepted", "accept pay-3", "worker 1 claims and sends"),
        ),
    ),
    Schedule(
        "others don't see a stop",
        (
            *(*_CAME_BACK_OLDER, "5000 ms pass", "ingress 2 looks", "ingress 2: look"),
            *("5000 ms pass", "ingress 2 looks", "ingress 2: look"),
            *("the right files are brought", "5000 ms pass", "accept pay-3"),
        ),
    ),
    Schedule(
        "another number of partitions",
        (
            *("worker 1 claims and sends", "accept pay-1 again", "15000 ms pass"),
            "worker 2 claims and sends",
            *("default pays it: pay-1", "worker 2 runs"),
        ),
    ),
    Schedule(
        "no first touch",
        (
            *("worker 1 claims and sends", "fallback pays it: pay-1"),
            *("the slot begins to move", "worker 1 runs", "the move is given up"),
        ),
    ),
    Schedule(
        "an empty shard is taken for new",
        (
            *("worker 1 claims and sends", "fallback pays it: pay-1", "worker 1 runs"),
            *("everything is lost", "accept pay-1, lost", "worker 2 claims and sends"),
            *("default pays it: pay-1", "worker 2 runs"),
        ),
    ),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.guards)
def test_the_promise_holds_through_it(store: Store, schedule: Schedule) -> None:
    assert play(store, Protocol(), schedule) < len(schedule.steps) / 2


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.guards)
def test_it_breaks_the_promise_once_the_guard_is_gone(store: Store, schedule: Schedule) -> None:
    [broken] = [variant for variant in VARIANTS if variant.name == schedule.guards]
    with pytest.raises(BrokenPromiseError):
        play(store, broken, schedule)

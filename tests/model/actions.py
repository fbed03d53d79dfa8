"""What may happen next in the model's world, and how often it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from payswitch.store import keys
from tests.model.parts import Ingress, Worker
from tests.model.processors import REFUSED_CONNECTION, UNCLEAR, Wire
from tests.model.promise import Snapshot
from tests.model.stepped import Gate, Node
from tests.model.temper import (
    LATER_MAX_DELAY_MS,
    LEASE_MS,
    MARGIN_MS,
    MAX_DELAY_MS,
    QUIET_MS,
)
from tests.model.world import World
from tests.support import PROCESSORS

_MOST_IN_HAND = 4
_MOST_PAYMENTS = 8
_HOUR_MS = 3_600_000


class Action:
    """Something that may happen now."""

    def __init__(self, label: str, weight: int, happen: Callable[[], object]) -> None:
        self.label = label
        self.weight = weight
        self.happen = happen

    def __repr__(self) -> str:
        return self.label


def possible(world: World, seen: Snapshot) -> Iterator[Action]:
    """Everything that may happen now. Hypothesis likes the first most."""
    next_due = min(seen.queue.values(), default=None)
    is_due = next_due is not None and next_due <= world.redis_now()
    is_due_there = world.former is not None and _is_due(world, world.former)
    for worker in world.workers:
        here = worker.node is world.node
        yield from _of_worker(world, worker, is_due=is_due if here else is_due_there)
    if next_due is not None and not is_due:
        ms = int(next_due) - world.redis_now()
        weight = 3 if world.gates else 24
        yield Action("time passes until something is due", weight, partial(world.wait, ms))
    for wire in world.books.wires:
        for what, (weight, happen) in world.books.answers(wire).items():
            if world.temper.unwilling and what in ("stays silent", "says 500"):
                weight *= 3
            if world.temper.strict and ("429" in what or what == "refuses with 422"):
                weight *= 12
            yield Action(f"{wire.processor} {what}: {wire.payment}", weight, happen)
    if world.temper.deliberate:
        for wire in [*world.books.wires, *world.books.undecided()]:
            yield from _of_deliberation(world, wire)
    for gate in world.gates:
        yield from _of_gate(world, gate)
    for ghost in world.ghosts:
        yield Action(f"after all, Redis does {ghost.label}", 2, partial(wake, world, ghost))
    yield from _of_clients(world, seen)
    yield from _of_operator(world)
    if world.temper.failovers:
        yield from _of_failover(world)
    if world.temper.restarts and world.former is None:
        yield from _of_restarts(world)
    if world.temper.moves:
        if world.is_moving:
            yield Action("the move is given up", 3, world.end_move)
        elif world.former is None:
            yield Action("the slot begins to move", 3, world.move_slot)
    if world.temper.slower and world.books.max_delay_ms < LATER_MAX_DELAY_MS:
        yield Action("the processors become slower", 3, world.slow_down)
    yield from _of_time(world)


def claim(world: World, worker: Worker) -> None:
    """A worker takes what is due, and each task runs to its first gate."""
    worker.claim(_MOST_IN_HAND)
    world.settle_down()
    for gate in list(worker.gates):
        if gate.kind == "claim":
            gate.pass_on()
    world.settle_down()


def claim_and_send(world: World, worker: Worker) -> None:
    """A worker takes what is due, and its requests leave."""
    claim(world, worker)
    flow(world, worker)
    for gate in list(worker.gates):
        gate.pass_on()
    world.settle_down()


def accept(world: World, ingress: Ingress, correlation_id: str, cents: int) -> None:
    """A client asks for a payment and is answered at once."""
    ingress.call_accept(correlation_id, cents)
    for gate in list(ingress.gates):
        gate.pass_on()
    world.settle_down()


def purge(world: World, ingress: Ingress) -> None:
    """A client purges, and nothing gets in between."""
    ingress.call_purge()
    while ingress.gates:
        ingress.gates[0].pass_on()
        world.settle_down()


def flow(world: World, worker: Worker) -> None:
    """A worker runs until all that it does is about to be written to a processor, or waits for
    one."""
    world.settle_down()
    while gates := [gate for gate in worker.gates if gate.kind != "write"]:
        for gate in gates:
            gate.pass_on()
        world.settle_down()


def wake(world: World, ghost: Gate) -> None:
    """Redis does what one asked for that is dead by now."""
    world.counts["done for the dead"] += 1
    world.ghosts.remove(ghost)
    ghost.perform()


def _of_clients(world: World, seen: Snapshot) -> Iterator[Action]:
    first, second = world.ingresses
    # An id is used again after a purge only when nothing of its old payment lives.
    if world.temper.purges and not _is_accepting(world) and not first.is_purging:
        yield Action("purge", 1, first.call_purge)
        yield Action("purge at once", 1, partial(purge, world, first))
    if first.is_purging:
        return
    waiting = [name for name in world.present if name in seen.open]
    if len(waiting) < world.temper.payments and len(world.present) < _MOST_PAYMENTS:
        name = f"pay-{len(world.amounts) + 1}"
        yield Action(
            f"accept {name}", 4 if waiting else 12, partial(accept, world, first, name, 1000)
        )
        yield Action(f"begin to accept {name}", 1, partial(first.call_accept, name, 1000))
    for old in world.idle_ids():
        yield Action(f"accept {old}, which was purged", 6, partial(accept, world, first, old, 1000))
    if world.is_lost:
        for name in sorted(set(world.amounts) - world.present):
            yield Action(f"accept {name}, lost", 6, partial(accept, world, first, name, 1000))
    if world.temper.loses_all and not world.is_lost and not world.gates:
        yield Action("everything is lost", 1, world.lose_everything)
    for known in sorted(world.present, key=lambda name: (name in world.acknowledged, name))[:1]:
        yield Action(f"accept {known} again", 1, partial(accept, world, second, known, 1000))
        yield Action(f"accept {known}, changed", 1, partial(accept, world, second, known, 2000))
        yield Action("sweep", 1, second.call_sweep)
    for known in sorted(seen.dead):
        yield Action(f"replay {known}", 3, partial(second.call_replay, known))
        yield Action(f"resolve {known}", 1, partial(second.call_resolve, known))
    for known in sorted(world.declined):
        yield Action(f"replay {known}, which was declined", 3, partial(second.call_replay, known))
    for known in sorted(world.resolved):
        yield Action(f"replay {known}, which was resolved", 12, partial(second.call_replay, known))


def _is_due(world: World, node: Node) -> bool:
    found = node.store.client.zrangebyscore(
        world.partition.key(keys.QUEUE), "-inf", world.redis_now(node), 0, 1
    )
    return bool(found)


def _of_failover(world: World) -> Iterator[Action]:
    if world.former is not None:
        for process in world.strayed():
            what = f"{process.name} finds the new primary"
            yield Action(what, 3, partial(world.find_primary, process))
        if not world.strayed():
            yield Action("the former primary becomes a replica", 3, world.end_former)
        return
    if world.restarts.is_older or world.restarts.is_stopped:
        return
    if world.is_behind:
        yield Action("the replica catches up", 1, world.catch_up)
    else:
        yield Action("the replica falls behind", 4, world.fall_behind)
    yield Action("the replica takes over", 6 if world.is_behind else 1, world.fail_over)
    if world.temper.clock_steps:
        for ms in (-_HOUR_MS, _HOUR_MS):
            what = f"the replica takes over, its clock {ms} ms ahead"
            yield Action(what, 1, partial(world.fail_over, ms))


def _of_restarts(world: World) -> Iterator[Action]:
    restarts = world.restarts
    if not restarts.is_older and not restarts.is_stopped:
        yield Action("the primary's files are copied", 2, restarts.keep)
        yield Action("the primary comes back", 1, restarts.come_back)
        if restarts.may_come_back_older:
            yield Action("the primary comes back older", 6, restarts.come_back_older)
        return
    for process in world.living():
        yield Action(f"{process.name} looks", 4, partial(world.look, process))
    if restarts.is_older:
        yield Action("the right files are brought", 4, restarts.bring_right_files)
    if restarts.is_stopped and not _is_accepting(world):
        yield Action("the loss is accepted", 6, restarts.accept_loss)


def _is_accepting(world: World) -> bool:
    return any(": accept" in gate.label for gate in (*world.gates, *world.ghosts))


def _of_operator(world: World) -> Iterator[Action]:
    _, operator = world.ingresses
    if not world.temper.orders or operator.gates:
        return
    override, paused = world.store.client.mget([keys.OVERRIDE, keys.PAUSED])  # type: ignore[misc]
    for name in PROCESSORS:
        yield Action(f"an operator selects {name}", 1, partial(operator.call_select, name))
    if override is not None:
        yield Action("an operator's choice ends", 1, operator.call_auto)
    if paused is None:
        yield Action("an operator pauses", 1, operator.call_pause)
    else:
        yield Action("an operator resumes", 4, operator.call_resume)


def _of_worker(world: World, worker: Worker, *, is_due: bool) -> Iterator[Action]:
    name = worker.name
    slow = 12 if world.temper.slow_claims else 1
    if is_due and len(worker.tasks) < _MOST_IN_HAND:
        yield Action(f"{name} claims", 8, partial(claim, world, worker))
        weight = 1 if worker.sluggish else 16
        yield Action(f"{name} claims and sends", weight, partial(claim_and_send, world, worker))
        yield Action(f"{name} begins to claim", slow, partial(worker.claim, _MOST_IN_HAND))
    if any(gate.kind != "write" for gate in worker.gates):
        yield Action(f"{name} runs", 2 if worker.sluggish else 20, partial(flow, world, worker))
    for other in PROCESSORS:
        if worker.dispatcher.router.selection.processor != other:
            yield Action(f"{name} prefers {other}", 1, partial(worker.prefer, other))
    for proof in world.books.proofs[-2:]:
        what = f"{name} proves {proof.payment} again"
        yield Action(what, 1, partial(worker.bring, proof))
    if world.temper.crashes and worker.tasks and world.restarts.may_die(worker):
        yield Action(f"{name} is killed", 2, partial(world.crash, worker))
        yield Action(f"{name} is stopped", 1, partial(world.stop, worker))


def _of_deliberation(world: World, wire: Wire) -> Iterator[Action]:
    """Once a worker has written down that a payment is pending, its processor may even deny it."""
    books = world.books
    where = f"{wire.processor} {{}}: {wire.payment}"
    for what, (weight, happen) in books.deliberations(wire).items():
        yield Action(where.format(what), weight, happen)
    if books.pending[wire.processor].get(wire.payment) is not wire:
        return
    yield Action(where.format("decides for it"), 3, partial(books.decide, wire, paid=True))
    yield Action(where.format("decides against it"), 3, partial(books.decide, wire, paid=False))
    if wire.payment in world.told_pending and not wire.denied:
        yield Action(where.format("denies it"), 6, partial(setattr, wire, "denied", True))


def _of_gate(world: World, gate: Gate) -> Iterator[Action]:
    if gate.kind == "write":
        yield Action(f"{gate.label}", 14, gate.pass_on)
        yield Action(f"{gate.label}: no connection", 1, partial(gate.answer, REFUSED_CONNECTION))
        return
    if gate.kind == "find":
        yield Action(f"{gate.label}: unclear", 4, partial(gate.answer, UNCLEAR))
    sluggish = world.temper.sluggish and gate.label.startswith("worker 1:")
    yield Action(f"{gate.label}", 1 if sluggish else 4, gate.pass_on)
    if not gate.performed and world.is_behind and gate.call and gate.call.confirm:
        yield Action(f"{gate.label}, WAIT short", 6, partial(world.fall_short, gate))
    if not gate.performed:
        weight = 12 if gate.kind == "claim" and world.temper.slow_claims else 1
        yield Action(f"{gate.label}, answered later", weight, gate.perform)
    if gate.kind != "find" and world.temper.redis_faults:
        yield Action(f"{gate.label}, answer lost", 2, gate.lose)
        if not gate.performed:
            yield Action(f"{gate.label}: fails", 1, gate.fail)


def _of_time(world: World) -> Iterator[Action]:
    for ms, weight, weight_if_hasty in (
        (1, 1, 1),
        *(((LATER_MAX_DELAY_MS, 2, 1),) if world.temper.slower else ()),
        (100, 2, 1),
        (MAX_DELAY_MS // 2, 2, 1),
        (LEASE_MS - MARGIN_MS, 1, 0),
        (LEASE_MS, 3, 1),
        (QUIET_MS - LEASE_MS, 2, 0),
        (QUIET_MS, 4, 2),
    ):
        if world.temper.hasty:
            weight = weight_if_hasty
        yield Action(f"{ms} ms pass", weight, partial(world.wait, ms))
    if world.temper.clock_steps:
        for ms in (-_HOUR_MS, -20_000, 20_000, _HOUR_MS):
            yield Action(f"Redis' clock steps {ms} ms", 1, partial(world.set_redis_clock, ms))

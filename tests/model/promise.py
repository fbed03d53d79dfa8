"""The promise, as something that can be checked: after every step, and when all faults are over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from redis.asyncio import Redis

from payswitch.dispatch.routing import BreakerState
from payswitch.money import Total
from payswitch.payments.claims import parse_open_tries
from payswitch.payments.ledger import Ledger
from payswitch.store import keys
from tests.model.clients import SteppedRedis
from tests.model.processors import Entry
from tests.model.stepped import Process
from tests.model.temper import LEASE_MS
from tests.model.world import World
from tests.support import PROCESSORS


class BrokenPromiseError(AssertionError):
    """A payment was lost or paid twice, or the books differ."""


def demand(holds: bool, what: str) -> None:
    """Raises `BrokenPromiseError` unless it holds."""
    if not holds:
        raise BrokenPromiseError(what)


@dataclass(frozen=True)
class Snapshot:
    """What Redis holds at one instant."""

    records: dict[str, dict[str, str]]
    """Of the payments that were accepted since the last purge."""
    queue: dict[str, float]
    """When each is due."""
    open: frozenset[str]
    dead: frozenset[str]
    incidents: int
    """Proofs that match no pin; not those for payments that were resolved."""
    totals: dict[str, Total]


_READ = """
local generation = redis.call('GET', KEYS[1]) or '0'
local totals, records = {}, {}
for i = 4, 3 + ARGV[3] do
  totals[#totals + 1] = redis.call('HMGET', ARGV[1] .. ARGV[i] .. ':' .. generation .. ':total',
    'count', 'cents')
end
local incidents = 0
for _, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  if not string.find(entry, '"state":"resolved"', 1, true) then incidents = incidents + 1 end
end
for i = 4 + ARGV[3], #ARGV do
  records[#records + 1] = redis.call('HGETALL', ARGV[2] .. ARGV[i])
end
return { redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES'), redis.call('ZRANGE', KEYS[4], 0, -1),
  redis.call('ZRANGE', KEYS[5], 0, -1), incidents, totals, records }
"""


def read(world: World) -> Snapshot:
    """Read what the promise is about."""
    ids, own = sorted(world.present), world.partition
    names = (keys.GENERATION, keys.INCIDENTS, keys.QUEUE, keys.OPEN, keys.DEAD)
    prefixes = (f"{own.key('ledger')}:", own.record(""))
    queue, open_, dead, incidents, totals, records = world.store.run(
        _READ, [own.key(name) for name in names], [*prefixes, len(PROCESSORS), *PROCESSORS, *ids]
    )
    return Snapshot(
        records={
            correlation_id: _texts(record)
            for correlation_id, record in zip(ids, records, strict=True)
        },
        queue={key.removeprefix(own.tag): float(score) for key, score in _texts(queue).items()},
        open=frozenset(own.correlation_id(key) for key in open_),
        dead=frozenset(own.correlation_id(key) for key in dead),
        incidents=incidents,
        totals={
            name: Total(int(count or 0), int(cents or 0))
            for name, (count, cents) in zip(PROCESSORS, totals, strict=True)
        },
    )


def _texts(flat: list[bytes]) -> dict[str, str]:
    """What Redis tells as name, value, name, value."""
    values = [each.decode() for each in flat]
    return dict(zip(values[0::2], values[1::2], strict=True))


def check(world: World, seen: Snapshot) -> None:
    """What holds after every single step."""
    demand(not world.failures, f"something failed inside: {world.failures}")
    demand(not world.claimed_while_paused, "something was claimed while paused")
    demand(not world.restarts.broken, f"the files: {world.restarts.broken}")
    if world.restarts.is_older:
        return  # an operator is told, and decides
    demand(seen.incidents == 0, "a proof of payment matches no pin")
    for correlation_id, cents in world.acknowledged.items():
        record = seen.records.get(correlation_id, {})
        demand(record.get("cents") == str(cents), f"{correlation_id} is not kept as acknowledged")
    demand(not world.sent_again, f"{world.sent_again} pending or declined, and sent again")
    for correlation_id, record in seen.records.items():
        _check_payment(world, seen, correlation_id, record)
        if "p" in record.get("open", ""):
            world.final.add(correlation_id)
    for name, total in seen.totals.items():
        settled = [
            int(record["cents"])
            for record in seen.records.values()
            if record["state"] == "settled" and record["processor"] == name
        ]
        demand(
            total == Total(len(settled), sum(settled)), f"{name}'s ledger {total}, not {settled}"
        )


def _check_payment(
    world: World, seen: Snapshot, correlation_id: str, record: dict[str, str]
) -> None:
    books = world.books.books
    pending = world.books.pending
    holders = [
        name
        for name in PROCESSORS
        if correlation_id in books[name] or correlation_id in pending[name]
    ]
    demand(len(holders) < 2, f"{correlation_id} is paid twice")
    _check_pin(world, correlation_id, record, holders)
    state = record["state"]
    is_paid_elsewhere = correlation_id in world.resolved and state not in ("dead", "settled")
    demand(not is_paid_elsewhere, f"{correlation_id} was resolved and is paid again")
    goes_on = correlation_id in world.declined and state != "declined"
    demand(not goes_on, f"{correlation_id} was declined and is {state}")
    if state == "settled":
        entry = books[record["processor"]].get(correlation_id)
        told = Entry(int(record["cents"]), int(record["requested_at"]))
        demand(entry == told, f"{correlation_id} is settled as {told}; the book has {entry}")
    elif state == "declined":
        world.declined.add(correlation_id)
        is_told = bool(record.get("declined")) and correlation_id in world.books.refused
        demand(is_told, f"{correlation_id} is declined, but nobody declined it")
        is_queued = correlation_id in {*seen.queue, *seen.open, *seen.dead}
        demand(not is_queued, f"{correlation_id} is declined, but still queued")
        coming = _is_coming(world, correlation_id)
        demand(not holders and not coming, f"{correlation_id} is declined, but it is paid")
    elif state == "dead":
        is_told = correlation_id in seen.dead or "resolved_at" in record
        demand(bool(record.get("reason")) and is_told, f"{correlation_id} died untold")
        if not _is_uncertain(record):
            coming = _is_coming(world, correlation_id)
            demand(not holders and not coming, f"{correlation_id} is dead, but it is paid")
            is_told = "declined" not in record or "resolved_at" in record
            demand(is_told, f"{correlation_id} is dead, but it was declined")
    else:
        waits = correlation_id in seen.queue and correlation_id in seen.open
        demand(waits, f"{correlation_id} is {state}, but not queued")


def _is_uncertain(record: dict[str, str]) -> bool:
    """Whether it is a dead letter that its processor may have."""
    reason = record.get("reason", "")
    return "can't tell" in reason or "had it pending" in reason


def _is_coming(world: World, correlation_id: str) -> bool:
    wires = world.books.wires
    return any(wire.payment == correlation_id and world.books.comes(wire) for wire in wires)


def _check_pin(
    world: World, correlation_id: str, record: dict[str, str], holders: list[str]
) -> None:
    """Only the processor that a payment is pinned to has it or may yet record it: where that does
    not hold, the payment is lost or paid twice as soon as the processors go on."""
    coming = [
        wire.processor
        for wire in world.books.wires
        if wire.payment == correlation_id
        and wire.claim.generation == str(world.generation)
        and world.books.comes(wire)
    ]
    for name in {*holders, *coming}:
        pin = record.get("processor")
        demand(pin == name, f"{name} pays {correlation_id}, which is pinned to {pin}")


def count_depth(world: World, seen: Snapshot) -> None:
    """Count how deep the model has come."""
    for record in seen.records.values():
        tries = parse_open_tries(record.get("open", ""))
        if len(tries) > 1:
            world.counts["several tries open"] += 1
        if any(each.ended for each in tries):
            world.counts["an ended try open"] += 1
        if any(each.pending for each in tries):
            world.counts["a pending try open"] += 1
        if "declined" in record and record["state"] != "declined":
            world.counts["a decline kept for later"] += 1
    for worker in world.workers:
        for breaker in worker.dispatcher.router.breakers.values():
            world.counts["a breaker open"] += breaker.state is not BreakerState.CLOSED
            world.counts["refusals are held"] += breaker.refusing


def heal(world: World) -> None:
    """All faults end: processors answer truthfully and at once, Redis and the workers run freely.
    Within bounded time everything must be settled or a dead letter, and all books agree."""
    world.free = True
    world.end_move()
    for process in world.strayed():
        world.find_primary(process)
    for worker in world.workers:
        worker.prefer("default")
    for ghost in world.ghosts:
        ghost.perform()
    if world.restarts.is_older:
        world.restarts.let_all_look()
        check(world, read(world))
        world.restarts.bring_right_files()
    _let_all_pass(world)  # a stop under way stops once more what was accepted
    if world.restarts.is_stopped:
        world.restarts.accept_loss()
        _let_all_pass(world)
    if world.temper.orders:
        for ingress in world.ingresses:
            ingress.call_auto()
            ingress.call_resume()
    seen = read(world)
    longest_pause = _behind(world, seen) + 2 * LEASE_MS + world.books.max_delay_ms
    ends_at = world.books.true_ms + 4 * longest_pause
    pause = 1
    while not _all_are_done(seen):
        demand(world.books.true_ms <= ends_at, "after all faults it still isn't paid")
        for worker in world.workers:
            worker.claim(10)
        _let_all_pass(world)
        seen = read(world)
        check(world, seen)
        pause = min(2 * pause, longest_pause)
        if not _all_are_done(seen):
            world.wait(max(pause, _until_next(world, seen)))
    check(world, seen)
    if not world.is_lost:
        _check_windows(world, seen)


def _behind(world: World, seen: Snapshot) -> int:
    """By how much Redis' clock is behind what was written under it: a clock that was set back
    delays what waits for an instant."""
    instants = [world.redis_now(), world.held_until or 0]
    instants += [int(score) for key, score in seen.queue.items() if key in world.present]
    instants += [int(record.get("horizon", 0)) for record in seen.records.values()]
    return max(instants) - world.redis_now()


def _let_all_pass(world: World) -> None:
    world.settle_down()
    while world.gates or world.books.wires or world.books.undecided():
        for wire in world.books.undecided():
            world.books.decide(wire, paid=len(world.books.proofs) % 2 == 0)
        for gate in list(world.gates):
            gate.pass_on()
        for wire in list(world.books.wires):
            if not world.books.waits(wire):
                world.books.record(wire)
            elif wire.recorded or world.books.may_record(wire):
                world.books.pay(wire)
            else:
                world.books.leave_unknown(wire)
        world.settle_down()


def _all_are_done(seen: Snapshot) -> bool:
    return all(
        record["state"] in ("settled", "dead", "declined") for record in seen.records.values()
    )


def _until_next(world: World, seen: Snapshot) -> int:
    """How long until something can happen: the next payment is due, or a purge's hold is over."""
    now = world.redis_now()
    if world.held_until is not None:
        return world.held_until - now
    return max(1, int(min(seen.queue.values(), default=now)) - now)


def _check_windows(world: World, seen: Snapshot) -> None:
    """The summary equals the books over every window between the instants there are, except for
    dead letters that say so."""
    known = [key for key, record in seen.records.items() if not _is_uncertain(record)]
    entries = {
        name: [entry for key, entry in book.items() if key in known]
        for name, book in world.books.books.items()
    }
    instants = sorted({each.requested_at for book in entries.values() for each in book})
    windows: list[tuple[int | None, int | None]] = [(None, None)]
    windows += [(instant, instant) for instant in instants[:3]]
    windows += [(first + 1, last) for first, last in pairwise(instants[:3])]
    windows += [(None, instant) for instant in instants[-1:]]
    ledger = Ledger(
        cast(Redis, SteppedRedis(Process(world, "reader"), world)),
        processors=PROCESSORS,
        retention_ms=1,
    )
    for first, last in windows:
        summary = world.loop.run_until_complete(_summary(ledger, first, last))
        for name, book in entries.items():
            within = [
                entry.cents
                for entry in book
                if (first is None or entry.requested_at >= first)
                and (last is None or entry.requested_at <= last)
            ]
            demand(
                summary[name] == Total(len(within), sum(within)),
                f"{name} over {first}..{last}: summary {summary[name]}, books {within}",
            )


async def _summary(ledger: Ledger, first: int | None, last: int | None) -> dict[str, Total]:
    return (await asyncio.wait_for(ledger.window(first, last), None)).totals

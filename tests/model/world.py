"""The system of the model: ingress and workers over a real Redis and the model's processors, on
clocks that only the model moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, cast
from unittest import mock

from redis.exceptions import ResponseError

from payswitch.payments import accepting, tries
from payswitch.payments.claims import Claim, parse_open_tries
from payswitch.store import keys, scripts
from payswitch.store.errors import OtherDeploymentError, WrongNodeError
from payswitch.store.partitions import Argument, Partition, Partitions, tags
from tests.model.clients import SteppedRedis
from tests.model.parts import Ingress, Part, Worker
from tests.model.processors import Books
from tests.model.restarts import Restarts
from tests.model.stepped import (
    Gate,
    Layout,
    Node,
    Process,
    ScriptCall,
    SteppedLoop,
    Store,
    Told,
    in_a_moving_slot,
    model_scripts,
)
from tests.model.temper import LATER_MAX_DELAY_MS, MAX_DELAY_MS, Temper
from tests.model.variants import Protocol
from tests.support import PROCESSORS

_START_MS = 1_750_000_000_000
_HOLD_MS = 5000
_CLAIM: ContextVar[Claim] = ContextVar("the claim in hand")


Noted = tuple[set[str], ...]
"""What was noted of the payments at some time."""

_OF_ONE = Layout(tags(1), "1 replicas 1")
_OF_TWO = Layout(tags(2), "2 replicas 1")


class World:
    """All processes of the model, what is between them, and what they have promised."""

    def __init__(self, store: Store, protocol: Protocol, temper: Temper) -> None:
        assert store.spare is not None
        assert store.spare.spare is not None
        self.node = Node(store, _START_MS)
        """The primary: what it holds is what counts."""
        self.former: Node | None = None
        """The primary before the failover, which knows of none; its replica is lost."""
        self._replica = store.spare
        self._behind: Noted | None = None
        """What was noted when the replica fell behind; None while it is not."""
        self._is_short = False
        self._has_written = False
        self.is_moving = False
        """Whether the primary gives the payments' slot away."""
        self.is_lost = False
        self.told_pending: set[str] = set()
        """The payments that a worker was told to be noted as pending."""
        self._told_final: set[str] = set()
        self._told_resolved: set[str] = set()
        self.protocol = protocol
        if temper.failovers:  # with hash tags, as in a cluster
            temper = replace(temper, purges=False, orders=False)
        if temper.misfit or temper.moves or temper.loses_all or not temper.failovers:
            temper = replace(temper, restarts=False)
        self.temper = temper
        self.restarts = Restarts(self, store.spare.spare)
        self.layout = _OF_ONE if temper.failovers else Layout()
        partitions = SteppedRedis(Process(self, "init"), self).partitions
        self.partition: Partition = partitions[0]
        """The names of the payments' keys."""
        self.counts: Counter[str] = Counter()
        self.gates: list[Gate] = []
        self.ghosts: list[Gate] = []
        self.free = False
        self.changed = True
        self.failures: list[str] = []
        self.claimed_while_paused = False
        self.books: Books = Books(MAX_DELAY_MS, {name: {} for name in PROCESSORS}, self.counts)
        self.held_until: int | None = None
        self.generation = 0
        self.present: set[str] = set()
        """The payments that Redis took since the last purge."""
        self.acknowledged: dict[str, int] = {}
        """Of those, what a client was told: cents by id."""
        self.resolved: set[str] = set()
        """Of those, the dead letters that an operator has resolved."""
        self.declined: set[str] = set()
        """Of those, which were seen to have ended as declined."""
        self.final: set[str] = set()
        """Of those, which Redis was told to be declined, or seen to hold as pending: none of them
        may be sent again."""
        self.sent_again: list[str] = []
        """Of those, which were routed all the same."""
        self.amounts: dict[str, int] = {}
        """What was first asked for under an id."""
        self._pins: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        self.loop = SteppedLoop()
        self._texts = {
            each.deployment: model_scripts(protocol.scripts, each.deployment)
            for each in (Layout(), self.layout, _OF_TWO)
        }
        self._patches = contextlib.ExitStack()
        patch = mock.patch.object
        self._patches.enter_context(patch(accepting, "boottime_ms", self._boottime_ms))
        if protocol.numbers_tries:
            self._patches.enter_context(patch(tries, "random_id", self._next_number))
        store.client.flushall()
        self._begin(partitions)
        self.ingresses = [Ingress(self, number) for number in (1, 2)]
        self.workers = [Worker(self, number) for number in range(1, temper.workers + 1)]
        self.everyone: list[Part] = [*self.ingresses, *self.workers]

    def layout_of(self, number: int) -> Layout:
        """What the ingress or worker of this number is set to."""
        return _OF_TWO if self.temper.misfit and number == 2 else self.layout

    def _boottime_ms(self) -> float:
        return self.books.true_ms

    def _next_number(self) -> str:
        return str(self.claim_in_hand().tries + 1)

    def _begin(self, partitions: Partitions) -> None:
        """As `payswitch init`."""
        for each in (*partitions, partitions.common):
            if each.tag:
                self.store.client.set(each.key(keys.DEPLOYMENT), partitions.deployment)
                self.store.client.set(each.generation, "0")

    def close(self) -> None:
        """End the world."""
        self._patches.close()
        for process in self.everyone:
            process.die()
        self.loop.close()

    # What the processes live in.

    @property
    def store(self) -> Store:
        """What the primary holds."""
        return self.node.store

    def run_script(self, call: ScriptCall) -> tuple[Any, Told]:
        """One atomic step of Redis. Raises `RedisError`."""
        self.changed = True
        text = self._texts[call.deployment][call.name]
        if self.is_moving and call.node is self.node:
            text = in_a_moving_slot(text)
        before = self._changes(call.node)
        try:
            answer = call.node.store.run(text, [*call.keys, self.redis_now(call.node)], call.args)
        except ResponseError as error:
            if "OTHERDEPLOYMENT" in str(error):
                self.counts["another deployment"] += 1
                raise OtherDeploymentError(str(error)) from None
            if "ELSEWHERE" in str(error):
                self.counts[f"{call.name} in a moving slot"] += 1
                raise WrongNodeError("the slot moves") from None
            self.failures.append(f"{call.name}: {error}")
            raise
        self._has_written = self._changes(call.node) != before
        args = [self._untagged(each) for each in call.args]
        if call.node is not self.node:
            self.counts[f"{call.name} at the former primary"] += 1
        else:
            if call.deployment:
                self.restarts.note_script(call.name, call.keys[0])
            if call.keys[0] == self.partition.generation and not self.restarts.is_older:
                self._note(call.name, args, answer)
        pending = self._pending(call.node, args) if call.name == "release" else []
        return answer, partial(self._note_told, call.name, args, answer, pending)

    def _untagged(self, argument: Any) -> Any:
        return argument.removeprefix(self.partition.tag) if isinstance(argument, str) else argument

    def _note_told(
        self, name: str, args: Sequence[Any], answer: Any, pending: Sequence[str]
    ) -> None:
        """Whoever was told brings it to no other Redis: no failover may undo it."""
        self.told_pending.update(pending)
        if name == "bury":
            for correlation_id, state, verdict in zip(args[2::9], args[5::9], answer, strict=True):
                if state == "declined" and verdict != b"gone":
                    self._told_final.add(correlation_id)
            self.final |= self._told_final
        elif name == "resolve":
            verdicts = zip(args[3:], answer, strict=True)
            self._told_resolved.update(name for name, verdict in verdicts if verdict == b"done")
            self.resolved |= self._told_resolved

    def _pending(self, node: Node, args: Sequence[Any]) -> list[str]:
        found = []
        for correlation_id, marked in zip(args[0::10], args[5::10], strict=True):
            if "p" in marked:
                record = self.partition.record(correlation_id)
                held = cast(bytes | None, node.store.client.hget(record, "open"))
                if b"p" in (held or b""):
                    found.append(correlation_id)
        return found

    def _changes(self, node: Node) -> int:
        if not self.protocol.waits_for_own_writes:
            return 0
        persistence = cast(dict[str, int], node.store.client.info("persistence"))
        return persistence["rdb_changes_since_last_save"]

    def write_mark(self, node: Node, text: str, key: Argument, by: Argument) -> Any:
        """Let the mark of a partition grow by 0 or 1; gives it."""
        return node.store.run(text, [key], [by])

    def wait_for_replica(self, node: Node) -> int:
        """`WAIT`: how many replicas have what was written. It ends in time, unless the model wants
        otherwise."""
        if self.protocol.waits_for_own_writes and not self._has_written:
            return 1
        if node is self.node and not self._is_short:
            self.catch_up()
            return 1
        if self.protocol.short_is_done:
            return 1
        self.counts["not confirmed"] += 1
        return 0

    def note_confirmed(self) -> int:
        """Count a call that the replica has confirmed; gives its number."""
        return self.restarts.note_confirmed()

    def hear(self, process: Process, name: str, confirmed: int, *, knows: bool) -> None:
        """A process is told that what this script did is confirmed."""
        self.restarts.hear(process, name, confirmed, knows=knows)

    def redis_now(self, node: Node | None = None) -> int:
        """A node's clock, ms; the primary's by default."""
        return self.books.true_ms + (node or self.node).ahead

    def claim_in_hand(self) -> Claim:
        """The claim that the running task works on."""
        return _CLAIM.get()

    def start(self, work: Any, claim: Claim | None = None) -> asyncio.Task[None]:
        """Start a task; what it raises breaks the promise."""
        if claim is not None:
            _CLAIM.set(claim)
        task: asyncio.Task[None] = self.loop.create_task(work)
        task.add_done_callback(self._is_done)
        return task

    # What the model does to them.

    def wait(self, ms: int) -> None:
        """Time passes for all."""
        self.restarts.look_in_time(ms)
        self.books.true_ms += ms
        self.loop.now_s = self.books.true_ms / 1000
        self._end_hold()
        self.settle_down()

    def set_redis_clock(self, by_ms: int) -> None:
        """Somebody sets Redis' clock."""
        self.node.ahead += by_ms
        self.counts[f"Redis' clock steps {'forward' if by_ms > 0 else 'back'}"] += 1
        self._end_hold()

    @property
    def is_behind(self) -> bool:
        """Whether the replica lacks some of the primary's last writes."""
        return self._behind is not None

    def fall_behind(self) -> None:
        """From now on nothing reaches the replica, until a `WAIT` waits for it."""
        self.store.copy_to(self._replica)
        self._behind = self.noted()

    def catch_up(self) -> None:
        """The replica has everything."""
        self._behind = None

    def fall_short(self, gate: Gate) -> None:
        """Carry out the call, while the replica stays behind."""
        self._is_short = True
        gate.pass_on()
        self._is_short = False

    def fail_over(self, ahead_ms: int = 0) -> None:
        """The replica takes over, with another clock; the primary lives on without a replica."""
        self.counts["a failover"] += 1
        if self._behind is None:
            self.fall_behind()
        else:
            self.counts["a failover undoes writes"] += 1
        assert self._behind is not None
        self.go_back_to(self._behind)
        self.restarts.forget()
        self.end_move()  # the replica knows of none
        self.former = self.node
        self.node = Node(self._replica, self.former.ahead + ahead_ms)
        self._replica = self.former.store
        self.changed = True

    def noted(self) -> Noted:
        """What is noted of the payments."""
        return tuple(map(set, (self.present, self.resolved, self.declined, self.final)))

    def go_back_to(self, noted: Noted) -> None:
        """Redis holds what was noted then: but for what was told, no one may rely on the rest."""
        self.present, self.resolved, self.declined, self.final = map(set, noted)
        self.final |= self._told_final
        self.resolved |= self._told_resolved
        self._behind = None

    def move_slot(self) -> None:
        """Somebody begins to move the payments' slot. Of what is left there are the keys that a
        deployment has which has seen something: else most scripts, which look at them before they
        write, would fail in time by chance."""
        own = self.partition
        self.store.client.zadd(own.key(keys.DEAD), {own.job_id("an old one"): 1})
        self.store.client.rpush(own.key(keys.INCIDENTS), '{"state":"resolved"}')
        self.store.client.rpush(own.key(keys.WAKE), "1")
        self.is_moving = True

    def end_move(self) -> None:
        """The move is given up: what has left is back."""
        self.is_moving = False

    def find_primary(self, process: Process) -> None:
        """A process learns of the failover; what it has asked before is on its way."""
        if isinstance(process, Worker) and any(process.tasks.values()):
            self.counts["switched with claims in hand"] += 1
        process.node = self.node

    def living(self) -> list[Part]:
        """The processes that live."""
        return [each for each in self.everyone if not each.dead]

    def look(self, process: Part) -> None:
        """A process looks at the node."""
        self.start(process.watch.look_once())
        self.settle_down()

    def cut_off(self, node: Node) -> None:
        """All connections to the node end; what is on its way to it never arrives."""
        for gate in list(self.gates):
            if gate.call is not None and gate.call.node is node:
                gate.fail()
        self.ghosts[:] = [each for each in self.ghosts if each.call and each.call.node is not node]
        self.settle_down()

    def begin_anew(self) -> None:
        """An operator has taken all payments out, whatever became of them."""
        kept = (keys.DEPLOYMENT, keys.CONFIRMED)
        for key in cast(list[bytes], self.store.client.keys()):
            if not key.decode().startswith(kept):
                self.store.client.delete(key)
        self.generation += 1
        self.store.client.set(self.partition.generation, self.generation)
        self._forget_payments()
        self.books.purge()
        self.catch_up()

    def strayed(self) -> list[Part]:
        """The living processes that have not learned of the failover."""
        return [each for each in self.everyone if not each.dead and each.node is self.former]

    def end_former(self) -> None:
        """The former primary becomes a replica; what is on its way to it never arrives."""
        assert self.former is not None
        self.cut_off(self.former)
        self.former = None

    def lose_everything(self) -> None:
        """An accident: primary and replica are gone with their disks, and come back empty."""
        self.counts["everything is lost"] += 1
        self.node.store.client.flushdb()
        self._forget_payments()
        self.is_lost = self.changed = True

    def _forget_payments(self) -> None:
        told = (self.told_pending, self._told_final, self._told_resolved)
        for noted in (self.present, self.resolved, self.declined, self.final, *told):
            noted.clear()
        self.acknowledged.clear()

    def settle_down(self) -> None:
        """Let every task run to its next gate."""
        self.loop.drain()
        self.books.forget_finished()

    def replace_worker(self, worker: Worker) -> None:
        """Start a new process in its place, which remembers nothing."""
        self.restarts.look_before_start()
        self.workers[self.workers.index(worker)] = fresh = Worker(self, worker.number)
        fresh.node = worker.node
        self.everyone.append(fresh)

    def crash(self, worker: Worker) -> None:
        """SIGKILL a worker and start another; what it sent lives on."""
        self.counts["a worker dies"] += 1
        worker.die()
        for task in list(worker.tasks):
            task.cancel()
        self.replace_worker(worker)
        self.settle_down()

    def slow_down(self) -> None:
        """The processors become slower, but for what they have lost by now; all workers are
        replaced at that instant, and nothing that they asked of Redis is left."""
        self.counts["the processors become slower"] += 1
        for worker in list(self.workers):
            self.crash(worker)
        while self.ghosts:
            self.ghosts.pop().perform()
        for wire in self.books.wires:
            wire.ended = not self.books.may_record(wire)
        self.books.max_delay_ms = LATER_MAX_DELAY_MS
        for worker in list(self.workers):
            self.replace_worker(worker)

    def stop(self, worker: Worker) -> None:
        """A worker whose time to finish is over gives back what it has, and another starts."""
        self.counts["a worker stops"] += 1
        worker.stopping = True
        for task in list(worker.tasks):
            task.cancel()
        self.replace_worker(worker)
        self.settle_down()

    def idle_ids(self) -> list[str]:
        """Purged payments of which nothing is left anywhere but, maybe, in memories: these ids may
        be used again."""
        in_hand = {claim.correlation_id for claim in self.claims_in_hand()}
        on_wire = {wire.claim.correlation_id for wire in self.books.wires}
        if self.ghosts or self.gates:
            return []
        return sorted(set(self.amounts) - self.present - in_hand - on_wire - self.books.known_ids())

    def claims_in_hand(self) -> list[Claim]:
        """Every claim that a living process works on."""
        return [
            claim
            for process in self.everyone
            if isinstance(process, Worker) and not process.dead
            for task, claim in process.tasks.items()
            if claim is not None and not task.done()
        ]

    def _end_hold(self) -> None:
        """Keys end by Redis' clock, too."""
        if self.held_until is not None and self.redis_now() >= self.held_until:
            self.store.client.delete("payments:purging")
            self.held_until = None

    def _is_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(repr(error))

    def _note(self, name: str, args: Sequence[Any], answer: Any) -> None:
        if name == "accept":
            for correlation_id, verdict in zip(args[1::5], answer[1:], strict=True):
                self.counts[f"accept: {verdict.decode()}"] += 1
                if verdict in (b"new", b"same"):
                    self.present.add(correlation_id)
        elif name in ("settle", "release", "bury", "replay"):
            if name == "release":
                self.counts["held"] += sum(bool(held) for held in args[9::10])
            for verdict in answer:
                self.counts[f"{name}: {verdict.decode()}"] += 1
            if name == "bury":
                self._note_burials(args, answer)
        elif name == "resolve":
            for correlation_id, verdict in zip(args[3:], answer, strict=True):
                self.counts[f"resolve: {verdict.decode()}"] += 1
                if verdict == b"done":
                    self.resolved.add(correlation_id)
        elif name == "route":
            for correlation_id, closed, routed in zip(args[2::7], args[6::7], answer, strict=True):
                self._note_route(correlation_id, routed)
                if routed is not None and not closed and int(routed[2]) > 1:
                    self._note_another_try(correlation_id)
        elif name == "claim":
            self._note_claim(scripts.named(answer))
        elif name == "stop_claims" and answer:
            self.held_until = self.redis_now() + _HOLD_MS
        elif name == "purge" and answer:
            self._note_purge()

    def _note_burials(self, args: Sequence[Any], answer: Any) -> None:
        for correlation_id, state, verdict in zip(args[2::9], args[5::9], answer, strict=True):
            self.counts[f"bury {state}: {verdict.decode()}"] += 1
            if state == "declined" and verdict != b"gone":
                self.final.add(correlation_id)

    def _note_route(self, correlation_id: str, routed: list[bytes] | None) -> None:
        if routed is None:
            self.counts["route: fenced"] += 1
            return
        if correlation_id in self.final:
            self.sent_again.append(correlation_id)
        pin = (routed[0], routed[1])
        before = self._pins.get((correlation_id, self.generation))
        self._pins[correlation_id, self.generation] = pin
        if before is not None and before != pin:
            self.counts["pinned anew"] += 1
            if before[0] != pin[0]:
                self.counts["pinned to the other one"] += 1

    def _note_another_try(self, correlation_id: str) -> None:
        held = cast(bytes, self.store.client.hget(self.partition.record(correlation_id), "open"))
        *before, _ = parse_open_tries(held.decode())
        if before and all(each.ended for each in before):
            self.counts["sent again without a question"] += 1

    def _note_claim(self, answer: Mapping[str, Any]) -> None:
        if answer["selection"] and answer["selection"][0] is not None:
            self.counts["claim: an operator has chosen"] += 1
        if self.store.client.exists(self.partition.key(keys.PAUSED)):
            self.counts["claim: paused"] += 1
            if answer["payments"]:
                self.claimed_while_paused = True

    def _note_purge(self) -> None:
        """The processors are purged at the instant at which we are."""
        self.counts["purge"] += 1
        self.held_until = None
        self.generation += 1
        self._forget_payments()
        self.books.purge()

"""A primary that restarts within the node time-out, so that nobody is promoted: with all its files,
or with older ones. Then its replica copies the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from payswitch.store.beginning import begin
from payswitch.store.client import Client
from tests.model.clients import SteppedRedis
from tests.model.stepped import Process, Store

if TYPE_CHECKING:
    from tests.model.parts import Part
    from tests.model.world import Noted, World

_LOOKS_WITHIN_MS = 500
"""Each process looks twice a second."""


@dataclass(frozen=True)
class _Files:
    """What a node can come back with."""

    noted: Noted
    confirmed: int
    """The last confirmed call in them."""


class Restarts:
    """The primary's files, and what is known of them."""

    def __init__(self, world: World, other: Store) -> None:
        self._world = world
        self._other = other
        """Holds older files, and the right ones while the primary has the older."""
        self._older: _Files | None = None
        self._right: Noted | None = None
        self._confirmed = 0
        self._told = 0
        self._look_at_ms: int | None = None
        self._stopped: set[str] = set()
        self._has_lost = False
        self.broken: list[str] = []
        """What goes on that must not."""

    @property
    def is_older(self) -> bool:
        """Whether the primary lacks what it had confirmed, and nobody has decided about that."""
        return self._right is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the payments' partition is stopped."""
        return self._world.partition.generation in self._stopped

    @property
    def may_come_back_older(self) -> bool:
        """Whether there are older files of which nothing that was told is missing, or one that
        lives knows better. What was confirmed just after a restart lifts no mark: that is left
        open (see the guarantees)."""
        older = self._older
        return older is not None and (self._told <= older.confirmed or bool(self._knowing()))

    def may_die(self, process: Process) -> bool:
        """Whether somebody else knows of a loss that is not stopped yet."""
        return not self.is_older or self.is_stopped or bool(self._knowing(but=process))

    def _knowing(self, but: Process | None = None) -> list[Process]:
        """The living processes that know better than the older files."""
        assert self._older is not None
        return [
            each
            for each in self._world.living()
            if each is not but and each.knows > self._older.confirmed
        ]

    # What the processes do.

    def note_confirmed(self) -> int:
        """Count a call that the replica has confirmed; gives its number."""
        self._confirmed += 1
        return self._confirmed

    def hear(self, process: Process, name: str, confirmed: int, *, knows: bool) -> None:
        """A process is told that what this script did is confirmed."""
        if knows:
            process.knows = max(process.knows, confirmed)
        if name in ("look", "begin"):  # nobody else is told
            return
        self._told = max(self._told, confirmed)
        if self.is_older:
            self.broken.append(f"{process.name} is told by an older node: {name}")

    def note_script(self, name: str, generation: str) -> None:
        """A script of a deployment has run at the primary."""
        if name == "stop":
            if not self._has_lost:
                self.broken.append("it is stopped, although nothing is lost")
            self._stopped.add(generation)
            self._world.counts["stopped"] += 1
        elif generation in self._stopped:
            self.broken.append(f"{name} goes on, although its partition is stopped")

    # What happens to the node.

    def keep(self) -> None:
        """The files as they are now are kept."""
        self._let_all_meet()
        self._world.store.copy_to(self._other)
        self._older = _Files(self._world.noted(), self._confirmed)

    def forget(self) -> None:
        """Another node is the primary."""
        self._older = None

    def come_back(self) -> None:
        """The primary restarts with all its files."""
        self._world.counts["the primary comes back"] += 1
        self._restart()

    def come_back_older(self) -> None:
        """The primary restarts with older files."""
        assert self._older is not None
        world = self._world
        self._restart()
        if self._knowing():
            world.counts["the primary comes back older"] += 1
            self._right = world.noted()
            self._has_lost = True
            self._swap()
        else:
            world.counts["the primary comes back without what nobody was told"] += 1
            self._other.copy_to(world.store)
            world.changed = True
            world.go_back_to(self._older.noted)

    def bring_right_files(self) -> None:
        """An operator puts the right files into the primary's folder, and starts it."""
        assert self._right is not None
        self._world.counts["the right files are brought"] += 1
        self._restart()
        self._swap()
        self._stopped.clear()
        self._world.go_back_to(self._right)
        self._has_lost = False
        self._right = None
        self._older = None

    def _restart(self) -> None:
        self._let_all_meet()
        self._world.node.run += 1  # first, as who is cut off calls again at once
        self._world.cut_off(self._world.node)
        self._look_at_ms = self._world.books.true_ms + _LOOKS_WITHIN_MS

    def _swap(self) -> None:
        node = self._world.node
        node.store, self._other = self._other, node.store
        self._world.changed = True

    def accept_loss(self) -> None:
        """An operator has the partitions go on, and has decided about every payment there was:
        none of them is left."""
        world = self._world
        was_older = self.is_older
        world.counts["the loss is accepted"] += was_older
        self._stopped.clear()
        self._right = None
        self._older = None
        world.loop.run_until_complete(self._begin())
        if was_older:
            world.begin_anew()
        world.changed = True

    async def _begin(self) -> None:
        world, is_free = self._world, self._world.free
        redis = SteppedRedis(Process(world, "init"), world)
        world.free = True
        await begin(cast(Client, redis), accept_loss=True)
        world.free = is_free

    # Looks.

    def look_in_time(self, ms: int) -> None:
        """Before so much time passes, each process looks at a node that has restarted."""
        due = self._look_at_ms
        if due is not None and self._world.books.true_ms + ms >= due:
            self.let_all_look()

    def let_all_look(self) -> None:
        """Each process looks, and what it finds is done."""
        self._look_at_ms = None
        for process in self._world.living():
            self._let_look(process)
        if self.is_older and not self.is_stopped:
            self.broken.append("the primary came back older, and nobody has stopped it")

    def look_before_start(self) -> None:
        """To start a process takes longer than the others need for a look."""
        if self._look_at_ms is not None:
            self.let_all_look()

    def _let_all_meet(self) -> None:
        """Each process looks, so it has met any run that is followed by another one."""
        for process in self._world.living():
            if not process.has_met_primary:
                self._let_look(process)

    def _let_look(self, process: Part) -> None:
        self._world.look(process)
        while own := [
            gate
            for gate in process.gates
            if gate.call is not None and gate.call.name in ("look", "stop")
        ]:
            for gate in own:
                gate.pass_on()
            self._world.settle_down()

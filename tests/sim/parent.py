"""A read-only parent under the volume: a region set of its own that one of three serves, an overlay
that asks it for what the volume has not, and a scrub that fills the volume from it.

The real `Overlay` and `Scrub` run, on a loop of simulated time. The parent was written before the
run: its regions may be equal, or one of them may have missed the last flush, belong to another
volume, or be half filled, and must not serve then. Such a flawed member may be the only one that a
machine reaches, which docs/adr/0013 cannot tell from a whole set; so one good member never fails.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from downstaird.core.engine import FlushWork, Ownership
from downstaird.core.region import Region
from downstaird.core.region_files import version_for
from stairlib.model.construction import RegionOptions, RegionSpec
from stairlib.model.context import plain_contexts
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import extent_marks
from tests.sim.daemon import BLOCK, TUNING, Daemon
from tests.sim.guest import block_data
from tests.sim.loop import SimulatedLoop
from vmmd.block.backend import BackendInfo, Done, Request
from vmmd.block.overlay import Overlay
from vmmd.block.scrub import Scrub
from vmmd.upstairs.core import events

if TYPE_CHECKING:
    from tests.sim.machine import Machine
    from tests.sim.world import World

PARENT_VOLUME = uuid.UUID("3b241101-e2bb-4255-8caf-4136c566a962")
# The last flush of the parent was its second; a flawed member has seen the first.
_FIRST, _LAST = 1, 2
FLAWS = ("", "", "outdated", "foreign", "incomplete")
STRIKES = ("kill", "power", "links", "one_way")
AWAY_SECONDS = (0.05, 0.3, 1.0, 5.0)
SCRUB_RATES = (0, 0, 100_000)
AGAIN_SECONDS = 1.0
# The control plane is back, and can store, long before.
TRIES_MAX = 3600
# So often the guest is at work in the first moments of a scrub, which takes a few messages' time.
MEETINGS = 4
MEETING_MESSAGES = 10


class SetBackend:
    """A machine's region set as what an overlay is put on."""

    def __init__(self, machine: Machine) -> None:
        geometry = machine.config.geometry
        read_only = machine.config.read_only
        self._machine = machine
        self.info = BackendInfo(
            geometry.block_size, geometry.block_count, read_only, supports_discard=not read_only
        )

    def submit(self, batch: list[Request], done: Done) -> None:
        """As `Backend.submit`."""
        self._machine.feed(events.GuestBatch([(done, batch)]))


class Parent:
    """The parent of one world. `dropped` once its data is in the volume, durably recorded."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loop = SimulatedLoop(world.schedule)
        self.dropped = False
        chance = world.variety
        self.geometry = self._draw_geometry()
        self.flaw = chance.choice(FLAWS)
        self._written = [
            chance.choice((0, _FIRST, _LAST)) for _ in range(self.geometry.block_count)
        ]
        self._scrubs = chance.random() < 0.7
        self._rate = chance.choice(SCRUB_RATES)
        self.daemons = [self._make(number) for number in range(3)]
        targets = tuple(daemon.address for daemon in self.daemons)
        options = RegionOptions(id=PARENT_VOLUME, targets=targets, read_only=True)
        self.spec = RegionSpec(self.geometry, options, 1)

    def _draw_geometry(self) -> Geometry:
        whole = self.world.geometry
        extents = whole.extent_count - self.world.variety.randrange(0, 2)
        return Geometry(whole.block_size, whole.blocks_per_extent, extents)

    def _make(self, number: int) -> Daemon:
        daemon = Daemon(self.world, number, prefix="p")
        plain = replace(
            daemon.definition, geometry=self.geometry, cipher="", format_version=version_for("")
        )
        daemon.make_region(plain)
        region = Region.open(daemon.disk, tuning=TUNING)
        flawed = number == 2 and self.flaw
        owner = PARENT_VOLUME
        if flawed == "foreign":
            owner = uuid.UUID(int=self.world.variety.getrandbits(128))
        region.promote(Ownership(owner, owner, 1))
        for flush in (_FIRST,) if flawed == "outdated" else (_FIRST, _LAST):
            for block, version in enumerate(self._written):
                if version and flush in (_FIRST, version):
                    # Another volume's region may have the same stamps all the same.
                    data = block_data(block, _FIRST if flawed == "foreign" else flush)
                    region.write(block, plain_contexts(data, BLOCK), data)
            _carried_out(region, region.begin_flush(flush, 1))
        if flawed == "incomplete":
            # What it holds there is old, and marked as such.
            region.discard(0, self.geometry.blocks_per_extent)
            _carried_out(region, region.begin_flush(_LAST, 1))
            _carried_out(region, region.repair_begin(extent_marks([0])))
        region.close()
        daemon.read_only = True
        return daemon

    def base(self, block: int) -> int:
        """The version that shows through where the volume holds nothing."""
        if self.dropped or block >= len(self._written):
            return 0
        return self._written[block]

    # ---- in a machine

    def attach(self, machine: Machine, below: Machine) -> Layers:
        """Puts the machine's set over the parent's, which is `below`."""
        self.world.trace.note(machine.host, f"its parent's regions: {self.flaw or 'equal'}")
        layers = Layers(self, machine, below)
        if self._scrubs:
            layers.scrub_later(self.world.variety.uniform(0.0, 1.0), self._rate)
        return layers

    def record_dropped(self) -> bool:
        """The control plane records that the parent is not needed any more; False when it cannot
        now."""
        control = self.world.control
        if not control.up or control.store.failures or self.dropped:
            return self.dropped
        self.world.trace.note("cp", "the parent is dropped from the recorded request")
        self.world.reached["parent dropped"] += 1
        # From here on nothing shows through: all has to be on the members' media.
        self.dropped = True
        self.world.checks.copies("when the parent was dropped", 2)
        return True

    # ---- faults

    def strike(self) -> bool:
        """Something happens to one of the parent's hosts."""
        world, chance = self.world, self.world.variety
        daemon = chance.choice(self.daemons[1:] if self.flaw else self.daemons)
        kind = chance.choice(STRIKES)
        world.reached[f"parent {kind}"] += 1
        seconds = chance.choice(AWAY_SECONDS)
        if kind == "links":
            world.network.break_connections(daemon.host, world.machine.host, "connection reset")
        elif kind == "one_way":
            ways = (daemon.host, world.machine.host)
            ways = ways if chance.random() < 0.5 else ways[::-1]
            world.network.block(*ways)
            world.schedule.later(seconds, world.network.unblock, *ways)
        elif daemon.up:
            daemon.kill(power=kind == "power")
            world.schedule.later(seconds, daemon.start)
        else:
            return False
        return True


class Layers:
    """Overlay and scrub of one machine."""

    def __init__(self, parent: Parent, machine: Machine, below: Machine) -> None:
        self._parent = parent
        self._machine = machine
        self._below = below
        self._scrub: Scrub | None = None
        self._task: asyncio.Task[None] | None = None
        self._done = 0
        self.overlay = Overlay(SetBackend(machine), SetBackend(below))

    def submit(self, batch: list[Request], done: Done) -> None:
        """A guest's batch."""
        self.overlay.submit(batch, done)

    def scrub_later(self, seconds: float, rate: int) -> None:
        """Begins the scrub after a time, if the machine still lives."""
        self._parent.world.schedule.later(seconds, self._begin, rate)

    def _begin(self, rate: int) -> None:
        if not self._machine.alive:
            return
        loop = self._parent.loop
        self._machine.note("the scrub begins")
        world = self._parent.world
        for _ in range(MEETINGS):
            moment = world.variety.uniform(0, MEETING_MESSAGES * world.network.high)
            world.schedule.later(moment, self._meet)
        self._scrub = loop.inside(
            lambda: Scrub(
                self.overlay,
                "",
                bytes_per_second_max=rate,
                skip_zeros=False,
                changed=self._changed,
            )
        )
        self._task = loop.create_task(self._run(self._scrub))

    def _meet(self) -> None:
        world = self._parent.world
        if self._machine is world.machine and self._machine.active:
            world.guest.batch()

    async def _run(self, scrub: Scrub) -> None:
        world, machine = self._parent.world, self._machine
        if not await scrub.run():
            world.reached["scrub FAILED"] += 1
            return
        if await self._recorded() and machine is world.machine:
            await self.overlay.drop_parent()
            scrub.finished()
            world.reached["scrub DONE"] += 1
            self._below.ask(events.Deactivate, lambda _answer: None)

    async def _recorded(self) -> bool:
        """Until the control plane has recorded it, or another machine is there."""
        world = self._parent.world
        for _try in range(TRIES_MAX):
            if self._machine is not world.machine or self._parent.record_dropped():
                break
            await asyncio.sleep(AGAIN_SECONDS)
        return self._parent.dropped

    def _changed(self) -> None:
        scrub = self._scrub
        if scrub is None:
            return
        done = scrub.status().bytes_done
        if done < self._done:
            self._parent.world.fail(f"a scrub's progress fell from {self._done} to {done} bytes")
        self._done = done

    def stop(self) -> None:
        """The machine is gone."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._parent.world.reached["scrub cut off"] += 1


def _carried_out(region: Region, work: FlushWork) -> None:
    work.run()
    region.finish_flush(work, None)

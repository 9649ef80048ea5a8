"""The upstairs' core in seeded random worlds: daemons crash and come back, links break, members are
replaced, a region is put back to an older copy, the upstairs itself dies and a newer one takes
over, while a guest writes, discards, reads and flushes, and a scrub fills what was never written.

Checked from outside: no flushed write is lost, a read gives the value written last (after a loss:
one that it may have, and from then on the same), what was written is never replaced by a scrub,
a read tells rightly which blocks were written, replicas are equal when all is repaired, and every
run comes to its end. In encrypted worlds no nonce is used twice, whatever becomes of the members
and of the upstairs. STAIRWELL_SEEDS=first:count runs other seeds."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from stairlib import native
from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV
from stairlib.model.extents import ExtentState
from stairlib.model.geometry import Geometry
from tests.property.seeded import first_seeds, run_seeds
from tests.unit.vmmd.upstairs.world import World
from vmmd.block.backend import Request
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

SEEDS_PER_TEST = 25
# Every third world has a slow network and a larger region: faults then hit the middle of repairs.
SLOW_EVERY = 3
# Some worlds are encrypted; nonces are then watched too.
CIPHER_OF = ("", AES_256_GCM, "", AES_256_GCM_SIV, "")


class Run:
    """One seeded run."""

    def __init__(self, seed: int) -> None:
        cipher = CIPHER_OF[seed % len(CIPHER_OF)]
        runs = native.compiled and seed % 2 == 1
        # In half of all one copy is behind as soon as it may be, and members are quick enough.
        self.behind = seed % 4 >= 2
        if self.behind:
            self.world = World(seed, delay=0.0003, cipher=cipher, runs=runs, behind_after=1)
            for server in self.world.daemons.values():
                server.flush_seconds_max = 0.001
        elif seed % SLOW_EVERY:
            self.world = World(seed, cipher=cipher, runs=runs)
        else:
            delay = random.Random(seed).choice([0.02, 0.1, 0.3])
            geometry = Geometry(512, 8, 12)
            self.world = World(seed, geometry=geometry, delay=delay, cipher=cipher, runs=runs)
        self.rng = self.world.rng
        self.activate_key: object = None
        self.verifications: list[object] = []
        self.replaced_slot: int | None = None
        self.replaced_address = ""
        self.region_numbers = itertools.count(100)
        # Copies of regions, by address; and the member that was put back to one and may still lack
        # what it had confirmed.
        self.copies: dict[str, dict[str, Any]] = {}
        self.put_back = ""
        self.hostility = self.rng.choice([0.05, 0.15, 0.3])
        # After so long two members may serve; 0 = never.
        self.two_after = self.rng.choice([0.0, 0.0, 0.5, 3.0])

    # ---- what may happen

    def guest(self) -> None:
        world, rng = self.world, self.rng
        batch: list[Request] = []
        for _ in range(rng.randint(1, 6)):
            length = rng.randint(1, 5)
            offset = rng.randint(0, world.geometry.block_count - length)
            kind = rng.random()
            if kind < 0.1:
                batch.append(world.flush())
            elif not world.free(offset, length):
                continue
            elif kind < 0.5:
                batch.append(world.write(offset, length))
            elif kind < 0.58:
                batch.append(world.write(offset, length, discard=True))
            elif kind < 0.7:
                self.scrub(batch, offset, length)
            else:
                batch.append(world.read(offset, length, owned=rng.random() < 0.4))
        if batch:
            world.submit(batch)

    def flushes(self) -> None:
        """Writes, each with a flush that is waited for."""
        world, rng = self.world, self.rng
        for _ in range(rng.randint(2, 20)):
            offset = rng.randint(0, world.geometry.block_count - 1)
            if world.free(offset, 1):
                world.submit([world.write(offset, 1)])
            world.submit([world.flush()])
            world.run_until(lambda: not world.in_flight, rng.choice([0.0005, 0.005, 0.005]))

    def scrub(self, batch: list[Request], offset: int, length: int) -> None:
        """Every second one meets a write of the same blocks in its own batch, on either side."""
        unwritten = self.world.write_unwritten(offset, length)
        pair = [unwritten]
        if self.rng.random() < 0.5:
            pair.append(self.world.write(offset, length))
            self.rng.shuffle(pair)
        batch += pair

    def crash_and_start(self) -> None:
        address = self.rng.choice(list(self.world.daemons))
        self.world.crash(address)
        away = self.rng.choice([0.05, 1.0, 5.0, 30.0])
        self.world.later(away, lambda: self.world.start(address))

    def copy_of_a_region(self) -> None:
        """Somebody copies a region's directory. One day one of these is put back: at most one
        member at a time lacks what it confirmed, as with lost disks, and none is being replaced."""
        world, rng = self.world, self.rng
        address = rng.choice(world.targets)
        server = world.daemons[address]
        saved = self.copies.get(address)
        whole = world.healthy() and not self.put_back and self.replaced_slot is None
        if saved is None or saved["region_id"] != server.region_id:
            self.copies[address] = server.saved()
        elif whole:
            world.put_back(address, saved)
            self.put_back = address
            world.later(rng.choice([0.05, 1.0, 5.0]), lambda: world.start(address))
            if rng.random() < 0.3:
                self.restart_upstairs()

    def power_cut(self) -> None:
        for address in self.world.daemons:
            self.world.crash(address)
            self.world.later(
                self.rng.uniform(0.01, 2), lambda address=address: self.world.start(address)
            )
        if self.rng.random() < 0.7:
            self.restart_upstairs()

    def break_links(self) -> None:
        self.world.break_links(self.rng.choice(list(self.world.daemons)))

    def restart_upstairs(self) -> None:
        # As the control plane does: not while a replacement is under way.
        self.world.two_after = 0.0 if self.replaced_slot is not None else self.two_after
        self.world.crash_upstairs()
        self.activate()

    def activate(self) -> None:
        self.activate_key = self.world.ask(events.Activate)

    def deactivate(self) -> None:
        key = self.world.ask(events.Deactivate)
        assert self.world.run_until(lambda: key in self.world.answers, 30), "deactivation hangs"
        assert not self.world.in_flight, "requests outlived the deactivation"
        self.restart_upstairs()

    def replace(self) -> None:
        world = self.world
        slots = world.upstairs.status().slots
        used = {slot.address for slot in slots} | {slot.departing_address for slot in slots}
        spares = [address for address in world.daemons if address not in used]
        if not spares:
            return
        slot = self.rng.choice(slots)
        new = self.rng.choice(spares)
        # As the control plane does: one replacement at a time, over restarts of the upstairs too.
        if self.replaced_slot not in (None, slot.slot):
            return
        # No member is replaced while another one lacks what it had.
        if self.put_back:
            return
        spare = world.daemons[new]
        if spare.owner and new != self.replaced_address:
            # A region that belonged to a volume is not taken again before it was made anew. The one
            # that was replaced last may come back, should its successor never have been filled.
            world.break_links(new)
            spare.recreate(f"region-{next(self.region_numbers)}")
        key = world.ask(lambda key: events.Replace(key, slot.address, new))
        answer = world.answers[key]
        world.note(f"replace {slot.address} by {new}: {answer.value or answer.error}")
        if answer.error is None:
            world.targets[slot.slot] = new
            self.replaced_slot = slot.slot
            self.replaced_address = slot.address
            again = world.ask(lambda key: events.Replace(key, slot.address, new))
            assert world.answers[again].value.result.name == "STARTED_ALREADY"

    def errors(self) -> None:
        server = self.world.daemons[self.rng.choice(list(self.world.daemons))]
        name = self.rng.choice(["write_error_rate", "flush_error_rate", "corrupt_rate"])
        self.world.note(f"{name} at {server.address}")
        setattr(server, name, 0.2)
        self.world.later(self.rng.uniform(0.1, 1), lambda: setattr(server, name, 0.0))

    def verify(self) -> None:
        self.verifications.append(self.world.ask(events.Verify))

    def settled(self) -> bool:
        """Never: looks at every step whether a replacement is done, as the control plane does."""
        if self.world.healthy():
            self.replaced_slot = None
            self.replaced_address = ""
            if self.put_back and self.world.daemons[self.put_back].session is not None:
                self.put_back = ""
        return False

    # ---- the run

    def go(self) -> None:
        world, rng = self.world, self.rng
        self.activate()
        faults = [
            self.crash_and_start,
            self.crash_and_start,
            self.break_links,
            self.break_links,
            self.replace,
            self.errors,
            self.verify,
            self.restart_upstairs,
            self.power_cut,
            self.deactivate,
            self.copy_of_a_region,
        ]
        for _ in range(rng.randint(40, 120)):
            if rng.random() < self.hostility:
                rng.choice(faults)()
            elif self.behind and rng.random() < 0.5:
                self.flushes()
            else:
                self.guest()
            world.run_until(self.settled, rng.choice([0.0005, 0.005, 0.05, 0.6]))
            self.check_map()
        self.heal()
        self.check_end()

    def heal(self) -> None:
        world = self.world
        world.note("heal")
        for server in world.daemons.values():
            server.up = True
            server.write_error_rate = server.flush_error_rate = server.corrupt_rate = 0.0
        world.run_until(lambda: False, 0.5)
        for server in world.daemons.values():
            if server.poisoned:
                world.crash(server.address)
                server.up = True
        world.run_until(lambda: False, 0.5)
        for _ in range(3):
            if world.upstairs.state in (UpstairsState.DISABLED, UpstairsState.INITIALIZING):
                if "bring back a member" in world.upstairs.status().reason:
                    # The one whole copy was replaced while it was away: the volume refused to go on
                    # without it, and comes back with it.
                    assert self.replaced_slot is not None
                    world.targets[self.replaced_slot] = self.replaced_address
                self.restart_upstairs()
            if (
                world.run_until(
                    lambda: world.healthy() or world.upstairs.state is UpstairsState.DISABLED, 120
                )
                and world.healthy()
            ):
                break
        assert world.healthy(), f"no end: {world.upstairs.status()}"
        assert world.run_until(lambda: not world.in_flight, 30), "guest requests hang"

    def check_map(self) -> None:
        """What the map of extents calls in sync is equal, durably, wherever it is called so; a
        member that serves lacks nothing, and as many are being filled as may be."""
        world = self.world
        slots = world.upstairs.status().slots
        columns = world.upstairs.extents()
        for slot, states in zip(slots, columns, strict=True):
            assert len(states) == world.geometry.extent_count
            if slot.state is SlotState.ACTIVE:
                assert set(states.tolist()) <= {ExtentState.IN_SYNC, ExtentState.DIRTY}
            elif slot.state is SlotState.WAIT_CONNECT and slot.mode is not SlotMode.OFFLINE:
                assert (states == ExtentState.UNKNOWN).all()
            assert (states == ExtentState.COPYING).sum() <= limits.COPIES_IN_FLIGHT
        if self.put_back:
            # Not noticed yet, perhaps.
            return
        per = world.geometry.blocks_per_extent
        for extent in range(world.geometry.extent_count):
            blocks = range(extent * per, (extent + 1) * per)
            held = [
                [world.daemons[slot.address].durable.get(block) for block in blocks]
                for slot, states in zip(slots, columns, strict=True)
                if states[extent] == ExtentState.IN_SYNC
            ]
            assert all(one == held[0] for one in held), f"extent {extent} is not in sync"

    def check_end(self) -> None:
        world = self.world
        for key in self.verifications:
            answer = world.answers.get(key)
            if answer is not None and answer.error is None:
                digests = [d.tolist() for d in answer.value.by_slot.values()]
                assert all(d == digests[0] for d in digests), "active members differ"
        count = world.geometry.block_count
        for _ in range(4):
            world.submit([world.read(block, 1) for block in range(count)])
            assert world.run_until(lambda: not world.in_flight, 30)
        key = world.ask(events.Verify)
        assert world.run_until(lambda: key in world.answers, 30)
        digests = [d.tolist() for d in world.answers[key].value.by_slot.values()]
        assert len(digests) == 3
        assert all(d == digests[0] for d in digests), "replicas differ at the end"
        key = world.ask(events.Deactivate)
        assert world.run_until(lambda: key in world.answers, 30)
        assert world.answers[key].error is None
        members = [world.daemons[address] for address in world.targets]
        assert members[0].durable == members[1].durable == members[2].durable
        assert not any(any(m.durable_extents.incomplete) for m in members)


@pytest.mark.parametrize("first", first_seeds(SEEDS_PER_TEST))
def test_random_runs_keep_every_flushed_write(first: int) -> None:
    run_seeds(Run, first, SEEDS_PER_TEST)


class JoinedRun(Run):
    """One in which members tell of writes and of the flush behind them in one frame."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.world.joins = True


@pytest.mark.parametrize("first", first_seeds(SEEDS_PER_TEST))
def test_the_same_when_answers_are_joined(first: int) -> None:
    run_seeds(JoinedRun, first, SEEDS_PER_TEST)

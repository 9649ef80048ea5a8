"""Read-only sets in seeded random worlds: members that hold the same or older data; flawed, blank
or strange copies among the spares; daemons that crash and come back; broken links; replacements.

Checked from outside: members that serve at the same time hold the same; a read gives what one
daemon holds, never anything older than what has been served before; nothing is ever changed; and in
the end those members serve that hold the newest of everything, or none. STAIRWELL_SEEDS=first:count
runs other seeds."""

from __future__ import annotations

import numpy as np
import pytest

from stairlib.model.context import plain_contexts
from tests.property.seeded import first_seeds, run_seeds
from tests.unit.vmmd.upstairs.model_downstairs import Extents, ModelDownstairs
from tests.unit.vmmd.upstairs.world import UPSTAIRS_ID, World
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core import events
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

SEEDS_PER_TEST = 50

Kept = tuple[dict, Extents]


class Run:
    """One seeded run."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, spares=2)
        self.rng = self.world.rng
        self.versions: list[Kept] = []
        # Per extent the newest (generation, flush) that a serving member had, since the activation.
        self.served = self.nothing()
        self.key: object = None
        self.reads = 0

    def nothing(self) -> list[tuple[int, int]]:
        return [(0, 0)] * self.world.geometry.extent_count

    # ---- the data

    def fill(self) -> None:
        """Writes as a guest does, and keeps what single daemons held on the way."""
        world, rng = self.world, self.rng
        world.ask(events.Activate)
        assert world.run_until(world.healthy, 10)
        for _ in range(rng.randint(2, 8)):
            for _ in range(rng.randint(1, 4)):
                length = rng.randint(1, 6)
                offset = rng.randint(0, world.geometry.block_count - length)
                world.submit([world.write(offset, length)])
            world.submit([world.flush()])
            assert world.run_until(lambda: not world.in_flight, 10)
            world.run_until(lambda: False, 0.3)
            daemon = world.daemons[rng.choice(world.targets)]
            self.versions.append((dict(daemon.durable), daemon.durable_extents.copy()))
        key = world.ask(events.Deactivate)
        assert world.run_until(lambda: key in world.answers, 15)

    def scatter(self) -> None:
        """Some members missed something, the spares hold anything."""
        rng = self.rng
        for address, daemon in self.world.daemons.items():
            member = address in self.world.targets
            kind = rng.random()
            if member and kind < 0.5:
                continue
            if not member and kind < 0.2:
                daemon.recreate(f"other-{address}")
                continue
            durable, extents = rng.choice(self.versions)
            if not member:
                daemon.owner = UPSTAIRS_ID if rng.random() < 0.8 else "another volume"
            daemon.durable, daemon.durable_extents = dict(durable), extents.copy()
            if kind < 0.65:
                # An extent went its own way: newer or older than any version.
                extent = rng.randrange(self.world.geometry.extent_count)
                flushes = daemon.durable_extents.flush
                flushes[extent] = max(0, flushes[extent] + rng.choice([-1, 1]))
                daemon.durable[extent * self.world.geometry.blocks_per_extent] = self.own_block(
                    rng.getrandbits(60) + 1
                )
            elif kind < 0.7:
                daemon.durable_extents.incomplete[rng.randrange(3)] = True
        self.world.restart_read_only()

    def own_block(self, value: int) -> tuple[bytes, bytes]:
        data = value.to_bytes(8, "little") * (self.world.geometry.block_size // 8)
        return plain_contexts(data, len(data)).tobytes(), data

    # ---- what may happen

    def activate(self) -> None:
        self.served = self.nothing()
        self.key = self.world.ask(events.Activate)

    def read(self) -> None:
        world, rng = self.world, self.rng
        length = rng.randint(1, 6)
        offset = rng.randint(0, world.geometry.block_count - length)
        token = ("read", self.reads)
        self.reads += 1
        floor = list(self.served)

        def done(status: BlockStatus, data: bytes | None, owned: np.ndarray | None) -> None:
            world.counts[status.name] = world.counts.get(status.name, 0) + 1
            if status is BlockStatus.OK:
                assert data is not None
                assert owned is not None
                held = [self.holds(d, offset, length, data, owned) for d in self.fresh(floor)]
                assert any(held), "a read gave what no member may serve"

        world.in_flight[token] = done
        world.submit([Request(BlockOp.READ_OWNED, token, offset, length)])

    def fresh(self, floor: list[tuple[int, int]]) -> list[ModelDownstairs]:
        # A strange region may serve as long as no other has come since the activation.
        read_only = self.world.upstairs._read_only
        assert read_only is not None
        owner = read_only._owner
        return [
            daemon
            for daemon in self.world.daemons.values()
            if all(mine >= lowest for mine, lowest in zip(stamps_of(daemon), floor, strict=True))
            and not any(daemon.durable_extents.incomplete)
            and daemon.owner in (owner, "")
        ]

    def holds(
        self, daemon: ModelDownstairs, offset: int, length: int, data: bytes, owned: np.ndarray
    ) -> bool:
        size = self.world.geometry.block_size
        blocks = [daemon.durable.get(block) for block in range(offset, offset + length)]
        held = b"".join(bytes(size) if block is None else block[1] for block in blocks)
        return held == data and owned.tolist() == [block is not None for block in blocks]

    def refused_change(self) -> None:
        world = self.world
        token = ("write", self.reads)
        self.reads += 1
        expected = {BlockStatus.READ_ONLY, BlockStatus.ABORTED}

        def done(status: BlockStatus, *_rest: object) -> None:
            assert status in expected

        world.in_flight[token] = done
        data = bytes(world.geometry.block_size)
        world.submit([Request(BlockOp.WRITE_UNWRITTEN, token, 0, 1, data)])

    def crash_and_start(self) -> None:
        address = self.rng.choice(list(self.world.daemons))
        self.world.crash(address)
        self.world.later(self.rng.choice([0.05, 1.0, 5.0, 30.0]), lambda: self.world.start(address))

    def break_links(self) -> None:
        self.world.break_links(self.rng.choice(list(self.world.daemons)))

    def replace(self) -> None:
        world = self.world
        slots = world.upstairs.status().slots
        used = {s.address for s in slots} | {s.departing_address for s in slots}
        spares = [address for address in world.daemons if address not in used]
        slot = self.rng.choice(slots)
        if spares:
            new = self.rng.choice(spares)
            key = world.ask(lambda key: events.Replace(key, slot.address, new))
            if world.answers[key].error is None:
                world.targets[slot.slot] = new

    def restart(self) -> None:
        """A new upstairs in the old one's place."""
        self.world.start_upstairs()
        self.activate()

    def deactivate(self) -> None:
        key = self.world.ask(events.Deactivate)
        assert self.world.run_until(lambda: key in self.world.answers, 30), "deactivation hangs"
        assert self.world.answers[key].error is None
        assert not self.world.in_flight, "requests outlived the deactivation"
        self.activate()

    # ---- the run

    def look(self) -> bool:
        """Never done: at every step, who serves."""
        if self.world.upstairs.state is not UpstairsState.ACTIVE:
            return False
        serving = [m for m in self.world.upstairs._region.members if m.active]
        stamps = [stamps_of(self.world.daemons[m.address]) for m in serving]
        assert all(each == stamps[0] for each in stamps), "members that differ serve together"
        owners = {self.world.daemons[m.address].owner for m in serving} - {""}
        assert len(owners) <= 1, "regions of two volumes serve together"
        for each in stamps:
            newer = [max(pair) for pair in zip(self.served, each, strict=True)]
            assert newer == each, "an older member serves after a newer one"
            self.served = newer
        return False

    def go(self) -> None:
        world, rng = self.world, self.rng
        self.fill()
        self.scatter()
        before = {address: dict(d.durable) for address, d in world.daemons.items()}
        self.activate()
        steps = [
            self.crash_and_start,
            self.crash_and_start,
            self.break_links,
            self.replace,
            self.refused_change,
            self.restart,
            self.deactivate,
        ]
        for _ in range(rng.randint(20, 60)):
            rng.choice(steps)() if rng.random() < 0.25 else self.read()
            world.run_until(self.look, rng.choice([0.0005, 0.005, 0.05, 0.6, 3.0]))
        self.check_end()
        assert before == {address: d.durable for address, d in world.daemons.items()}

    def check_end(self) -> None:
        world = self.world
        for daemon in world.daemons.values():
            daemon.up = True
        self.restart()
        world.run_until(self.look, 40)
        members = [world.daemons[address] for address in world.targets]
        whole = [
            m
            for m in members
            if not any(m.durable_extents.incomplete) and m.owner != "another volume"
        ]
        newest = self.nothing()
        for member in whole:
            newest = [max(pair) for pair in zip(newest, stamps_of(member), strict=True)]
        right = [m in whole and stamps_of(m) == newest for m in members]
        slots = world.upstairs.status().slots
        assert [s.state is SlotState.ACTIVE for s in slots] == right
        errors = [s.last_error for s, good in zip(slots, right, strict=True) if not good]
        assert all("MEMBER_" in error or "OWNER_MISMATCH" in error for error in errors)
        if any(right):
            assert world.upstairs.state is UpstairsState.ACTIVE
            for _ in range(10):
                self.read()
            failed = world.counts.get("FAILED", 0)
            assert world.run_until(lambda: not world.in_flight, 30)
            assert world.counts.get("FAILED", 0) == failed


def stamps_of(daemon: ModelDownstairs) -> list[tuple[int, int]]:
    extents = daemon.durable_extents
    return list(zip(extents.generation, extents.flush, strict=True))


@pytest.mark.parametrize("first", first_seeds(SEEDS_PER_TEST))
def test_random_runs_serve_the_newest_data_alone(first: int) -> None:
    run_seeds(Run, first, SEEDS_PER_TEST)

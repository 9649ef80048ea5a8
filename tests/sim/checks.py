"""The checkers: they look at disks, at what the guest was told, and at what the control plane
stored, and know nothing of how the code works.

- what a flush that ended well covers is, at that moment, on the media of two members, one less for
  a disk that was lost or rotted, and one less while fewer than two members are in service and the
  other one that answered is being filled (looked at for some of the flushes);
- what two media have of an extent is the same when its stamps are, and none is marked (looked at
  together with the flushes);
- an extent that was copied while something is rotten has no damaged block;
- a member whose repair is said to have ended well has no marks on its medium any more;
- an old member is retired only when the ones that stay hold all that;
- a replacement's progress never goes back and is whole only when it is done; one that has ended
  stays ended, and a failed one has a reason;
- when all is quiet the three copies are equal, block for block, and hold what the guest knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from controlplane.core.replacement import Replacement, State
from downstaird.core.region import Region
from stairlib.model.context import mismatches
from stairlib.model.errors import StairwellError
from stairlib.wire.frame import FLAG_FAULTED, FLAG_INCOMPLETE
from tests.sim.look import Look
from vmmd.upstairs.core.slot_states import SlotState

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.world import World

# The versions that a block may have.
Allowed = Callable[[int], list[int]]
COPIES_OF_A_FLUSH = 2
FLAGS_NOT_WHOLE = FLAG_INCOMPLETE | FLAG_FAULTED
# Opening a disk apart takes as long as ten requests.
LOOK_AT_FLUSHES = 0.12


class Checks:
    """What is looked at from outside."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.copies_seen = 0

    # ---- copies

    def flush_acknowledged(self, allowed: Allowed) -> None:
        """A guest's flush has ended well this moment; `allowed` is what it keeps, by block."""
        if self.world.chance.random() < LOOK_AT_FLUSHES:
            self.copies("when a flush ended well", self._needed(), allowed)

    def _needed(self) -> int:
        """On how many media a flush is at this moment: fewer while fewer members are in service."""
        # As of the end of the machine's step: whom it lost is told after what it completed.
        slots = self.world.machine.upstairs.status().slots
        active = sum(slot.state is SlotState.ACTIVE for slot in slots)
        return COPIES_OF_A_FLUSH if active >= COPIES_OF_A_FLUSH else COPIES_OF_A_FLUSH - 1

    def copies(self, when: str, needed: int, allowed: Allowed | None = None) -> None:
        """Fails unless so many members, less the wounded, have all that was flushed."""
        self.copies_seen += 1
        world = self.world
        needed -= world.wounds.count()
        looks = [self._look(daemon) for daemon in world.members(departing=True)]
        problems = {look.daemon.host: self._missing(look, allowed) for look in looks}
        good = [host for host, problem in problems.items() if not problem]
        if len(good) < needed:
            world.fail(f"{when}, {len(good)} members have it all, not {needed}: {problems}")

        self._alike(when, looks)

    def _alike(self, when: str, looks: list[Look]) -> None:
        """Fails when two members' media differ in an extent that has the same stamp on both, and no
        flag: of the two, a comparison of stamps would take either."""
        world = self.world
        size = world.geometry.blocks_per_extent
        first: dict[tuple[int, int, int], tuple[str, bytes]] = {}
        for look in looks:
            host = look.daemon.host
            if host in world.wounds or look.daemon.rotten:
                continue
            region = look.region()
            states = region.extent_states()
            generations, flushes = states.generations.tolist(), states.flushes.tolist()
            for extent in np.flatnonzero(states.flags == 0).tolist():
                stamp = (extent, generations[extent], flushes[extent])
                contexts = look.contexts(extent * size, size).tobytes()
                other, there = first.setdefault(stamp, (host, contexts))
                if there != contexts:
                    world.fail(
                        f"{when}, extent {extent} differs between {other} and {host}, and "
                        f"both say generation {stamp[1]}, flush {stamp[2]}"
                    )

    def copied(self, daemon: Daemon, region: Region, extent: int) -> None:
        """A copy into the member has ended well: it brought nothing that its contexts deny."""
        if daemon.rotten or not self.world.wounds.count():
            return
        size = self.world.geometry.blocks_per_extent
        contexts, buffers = region.read(extent * size, size)
        definition = region.definition
        data = b"".join(map(bytes, buffers))
        block_size = definition.geometry.block_size
        bad = mismatches(data, contexts, block_size, encrypted=definition.encrypted)
        if bad:
            self.world.fail(
                f"extent {extent} was copied to {daemon.host} with damaged blocks {bad}"
            )

    def filled(self, daemon: Daemon, generation: int) -> None:
        """A machine with this generation says that the member is whole again. Whose medium has
        another owner by now, or was put back to an older state, is not looked at."""
        if daemon.host in self.world.wounds:
            return
        region = daemon.durable()
        marked = int(np.count_nonzero(region.extent_states().flags & FLAG_INCOMPLETE))
        if marked and region.ownership.generation == generation:
            self.world.fail(
                f"the repair of {daemon.host} has ended, and {marked} of its extents are marked "
                "as not whole on its medium"
            )
        region.close()

    def stands_alone(self, daemon: Daemon) -> bool:
        """Whether the other members could be filled from this one's medium. A blank region is not
        believed beside one that is being filled."""
        look = self._look(daemon)
        written = bool(look.region().extent_states().generations.any())
        return written and not self._missing(look)

    def _missing(self, look: Look, allowed: Allowed | None = None) -> str:
        """Why the medium does not hold all that was flushed, or what is `allowed`; empty when it
        does."""
        kept = allowed or self.world.guest.floor_versions
        try:
            if (look.region().extent_states().flags & FLAGS_NOT_WHOLE).any():
                return "it is being filled"
            values, bad = look.values()
        except StairwellError as error:
            return error.message
        if bad:
            return f"blocks {bad} do not match their contexts"
        for number, value in enumerate(values):
            version = self.world.guest.decode(number, value) or self.world.base(number)
            versions = kept(number)
            # A discard's version is below zero, and reads as zeros.
            if version not in versions and (version or min(versions, default=1) > 0):
                return f"block {number} has version {version}, which is none of {versions}"
        return ""

    def _look(self, daemon: Daemon) -> Look:
        return Look(daemon, self.world.sealing)

    # ---- the workflow

    def replacement_stored(self, before: Replacement, after: Replacement) -> None:
        """A step of a replacement is durable."""
        world = self.world
        progress = after.progress
        if progress.bytes_done < before.progress.bytes_done:
            world.fail(
                f"progress fell from {before.progress.bytes_done} to {progress.bytes_done} bytes"
            )
        if (progress.bytes_done == progress.bytes_total) is not (after.state is State.DONE):
            world.fail(f"{progress.bytes_done} of {progress.bytes_total} bytes in {after.state}")
        if before.state in (State.DONE, State.CANCELLED):
            world.fail(f"a replacement that was {before.state} went to {after.state}")
        if after.mended > before.mended:
            # Nothing here rots unseen: members that differ are a mistake.
            world.fail(f"a comparison has found a difference: {after.last_error}")
        if after.state is State.FAILED and not after.last_error:
            world.fail("a replacement failed without a reason")

    def undone(self) -> None:
        """The new member was let go, the old one stays."""
        self.copies("when a replacement was undone", self._needed())

    def retired(self, record: Replacement) -> None:
        """The old member is about to be given up."""
        if not any(entry.event == "Verified" for entry in record.transitions):
            self.world.fail("a member is retired, and nobody has compared its successor")
        self.copies("when the old member was retired", COPIES_OF_A_FLUSH)

    # ---- the end

    def equal(self) -> None:
        """The three copies are equal and right, in service and on their media; the machine has let
        go of them."""
        world = self.world
        images: dict[str, bytes] = {}
        for daemon in world.members():
            look = self._look(daemon)
            problem = self._missing(look)
            if problem and not daemon.rotten:
                world.fail(f"at the end {daemon.host} is not whole: {problem}")
            service = daemon.service
            if service is None:
                world.fail(f"{daemon.host} does not run at the end")
                return
            images[daemon.host] = self._image(service.engine)
            region = look.region()
            if self._image(region) != images[daemon.host]:
                world.fail(f"{daemon.host} serves what its medium does not hold")
            if region.ownership.generation != world.machine.generation:
                world.fail(
                    f"{daemon.host} was promoted to generation {world.machine.generation}, "
                    f"and its medium has {region.ownership.generation}"
                )
        if len(set(images.values())) != 1:
            world.fail(f"the copies on {sorted(images)} differ at the end")

    def _image(self, region: Region) -> bytes:
        """Contexts, and the data of blocks whose data is what the context says."""
        geometry = region.definition.geometry
        contexts, _buffers = region.read(0, geometry.block_count)
        return contexts.tobytes()

"""What people do wrong: a region directory that is put back, a mistaken key, a target that is not
fit, a control plane that is not let in.

What must be refused has to be refused with the right reason, and must leave nothing behind.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from downstaird.core.engine import Ownership
from downstaird.core.region_files import version_for
from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV
from stairlib.model.context import empty_contexts
from stairlib.model.geometry import Geometry
from tests.sim.daemon import BLOCK, Daemon
from vmmd.upstairs.core.reconcile_states import ReconcilePhase
from vmmd.upstairs.core.repair_states import RepairPhase
from vmmd.upstairs.core.upstairs_states import UpstairsState

if TYPE_CHECKING:
    from tests.sim.machine import Machine
    from tests.sim.world import World

# Whether a set that goes on notices by itself that a member came back with an older copy.
OLDER_COPIES_ARE_NOTICED = True
# How often each comes, beside the faults; the names are methods of `Mistakes`.
MISTAKES = {
    "put_back": 1.0,
    "wrong_key": 0.6,
    "unfit_target": 0.8,
    "not_let_in": 0.4,
    "standstill": 0.6,
    "pounce": 0.8,
    "stop_early": 0.5,
}
STANDSTILL_SECONDS = (0.05, 1.0, 12.0)
if OLDER_COPIES_ARE_NOTICED:
    MISTAKES["put_back_running"] = 1.0
NOT_LET_IN_SECONDS = (0.5, 2.0, 6.0)
_NEARLY_FILLED = (RepairPhase.FINAL, RepairPhase.END)
_NEARLY_EQUAL = (ReconcilePhase.LAST_FLUSH, ReconcilePhase.END)
# What an unfit target is refused for, by what is wrong with it.
UNFIT = {
    "geometry": "TARGET_GEOMETRY_MISMATCH",
    "plain": "TARGET_ENCRYPTION_MISMATCH",
    "encrypted": "TARGET_ENCRYPTION_MISMATCH",
    "suite": "TARGET_CIPHER_MISMATCH",
    "read_only": "TARGET_READ_ONLY_MISMATCH",
    "same_region": "TARGET_IN_USE",
    "owned": "TARGET_IN_USE",
    "written": "TARGET_NOT_BLANK",
}


class Mistakes:
    """The mistakes of one world. Each method says whether it happened."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._chance = world.variety
        self._unfit = 0

    # ---- an older copy of a region

    def put_back(self) -> bool:
        """A member's host fails, and its region directory is put back from an older copy; then the
        machine is made anew. As with a lost disk, somebody replaces the member later.

        Only before an activation: a machine that goes on would have to notice by itself."""
        if not self.world.may_lose_machine() or not self.put_back_running():
            return False
        self.world.faults.machine()
        return True

    def put_back_running(self) -> bool:
        """The same under a machine that goes on."""
        world = self.world
        member = world.faults.victim()
        if member is None or member.kept is None:
            return False
        member.kill(power=True)
        member.note("the region is put back to an older copy")
        member.put_back()
        world.faults.wound(member)
        world.faults.back(member)
        return True

    # ---- keys

    def wrong_key(self) -> bool:
        """The machine is made anew, and somebody gives another key: it is refused by each member,
        at once, and nothing is written. Only while all members know the right one."""
        world = self.world
        known = all(
            d.service is not None and d.service.engine.ownership.key_check for d in world.members()
        )
        if not world.sealing.cipher or not known or world.wounds.count() or not world.settled():
            return False
        if not world.machine.active:
            return False
        world.machine.kill()
        world.guest.machine_lost()
        world.make_machine(wrong_key=True)
        return True

    # ---- targets that are not fit

    def unfit_target(self) -> bool:
        """Somebody asks for a target that cannot be a member."""
        world = self.world
        if not world.control.up or not world.settled():
            return False
        cipher = world.sealing.cipher
        kinds = [k for k in UNFIT if k != ("encrypted" if cipher else "plain")]
        if not cipher:
            kinds.remove("suite")
        kind = self._chance.choice(kinds)
        old, sibling = self._chance.sample(world.members(), 2)
        stranger = self._stranger(kind, sibling)
        world.hosts[stranger.address] = stranger
        before = world.control.store.disk
        refused = world.reached[f"request refused {UNFIT[kind]}"]
        begun = world.request(old.address, stranger.address)
        if begun is not None or world.reached[f"request refused {UNFIT[kind]}"] == refused:
            world.fail(f"a target that is unfit ({kind}) is not refused for {UNFIT[kind]}")
        if world.control.store.disk != before:
            world.fail("a refused target is in the recorded request")
        del world.hosts[stranger.address]
        stranger.kill(power=False)
        return True

    def _stranger(self, kind: str, sibling: Daemon) -> Daemon:
        world = self.world
        self._unfit += 1
        stranger = Daemon(world, 100 + self._unfit)
        make: dict[str, Callable[[Daemon], None]] = {
            "geometry": self._other_geometry,
            "plain": lambda daemon: self._other_cipher(daemon, ""),
            "encrypted": lambda daemon: self._other_cipher(daemon, AES_256_GCM_SIV),
            "suite": lambda daemon: self._other_cipher(daemon, self._other_suite()),
            "read_only": lambda daemon: setattr(daemon, "read_only", True),
            "same_region": lambda daemon: self._same_region(daemon, sibling),
            "owned": lambda _daemon: None,
            "written": lambda _daemon: None,
        }
        make[kind](stranger)
        stranger.start()
        service = stranger.service
        assert service is not None
        if kind == "owned":
            owner = uuid.UUID(int=self._chance.getrandbits(128))
            service.engine.promote(Ownership(owner, owner, 1))
        elif kind == "written":
            service.engine.write(0, empty_contexts(1), bytes(BLOCK))
            service.engine.begin_flush(1, 1).run()
        return stranger

    def _other_suite(self) -> str:
        return AES_256_GCM if self.world.sealing.cipher == AES_256_GCM_SIV else AES_256_GCM_SIV

    def _other_geometry(self, daemon: Daemon) -> None:
        geometry = self.world.geometry
        other = Geometry(BLOCK, geometry.blocks_per_extent, geometry.extent_count + 1)
        daemon.make_region(replace(daemon.definition, geometry=other))

    def _other_cipher(self, daemon: Daemon, cipher: str) -> None:
        version = version_for(cipher)
        daemon.make_region(replace(daemon.definition, cipher=cipher, format_version=version))

    def _same_region(self, daemon: Daemon, sibling: Daemon) -> None:
        daemon.make_region(replace(daemon.definition, id=sibling.definition.id))

    # ---- the control plane

    def standstill(self) -> bool:
        """The control plane's process is stopped, and goes on later as if nothing had been."""
        if not self.world.control.up:
            return False
        self.world.control.stop(self._chance.choice(STANDSTILL_SECONDS))
        return True

    # ---- the worst moment

    def pounce(self) -> bool:
        """The next member that is nearly filled is killed just before its end."""
        if self.world.pouncing:
            return False
        self.world.pouncing = True
        return True

    def look_for_prey(self, machine: Machine) -> None:
        """A machine has taken a step while somebody lies in wait."""
        upstairs = machine.upstairs
        repair, running = upstairs._repair, upstairs._activation.running
        if repair is not None and repair.phase in _NEARLY_FILLED:
            prey = repair.target.address
        elif running is not None and running.phase in _NEARLY_EQUAL:
            prey = self._chance.choice(running.members).address
        else:
            return
        # Which of the last phases it is is luck too.
        if prey in self.world.daemons and self._chance.random() < 0.5:
            self.world.pouncing = False
            self.world.schedule.later(0.0, self._kill, self.world.daemons[prey])

    def _kill(self, daemon: Daemon) -> None:
        daemon.kill(power=False)
        self.world.faults.back(daemon)

    def stop_early(self) -> bool:
        """A machine is stopped while its volume is being activated."""
        machine = self.world.machine
        going = machine.alive and machine.upstairs.state is UpstairsState.GO_ACTIVE
        if not going or not self.world.may_lose_machine():
            return False
        self.world.deactivate(machine)
        return True

    # ---- certificates

    def not_let_in(self) -> bool:
        """The machines' host refuses the control plane for a while, as with a certificate that it
        does not trust. A replacement fails of it, and is asked for again later."""
        world = self.world
        if world.refuses_control or not world.machine.alive:
            return False
        world.trace.note("vmmd", "the control plane is not let in")
        world.refuses_control = True
        world.schedule.later(self._chance.choice(NOT_LET_IN_SECONDS), self.let_in)
        return True

    def let_in(self) -> None:
        """The control plane is let in again."""
        self.world.refuses_control = False

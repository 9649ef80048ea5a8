"""The world of one seed: three programs' cores on one simulated clock, network and set of disks.

One process, one thread, one generator: the same seed gives the same run, event by event. Storage
hosts are d0, d1, ...; the machine's process is on vm1, vm2, ... (one after the other, two of them
for a while after a takeover); the control plane is on cp.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

from controlplane.core.records import DiskRecord, region_at, with_target
from controlplane.core.replacement import Replacement, State
from stairlib.model.cipher import describe_cipher
from stairlib.model.construction import RegionOptions, RegionSpec, VolumeSpec
from stairlib.model.geometry import Geometry
from stairlib.sim.network import Network
from stairlib.sim.schedule import Schedule
from stairlib.sim.trace import Trace
from tests.sim.checks import Checks
from tests.sim.control import Control
from tests.sim.control_checks import ControlChecks
from tests.sim.daemon import BLOCK, Daemon
from tests.sim.faults import Faults, Wounds
from tests.sim.guest import Guest
from tests.sim.machine import Machine
from tests.sim.parent import Parent
from tests.sim.reached import Reached
from tests.sim.sealing import Sealing
from tests.sim.words import Words
from vmmd.upstairs.core import events
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

VOLUME = uuid.UUID("0cedae45-3d6e-4d90-b2cb-56f1a1a42a89")
REGION_PATH = "sub_volumes[0]"
# Uneven chunks, whole chunks, and extents smaller than a chunk.
GEOMETRIES = (Geometry(BLOCK, 16, 4), Geometry(BLOCK, 12, 6), Geometry(BLOCK, 6, 10))
DELAYS = ((0.0001, 0.001), (0.0005, 0.005), (0.005, 0.05))
# A request or a machine that the control plane was too busy or too dead for is tried again.
AGAIN_SECONDS = 1.0
# A set that was put out of service is tried again as often as not, instead of a new machine.
ACTIVATED_AGAIN = 0.5
# How often a volume that was let go of is activated with the generation it had.
GENERATION_FORGOTTEN = 0.3
# So many of the seeds have a read-only parent.
PARENTS = 0.15
# Deactivation ends after 10 s at the latest by its own rule; a message or two more.
DEACTIVATE_SECONDS = 30.0


class ViolationError(AssertionError):
    """The system broke one of its promises."""


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, sink: Callable[[str], None] | None = None) -> None:
        self.chance = random.Random(seed)
        # What came later draws here, so that it does not turn the seeds of before into others.
        self.variety = random.Random(f"variety {seed}")
        self.schedule = Schedule()
        self.reached = Reached()
        self.trace = Trace(self.schedule, sink)
        self.geometry = self.chance.choice(GEOMETRIES)
        self.network = Network(self.schedule, self.chance, *self.chance.choice(DELAYS))
        self.region_path = REGION_PATH
        self.counts = {"replacements": 0, "machines": 0, "comparisons": 0}
        self.wounds = Wounds()
        self.sealing = Sealing(self, VOLUME, self.variety)
        count = self.chance.randrange(4, 7)
        daemons = [Daemon(self, number) for number in range(count)]
        self.daemons = {daemon.address: daemon for daemon in daemons}
        # These, and others that are there for a while.
        self.hosts = dict(self.daemons)
        # The machines' host does not trust the control plane.
        self.refuses_control = False
        # The next member that is nearly filled will be killed.
        self.pouncing = False
        self.parent = Parent(self) if self.variety.random() < PARENTS else None
        if self.parent is not None:
            self.hosts |= {daemon.address: daemon for daemon in self.parent.daemons}
        self.guest = Guest(self)
        self.words = Words(self, seed)
        self.checks = Checks(self)
        self.checks_of_control = ControlChecks(self)
        self.control = Control(self, self._disk([d.address for d in daemons[:3]]))
        self._lost = False
        for daemon in self.hosts.values():
            daemon.start()
        self.machine: Machine
        self.make_machine()
        self.faults = Faults(self)

    def _disk(self, targets: list[str]) -> DiskRecord:
        options = RegionOptions(id=VOLUME, targets=tuple(targets), key=self.sealing.secret)
        region = RegionSpec(self.geometry, options, 1)
        return DiskRecord(
            key=uuid.UUID(int=1),
            name="disk",
            device="nvme",
            instance_id=uuid.UUID(int=2),
            instance_name="machine",
            slot=0,
            read_only=False,
            construction=VolumeSpec(VOLUME, BLOCK, (region,)),
        )

    def reached_network(self) -> None:
        """Adds what the network counted."""
        network = self.network
        for name, count in (
            ("silence", network.silences),
            ("call too late", network.calls_late),
            ("call carried out late", network.calls_carried_out_late),
        ):
            if count:
                self.reached[f"network {name}"] += count

    def describe(self) -> str:
        """What was drawn for this seed, in a line."""
        parent = self.parent
        below = "no parent" if parent is None else f"a parent with {parent.flaw or 'equal'} regions"
        fast = 1000 * self.network.high
        return (
            f"{len(self.daemons)} storage hosts, {self.geometry.describe()}, "
            f"{describe_cipher(self.sealing.cipher)}, {below}, messages take up to {fast:g} ms"
        )

    def fail(self, what: str) -> None:
        """A promise is broken: the run ends here."""
        self.trace.note("CHECK", what)
        raise ViolationError(what)

    def base(self, block: int) -> int:
        """The version of a block that the guest did not write: zeros, or the parent's."""
        return self.parent.base(block) if self.parent is not None else 0

    def token(self) -> bytes:
        """A session's token."""
        return self.chance.randbytes(16)

    # ---- looking

    def members(self, *, departing: bool = False) -> list[Daemon]:
        """The daemons of the recorded request; with `departing` also the one that is being
        replaced."""
        targets = list(region_at(self.control.store.disk.construction, REGION_PATH).options.targets)
        newest = self.control.store.newest
        if departing and newest is not None and newest.state is not State.DONE:
            targets.append(newest.old_target)
        return [self.daemons[target] for target in targets]

    def spares(self) -> list[Daemon]:
        """Daemons with a blank region that nobody owns, running."""
        members = self.members(departing=True)
        return [
            d
            for d in self.daemons.values()
            if d not in members
            and d.service is not None
            and d.service.engine.ownership.owner_id is None
        ]

    def settled(self) -> bool:
        """No replacement is under way."""
        newest = self.control.store.newest
        return newest is None or newest.state is State.DONE

    def whole(self) -> bool:
        """The volume is served by three full members, and none is being replaced."""
        machine = self.machine
        return (
            machine.active
            and self.settled()
            and all(s.state is SlotState.ACTIVE for s in machine.status.slots)
            and not any(s.departing_address for s in machine.status.slots)
            and not machine.upstairs.repairing
        )

    # ---- what is legal

    def may_fault(self, daemon: Daemon) -> bool:
        """Whether the daemon may fail in a way that takes a member out of service for a repair: not
        a member that stays, while another one is being replaced."""
        return self.settled() or daemon not in self.members() or self._is_new(daemon)

    def _is_new(self, daemon: Daemon) -> bool:
        newest = self.control.store.newest
        return newest is not None and newest.new_target == daemon.address

    def may_lose_machine(self) -> bool:
        """Whether the machine may end: with a replacement under way the next one does not know the
        old member any more, so what was flushed must be whole on one that stays."""
        if self.settled():
            return True
        return any(self.checks.stands_alone(daemon) for daemon in self.members())

    # ---- the machine

    def make_machine(self, *, wrong_key: bool = False) -> None:
        """A new machine for the recorded request, with a new generation."""
        self.counts["machines"] += 1
        number = self.counts["machines"]
        spec = region_at(self.control.store.construction(), REGION_PATH)
        session = str(uuid.UUID(int=self.chance.getrandbits(128)))
        encryption = self.sealing.encryption(wrong=wrong_key)
        machine = Machine(self, f"vm{number}", spec, session, encryption)
        machine.mistaken = wrong_key
        machine.note(f"a machine is made, generation {spec.generation}")
        machine.guest = self.guest.complete
        machine.watcher = self._watch
        if self.parent is not None and not self.parent.dropped:
            below = Machine(self, machine.host, self.parent.spec, session, None)
            below.ask(events.Activate, lambda _answer: None)
            machine.below, machine.layers = below, self.parent.attach(machine, below)
        self.machine = machine
        self._lost = False

        def activated(answer: events.Answer) -> None:
            self.note_refusal(answer)
            if answer.error is None and wrong_key:
                self.fail("a wrong key was accepted")

        machine.ask(events.Activate, activated)

    def _bring_back(self) -> None:
        """Who reads that the newest copy has damaged blocks gets that member's data back."""
        for daemon in self.members(departing=True):
            if daemon.rotten:
                daemon.restore()

    def note_refusal(self, answer: events.Answer) -> None:
        """Counts an activation that was refused."""
        if answer.error is not None:
            self.reached[f"activation refused {answer.error.reason}"] += 1

    def make_machine_later(self, seconds: float) -> None:
        """When the control plane gets round to it."""
        self.schedule.later(seconds, self._make_when_possible)

    def _make_when_possible(self) -> None:
        if self.machine.alive:
            return
        if self.control.up:
            self.make_machine()
        else:
            self.make_machine_later(AGAIN_SECONDS)

    def _watch(self, machine: Machine) -> None:
        """The machine's published status has changed."""
        self.checks_of_control.look(machine)
        if machine is not self.machine:
            return
        status = machine.status
        for slot in status.slots:
            daemon = self.daemons[slot.address]
            if slot.state is SlotState.RECONCILE and daemon.host in self.wounds.fresh:
                # Somebody is quick, and replaces the member while the others are being compared.
                self.wounds.fresh.discard(daemon.host)
                self.schedule.later(0.0, self._replace_wounded, slot.address)
        if status.state is UpstairsState.DISABLED:
            if status.reason.startswith("SOURCE_DAMAGED"):
                self.reached["out of service SOURCE_DAMAGED"] += 1
                if not any(daemon.rotten for daemon in self.members(departing=True)):
                    self.fail(f"nothing has rotted, and it is said: {status.reason}")
                self.schedule.later(self.variety.uniform(0.0, 5.0), self._bring_back)
            self.schedule.later(0.0, self._remake, machine)
        elif status.state is UpstairsState.ACTIVE:
            lost = not any(
                slot.state is SlotState.ACTIVE or slot.mode is SlotMode.OFFLINE
                for slot in status.slots
            )
            if lost and not self._lost:
                self.trace.note("guest", "no whole member is in service")
                self.guest.members_lost()
            self._lost = lost

    def _remake(self, machine: Machine) -> None:
        if machine is not self.machine or not machine.alive:
            return
        self.guest.machine_lost()
        if not machine.mistaken and self.variety.random() < ACTIVATED_AGAIN:
            machine.activate_again(self.control.store.hand_out_generation())
            return
        machine.kill()
        self.make_machine_later(AGAIN_SECONDS)

    def restart_instance(self) -> None:
        """What a replacement without a source tells to do when the member is gone for good."""
        self.machine.note("is restarted, because nobody is left to copy from")
        self.reached["restarted for want of a source"] += 1
        self.guest.machine_lost()
        self.machine.kill()
        self.make_machine_later(AGAIN_SECONDS)

    def deactivate(self, machine: Machine, *, last: bool = False) -> None:
        """Lets go of the volume as a stop of the machine does, then makes the machine again, or,
        but for the `last` time, has the same one activate the volume again."""
        machine.note("the volume is deactivated")
        promise = self.guest.promise()
        over = False

        def ended(answer: events.Answer) -> None:
            nonlocal over
            over = True
            if machine is not self.machine or not machine.alive:
                return
            machine.note(f"deactivated: {answer.error or 'all is flushed'}")
            if self.guest.busy:
                self.fail("requests outlived the deactivation")
            if answer.error is None:
                promise()
            self.guest.machine_lost()
            again = not last and machine.below is None
            if again and self.variety.random() < GENERATION_FORGOTTEN:
                # Somebody forgets to raise it: refused where anything was flushed with it.
                machine.activate_again(machine.generation)
                return
            machine.kill()
            self.make_machine_later(0.01)

        def overdue() -> None:
            if machine.alive and machine is self.machine and not over:
                self.fail("a deactivation did not end")

        self.schedule.later(DEACTIVATE_SECONDS, overdue)
        machine.deactivate(ended)

    def compare(self) -> None:
        """Has the members compared; they must never differ."""

        def compared(answer: events.Answer) -> None:
            if answer.error is None:
                self.counts["comparisons"] += 1
                if not answer.value.equal:
                    self.fail(f"active members differ: {answer.value.differences}")

        self.machine.verify(compared)

    # ---- replacements

    def request(self, old: str, new: str) -> Replacement | None:
        """A user's ReplaceVcr of one target by another."""
        construction = self.control.store.disk.construction
        region = region_at(construction, REGION_PATH)
        slot = region.options.targets.index(old)
        return self.control.request(with_target(construction, REGION_PATH, slot, new))

    def replace_later(self, address: str, seconds: float) -> None:
        """Somebody replaces a wounded member, and keeps at it."""
        self.schedule.later(seconds, self._replace_wounded, address)

    def _replace_wounded(self, address: str) -> None:
        if all(daemon.address != address for daemon in self.members()):
            return
        spares = self.spares()
        free = self.control.up and self.settled() and spares
        if self.daemons[address].rotten:
            # It may be what the others are being filled from: it goes when another one serves.
            others = [s for s in self.machine.status.slots if s.address != address]
            free = free and self.machine.active and any(s.state is SlotState.ACTIVE for s in others)
        if not free or self.request(address, self.chance.choice(spares).address) is None:
            self.replace_later(address, AGAIN_SECONDS)

    def undone(self, record: Replacement) -> None:
        """The control plane has taken a replacement back; a member that was wounded is replaced
        later."""
        self.checks_of_control.undone(record)
        self.checks.undone()
        self._make_anew(self.daemons[record.new_target])
        if self.daemons[record.old_target].host in self.wounds:
            self.replace_later(record.old_target, AGAIN_SECONDS)

    def retired(self, record: Replacement) -> None:
        """The control plane has no more use for the old member: its disk is made blank at once."""
        self.checks.retired(record)
        old = self.daemons[record.old_target]
        if old in self.members():
            self.fail(f"{old.host} was retired and is a member")
        self._make_anew(old)

    def _make_anew(self, daemon: Daemon) -> None:
        """One that is nobody's member any more is a blank spare again, whatever had happened."""
        self.wounds.heal(daemon.host)
        if daemon.service is None or daemon.service.engine.ownership.owner_id is not None:
            daemon.kill(power=False)
            daemon.make_region()
            self.schedule.later(self.chance.uniform(0.1, 2.0), daemon.start)

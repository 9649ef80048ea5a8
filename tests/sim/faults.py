"""What may go wrong, how often, and what is legal: a world that is hostile but not hopeless.

docs/simulator.md says why each rule is there. In short: anything that heals by itself may happen at
any time to anybody (kills, power cuts, lost connections, partitions, slow ways, a failed sync, a
full disk). What destroys data for good (a lost disk, a rotten block) may happen to one member while
the volume is whole, and the next one only when it is whole again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stairlib.sim.chance import pick
from tests.sim.mistakes import MISTAKES, Mistakes
from vmmd.upstairs.core import events
from vmmd.upstairs.core.repair_limits import RepairLimits

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.world import World

AWAY_SECONDS = (0.05, 0.3, 1.0, 5.0, 15.0, 30.0)
# From the loss of a disk until somebody asks for a replacement.
NOTICED_SECONDS = (0.0, 0.5, 5.0, 20.0)
SLOWER = (5.0, 20.0, 80.0)
PAGE_BYTES = 4096
OLD_STOPPED = 0.4
# How often a member's rot is found out by a crash, and how soon after.
ROT_AND_CRASH = 0.6
AT_ONCE_SECONDS = (0.0, 0.005, 0.05, 0.5)
# With so many of the faults, something happens to the parent too, if there is one.
PARENT_SHARE = 0.3
REPAIR_RATES = (0, 0, 4096, 65536)
COPIES_IN_FLIGHT = (1, 4, 16)

# How often each comes, beside the others; the names are methods of `Faults`.
FAULTS = {
    "kill": 3.0,
    "power": 3.0,
    "power_all": 0.7,
    "links": 3.0,
    "partition": 2.0,
    "one_way": 1.5,
    "slow": 1.0,
    "sync": 1.5,
    "full": 0.7,
    "rot": 0.8,
    "lost_disk": 1.0,
    "machine": 1.5,
    "takeover": 0.8,
    "control": 2.0,
    "store": 0.7,
    "deactivate": 0.8,
    "repair_rate": 0.7,
    "verify": 0.7,
}


class Wounds:
    """Members that lack data for good. A wound is healed by a replacement that is done."""

    def __init__(self) -> None:
        self._hosts: set[str] = set()
        # Those that nobody has tried to replace during a reconciliation yet.
        self.fresh: set[str] = set()

    def add(self, host: str) -> None:
        """The member's data is damaged or gone."""
        self._hosts.add(host)
        self.fresh.add(host)

    def heal(self, host: str) -> None:
        """The host is no member any more, or its successor is whole."""
        self._hosts.discard(host)
        self.fresh.discard(host)

    def __contains__(self, host: str) -> bool:
        return host in self._hosts

    def count(self) -> int:
        """How many members are wounded."""
        return len(self._hosts)


class Faults:
    """Strikes. Each seed has its own few kinds of faults, so that rare meetings come often."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.struck = 0
        self.refrained = 0
        self._kinds: dict[str, Callable[[], bool]] = {name: getattr(self, name) for name in FAULTS}
        chance = world.chance
        self.mistakes = Mistakes(world)
        self._kinds |= {name: getattr(self.mistakes, name) for name in MISTAKES}
        self._weights = {
            name: weight * chance.choice((0.0, 1.0, 3.0)) for name, weight in FAULTS.items()
        }
        self._weights |= {
            name: weight * world.variety.choice((0.0, 0.0, 1.0, 3.0))
            for name, weight in MISTAKES.items()
        }
        if not any(self._weights.values()):
            self._weights["kill"] = 1.0

    def strike(self) -> None:
        """One fault; one that would not be legal now does not happen."""
        parent = self.world.parent
        if parent is not None and self.world.variety.random() < PARENT_SHARE:
            parent.strike()
        name = pick(self.world.chance, self._weights)
        if self._kinds[name]():
            self.struck += 1
            self.world.reached[f"fault {name}"] += 1
        else:
            self.refrained += 1
            self.world.reached[f"refrained {name}"] += 1

    # ---- what heals by itself

    def _daemon(self) -> Daemon:
        return self.world.chance.choice(list(self.world.daemons.values()))

    def back(self, daemon: Daemon) -> None:
        """Starts the daemon again some time later."""
        self.world.schedule.later(self.world.chance.choice(AWAY_SECONDS), daemon.start)

    def kill(self) -> bool:
        """A downstairs process is killed, and started again some time later."""
        return self._down(self._daemon(), power=False)

    def power(self) -> bool:
        """A storage host loses power for a time."""
        return self._down(self._daemon(), power=True)

    def _down(self, daemon: Daemon, *, power: bool) -> bool:
        if not daemon.up:
            return False
        daemon.kill(power=power)
        self.back(daemon)
        return True

    def power_all(self) -> bool:
        """The room loses power: every storage host, and as often as not the machine with them."""
        for daemon in self.world.daemons.values():
            self._down(daemon, power=True)
        if self.world.chance.random() < 0.5:
            self.machine()
        return True

    def _hosts(self) -> tuple[str, str]:
        """Two that talk to each other."""
        world = self.world
        daemon = self._daemon().host
        others = [d.host for d in world.daemons.values() if d.host != daemon]
        machine = world.machine.host
        return daemon, world.chance.choice([machine, machine, world.chance.choice(others)])

    def links(self) -> bool:
        """Connections are reset."""
        one, other = self._hosts()
        broken = self.world.network.break_connections(one, other, "connection reset")
        self.world.trace.note("network", f"{broken} connections of {one} and {other} break")
        return broken > 0

    def partition(self) -> bool:
        """Two hosts do not reach each other."""
        one, other = self._hosts()
        if self.world.chance.random() < 0.15:
            one, other = self.world.control.host, self.world.machine.host
        return self._block(((one, other), (other, one)))

    def one_way(self) -> bool:
        """One host does not reach another one, which still reaches it."""
        ends = self._hosts()
        return self._block((ends if self.world.chance.random() < 0.5 else ends[::-1],))

    def _block(self, ways) -> bool:
        network = self.world.network
        seconds = self.world.chance.choice(AWAY_SECONDS)
        for source, target in ways:
            self.world.trace.note("network", f"nothing gets from {source} to {target}")
            network.block(source, target)
            self.world.schedule.later(seconds, self._unblock, source, target)
        return True

    def _unblock(self, source: str, target: str) -> None:
        self.world.trace.note("network", f"the way from {source} to {target} is open")
        self.world.network.unblock(source, target)

    def slow(self) -> bool:
        """The way between two hosts is slow for a time."""
        one, other = self._hosts()
        factor = self.world.chance.choice(SLOWER)
        self.world.trace.note("network", f"{one} and {other} are {factor:.0f} times slower")
        self.world.network.slow(one, other, factor)
        seconds = self.world.chance.choice(AWAY_SECONDS)
        self.world.schedule.later(seconds, self.world.network.slow, one, other, 1.0)
        return True

    # ---- disks

    def sync(self) -> bool:
        """The next syncs of a disk fail, until its process is started again."""
        daemon = self._daemon()
        if not daemon.up or not self.world.may_fault(daemon):
            return False
        daemon.note("syncs fail from now on")
        daemon.ill = True
        daemon.faults.sync_failures = self.world.chance.randrange(1, 4)
        self.world.schedule.later(self.world.chance.choice(AWAY_SECONDS), self._restart, daemon)
        return True

    def full(self) -> bool:
        """A disk is full, until its process is started again."""
        daemon = self._daemon()
        if not daemon.up or not self.world.may_fault(daemon):
            return False
        daemon.note("the disk is nearly full")
        daemon.ill = True
        daemon.disk.capacity = daemon.disk.written + self.world.chance.randrange(0, 40_000)
        self.world.schedule.later(self.world.chance.choice(AWAY_SECONDS), self._restart, daemon)
        return True

    def _restart(self, daemon: Daemon) -> None:
        if daemon.ill:
            daemon.kill(power=False)
            daemon.start()

    def rot(self) -> bool:
        """Bits of a member's data rot, all over it; somebody replaces the member later."""
        world = self.world
        member = self.victim()
        if member is None:
            return False
        pages = member.disk.stored_pages("data")
        if not pages:
            return False
        member.rot([page + world.chance.randrange(0, PAGE_BYTES) for page in pages])
        self.wound(member)
        if world.variety.random() < ROT_AND_CRASH:
            # Before anybody has replaced it: the members are compared, and it may be the newest.
            world.schedule.later(world.variety.choice(AT_ONCE_SECONDS), self._crash, member)
        return True

    def _crash(self, rotten: Daemon) -> None:
        """The machine dies, and the members that are not rotten lose what they had not synced."""
        world = self.world
        if world.machine.alive and world.may_lose_machine():
            for daemon in world.members():
                if daemon is not rotten and world.variety.random() < 0.7:
                    self._down(daemon, power=True)
            self.machine()

    def lost_disk(self) -> bool:
        """A member's disk is lost; it comes back blank, and somebody replaces it later."""
        member = self.victim()
        if member is None:
            return False
        member.kill(power=True)
        member.note("the disk is lost")
        member.make_region()
        self.wound(member)
        self.back(member)
        if self.world.chance.random() < 0.25:
            self.machine()
        return True

    def victim(self) -> Daemon | None:
        """A member that may be struck for good now; None when none may."""
        world = self.world
        if world.wounds.count() or not world.whole() or not world.spares():
            return None
        members = [d for d in world.members() if d.up]
        return world.chance.choice(members) if members else None

    def wound(self, member: Daemon) -> None:
        """The member is struck for good; somebody replaces it later."""
        self.world.wounds.add(member.host)
        self.world.replace_later(member.address, self.world.chance.choice(NOTICED_SECONDS))

    # ---- the machine and the control plane

    def machine(self) -> bool:
        """The machine's process is killed; the control plane makes it again."""
        if not self.world.machine.alive or not self.world.may_lose_machine():
            return False
        self.world.machine.kill()
        self.world.guest.machine_lost()
        self.world.make_machine_later(self.world.chance.choice((0.01, 0.5, 3.0)))
        return True

    def takeover(self) -> bool:
        """Another machine is made while this one still runs, cut off from the control plane."""
        world = self.world
        if not world.machine.active or not world.may_lose_machine():
            return False
        world.trace.note("cp", "another machine takes over")
        world.machine.guest = world.guest.taken_over()
        old = world.machine
        world.make_machine()
        if world.variety.random() < OLD_STOPPED:
            # Who stops the old one does not know that it was taken over.
            seconds = world.variety.uniform(0.0, 0.1)
            world.schedule.later(seconds, old.deactivate, lambda _answer: None)
        world.schedule.later(world.chance.choice(AWAY_SECONDS), old.kill)
        return True

    def control(self) -> bool:
        """The control plane dies and is started again."""
        control = self.world.control
        if not control.up:
            return False
        control.crash()
        self.world.schedule.later(self.world.chance.choice(AWAY_SECONDS), control.start)
        return True

    def store(self) -> bool:
        """The control plane's store refuses a commit."""
        self.world.control.store.failures = self.world.chance.randrange(1, 3)
        self.world.trace.note("cp", "the store refuses commits")
        return True

    def deactivate(self) -> bool:
        """The machine lets go of the volume and is made again."""
        world = self.world
        machine = world.machine
        if not machine.active or not world.may_lose_machine():
            return False
        world.deactivate(machine)
        return True

    # ---- what users do

    def repair_rate(self) -> bool:
        """Somebody bounds repairs, or frees them."""
        chance = self.world.chance
        limits = RepairLimits(chance.choice(REPAIR_RATES), chance.choice(COPIES_IN_FLIGHT))
        self.world.machine.feed(events.SetRepairLimit(limits))
        return True

    def verify(self) -> bool:
        """Somebody has the members compared in the middle of it all."""
        self.world.compare()
        return True

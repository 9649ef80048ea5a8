"""One seed from its beginning to its end, and many of them on all processors.

A seed makes a volume on four to six storage hosts, lets a guest work on it while faults strike and
members are replaced, then lets everything heal, and looks at what is left. It goes on until there
were enough of all three.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic, process_time

from controlplane.core.replacement import State
from tests.sim.faults import FAULTS
from tests.sim.mistakes import MISTAKES
from tests.sim.reached import moves_recorded, never, table
from tests.sim.world import World
from vmmd.upstairs.core.slot_states import SlotState

IOS_MIN = 200
# Of a failure, the last lines.
LINES_SHOWN = 40
SLOW_SEEDS = 0.08
# At so many of the faults somebody copies a region directory.
KEEP_COPY = 0.3
# Over so many seeds from 0 on, all of `reached.EXPECTED` is.
FIXED_SEEDS = 1500
FAULTS_MIN = 3
REPLACEMENTS_MIN = 1
# What makes a seed worth counting.
MEANINGFUL = {"ios": IOS_MIN, "faults": FAULTS_MIN, "replacements": REPLACEMENTS_MIN}
HOSTILITY = (0.04, 0.1, 0.2)
PACES = (0.0005, 0.005, 0.05, 0.4)
# In some of the seeds, so that silences of hosts are heard.
SLOW_PACES = (0.05, 0.4, 3.0)
TURNS_MAX = 600
# So many of the turns bring a fault while a seed waits for nothing else. One seed in LONG_SEEDS
# goes on at its own pace, however long that is, and has what a long quiet load brings.
HURRY = 0.3
LONG_SEEDS = 5
# In two seeds of seven some turns bring no batch, but a row of writes that are each flushed. None
# of the simulator's seeds that docs/track-record.md names is one of them.
FLUSHING_SEEDS = (2, 6)
BURSTS = 0.1
BURST_ROUNDS = (5, 60)
# Faults have ended by then: the longest lasts 30 s, and reconnecting may be put off by 10 s.
HEAL_SECONDS = 900.0
# An end whose peer is back hears of it at its next ping.
PING_SECONDS = 6.0
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seed contained, or how it failed."""

    seed: int
    counts: Counter[str]
    seconds: float
    reached: Counter[str] = field(default_factory=Counter)
    error: str = ""
    lines: tuple[str, ...] = ()


class Run:
    """One seeded run."""

    def __init__(self, seed: int, sink: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, sink)
        chance = self.world.chance
        self._hostility = chance.choice(HOSTILITY)
        self._hurried = seed % LONG_SEEDS != 0
        self._replace_at = chance.randrange(5, 150)
        self._again = chance.choice((0.0, 0.02))
        self._late_at = 0.0
        # Randomness of its own: the other seeds are what they were.
        flushing = seed % 7 in FLUSHING_SEEDS
        self._bursts = random.Random(f"bursts {seed}") if flushing else None
        self._paces = SLOW_PACES if self.world.variety.random() < SLOW_SEEDS else PACES

    def go(self) -> None:
        """ViolationError, or whatever the code raised, when something is wrong."""
        world = self.world
        world.trace.note("world", world.describe())
        if not world.schedule.run_until(world.whole, 30.0):
            world.fail("the first activation did not end")
        for _turn in range(TURNS_MAX):
            self._turn()
            world.schedule.run(world.chance.choice(self._paces))
            if self._enough():
                break
        self._heal()
        self._make_up()
        self._look()

    def _make_up(self) -> None:
        """What there was too little of while the faults went on: requests, and a replacement under
        load."""
        world = self.world
        while not (self._enough() and self._well()):
            world.guest.batch()
            if not world.counts["replacements"]:
                self._replace()
            world.schedule.run(world.chance.choice(PACES))
            if world.schedule.now > self._late_at:
                world.fail("a replacement without faults did not end")

    def _enough(self) -> bool:
        world = self.world
        return (
            world.guest.requests >= IOS_MIN
            and world.faults.struck >= FAULTS_MIN
            and world.counts["replacements"] >= REPLACEMENTS_MIN
        )

    def _hostility_now(self) -> float:
        """How likely this turn is to bring a fault: more likely when the guest has done its part
        and waits for nothing but faults."""
        world = self.world
        waits = world.guest.requests >= IOS_MIN and world.faults.struck < FAULTS_MIN
        return max(self._hostility, HURRY) if self._hurried and waits else self._hostility

    def _turn(self) -> None:
        world, chance = self.world, self.world.chance
        due = world.guest.requests >= self._replace_at
        if due and (not world.counts["replacements"] or chance.random() < self._again):
            self._replace()
        world.words.turn()
        luck = chance.random()
        if luck < self._hostility_now():
            world.faults.strike()
            if world.variety.random() < KEEP_COPY:
                world.variety.choice(list(world.daemons.values())).keep_copy()
        elif luck > 0.99:
            self._ask_again()
        elif self._bursts is not None and world.machine.active and self._bursts.random() < BURSTS:
            world.guest.flushing(self._bursts.randrange(*BURST_ROUNDS))
        elif world.machine.active or (world.machine.alive and luck > 0.97):
            world.guest.batch()

    # ---- what users do

    def _replace(self) -> None:
        """Replaces a member while another one can be copied from."""
        world = self.world
        spares = world.spares()
        free = world.control.up and world.settled() and not world.wounds.count()
        if not spares or not free or not world.machine.active:
            return
        slots = world.machine.status.slots
        slot = world.chance.choice(slots)
        others = [s for s in slots if s is not slot and s.state is SlotState.ACTIVE]
        # What the machine has and what is recorded are the same while nothing is replaced.
        if others and slot.address in {d.address for d in world.members()}:
            world.request(slot.address, world.chance.choice(spares).address)

    def _ask_again(self) -> None:
        """The same request once more has no other effect; one for another slot is refused."""
        world = self.world
        newest = world.control.store.newest
        if not world.control.up or newest is None:
            return
        count = len(world.control.store.replacements)
        again = world.control.request(newest.replacement)
        if again is not None and again.id != newest.id:
            world.fail("the same request again began another replacement")
        spares = world.spares()
        if spares and world.control.running is not None:
            others = [d for d in world.members() if d.address != newest.new_target]
            other = world.chance.choice(others)
            if world.request(other.address, world.chance.choice(spares).address) is not None:
                world.fail("a second replacement began while one was running")
        if len(world.control.store.replacements) != count:
            world.fail("a refused request left a replacement behind")

    # ---- the end

    def _heal(self) -> None:
        world = self.world
        world.trace.note("world", "no more faults")
        world.network.heal()
        world.control.store.failures = 0
        world.faults.mistakes.let_in()
        world.control.start()
        for daemon in world.hosts.values():
            daemon.start()
        self._retry()
        self._resume()
        self._late_at = world.schedule.now + 2 * HEAL_SECONDS
        world.schedule.run(PING_SECONDS)
        if not world.schedule.run_until(self._well, HEAL_SECONDS):
            slots = [(s.address, s.state.name, s.last_error) for s in world.machine.status.slots]
            newest = world.control.store.newest
            world.fail(
                f"it does not come to rest: machine {world.machine.upstairs.state.name}, "
                f"slots {slots}, replacement {newest and newest.state}, "
                f"wounds {world.wounds.count()}, guest busy {world.guest.busy}"
            )

    def _retry(self) -> None:
        """A replacement that failed is asked for again."""
        world = self.world
        newest = world.control.store.newest
        if newest is not None and newest.state is State.FAILED and world.control.up:
            if "restart the instance" in newest.last_error:
                world.restart_instance()
            world.control.request(newest.replacement)
        world.schedule.later(RETRY_SECONDS, self._retry)

    def _resume(self) -> None:
        """Whatever is paused goes on."""
        self.world.words.resume()
        self.world.schedule.later(RETRY_SECONDS, self._resume)

    def _well(self) -> bool:
        world = self.world
        return (
            not world.guest.busy
            and not world.wounds.count()
            and world.control.up
            and world.whole()
            and all(daemon.up and not daemon.ill for daemon in world.daemons.values())
            # One that was started again this moment is away, and the machine will hear of it.
            and all(d.service is not None and d.service.conversations for d in world.members())
        )

    def _look(self) -> None:
        world, guest = self.world, self.world.guest
        # A loss that the guest has not been told of yet is told by this one.
        world.machine.submit([guest.flush()])
        self._await(lambda: not guest.busy, "the flush after all that did not end")
        failed = guest.counts["failed"]
        # Each batch goes to the member with the least to do: three in flight, to all three.
        for _ in range(3):
            size = world.geometry.blocks_per_extent
            starts = range(0, len(guest.blocks), size)
            world.machine.submit([guest.read(start, size) for start in starts])
        self._await(lambda: not guest.busy, "the last reads did not end")
        for _ in range(3):
            guest.batch()
        self._await(lambda: not guest.busy, "the last requests did not end")
        if guest.counts["failed"] != failed:
            world.fail("requests fail although all is well")
        compared = world.counts["comparisons"]
        world.compare()
        self._await(lambda: world.counts["comparisons"] > compared, "no last comparison")
        machine = world.machine
        world.deactivate(machine, last=True)
        self._await(lambda: not machine.alive, "the last deactivation did not end")
        world.checks.equal()

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        if not self.world.schedule.run_until(condition, 60.0):
            self.world.fail(what)

    def counts(self) -> Counter[str]:
        """What the run contained."""
        world = self.world
        return Counter(
            ios=world.guest.requests,
            ended_well=sum(world.guest.counts.values()) - 2 * world.guest.counts["failed"],
            faults=world.faults.struck,
            refrained=world.faults.refrained,
            looks_at_copies=world.checks.copies_seen,
            steps=world.schedule.steps,
            simulated_seconds=int(world.schedule.now),
            **world.counts,
        )


def run_seed(seed: int, sink: Callable[[str], None] | None = None) -> Outcome:
    """One seed; a failure is in the outcome, with the last lines of its trace."""
    began = process_time()
    run: Run | None = None
    error = ""
    with moves_recorded() as moves:
        try:
            run = Run(seed, sink)
            run.go()
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this seed's finding
            error = f"{type(problem).__name__}: {problem}"
    spent = process_time() - began
    if run is None:
        return Outcome(seed, Counter(), spent, moves, error)
    world = run.world
    world.reached_network()
    lines = tuple(world.trace.lines) if error else ()
    return Outcome(seed, run.counts(), spent, moves + world.reached, error, lines)


def run_seeds(first: int, count: int, processes: int | None = None) -> Iterator[Outcome]:
    """Many seeds, on all processors, in any order."""
    processes = processes or os.cpu_count() or 1
    seeds = range(first, first + count)
    if processes == 1 or count == 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("fork").Pool(processes, _spare_the_collector) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=8)


def _spare_the_collector() -> None:
    """A seed makes some 100,000 objects and few cycles: what was there before is never looked at
    again, and new ones seldom."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def soak(first: int, count: int, show: Callable[[str], None], *, coverage: bool = False) -> bool:
    """Runs the seeds and shows what they contained. Whether all promises were kept and, of the
    fixed seeds, all was reached that is expected."""
    began = monotonic()
    totals, reached, seeds = Counter[str](), Counter[str](), Counter[str]()
    least: dict[str, int] = {}
    good = failed = meaningful = 0
    for outcome in run_seeds(first, count):
        if outcome.error:
            if not failed:
                show("\n".join(outcome.lines[-LINES_SHOWN:]))
            failed += 1
            show(f"seed {outcome.seed} failed: {outcome.error}")
            show(f"  to see it: {command(outcome.seed)}")
            continue
        good += 1
        totals += outcome.counts
        reached += outcome.reached
        seeds.update(outcome.reached.keys())
        meaningful += all(outcome.counts[name] >= wanted for name, wanted in MEANINGFUL.items())
        for name in MEANINGFUL:
            least[name] = min(least.get(name, outcome.counts[name]), outcome.counts[name])
    elapsed = monotonic() - began
    show(f"{count} seeds in {elapsed:.1f} s, {60 * count / elapsed:.0f} a minute; {failed} failed")
    if good:
        each = ", ".join(f"{totals[name] / good:.1f} {name}" for name in sorted(totals))
        show(f"a seed has on average: {each}")
        show("a seed has at least: " + ", ".join(f"{n} {name}" for name, n in least.items()))
    wanted = ", ".join(f"{least} {name}" for name, least in MEANINGFUL.items())
    show(f"of at least {wanted}: {meaningful} seeds")
    missing = never(reached, (*FAULTS, *MISTAKES))
    if coverage:
        show("\n".join(table(reached, seeds, missing)))
    fixed = first == 0 and count >= FIXED_SEEDS
    if missing and (fixed or coverage):
        show(f"never reached: {', '.join(missing)}")
    return not failed and not (fixed and missing)


def command(seed: int) -> str:
    """What shows a seed to a reader."""
    return f"scripts/stairwell-sim --seed {seed} --trace"

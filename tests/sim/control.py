"""The control plane in simulated time: its record of the volume, and the driver of replacements.

The real workflow core decides (`decide`, `judge`, `step`, and `steps.py` for what answers mean).
As `driver.py` does: a transition is stored before its effect is sent, and the process may die
between any two of these, or its store may refuse a commit; who starts next takes up what has not
ended. The store survives; the rest is memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from controlplane.core import replacement as core
from controlplane.core.preflight import RegionFacts, judge
from controlplane.core.progress import Progress, stall_seconds
from controlplane.core.records import DiskRecord, InstanceState, region_at, with_generation
from controlplane.core.replace_decision import Begin, Repeat, decide
from controlplane.core.replacement import Effect, Event, Replacement, State
from controlplane.repair_watch import moved
from controlplane.steps import (
    as_event,
    held,
    is_held,
    is_moving,
    limit_of,
    look,
    original_as_running,
    undoable,
    verified,
)
from stairlib.model.construction import Construction
from stairlib.model.construction_diff import ChangedTarget
from stairlib.model.errors import NotFoundError, RefusedError, StairwellError, UnavailableError
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from vmmd.upstairs.core import events
from vmmd.upstairs.core.events import ReplaceResult

if TYPE_CHECKING:
    from tests.sim.machine import Machine
    from tests.sim.world import World

CALL_SECONDS = 10.0
VERIFY_SECONDS = 120.0
# Between a decision, its commit, and its effect: where a crash may strike.
COMMIT_SECONDS = (0.0005, 0.01)
WATCH_SECONDS = 0.4
UNEXPECTED_SECONDS = 5.0


@dataclass
class Store:
    """What is durable. `failures` counts down commits that will be refused."""

    disk: DiskRecord
    replacements: list[Replacement] = field(default_factory=list)
    generation: int = 0
    failures: int = 0

    def begin(self, record: Replacement) -> None:
        """A replacement's first row and the disk's new request, or nothing."""
        self._commit()
        self.disk = replace(self.disk, construction=record.replacement)
        self.replacements.append(record)

    def save(self, record: Replacement) -> None:
        """The present state of the replacement begun last, and with it the recorded request where
        that is another one then."""
        self._commit()
        before = self.replacements[-1]
        assert before.id == record.id
        if before.undone is not record.undone:
            assert self.disk.construction == before.recorded
            self.disk = replace(self.disk, construction=record.recorded)
        self.replacements[-1] = record

    def _commit(self) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("the store's disk is full")

    @property
    def newest(self) -> Replacement | None:
        """The replacement begun last, of those that were not undone."""
        kept = [each for each in self.replacements if each.state is not State.CANCELLED]
        return kept[-1] if kept else None

    def hand_out_generation(self) -> int:
        """A generation above all handed out before."""
        self.generation = max(self.generation + 1, self.disk.recorded_generation)
        return self.generation

    def construction(self) -> Construction:
        """The recorded request with a new generation, for a machine."""
        return with_generation(self.disk.construction, self.hand_out_generation())


class Control:
    """One control plane process: `life` counts its starts, and what an earlier life began is
    dropped."""

    def __init__(self, world: World, disk: DiskRecord) -> None:
        self.world = world
        self.store = Store(disk)
        self.life = 0
        self.running_now = True
        # Stopped, as by SIGSTOP, until then: it holds the store's lock, so that nobody takes over.
        self._stopped_until = 0.0
        self._driver: Driver | None = None

    def note(self, text: str) -> None:
        """A line of the trace."""
        self.world.trace.note(self.host, text)

    @property
    def host(self) -> str:
        """Where this life runs: after a crash the next one is started on the other host."""
        return f"cp{1 + self.life % 2}"

    @property
    def up(self) -> bool:
        """Whether it answers its users."""
        return self.running_now and not self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the process is there and does nothing."""
        return self.world.schedule.now < self._stopped_until

    def stop(self, seconds: float) -> None:
        """The process is stopped for a time; what it waited for finds it late."""
        self.note(f"the control plane stands still for {seconds:g} s")
        self._stopped_until = self.world.schedule.now + seconds

    def when_going(self, call: Callable[..., None], *args: Any) -> bool:
        """Whether the process goes on now; if it is stopped, `call` is made when it does."""
        if self.stopped:
            self.world.schedule.later(self._stopped_until - self.world.schedule.now, call, *args)
            return False
        return True

    def crash(self) -> None:
        """The process dies."""
        if self.running_now:
            self.note("the control plane is killed")
            self.running_now = False
            self._stopped_until = 0.0
            self._driver = None

    def start(self) -> None:
        """Starts it; what has not ended is taken up."""
        if self.running_now:
            self._stopped_until = min(self._stopped_until, self.world.schedule.now)
            return
        self.running_now = True
        self.life += 1
        self.note(f"the control plane starts on {self.host}")
        newest = self.store.newest
        if newest is not None and not newest.state.ended:
            self._drive(newest, core.Resumed(at=self.world.schedule.now))

    def later(self, seconds: tuple[float, float], call: Callable[..., None], *args: Any) -> None:
        """After a time between the two, if this life lasts so long."""
        world = self.world
        world.schedule.later(world.chance.uniform(*seconds), self._if_alive, self.life, call, *args)

    def _if_alive(self, life: int, call: Callable[..., None], *args: Any) -> None:
        going = self.when_going(self._if_alive, life, call, *args)
        if going and self.running_now and life == self.life:
            call(*args)

    def _drive(self, record: Replacement, event: Event) -> None:
        self._driver = Driver(self, record)
        self._driver.advance(event)

    @property
    def running(self) -> Replacement | None:
        """The replacement that has not ended, as stored."""
        newest = self.store.newest
        return newest if newest is not None and not newest.state.ended else None

    # ---- what users ask

    def word(self, kind: type[Event]) -> bool:
        """A user's word to the replacement that runs: whether it was taken."""
        driver = self._driver
        if not self.up or driver is None or not core.takes(driver.record, kind):
            return False
        if driver.record.state.ended:
            return False
        return driver.word(kind(at=self.world.schedule.now))

    def request(self, wanted: Construction) -> Replacement | None:
        """ReplaceVcr: the replacement it led to, or None when it was refused (which is noted)."""
        store = self.store
        newest = store.newest
        driver = self._driver
        if newest is not None and driver is not None and driver.record.id == newest.id:
            newest = driver.record
        try:
            decision = decide(store.disk, InstanceState.RUNNING, newest, wanted, prefix="vcr")
            if isinstance(decision, Repeat):
                return self._repeated(decision.replacement)
            if isinstance(decision, Begin):
                return self._begin(wanted, decision.changed)
        except StairwellError as error:
            self.world.reached[f"request refused {error.reason}"] += 1
            self.note(f"replacement refused, {error.reason}: {error.message}")
        return None

    def _repeated(self, record: Replacement) -> Replacement:
        if record.state is State.FAILED:
            changed, _effects = core.step(record, core.Retried(at=self.world.schedule.now))
            self.store.save(changed)
            self.note(f"replacement retried in {changed.state}")
            self._drive(changed, core.Resumed(at=changed.updated_at))
            return changed
        return record

    def _begin(self, wanted: Construction, changed: ChangedTarget) -> Replacement:
        now = self.world.schedule.now
        before = region_at(self.store.disk.construction, changed.region_path)
        after = region_at(wanted, changed.region_path)
        self._preflight(wanted, changed)
        number = len(self.store.replacements) + 1
        record = Replacement(
            id=uuid.UUID(int=number),
            disk_key=self.store.disk.key,
            disk=self.store.disk.name,
            instance_id=self.store.disk.instance_id,
            volume_id=self.store.disk.volume_id,
            path=changed.path,
            region_path=changed.region_path,
            slot=changed.slot,
            old_target=changed.old,
            new_target=changed.new,
            from_generation=before.generation,
            to_generation=after.generation,
            original=self.store.disk.construction,
            replacement=wanted,
            traceparent="",
            trace_id="",
            created_at=now,
            updated_at=now,
            progress=Progress(
                bytes_total=after.geometry.total_bytes, extents_total=after.geometry.extent_count
            ),
        )
        for event in (core.Validated(at=now), core.Preflighted(at=now), core.Recorded(at=now)):
            record, _effects = core.step(record, event)
        self.store.begin(record)
        self.note(f"replacement recorded: slot {changed.slot}, {changed.old} by {changed.new}")
        self.world.counts["replacements"] += 1
        self._drive(record, core.Resumed(at=now))
        return record

    def _preflight(self, wanted: Construction, changed: ChangedTarget) -> None:
        """The judgement of the new target; raises unless it fits and is free."""
        world = self.world
        region = region_at(wanted, changed.region_path)
        daemon = world.hosts[changed.new]
        service = daemon.service
        if service is None:
            raise UnavailableError(f"{changed.new} refuses connections")
        writer = service.table.writer
        facts = RegionFacts(
            region_id=daemon.definition.id,
            geometry=daemon.definition.geometry,
            encrypted=daemon.definition.encrypted,
            read_only=daemon.read_only,
            owner_id=service.engine.ownership.owner_id,
            active_session_id=writer.session_id if writer is not None else None,
            written=not service.blank,
            cipher=daemon.definition.cipher,
            key_check=service.engine.ownership.key_check,
        )
        siblings = {
            address: world.daemons[address].definition.id
            for address in region.options.targets
            if address != changed.new
        }
        judge(
            target=changed.new,
            field="vcr",
            region=region,
            facts=facts,
            siblings=siblings,
            ciphers={address: world.daemons[address].definition.cipher for address in siblings},
            key_checks={},
        )


class Driver:
    """Drives one replacement in one life of the control plane."""

    def __init__(self, control: Control, record: Replacement) -> None:
        self._control = control
        self._world = control.world
        self._life = control.life
        self.record = record
        self._seen: core.Observed | None = None
        self._deadline: float | None = None
        # Counts begun works, so that a watch that was given up is not gone on with.
        self._turn = 0

    def _current(self) -> bool:
        return self._control.running_now and self._control.life == self._life

    @property
    def _now(self) -> float:
        return self._world.schedule.now

    # ---- one step

    def advance(self, event: Event) -> None:
        """Takes the step, stores it a little later, and then does what it asks."""
        self._control.later(COMMIT_SECONDS, self._commit, event, self._turn)

    def word(self, event: Event) -> bool:
        """A user's word: what was under way is dropped, and whatever comes of it. False when it
        could not be stored."""
        self._turn += 1
        self._control.note(f"a user says {type(event).__name__}")
        self._commit(event, self._turn)
        return self.record.updated_at == event.at

    def _commit(self, event: Event, turn: int) -> None:
        if turn != self._turn:
            return
        before = self.record
        chance = self._world.words.number()
        record, effects = core.step(before, replace(event, chance=chance))
        try:
            self._control.store.save(record)
        except StairwellError as error:
            self._control.note(f"replacement stumbled: {error.message}")
            self._turn += 1
            self._control.later((UNEXPECTED_SECONDS, UNEXPECTED_SECONDS), self._resume, self._turn)
            return
        self.record = record
        self._world.checks.replacement_stored(before, record)
        self._world.reached[f"replacement {record.state.name}"] += 1
        if record.state is not before.state or record.last_error != before.last_error:
            why = record.last_error or record.blocked_on
            self._control.note(f"replacement is in {record.state}" + (f": {why}" if why else ""))
        if record.state is State.CANCELLED:
            self._world.undone(record)
        if not isinstance(event, core.Observed):
            self._control.later(COMMIT_SECONDS, self._perform_unless_told, effects, turn)

    def _perform_unless_told(self, effects: tuple[Effect, ...], turn: int) -> None:
        if turn == self._turn:
            self._perform(effects)

    def _resume(self, turn: int) -> None:
        if turn == self._turn:
            self.advance(core.Resumed(at=self._now))

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        (effect,) = effects
        self._turn += 1
        work: dict[Effect, Callable[[], None]] = {
            Effect.KEEP_TRACE: lambda: None,
            Effect.AWAIT_RETRY: self._await_retry,
            Effect.SEND_REPLACEMENT: self._apply,
            Effect.WATCH_REPAIR: self._repair,
            Effect.VERIFY_MEMBERS: self._verify,
            Effect.RETIRE_MEMBER: self._retire,
            Effect.HOLD_REPAIR: lambda: self._watch_held(self._turn),
            Effect.RESTART_REPAIR: lambda: self._fill_again(whole=False),
            Effect.MEND_MEMBER: lambda: self._fill_again(whole=True),
            Effect.ASK_WHETHER_UNDOABLE: self._ask_whether_undoable,
            Effect.TAKE_BACK: self._take_back,
        }
        work[effect]()

    # ---- calls to the machine

    def _call(
        self,
        serve: Callable[[Machine, Callable[[Any], None]], None],
        then: Callable[[Any], None],
        deadline: float = CALL_SECONDS,
        failed: Callable[[Event], None] | None = None,
    ) -> None:
        """`serve(machine, reply)` at the machine; its answer to `then`, its failure to `failed`, or
        else to the core."""
        world = self._world
        machine = world.machine
        turn = self._turn

        def at_machine(reply: Callable[[Any], None]) -> None:
            if not self._current():
                world.reached["control a dead one's call is carried out"] += 1
            if world.refuses_control:
                reply(RefusedError("the control plane's certificate is not trusted"))
            elif world.machine.alive:
                serve(world.machine, reply)
            else:
                reply(NotFoundError("machine", "machine"))

        def answered(answer: Any) -> None:
            if not self._control.when_going(answered, answer):
                return
            if not self._current() or turn != self._turn:
                return
            if isinstance(answer, StairwellError):
                (failed or self.advance)(as_event(answer, self._now, ""))
            else:
                then(answer)

        def late() -> None:
            answered(UnavailableError("vmmd did not answer in time", reason="DEADLINE_EXCEEDED"))

        world.network.call(self._control.host, machine.host, at_machine, answered, late, deadline)

    def _info(self, then: Callable[[pb.VolumeInfo], None]) -> None:
        self._call(lambda machine, reply: reply(machine.info()), then)

    # ---- the effects

    def _await_retry(self) -> None:
        due = self.record.next_attempt_at
        assert due is not None
        wait = max(0.0, due - self._now)
        self._control.later((wait, wait), self._retry_due, self._turn)

    def _retry_due(self, turn: int) -> None:
        if turn != self._turn:
            return
        if not self.record.blocked_on:
            self.advance(core.RetryDue(at=self._now))
            return

        def failed(event: Event) -> None:
            away = isinstance(event, core.Blocked | core.GaveUp)
            self.advance(event if away else core.RetryDue(at=self._now))

        self._call(
            lambda machine, reply: reply(machine.info()),
            lambda _info: self.advance(core.RetryDue(at=self._now)),
            failed=failed,
        )

    def _apply(self) -> None:
        def known(info: pb.VolumeInfo) -> None:
            original = original_as_running(self.record, info)
            self._call(
                lambda machine, reply: self._replace(machine, original, reply),
                lambda value: self.advance(core.Applied(at=self._now, result=value.result.name)),
            )

        self._info(known)

    def _replace(
        self, machine: Machine, original: Construction, reply: Callable[[Any], None]
    ) -> None:
        record = self.record

        def answered(answer: Any) -> None:
            if answer.error is None and answer.value.result is ReplaceResult.STARTED:
                self._world.checks_of_control.started(machine.host, record)
            reply(_outcome(answer))

        machine.replace(original, record.replacement, str(record.id), answered)

    def _repair(self) -> None:
        self._seen = None
        self._deadline = None
        self._watch(self._turn)

    def _watch(self, turn: int) -> None:
        if turn == self._turn:
            self._info(self._looked)

    def _looked(self, info: pb.VolumeInfo) -> None:
        if is_held(self.record, info):
            self._hold(False, lambda: self._watch(self._turn))
            return
        event = look(self.record, info, self._now)
        if not isinstance(event, core.Observed):
            self.advance(event)
            return
        seen, self._seen = self._seen, event
        if not is_moving(info, self.record):
            self._deadline = None
        elif self._deadline is None or moved(seen, event):
            extent = self._world.geometry.extent_bytes
            self._deadline = self._now + stall_seconds(extent, limit_of(self.record, info))
        elif self._now >= self._deadline:
            detail = f"no progress since long; {event.blocked_on}"
            self.advance(core.Stalled(at=self._now, detail=detail))
            return
        self.advance(event)
        self._control.later((WATCH_SECONDS, WATCH_SECONDS), self._watch, self._turn)

    # ---- what users ask, and what is put right

    def _hold(self, held: bool, then: Callable[[], None]) -> None:
        slot = self.record.slot

        def serve(machine: Machine, reply: Callable[[Any], None]) -> None:
            machine.feed(events.HoldRepair(slot, held))
            self._world.checks_of_control.held(machine, slot, held=held)
            reply(True)

        self._call(serve, lambda _answer: then())

    def _watch_held(self, turn: int) -> None:
        if turn == self._turn:
            self._info(self._looked_held)

    def _looked_held(self, info: pb.VolumeInfo) -> None:
        event = held(self.record, info, self._now)
        if event is None:
            self._hold(True, lambda: self._watch_held(self._turn))
            return
        self.advance(event)
        if isinstance(event, core.Observed):
            self._control.later((WATCH_SECONDS, WATCH_SECONDS), self._watch_held, self._turn)

    def _asked(
        self, make: Callable[[object], events.Event], then: Callable[[Any], None],
        failed: Callable[[Event], None] | None = None,
    ) -> None:  # fmt: skip
        self._call(
            lambda machine, reply: machine.ask(make, lambda answer: reply(_outcome(answer))),
            then,
            failed=failed,
        )

    def _fill_again(self, *, whole: bool) -> None:
        record = self.record
        slot = record.slot if record.mending is None else record.mending
        self._asked(
            lambda key: events.RepairMember(key, slot, whole, record.last_error),
            lambda _answer: self.advance(core.RetryDue(at=self._now)),
        )

    def _ask_whether_undoable(self, too_late: Event | None = None) -> None:
        # `too_late`: how the machine refused it, should it say once more that it can be done.
        def known(info: pb.VolumeInfo) -> None:
            event = undoable(self.record, info, self._now)
            if isinstance(event, core.CanUndo):
                self.advance(too_late or event)
            elif is_held(self.record, info):
                self._hold(False, lambda: self.advance(event))
            else:
                self.advance(event)

        self._info(known)

    def _take_back(self) -> None:
        record = self.record

        def refused(event: Event) -> None:
            # Of what it may be, only one is no failure to reach it.
            late = isinstance(event, core.StepFailed) and "has left slot" in event.error
            (self._ask_whether_undoable if late else self.advance)(event)

        self._call(
            lambda machine, reply: machine.take_back(
                record.old_target,
                record.new_target,
                str(record.id),
                lambda answer: reply(_outcome(answer)),
            ),
            lambda _answer: self.advance(core.Undone(at=self._now)),
            failed=refused,
        )

    def _verify(self) -> None:
        def verify(machine: Machine, reply: Callable[[Any], None]) -> None:
            machine.verify(lambda answer: reply(_outcome(answer)))

        def compared(result: Any) -> None:
            report = pb.VerifyReport(
                equal=result.equal,
                extents_compared=result.extents_compared,
                members_compared=result.members_compared,
                differences=[
                    pb.ExtentDifference(extent=each.extent, digests=each.digests)
                    for each in result.differences
                ],
            )
            self._info(lambda info: self.advance(verified(self.record, report, info, self._now)))

        self._call(verify, compared, VERIFY_SECONDS)

    def _retire(self) -> None:
        self._world.retired(self.record)
        self.advance(core.Retired(at=self._now))


def _outcome(answer: Any) -> Any:
    """A core's answer as what the caller gets: the value or the error."""
    return answer.value if answer.error is None else answer.error

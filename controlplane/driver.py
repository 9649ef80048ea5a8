"""Drives the replacements: stores each decision of the core, then does what it says.

One driver in a control plane. It takes up what the claims give it, at the start and whenever
another control plane has left something; each has one task, which advances it. A user's word to a
running one ends the task, is stored, and the task begins anew in the state that the word led to.
Invariants:

- a transition is stored before its effect is sent, so that a crash at any point loses no step and
  repeats at most an effect that may be repeated;
- what an effect came to is dropped when a word was stored meanwhile;
- no failure ends a task: it becomes an event, and what is unexpected is tried again;
- waiting for a peer that is away costs no attempt, and its polls are no part of the trace;
- what is driven here is leased: each step is stored under the lease's epoch, each effect is sent
  only while the lease is held, and a task whose lease was lost ends without a word.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from uuid import UUID

from controlplane.breakpoints import Reached, unreached
from controlplane.chronicle import Chronicle, look_at, mark, subject_of
from controlplane.claims import Claims, Driver
from controlplane.core import replacement as core
from controlplane.core.leases import Kind, Lease, LeaseLostError
from controlplane.core.replacement import Effect, Event, Replacement, State
from controlplane.core.replacement_log import begun_again_at, last_number
from controlplane.corrections import Corrections
from controlplane.detached import Detached
from controlplane.feed import Feed
from controlplane.metrics import WorkflowMetrics
from controlplane.peers.vmmd import Vmmd
from controlplane.repair_limiter import RepairLimiter
from controlplane.repair_watch import RepairWatch
from controlplane.steps import (
    as_event,
    instance_ended,
    look,
    original_as_running,
    region_ids,
    released,
    serves_alone,
    verified,
)
from controlplane.store.base import Store
from controlplane.traces import TraceKeeper
from stairlib.model.errors import StairwellError, StateError
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.metrics import Metrics
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb

_log = get_logger(__name__)

# After a failure nobody foresaw (the store's disk is full, a bug), before the next try.
UNEXPECTED_SECONDS = 5.0


@dataclass(slots=True)
class _Run:
    """One replacement that is being driven, under the epoch of its lease."""

    record: Replacement
    epoch: int
    task: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Held while the task is ended and begun anew for a word of the user.
    words: asyncio.Lock = field(default_factory=asyncio.Lock)


class ReplacementDriver:
    """See the module. `news` gets each record that changed, under its id."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        vmmd: Vmmd,
        traces: TraceKeeper,
        news: Feed[Replacement],
        detached: Detached,
        chronicle: Chronicle,
        limiter: RepairLimiter,
        *,
        metrics: WorkflowMetrics | None = None,
        disk_changed: Callable[[UUID], None] = lambda _key: None,
        watch: RepairWatch | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        pace: float = 1.0,
        reached: Reached = unreached,
    ) -> None:
        """`pace` scales every wait between attempts; tests make it small. `reached` is called with
        the name of each point at which a crash has to lose nothing."""
        self._store = store
        self._claims = claims
        self._vmmd = vmmd
        self._traces = traces
        self._news = news
        self._detached = detached
        self._chronicle = chronicle
        self._limiter = limiter
        self._metrics = metrics or WorkflowMetrics(Metrics("controlplane", ""))
        self._disk_changed = disk_changed
        self._watch = watch or RepairWatch(vmmd, clock)
        self._corrections = Corrections(store, vmmd, clock, self._require_held)
        self._clock = clock
        self._chance = chance
        self._pace = pace
        self._reached = reached
        self._runs: dict[UUID, _Run] = {}
        claims.serve(Kind.REPLACEMENT, Driver(self._take, self._drop))

    async def _take(self, lease: Lease) -> None:
        """Goes on with what an earlier control plane, or another one, left."""
        record = await self._store.replacement(UUID(lease.key))
        _log.info("replacement resumed", replacement=lease.key, state=record.state)
        self._go(record, lease.epoch, core.Resumed(at=self._clock()))

    async def _drop(self, lease: Lease) -> None:
        """Stops driving what another control plane may drive by now; stores nothing."""
        run = self._runs.get(UUID(lease.key))
        if run is not None and run.epoch == lease.epoch:
            await _end(run)
            self._leave(run)

    async def stop(self) -> None:
        """Ends the tasks; the records stay where they are."""
        runs = list(self._runs.values())
        tasks = [run.task for run in runs if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._chronicle.close()
        for run in runs:
            # The spans of steps cut short have ended by now, and this process forgets them soon.
            await self._traces.keep_own(run.record.trace_id)

    async def begin_traced(self, record: Replacement, lease: Lease) -> None:
        """Drives a replacement that was just recorded, within the call that asked for it."""
        # First: the store may take its time, and what is held is renewed.
        self._claims.hold(lease)
        try:
            await self._traces.keep([self._chronicle.begun(subject_of(record))])
        except Exception:  # noqa: BLE001 - a replacement never fails by its trace
            _log.exception("trace not begun", replacement=str(record.id))
        self._begin(record, lease.epoch)

    def begin(self, record: Replacement, lease: Lease) -> None:
        """Drives a replacement that is recorded."""
        self._claims.hold(lease)
        self._begin(record, lease.epoch)

    def _begin(self, record: Replacement, epoch: int) -> None:
        self._reached(f"stored:{record.state}")
        self._go(record, epoch, core.Resumed(at=record.updated_at))
        self._publish(record)

    def running(self, replacement_id: UUID) -> Replacement | None:
        """The present record of a replacement that is being driven."""
        run = self._runs.get(replacement_id)
        return run.record if run is not None else None

    def records(self) -> list[Replacement]:
        """Those that are being driven; from any thread."""
        records = [run.record for run in list(self._runs.values())]
        return [record for record in records if not record.state.ended]

    async def revive(self, record: Replacement, word: type[Event]) -> Replacement:
        """Has a failed replacement go on, by the word Retried or CancelAsked; StateError when it
        has not failed, ConflictError when the recorded request is not its own any more."""
        changed, _effects = core.step(record, word(at=self._clock()))
        lease = await self._store.retry_replacement(changed)
        self._narrate(record, changed, word.__name__)
        self.begin(changed, lease)
        return changed

    async def tell(self, replacement_id: UUID, word: type[Event]) -> Replacement | None:
        """Stores a user's word to a running replacement and has it go on from there; None when it
        does not run. IllegalTransitionError when its state does not take the word."""
        run = self._runs.get(replacement_id)
        if run is None:
            return None
        return await self._detached.run(self._tell(run, word(at=self._clock())))

    async def _tell(self, run: _Run, word: Event) -> Replacement:
        async with run.words:
            if not core.takes(run.record, type(word)):
                raise core.IllegalTransitionError(run.record.state, word)
            await _end(run)
            try:
                await self._advance(run, word)
            finally:
                if not run.record.state.ended:
                    self._work(run, core.Resumed(at=self._clock()))
            return run.record

    async def set_limit(self, replacement_id: UUID, bytes_per_second_max: int) -> Replacement:
        """Notes the limit that was set with a running replacement."""
        run = self._runs.get(replacement_id)
        if run is None:
            raise StateError(
                f"replacement {replacement_id} is not running; there is no repair to limit",
                reason="REPLACEMENT_ENDED",
                replacement=str(replacement_id),
            )
        event = core.LimitChanged(at=self._clock(), bytes_per_second_max=bytes_per_second_max)
        await self._advance(run, event)
        return run.record

    async def abandon(self, disk_keys: Iterable[UUID], why: str) -> None:
        """Fails the running replacements of disks that go away."""
        keys = set(disk_keys)
        for run in [each for each in self._runs.values() if each.record.disk_key in keys]:
            async with run.words:
                await _end(run)
                if not run.record.state.ended:
                    await self._advance(run, core.GaveUp(at=self._clock(), error=why))
                self._forget(run)
            await self.end_trace(run.record)

    def _go(self, record: Replacement, epoch: int, event: Event) -> None:
        run = _Run(record, epoch)
        self._runs[record.id] = run
        self._work(run, event)

    def _work(self, run: _Run, event: Event) -> None:
        """Begins the run's task with an event."""
        record = run.record
        # An empty context: the task outlives the call that starts it, and is no part of its span.
        run.task = asyncio.create_task(
            self._drive(run, event), name=f"replacement {record.id}", context=Context()
        )

    async def _drive(self, run: _Run, event: Event) -> None:
        """Advances one replacement until it ends."""
        try:
            await self._take_up(run)
            while not run.record.state.ended:
                try:
                    effects = await self._advance(run, event)
                    event = await self._perform(run, effects)
                except LeaseLostError as error:
                    _log.warning("replacement left", error=error.message)
                    self._leave(run)
                    return
                except Exception as error:  # noqa: BLE001 - never dropped by a failure
                    _stumbled(run.record, error)
                    await self._look_again(run)
                    event = core.Resumed(at=self._clock())
        finally:
            if run.record.state.ended:
                self._forget(run)

    def _forget(self, run: _Run) -> None:
        if self._runs.get(run.record.id) is run:
            del self._runs[run.record.id]
        self._claims.let_go(Kind.REPLACEMENT, str(run.record.id), run.epoch)

    def _leave(self, run: _Run) -> None:
        """Forgets what another control plane goes on with."""
        self._forget(run)
        self._chronicle.left(subject_of(run.record))

    async def _look_again(self, run: _Run) -> None:
        """Waits, then reads what is stored: a commit that failed may have been one after all."""
        while True:
            await asyncio.sleep(UNEXPECTED_SECONDS * self._pace)
            try:
                async with run.lock:
                    before = run.record
                    run.record = await self._store.replacement(before.id)
                if last_number(run.record) > last_number(before):
                    self._narrate(before, run.record, run.record.transitions[-1].event)
                # Who watches has not heard of it, if it was stored after all.
                self._publish(run.record)
            except StairwellError as error:
                _log.warning("the store is not there yet", error=error.message)
            else:
                return

    def _require(self, run: _Run) -> None:
        """LeaseLostError unless the run is still this control plane's; before each effect."""
        self._claims.require(Kind.REPLACEMENT, str(run.record.id), run.epoch)

    def _require_held(self, record: Replacement) -> None:
        run = self._runs.get(record.id)
        if run is None:
            raise LeaseLostError(Kind.REPLACEMENT, str(record.id))
        self._require(run)

    async def _advance(self, run: _Run, event: Event) -> tuple[Effect, ...]:
        """Takes one step and stores it. A caller that is cancelled leaves a whole step behind."""
        return await self._detached.run(self._step(run, event))

    async def _step(self, run: _Run, event: Event) -> tuple[Effect, ...]:
        async with run.lock:
            before = run.record
            # Hosts' clocks differ: with a record from another one, time does not go back.
            at = max(event.at, before.updated_at)
            record, effects = core.step(before, replace(event, at=at, chance=self._chance()))
            if _worth_storing(before, record):
                save = self._store.save_replacement
                if _only_progress(before, record):
                    save = self._store.save_progress
                await save(record, run.epoch)
            run.record = record
        self._narrate(before, record, type(event).__name__)
        if record.state is not before.state:
            self._reached(f"stored:{record.state}")
        self._publish(record)
        if record.state is not before.state:
            _log.info(
                "replacement advanced",
                replacement=str(record.id),
                state=record.state,
                event_name=type(event).__name__,
                error=record.last_error,
            )
        return effects

    def _publish(self, record: Replacement) -> None:
        self._news.publish(record.id, record)
        self._disk_changed(record.disk_key)

    async def _perform(self, run: _Run, effects: tuple[Effect, ...]) -> Event:
        """Does what a step asked for; what came of it is the next event."""
        work: dict[Effect, Callable[[_Run], Awaitable[Event]]] = {
            Effect.AWAIT_RETRY: self._await_retry,
            Effect.SEND_REPLACEMENT: self._apply,
            Effect.WATCH_REPAIR: self._repair,
            Effect.VERIFY_MEMBERS: self._verify,
            Effect.RETIRE_MEMBER: self._retire,
            Effect.HOLD_REPAIR: self._hold,
            Effect.RESTART_REPAIR: lambda run: self._corrections.restart(run.record),
            Effect.MEND_MEMBER: lambda run: self._corrections.mend(run.record),
            Effect.ASK_WHETHER_UNDOABLE: lambda run: self._corrections.ask(run.record),
            Effect.TAKE_BACK: lambda run: self._corrections.take_back(run.record),
        }
        trace_id = run.record.trace_id
        self._reached(f"effect:{effects[0].name}")
        if Effect.KEEP_TRACE in effects:
            await self._keep_trace(run.record)
            return core.Resumed(at=self._clock())
        (effect,) = effects
        self._require(run)
        if effect is Effect.AWAIT_RETRY:
            await self._traces.keep_own(trace_id)
            return await self._await_retry(run)
        state, outcome, began = run.record.state, "cut", time.monotonic()
        try:
            with self._chronicle.step(subject_of(run.record), look_at(run.record)) as span:
                # Before the effect: should this process be killed, it is known what was cut.
                await self._traces.keep_own(trace_id)
                event = await self._outcome(run, work[effect](run))
                error = _error_of(event)
                mark(span, type(event).__name__, error)
                waits = isinstance(event, core.Blocked)
                outcome = "failed" if error else "blocked" if waits else "ok"
        finally:
            self._metrics.step_took(state, outcome, time.monotonic() - began)
        return event

    async def _outcome(self, run: _Run, work: Awaitable[Event]) -> Event:
        """The event of the work, or the one its failure means, or that it took too long."""
        seconds = core.deadline_seconds(run.record)
        try:
            async with asyncio.timeout(seconds) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            error_text = f"the step {run.record.state} did not end within {seconds:g} s"
            return core.StepFailed(at=self._clock(), error=error_text)
        except LeaseLostError:
            raise
        except StairwellError as error:
            ended = await self._instance_ended(run.record)
            return as_event(error, self._clock(), ended)

    async def _instance_ended(self, record: Replacement) -> str:
        return await instance_ended(self._store, record.instance_id)

    async def _take_up(self, run: _Run) -> None:
        """What another process left open of the trace is told as cut."""
        record = run.record
        if self._chronicle.knows(subject_of(record)):
            return
        try:
            stored = await self._traces.stored(record.trace_id)
            cut = self._chronicle.resumed(subject_of(record), stored, look_at(record))
            await self._traces.keep(cut)
        except Exception:  # noqa: BLE001 - a replacement never fails by its trace
            _log.exception("trace not taken up", replacement=str(record.id))

    def _narrate(self, before: Replacement, after: Replacement, event: str) -> None:
        """Tells of a stored step, and has the trace kept when there is news in it."""
        self._metrics.advanced(before, after)
        told = self._chronicle.advanced(subject_of(after), look_at(before), look_at(after), event)
        if told and not after.state.ended:
            self._traces.keep_soon(after.trace_id, after.instance_id)

    async def _keep_trace(self, record: Replacement) -> None:
        """The end of the trace, and all that the daemons have of it."""
        root = self._chronicle.ended(subject_of(record), look_at(record), begun_again_at(record))
        await self._traces.keep([root])
        await self._traces.keep_all(record.trace_id, record.instance_id)
        self._traces.forget(record.trace_id)

    async def end_trace(self, record: Replacement) -> None:
        """Ends the trace of one that has ended, if the process that ended it did not."""
        subject = subject_of(record)
        stored = await self._traces.stored(record.trace_id)
        open_root = [
            span
            for span in stored
            if span.span_id == subject.root_id and not span.end_time_unix_nano
        ]
        if open_root and record.id not in self._runs:
            await self._traces.keep([self._chronicle.ended(subject, look_at(record))])

    async def _await_retry(self, run: _Run) -> Event:
        """Waits until the next attempt is due; after a peer was away, until it is there."""
        record = run.record
        assert record.next_attempt_at is not None
        await asyncio.sleep(max(0.0, record.next_attempt_at - self._clock()) * self._pace)
        if record.blocked_on:
            try:
                await self._vmmd.get_volume_info(record.instance_id, record.disk)
            except StairwellError as error:
                event = as_event(error, self._clock(), await self._instance_ended(record))
                # A replacement that is being undone needs no machine, where none will come.
                ended = isinstance(event, core.GaveUp) and record.state is not State.UNDO
                if ended or isinstance(event, core.Blocked):
                    return event
        return core.RetryDue(at=self._clock())

    async def _apply(self, run: _Run) -> Event:
        record = run.record
        info = await self._vmmd.get_volume_info(record.instance_id, record.disk)
        if released(record, info):
            return look(record, info, self._clock())
        # The last chance to learn which region the old member serves.
        for address, region_id in region_ids(info).items():
            await self._store.note_region(address, region_id)
        await self._limiter.send(record)
        self._require(run)
        answer = await self._vmmd.replace_vcr(
            record.instance_id,
            record.disk,
            original=original_as_running(record, info),
            replacement=record.replacement,
            replacement_id=record.id,
        )
        name = volume_pb.VcrReplaceResult.Name(answer.result)
        return core.Applied(at=self._clock(), result=name.removeprefix("VCR_REPLACE_RESULT_"))

    async def _repair(self, run: _Run) -> Event:
        record = run.record
        async with self._limiter.repairing(record), aclosing(self._watch.events(record)) as events:
            async for event in events:
                if not isinstance(event, core.Observed):
                    return event
                await self._advance(run, event)
        return self._news_ended()

    async def _hold(self, run: _Run) -> Event:
        async with aclosing(self._watch.paused(run.record)) as events:
            async for event in events:
                if not isinstance(event, core.Observed):
                    return event
                await self._advance(run, event)
        return self._news_ended()

    def _news_ended(self) -> Event:
        return core.Blocked(at=self._clock(), on=f"the volume's news from {self._vmmd.peer} ended")

    async def _verify(self, run: _Run) -> Event:
        record = run.record
        info = await self._vmmd.get_volume_info(record.instance_id, record.disk)
        if released(record, info):
            return look(record, info, self._clock())
        report = await self._vmmd.verify_volume(
            record.instance_id,
            record.disk,
            read_data=serves_alone(record, info),
            region_path=record.region_path,
            seconds=core.deadline_seconds(record),
        )
        info = await self._vmmd.get_volume_info(record.instance_id, record.disk)
        return verified(record, report, info, self._clock())

    async def _retire(self, run: _Run) -> Event:
        await self._store.retire_member(run.record, run.epoch)
        return core.Retired(at=self._clock())


async def _end(run: _Run) -> None:
    """Ends the run's task. A step that it had begun to store is stored first."""
    if run.task is not None:
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)


# Read by one call: this is asked of each look at each repair.
_ALL_BUT_PROGRESS = attrgetter(
    *(each.name for each in fields(Replacement) if each.name not in ("progress", "updated_at"))
)
_WORTH_STORING = attrgetter(
    "state", "attempt", "last_error", "blocked_on", "bytes_per_second_max", "restarts", "mended",
    "next_attempt_at", "progress.bytes_done", "progress.bytes_copied", "progress.extents_done",
)  # fmt: skip


def _only_progress(before: Replacement, after: Replacement) -> bool:
    """Whether nothing but the progress and the time differ."""
    return bool(_ALL_BUT_PROGRESS(after) == _ALL_BUT_PROGRESS(before))


def _error_of(event: Event) -> str:
    """Why an attempt failed, if the event says that it did."""
    if isinstance(event, core.StepFailed | core.GaveUp):
        return event.error
    lost = core.Stalled | core.Unapplied | core.MemberLost | core.Differed | core.CannotUndo
    return event.detail if isinstance(event, lost) else ""


def _stumbled(record: Replacement, error: Exception) -> None:
    """Logs a failure; one with a type needs no traceback."""
    if isinstance(error, StairwellError):
        _log.warning("replacement waits", replacement=str(record.id), error=error.message)
    else:
        _log.error("replacement stumbled", replacement=str(record.id), exc_info=error)


def _worth_storing(before: Replacement, after: Replacement) -> bool:
    """Whether more changed than times and rates: what was shown once must be there after a crash.

    The machine tells progress a few times a second, which bounds the commits.
    """
    return bool(_WORTH_STORING(before) != _WORTH_STORING(after))

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
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import Context
from dataclasses import dataclass, field, replace
from uuid import UUID

from opentelemetry.trace import Span, Status, StatusCode

from controlplane.breakpoints import Reached, unreached
from controlplane.claims import Claims, Driver
from controlplane.core import replacement as core
from controlplane.core.leases import Kind, Lease, LeaseLostError
from controlplane.core.replacement import Effect, Event, Replacement, State
from controlplane.corrections import Corrections
from controlplane.detached import Detached
from controlplane.feed import Feed
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
from stairlib.telemetry.tracing import Tracing, context_from
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
        tracing: Tracing,
        limiter: RepairLimiter,
        *,
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
        self._tracing = tracing
        self._limiter = limiter
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
            self._forget(run)

    async def stop(self) -> None:
        """Ends the tasks; the records stay where they are."""
        runs = list(self._runs.values())
        tasks = [run.task for run in runs if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in runs:
            # The spans of steps cut short have ended by now, and this process forgets them soon.
            await self._traces.keep_own(run.record.trace_id)

    def begin(self, record: Replacement, lease: Lease) -> None:
        """Drives a replacement that was just recorded."""
        self._reached(f"stored:{record.state}")
        self._claims.hold(lease)
        self._go(record, lease.epoch, core.Resumed(at=record.updated_at))
        self._publish(record)

    def running(self, replacement_id: UUID) -> Replacement | None:
        """The present record of a replacement that is being driven."""
        run = self._runs.get(replacement_id)
        return run.record if run is not None else None

    async def revive(self, record: Replacement, word: type[Event]) -> Replacement:
        """Has a failed replacement go on, by the word Retried or CancelAsked; StateError when it
        has not failed, ConflictError when the recorded request is not its own any more."""
        changed, _effects = core.step(record, word(at=self._clock()))
        self.begin(changed, await self._store.retry_replacement(changed))
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
            while not run.record.state.ended:
                try:
                    effects = await self._advance(run, event)
                    await self._traces.keep_own(run.record.trace_id)
                    event = await self._perform(run, effects)
                except LeaseLostError as error:
                    _log.warning("replacement left", error=error.message)
                    self._forget(run)
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

    async def _look_again(self, run: _Run) -> None:
        """Waits, then reads what is stored: a commit that failed may have been one after all."""
        while True:
            await asyncio.sleep(UNEXPECTED_SECONDS * self._pace)
            try:
                async with run.lock:
                    run.record = await self._store.replacement(run.record.id)
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
                await self._store.save_replacement(record, run.epoch)
            run.record = record
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
        self._reached(f"effect:{effects[0].name}")
        if Effect.KEEP_TRACE in effects:
            await self._traces.keep_all(run.record.trace_id)
            return core.Resumed(at=self._clock())
        (effect,) = effects
        self._require(run)
        if effect is Effect.AWAIT_RETRY:
            return await self._await_retry(run)
        with self._span(run.record) as span:
            event = await self._outcome(run, work[effect](run))
            _mark(span, event)
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

    @contextmanager
    def _span(self, record: Replacement) -> Iterator[Span]:
        """The span of a step, in the trace of the call that began the replacement."""
        with self._tracing.tracer.start_as_current_span(
            f"replacement {record.state.lower()}",
            context=context_from(record.traceparent),
            attributes={
                "volume.id": str(record.volume_id),
                "replacement.id": str(record.id),
                "slot": record.slot,
                "attempt": record.attempt,
            },
        ) as span:
            yield span

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
        await self._traces.keep_all(run.record.trace_id)
        return core.Retired(at=self._clock())


async def _end(run: _Run) -> None:
    """Ends the run's task. A step that it had begun to store is stored first."""
    if run.task is not None:
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)


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
    return any(
        getattr(before, name) != getattr(after, name)
        for name in (
            "state",
            "attempt",
            "last_error",
            "blocked_on",
            "bytes_per_second_max",
            "restarts",
            "mended",
            "next_attempt_at",
        )
    ) or any(
        getattr(before.progress, name) != getattr(after.progress, name)
        for name in ("bytes_done", "bytes_copied", "extents_done")
    )


def _mark(span: Span, event: Event) -> None:
    """The span's outcome: an attempt that failed is an error, a wait is not."""
    span.set_attribute("event", type(event).__name__)
    if isinstance(event, core.StepFailed | core.GaveUp):
        span.set_status(Status(StatusCode.ERROR, event.error))

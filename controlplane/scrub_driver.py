"""Drives the scrubs: stores each decision of the core, then does what it says.

As the driver of replacements, and with its invariants: a transition is stored before its effect is
sent, no failure ends a task, and waiting for a peer costs no attempt. One task for each scrub that
runs; it asks the machine for the copy, follows its news, and asks again whenever the machine was
made again. What the machine does may be asked for any number of times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass, field, replace
from uuid import UUID

from controlplane.claims import Claims, Driver
from controlplane.core import scrub as core
from controlplane.core.leases import Kind, Lease, LeaseLostError
from controlplane.core.parents import without_parent
from controlplane.core.replacement import (
    Blocked,
    Event,
    GaveUp,
    LimitChanged,
    Resumed,
    RetryDue,
    StepFailed,
)
from controlplane.core.scrub import Effect, Scrub
from controlplane.detached import Detached
from controlplane.driver import UNEXPECTED_SECONDS
from controlplane.peers.vmmd import Vmmd
from controlplane.steps import as_event, instance_ended
from controlplane.store.base import Store
from controlplane.store.sql_leases import SEPARATOR
from controlplane.store.sql_scrubs import lease_key
from stairlib.model.errors import ConflictError, NotFoundError, StairwellError, StateError
from stairlib.telemetry.logs import get_logger
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb

_log = get_logger(__name__)

# What a machine says that no other attempt mends: no parent there, or nothing may be written.
_FINAL = frozenset({"NO_PARENT", "PARENT_NOT_FOUND", "SCRUB_READ_ONLY"})

Key = tuple[UUID, str]


@dataclass(slots=True)
class _Run:
    """One scrub that is being driven, under the epoch of its lease."""

    record: Scrub
    epoch: int
    task: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ScrubDriver:
    """See the module. `disk_changed` is told the key of each disk whose scrub changed."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        vmmd: Vmmd,
        detached: Detached,
        *,
        disk_changed: Callable[[UUID], None] = lambda _key: None,
        clock: Callable[[], float] = time.time,
        pace: float = 1.0,
    ) -> None:
        """`pace` scales every wait between attempts; tests make it small."""
        self._store = store
        self._claims = claims
        self._vmmd = vmmd
        self._detached = detached
        self._disk_changed = disk_changed
        self._clock = clock
        self._pace = pace
        self._runs: dict[Key, _Run] = {}
        claims.serve(Kind.SCRUB, Driver(self._take, self._leave))

    async def _take(self, lease: Lease) -> None:
        """Goes on with what an earlier control plane, or another one, left."""
        key, _, path = lease.key.partition(SEPARATOR)
        for record in await self._store.scrubs(UUID(key)):
            if record.path == path and not record.state.ended:
                _log.info("scrub resumed", disk=record.disk, path=path, state=record.state)
                self._go(_Run(record, lease.epoch))

    async def _leave(self, lease: Lease) -> None:
        """Stops driving what another control plane may drive by now; stores nothing."""
        for run in [*self._runs.values()]:
            if lease_key(run.record) == lease.key and run.epoch == lease.epoch:
                await _cancelled(run)
                self._forget(run)

    async def stop(self) -> None:
        """Ends the tasks; the records stay where they are."""
        await asyncio.gather(*(_cancelled(run) for run in self._runs.values()))

    def begin(self, record: Scrub, lease: Lease) -> None:
        """Drives a scrub that was just recorded."""
        self._claims.hold(lease)
        self._go(_Run(record, lease.epoch))
        self._disk_changed(record.disk_key)

    @property
    def running(self) -> int:
        """How many are being driven."""
        return len(self._runs)

    def fresh(self, stored: Iterable[Scrub]) -> tuple[Scrub, ...]:
        """The stored records, those that run as they are now."""
        runs = [(self._runs.get((each.disk_key, each.path)), each) for each in stored]
        return tuple(run.record if run is not None else each for run, each in runs)

    async def set_limit(self, record: Scrub, bytes_per_second_max: int) -> Scrub:
        """Stores the rate of a running scrub and has the machine asked again, with the new one."""
        run = self._runs.get((record.disk_key, record.path))
        if run is None:
            raise _not_running(record)
        event = LimitChanged(at=self._clock(), bytes_per_second_max=bytes_per_second_max)
        try:
            if await self._quiet(run):
                await self._advance(run, event)
        finally:
            self._go_on(run)
        return run.record

    async def halt(self, record: Scrub) -> Scrub:
        """Stops the machine's scrub, then ends the record: who is told so finds it true.

        When the machine cannot be asked, the scrub goes on and the failure is raised.
        """
        run = self._runs.get((record.disk_key, record.path))
        if run is None:
            raise _not_running(record)
        try:
            if await self._quiet(run):
                if run.record.state is core.State.COPY:
                    self._require(run)
                    await self._stop_machine(run.record)
                await self._advance(run, core.Stopped(at=self._clock()))
        finally:
            self._go_on(run)
        return run.record

    async def abandon(self, disk_keys: Iterable[UUID], why: str) -> None:
        """Fails the running scrubs of disks that go away."""
        keys = set(disk_keys)
        for run in [each for each in self._runs.values() if each.record.disk_key in keys]:
            if await self._quiet(run):
                await self._advance(run, GaveUp(at=self._clock(), error=why))
            self._forget(run)

    async def _quiet(self, run: _Run) -> bool:
        """Ends the task of a run and waits for what it had under way; whether it still runs."""
        await _cancelled(run)
        async with run.lock:
            return not run.record.state.ended

    def _go_on(self, run: _Run) -> None:
        """Drives a run whose task was ended again, if it has not ended itself."""
        if run.record.state.ended:
            self._forget(run)
        else:
            self._go(run)

    async def _stop_machine(self, record: Scrub) -> None:
        try:
            await self._vmmd.stop_scrub(record.instance_id, record.disk, record.path)
        except NotFoundError as error:
            # Without a machine nothing is copied; one that is made again copies nothing unasked.
            _log.info("no scrub to stop", disk=record.disk, error=error.message)
        except StateError as error:
            if error.reason not in _FINAL and not await self._instance_ended(record):
                raise

    def _go(self, run: _Run) -> None:
        self._runs[(run.record.disk_key, run.record.path)] = run
        # An empty context: the task outlives the call that starts it, and is no part of its span.
        run.task = asyncio.create_task(
            self._drive(run),
            name=f"scrub {run.record.disk} {run.record.path}",
            context=Context(),
        )

    def _forget(self, run: _Run) -> None:
        key = (run.record.disk_key, run.record.path)
        if self._runs.get(key) is run:
            del self._runs[key]
        self._claims.let_go(Kind.SCRUB, lease_key(run.record), run.epoch)

    def _require(self, run: _Run) -> None:
        """LeaseLostError unless the run is still this control plane's; before each effect."""
        self._claims.require(Kind.SCRUB, lease_key(run.record), run.epoch)

    async def _drive(self, run: _Run) -> None:
        """Advances one scrub until it ends."""
        event: Event = Resumed(at=self._clock())
        while not run.record.state.ended:
            try:
                effects = await self._advance(run, event)
                if not effects:
                    break
                event = await self._perform(run, effects)
            except NotFoundError as error:
                # A peer's failure is an event; this one is the store's: the disk was deleted.
                _log.info("scrub is gone", disk=run.record.disk, error=error.message)
                break
            except LeaseLostError as error:
                _log.warning("scrub left", error=error.message)
                break
            except Exception:  # noqa: BLE001 - a scrub is never dropped by a failure
                _log.exception("scrub stumbled", disk=run.record.disk, path=run.record.path)
                await self._look_again(run)
                event = Resumed(at=self._clock())
        self._forget(run)

    async def _look_again(self, run: _Run) -> None:
        """Waits, then reads what is stored: a commit that failed may have been one after all."""
        while True:
            await asyncio.sleep(UNEXPECTED_SECONDS * self._pace)
            try:
                async with run.lock:
                    stored = await self._store.scrubs(run.record.disk_key)
                    found = [each for each in stored if each.path == run.record.path]
                    run.record = found[0] if found else run.record
                self._disk_changed(run.record.disk_key)
            except StairwellError as error:
                _log.warning("the store is not there yet", error=error.message)
            else:
                return

    async def _advance(self, run: _Run, event: Event) -> tuple[Effect, ...]:
        """Takes one step and stores it. A caller that is cancelled leaves a whole step behind."""
        return await self._detached.run(self._step(run, event))

    async def _step(self, run: _Run, event: Event) -> tuple[Effect, ...]:
        async with run.lock:
            before = run.record
            event = replace(event, at=max(event.at, before.updated_at))
            record, effects = core.step(before, event)
            if isinstance(event, core.Dropped):
                await self._store.drop_parent(record, event.original, event.recorded, run.epoch)
            elif replace(record, updated_at=before.updated_at) == before:
                # Nothing but the time has changed.
                return effects
            else:
                await self._store.save_scrub(record, run.epoch)
            run.record = record
        self._disk_changed(record.disk_key)
        if record.state is not before.state:
            _log.info(
                "scrub advanced",
                disk=record.disk,
                path=record.path,
                state=record.state,
                event_name=type(event).__name__,
                error=record.last_error,
            )
        return effects

    async def _perform(self, run: _Run, effects: tuple[Effect, ...]) -> Event:
        """Does what a step asked for; what came of it is the next event."""
        (effect,) = effects
        if effect is Effect.AWAIT_RETRY:
            assert run.record.next_attempt_at is not None
            late = run.record.next_attempt_at - self._clock()
            await asyncio.sleep(max(0.0, late) * self._pace)
            return RetryDue(at=self._clock())
        work = self._copy(run) if effect is Effect.COPY_PARENT else self._drop(run)
        return await self._outcome(run, work)

    async def _outcome(self, run: _Run, work: Awaitable[Event]) -> Event:
        """The event of the work, or the one its failure means."""
        try:
            return await work
        except LeaseLostError:
            raise
        except StairwellError as error:
            if error.reason in _FINAL:
                return GaveUp(at=self._clock(), error=error.message)
            ended = await self._instance_ended(run.record)
            return as_event(error, self._clock(), ended)

    async def _instance_ended(self, record: Scrub) -> str:
        return await instance_ended(self._store, record.instance_id)

    async def _copy(self, run: _Run) -> Event:
        """Has the machine copy, and follows it until it has ended or its news have."""
        record = run.record
        volume = await self._vmmd.get_volume_info(record.instance_id, record.disk)
        if volume.state != volume_pb.VOLUME_STATE_ACTIVE:
            return await self._not_active(record, volume)
        event = seen(await self._detached.run(self._ask(run)), self._clock())
        if not isinstance(event, core.Copying):
            return event
        await self._advance(run, event)
        watched = self._vmmd.watch_volume(record.instance_id, record.disk)
        async with aclosing(watched) as news:
            async for info in news:
                found = [each for each in info.scrubs if each.path == record.path]
                if not found:
                    lost = "the machine was made again; the scrub begins anew there"
                    return Blocked(at=self._clock(), on=lost)
                event = seen(found[0], self._clock())
                if not isinstance(event, core.Copying):
                    return event
                await self._advance(run, event)
        return Blocked(at=self._clock(), on=f"the volume's news from {self._vmmd.peer} ended")

    async def _ask(self, run: _Run) -> volume_pb.ScrubInfo:
        """Asks for the copy. Never cut short, and under the lock: a stop must come after it."""
        async with run.lock:
            record = run.record
            self._require(run)
            return await self._vmmd.start_scrub(
                record.instance_id, record.disk, record.path, record.bytes_per_second_max
            )

    async def _not_active(self, record: Scrub, volume: volume_pb.VolumeInfo) -> Event:
        """The wait for a volume that serves nobody, unless none will ever come."""
        ended = await self._instance_ended(record)
        if ended:
            return GaveUp(at=self._clock(), error=ended)
        name = volume_pb.VolumeState.Name(volume.state).removeprefix("VOLUME_STATE_")
        why = f": {volume.reason}" if volume.reason else ""
        text = f"the volume is {name}{why}; its parent is copied while the instance runs"
        return Blocked(at=self._clock(), on=text)

    async def _drop(self, run: _Run) -> Event:
        """Records the request without the parent, whatever else was recorded meanwhile."""
        record = run.record
        while True:
            disk = await self._store.disk(str(record.volume_id))
            if disk.key != record.disk_key:
                return GaveUp(at=self._clock(), error="its disk was deleted and made again")
            try:
                wanted = without_parent(disk.construction, record.path, disk=disk.name)
            except StairwellError as error:
                return GaveUp(at=self._clock(), error=error.message)
            event = core.Dropped(at=self._clock(), original=disk.construction, recorded=wanted)
            try:
                await self._advance(run, event)
            except LeaseLostError:
                raise
            except ConflictError as error:
                if error.reason != "RECORDED_VCR_CHANGED":
                    return Blocked(at=self._clock(), on=error.message)
                continue
            return Resumed(at=self._clock())


def seen(scrub: volume_pb.ScrubInfo, at: float) -> Event:
    """What the machine's word for a scrub means."""
    if scrub.state == volume_pb.SCRUB_STATE_DONE:
        return core.Copied(at=at, bytes_total=scrub.bytes_total)
    if scrub.state == volume_pb.SCRUB_STATE_FAILED:
        return StepFailed(at=at, error=scrub.reason or "the machine gave no reason")
    if scrub.state == volume_pb.SCRUB_STATE_STOPPED:
        return StepFailed(at=at, error="the machine stopped its scrub")
    return core.Copying(
        at=at,
        bytes_done=scrub.bytes_done,
        bytes_total=scrub.bytes_total,
        blocked_on=scrub.reason,
    )


async def _cancelled(run: _Run) -> None:
    """Ends the task of a run."""
    if run.task is not None:
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)


def _not_running(record: Scrub) -> StateError:
    return StateError(
        f"the scrub of disk {record.disk!r} is not running, it is {record.state}",
        reason="SCRUB_ENDED",
        disk=record.disk,
        state=record.state,
    )

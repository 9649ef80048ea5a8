"""The store on SQL: SQLite in a directory, or a PostgreSQL database.

The statements are the same. On SQLite all of them run on one thread: the loop never waits for a
disk, transactions never meet each other, and their order is the order of the calls; those that wait
for the thread at the same time share a commit (`batching`). On PostgreSQL a few run at once, and
those of other control planes too; `postgres` says why that is right. Leases have a thread of their
own there, so that no queue holds up their renewal. A caller that is cancelled while its transaction
runs leaves a whole transaction behind, done or not.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from controlplane.core.leases import Kind, Lease, believed_until
from controlplane.core.records import (
    Desired,
    DiskRecord,
    DownstairsRecord,
    InstanceRecord,
    InstanceState,
)
from controlplane.core.replacement import Replacement, Transition
from controlplane.core.scrub import Scrub
from controlplane.store import failures, sql_disks, sql_leases, sql_replacements, sql_scrubs
from controlplane.store.base import StoredAnswer, StoredSpan, Wish
from controlplane.store.batching import Batches
from controlplane.store.fleet_methods import FleetMethods
from controlplane.store.opening import Opened, open_place
from controlplane.store.place import Place
from controlplane.store.postgres import WORKERS, Listener, Notice, notify
from controlplane.store.sql_leases import Owner
from stairlib.model.construction import Construction

_T = TypeVar("_T")
_P = ParamSpec("_P")

# Runs of a transaction that others are in the way of, and the longest wait between two.
_RUNS_MAX = 6
_PAUSE_MAX_SECONDS = 0.05


def steady() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SqlStore(FleetMethods):
    """A `Store` in a directory or a database. Make one with `open`."""

    def __init__(self, opened: Opened, thread: ThreadPoolExecutor) -> None:
        place = opened.place
        self._opened = opened
        self._sealer = opened.sealer
        self._thread = thread
        # PostgreSQL has its own way of sharing commits, between sessions that run at once.
        self._batches = None if place.shared else Batches(opened.engine, thread)
        self._lease_thread = (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="leases")
            if place.shared
            else thread
        )
        # Another one each time: who comes back is somebody else, and waits for the old lease's end.
        name = f"{socket.gethostname()[:20]} {os.getpid()} {uuid4().hex[:12]}"
        self._owner = Owner(name, place.lease_seconds if place.shared else None)
        self._listener: Listener | None = None

    @classmethod
    async def open(cls, place: Place) -> SqlStore:
        """Opens (or makes) the store; a typed error when it cannot be used."""
        workers = WORKERS if place.shared else 1
        thread = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="store")
        loop = asyncio.get_running_loop()
        try:
            return cls(await loop.run_in_executor(thread, open_place, place), thread)
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """Waits for the transactions asked for, then closes the database."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._lease_thread.shutdown(wait=True)
        self._thread.shutdown(wait=True)
        self._opened.close()

    async def _run(
        self, work: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Runs `work(connection, ...)` in one transaction on the store's threads."""
        return await self._changed((), work, *args, **kwargs)

    async def _changed(
        self,
        notices: Sequence[Notice],
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """The same; other control planes hear the notices when it is committed."""

        return await self._on(
            self._thread, lambda connection: work(connection, *args, **kwargs), notices
        )

    async def _fleet_changed(
        self, work: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """See `FleetMethods`."""
        return await self._changed([Notice("fleet", "")], work, *args, **kwargs)

    async def _on_leases(
        self, work: Callable[[Connection], _T], notices: Sequence[Notice] = ()
    ) -> _T:
        return await self._on(self._lease_thread, work, notices)

    async def _on(
        self,
        thread: ThreadPoolExecutor,
        work: Callable[[Connection], _T],
        notices: Sequence[Notice],
    ) -> _T:
        if self._batches is None:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(thread, self._transaction, work, notices)
        # Nobody else is there to be told.
        try:
            return await self._batches.run(work)
        except DBAPIError as error:
            raise self._meant(error) from error

    def _meant(self, error: DBAPIError) -> Exception:
        """The typed error of a failure, or the failure itself."""
        return failures.meaning(error, self._opened.place.words) or error

    def _transaction(self, work: Callable[[Connection], _T], notices: Sequence[Notice]) -> _T:
        """One transaction of several at once, run again while others are in its way."""
        for run in range(1, _RUNS_MAX + 1):
            committing = False
            try:
                with self._opened.engine.connect() as connection:
                    result = work(connection)
                    for notice in notices:
                        notify(connection, self._owner.name, notice)
                    committing = True
                    connection.commit()
                    return result
            except DBAPIError as error:
                again = failures.runs_again(error) and not (committing and failures.cut(error))
                if again and run < _RUNS_MAX:
                    time.sleep(random.uniform(0, _PAUSE_MAX_SECONDS))
                    continue
                raise self._meant(error) from error
        raise AssertionError("the last run returns or raises")

    async def _begun(
        self,
        kind: Kind,
        key: str,
        notices: Sequence[Notice],
        work: Callable[Concatenate[Connection, _P], int | None],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Lease:
        """Runs `work`, which takes a lease; None is the first epoch of a row."""
        asked_at = steady()
        epoch = await self._changed(notices, work, *args, **kwargs)
        return Lease(kind, key, epoch or 1, believed_until(asked_at, self._owner.seconds))

    async def add_instance(self, instance: InstanceRecord, disks: Sequence[DiskRecord]) -> Lease:
        """See `InstanceStore`."""
        return await self._begun(
            Kind.INSTANCE, str(instance.id), (), sql_disks.add_instance, self._sealer, self._owner,
            instance, disks,
        )  # fmt: skip

    async def confirm_instance(self, instance_id: UUID, handed: Mapping[UUID, int]) -> None:
        """See `InstanceStore`."""
        await self._run(sql_disks.confirm_instance, instance_id, handed)

    async def forget_instance(self, instance_id: UUID) -> None:
        """See `InstanceStore`."""
        await self._run(sql_disks.forget_instance, self._sealer, instance_id)

    async def delete_instance(self, instance_id: UUID) -> None:
        """See `InstanceStore`."""
        notice = _of(Kind.INSTANCE, instance_id)
        await self._changed([notice], sql_disks.delete_instance, self._sealer, instance_id)

    async def add_disk(self, disk: DiskRecord) -> None:
        """See `InstanceStore`."""
        notices = [_of(Kind.INSTANCE, disk.instance_id)]
        await self._changed(notices, sql_disks.add_disk, self._sealer, disk)

    async def forget_disk(self, disk_key: UUID) -> None:
        """See `InstanceStore`."""
        await self._changed([_of_disk(disk_key)], sql_disks.forget_disk, self._sealer, disk_key)

    async def remove_disk(self, disk_key: UUID) -> None:
        """See `InstanceStore`."""
        await self._changed([_of_disk(disk_key)], sql_disks.remove_disk, self._sealer, disk_key)

    async def instance(self, name_or_id: str) -> InstanceRecord:
        """See `InstanceStore`."""
        return await self._run(sql_disks.instance, name_or_id)

    async def list_instances(self, *, after: str = "", limit: int) -> list[InstanceRecord]:
        """See `InstanceStore`."""
        return await self._run(sql_disks.list_instances, after, limit)

    async def set_instance_state(
        self, instance_id: UUID, state: InstanceState, reason: str, epoch: int
    ) -> InstanceRecord | None:
        """See `InstanceStore`."""
        return await self._changed(
            [_of(Kind.INSTANCE, instance_id)], sql_disks.set_instance_state, self._owner,
            instance_id, state, reason, epoch,
        )  # fmt: skip

    async def set_desired(self, instance_id: UUID, desired: Desired) -> None:
        """See `InstanceStore`."""
        await self._run(sql_disks.set_desired, instance_id, desired)

    async def next_generation(self, volume_id: UUID, at_least: int) -> int:
        """See `InstanceStore`."""
        return await self._run(sql_disks.next_generation, volume_id, at_least)

    async def hand_out_generation(self, volume_id: UUID, at_least: int) -> int:
        """See `InstanceStore`."""
        return await self._run(sql_disks.hand_out_generation, volume_id, at_least)

    async def disk(self, name_or_id: str) -> DiskRecord:
        """See `DiskStore`."""
        return await self._run(sql_disks.disk, self._sealer, name_or_id)

    async def list_disks(
        self, *, instance_id: UUID | None = None, after: str = "", limit: int
    ) -> list[DiskRecord]:
        """See `DiskStore`."""
        return await self._run(sql_disks.list_disks, self._sealer, instance_id, after, limit)

    async def record_construction(
        self, disk_key: UUID, expected: Construction, wanted: Construction
    ) -> None:
        """See `DiskStore`."""
        await self._changed(
            [_of_disk(disk_key)], sql_disks.record_construction, self._sealer, disk_key, expected,
            wanted,
        )  # fmt: skip

    async def begin_replacement(self, record: Replacement) -> Lease:
        """See `ReplacementStore`."""
        return await self._begun(
            Kind.REPLACEMENT, str(record.id), _news(record), sql_replacements.begin, self._sealer,
            self._owner, record,
        )  # fmt: skip

    async def save_replacement(self, record: Replacement, epoch: int) -> None:
        """See `ReplacementStore`."""
        await self._changed(
            _news(record), sql_replacements.save, self._sealer, self._owner, record, epoch
        )

    async def save_progress(self, record: Replacement, epoch: int) -> None:
        """See `ReplacementStore`."""
        await self._changed(
            _news(record), sql_replacements.save_progress, self._owner, record, epoch
        )

    async def retry_replacement(self, record: Replacement) -> Lease:
        """See `ReplacementStore`."""
        return await self._begun(
            Kind.REPLACEMENT, str(record.id), _news(record), sql_replacements.retry, self._sealer,
            self._owner, record,
        )  # fmt: skip

    async def retire_member(self, record: Replacement, epoch: int) -> None:
        """See `ReplacementStore`."""
        await self._run(sql_replacements.retire_member, self._owner, record, epoch)

    async def replacement(self, replacement_id: UUID) -> Replacement:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.by_id, self._sealer, replacement_id)

    async def replacement_of_trace(self, trace_id: str) -> Replacement | None:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.of_trace, self._sealer, trace_id)

    async def transitions(self, replacement_id: UUID, after: int, limit: int) -> list[Transition]:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.log_after, replacement_id, after, limit)

    async def newest_replacement(self, disk_key: UUID) -> Replacement | None:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.newest, self._sealer, disk_key)

    async def running_replacements(self) -> list[Replacement]:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.running, self._sealer)

    async def list_replacements(
        self, *, disk: str = "", before: int | None = None, limit: int
    ) -> list[tuple[int, Replacement]]:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.listed, self._sealer, disk, before, limit)

    async def begin_scrub(self, record: Scrub) -> Lease:
        """See `ScrubStore`."""
        return await self._begun(
            Kind.SCRUB, sql_scrubs.lease_key(record), [_of_disk(record.disk_key)],
            sql_scrubs.begin, self._owner, record,
        )  # fmt: skip

    async def save_scrub(self, record: Scrub, epoch: int) -> None:
        """See `ScrubStore`."""
        notice = _of_disk(record.disk_key)
        await self._changed([notice], sql_scrubs.save, self._owner, record, epoch)

    async def drop_parent(
        self, record: Scrub, original: Construction, wanted: Construction, epoch: int
    ) -> None:
        """See `ScrubStore`."""
        await self._changed(
            [_of_disk(record.disk_key)], sql_scrubs.drop_parent, self._sealer, self._owner, record,
            original, wanted, epoch,
        )  # fmt: skip

    async def scrubs(self, disk_key: UUID) -> list[Scrub]:
        """See `ScrubStore`."""
        return await self._run(sql_scrubs.of_disk, disk_key)

    async def running_scrubs(self) -> list[Scrub]:
        """See `ScrubStore`."""
        return await self._run(sql_scrubs.running)

    async def put_downstairs(self, record: DownstairsRecord) -> DownstairsRecord:
        """See `FleetStore`."""
        return await self._run(sql_disks.put_downstairs, record)

    async def downstairs(self, address: str) -> DownstairsRecord | None:
        """See `FleetStore`."""
        return await self._run(sql_disks.downstairs, address)

    async def list_downstairs(self) -> list[DownstairsRecord]:
        """See `FleetStore`."""
        return await self._run(sql_disks.list_downstairs)

    async def note_region(self, address: str, region_id: UUID) -> None:
        """See `FleetStore`."""
        await self._run(sql_disks.note_region, address, region_id)

    async def save_spans(self, spans: Iterable[StoredSpan]) -> None:
        """See `TraceStore`."""
        await self._run(sql_replacements.save_spans, list(spans))

    async def spans(self, trace_id: str) -> list[StoredSpan]:
        """See `TraceStore`."""
        return await self._run(sql_replacements.load_spans, trace_id)

    async def answer(self, method: str, request_id: str) -> StoredAnswer | None:
        """See `TraceStore`."""
        return await self._run(sql_replacements.answer, method, request_id)

    async def save_answer(
        self, method: str, request_id: str, answer: StoredAnswer, at: float
    ) -> StoredAnswer:
        """See `TraceStore`."""
        return await self._run(sql_replacements.save_answer, method, request_id, answer, at)

    @property
    def lease_seconds(self) -> float | None:
        """See `LeaseStore`."""
        return self._owner.seconds

    async def claim_leases(self, limit: int) -> list[Lease]:
        """See `LeaseStore`."""
        asked_at = steady()
        found = await self._on_leases(lambda on: sql_leases.claim(on, self._owner, limit))
        return self._leases(found, asked_at)

    async def renew_leases(self) -> list[Lease]:
        """See `LeaseStore`."""
        asked_at = steady()
        found = await self._on_leases(lambda on: sql_leases.renew(on, self._owner))
        return self._leases(found, asked_at)

    def _leases(self, found: list[tuple[Kind, str, int]], asked_at: float) -> list[Lease]:
        until = believed_until(asked_at, self._owner.seconds)
        return [Lease(kind, key, epoch, until) for kind, key, epoch in found]

    async def release_leases(self, leases: Iterable[Lease]) -> None:
        """See `LeaseStore`."""
        given = [(each.kind, each.key, each.epoch) for each in leases]
        await self._on_leases(
            lambda on: sql_leases.release(on, self._owner, given), [Notice("lease", "")]
        )

    async def is_driven(self, kind: Kind, key: str) -> bool:
        """See `LeaseStore`."""
        return await self._run(sql_leases.is_driven, kind, key)

    async def duty_notes(self, name: str) -> str:
        """See `LeaseStore`."""
        return await self._run(sql_leases.duty_notes, name)

    async def save_duty_notes(self, name: str, notes: str, epoch: int) -> None:
        """See `LeaseStore`."""
        await self._fleet_changed(sql_leases.save_duty_notes, self._owner, name, notes, epoch)

    async def add_wish(self, wish: Wish) -> None:
        """See `LeaseStore`."""
        await self._changed([Notice("wish", wish.key)], sql_leases.add_wish, wish)

    async def open_wishes(self) -> list[Wish]:
        """See `LeaseStore`."""
        return await self._run(sql_leases.open_wishes)

    async def answer_wish(self, wish: Wish, answer: str) -> None:
        """See `LeaseStore`."""
        await self._changed([Notice("answer", wish.id)], sql_leases.answer_wish, wish.id, answer)

    async def wish_answer(self, wish_id: str) -> str | None:
        """See `LeaseStore`."""
        return await self._run(sql_leases.wish_answer, wish_id)

    async def take_back_wish(self, wish_id: str) -> str | None:
        """See `LeaseStore`."""
        return await self._run(sql_leases.take_back_wish, wish_id)

    def listen(self, hear: Callable[[str, str], None]) -> None:
        """See `LeaseStore`."""
        place = self._opened.place
        if not place.shared:
            return
        loop = asyncio.get_running_loop()

        def on_loop(notice: Notice) -> None:
            loop.call_soon_threadsafe(hear, notice.kind, notice.key)

        self._listener = Listener(place.url, self._owner.name, on_loop)


def _of(kind: Kind, identity: UUID) -> Notice:
    return Notice(kind.value, str(identity))


def _of_disk(disk_key: UUID) -> Notice:
    return Notice("disk", str(disk_key))


def _news(record: Replacement) -> list[Notice]:
    return [_of(Kind.REPLACEMENT, record.id), _of_disk(record.disk_key)]

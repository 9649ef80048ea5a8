"""The store on SQLite.

All statements run on one thread of their own: the loop never waits for a disk, transactions never
meet each other, and their order is the order of the calls. A caller that is cancelled while its
transaction runs leaves a whole transaction behind, done or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from uuid import UUID

from sqlalchemy import Connection

from controlplane.core.drain import Drain
from controlplane.core.fleet import FaultedMember, FleetEntry, FleetPolicy, Look, Place
from controlplane.core.records import (
    Desired,
    DiskRecord,
    DownstairsRecord,
    InstanceRecord,
    InstanceState,
)
from controlplane.core.repair_shares import RepairWish
from controlplane.core.replacement import Replacement
from controlplane.core.scrub import Scrub
from controlplane.store import (
    sql_disks,
    sql_fleet,
    sql_repair_limits,
    sql_replacements,
    sql_scrubs,
)
from controlplane.store.base import StoredAnswer, StoredSpan
from controlplane.store.opening import Opened, open_directory
from stairlib.model.construction import Construction

_T = TypeVar("_T")
_P = ParamSpec("_P")


class SqliteStore:
    """A `Store` in a directory. Make one with `open`."""

    def __init__(self, opened: Opened, thread: ThreadPoolExecutor) -> None:
        self._opened = opened
        self._sealer = opened.sealer
        self._thread = thread

    @classmethod
    async def open(cls, directory: Path) -> SqliteStore:
        """Opens (or makes) the store of a directory; StateError when it cannot be used."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        loop = asyncio.get_running_loop()
        try:
            return cls(await loop.run_in_executor(thread, open_directory, directory), thread)
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """Waits for the transactions asked for, then closes the database."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._opened.close)
        self._thread.shutdown(wait=True)

    async def _run(
        self, work: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Runs `work(connection, ...)` in one transaction on the store's thread."""

        def transaction() -> _T:
            with self._opened.engine.begin() as connection:
                return work(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    async def add_instance(self, instance: InstanceRecord, disks: Sequence[DiskRecord]) -> None:
        """See `InstanceStore`."""
        await self._run(sql_disks.add_instance, self._sealer, instance, disks)

    async def confirm_instance(self, instance_id: UUID, handed: Mapping[UUID, int]) -> None:
        """See `InstanceStore`."""
        await self._run(sql_disks.confirm_instance, instance_id, handed)

    async def forget_instance(self, instance_id: UUID) -> None:
        """See `InstanceStore`."""
        await self._run(sql_disks.forget_instance, self._sealer, instance_id)

    async def delete_instance(self, instance_id: UUID) -> None:
        """See `InstanceStore`."""
        await self._run(sql_disks.delete_instance, self._sealer, instance_id)

    async def instance(self, name_or_id: str) -> InstanceRecord:
        """See `InstanceStore`."""
        return await self._run(sql_disks.instance, name_or_id)

    async def list_instances(self, *, after: str = "", limit: int) -> list[InstanceRecord]:
        """See `InstanceStore`."""
        return await self._run(sql_disks.list_instances, after, limit)

    async def set_instance_state(
        self, instance_id: UUID, state: InstanceState, reason: str
    ) -> InstanceRecord | None:
        """See `InstanceStore`."""
        return await self._run(sql_disks.set_instance_state, instance_id, state, reason)

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
        await self._run(sql_disks.record_construction, self._sealer, disk_key, expected, wanted)

    async def begin_replacement(self, record: Replacement) -> None:
        """See `ReplacementStore`."""
        await self._run(sql_replacements.begin, self._sealer, record)

    async def save_replacement(self, record: Replacement) -> None:
        """See `ReplacementStore`."""
        await self._run(sql_replacements.save, self._sealer, record)

    async def retry_replacement(self, record: Replacement) -> None:
        """See `ReplacementStore`."""
        await self._run(sql_replacements.retry, self._sealer, record)

    async def retire_member(self, record: Replacement) -> None:
        """See `ReplacementStore`."""
        await self._run(sql_replacements.retire_member, record)

    async def replacement(self, replacement_id: UUID) -> Replacement:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.by_id, self._sealer, replacement_id)

    async def replacement_of_trace(self, trace_id: str) -> Replacement | None:
        """See `ReplacementStore`."""
        return await self._run(sql_replacements.of_trace, self._sealer, trace_id)

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

    async def begin_scrub(self, record: Scrub) -> None:
        """See `ScrubStore`."""
        await self._run(sql_scrubs.begin, record)

    async def save_scrub(self, record: Scrub) -> None:
        """See `ScrubStore`."""
        await self._run(sql_scrubs.save, record)

    async def drop_parent(
        self, record: Scrub, original: Construction, wanted: Construction
    ) -> None:
        """See `ScrubStore`."""
        await self._run(sql_scrubs.drop_parent, self._sealer, record, original, wanted)

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

    async def register_downstairs(self, record: DownstairsRecord, place: Place) -> DownstairsRecord:
        """See `FleetStore`."""
        return await self._run(sql_fleet.register, record, place)

    async def deregister_downstairs(self, address: str) -> None:
        """See `FleetStore`."""
        await self._run(sql_fleet.deregister, self._sealer, address)

    async def fleet(self) -> list[FleetEntry]:
        """See `FleetStore`."""
        return await self._run(sql_fleet.entries)

    async def places(self) -> dict[str, Place]:
        """See `FleetStore`."""
        return await self._run(sql_fleet.places_by_address)

    async def save_looks(self, looks: Iterable[Look]) -> None:
        """See `FleetStore`."""
        await self._run(sql_fleet.save_looks, list(looks))

    async def repair_wishes(self) -> dict[UUID, RepairWish]:
        """See `RepairLimitStore`."""
        return await self._run(sql_repair_limits.wishes)

    async def save_repair_wish(self, volume_id: UUID, wish: RepairWish) -> None:
        """See `RepairLimitStore`."""
        await self._run(sql_repair_limits.save_wish, volume_id, wish)

    async def repairs_left(self) -> list[tuple[UUID, int]]:
        """See `RepairLimitStore`."""
        return await self._run(sql_repair_limits.left)

    async def fleet_policy(self) -> FleetPolicy:
        """See `FleetStore`."""
        return await self._run(sql_fleet.policy)

    async def set_fleet_policy(self, policy: FleetPolicy) -> None:
        """See `FleetStore`."""
        await self._run(sql_fleet.set_policy, policy)

    async def faulted_members(self) -> list[FaultedMember]:
        """See `FleetStore`."""
        return await self._run(sql_fleet.faulted)

    async def set_faulted_members(self, members: Iterable[FaultedMember]) -> None:
        """See `FleetStore`."""
        await self._run(sql_fleet.set_faulted, list(members))

    async def begin_drain(self, drain: Drain) -> Drain:
        """See `FleetStore`."""
        return await self._run(sql_fleet.begin_drain, drain)

    async def end_drain(self, drain: Drain) -> bool:
        """See `FleetStore`."""
        return await self._run(sql_fleet.end_drain, drain)

    async def drain(self, name: str) -> Drain:
        """See `FleetStore`."""
        return await self._run(sql_fleet.drain, name)

    async def list_drains(self) -> list[Drain]:
        """See `FleetStore`."""
        return await self._run(sql_fleet.list_drains)

    async def holding_drains(self) -> list[Drain]:
        """See `FleetStore`."""
        return await self._run(sql_fleet.holding_drains)

    async def replacements_asked_by(self, asked_by: str) -> list[Replacement]:
        """See `FleetStore`."""
        return await self._run(sql_fleet.replacements_asked_by, self._sealer, asked_by)

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
    ) -> None:
        """See `TraceStore`."""
        await self._run(sql_replacements.save_answer, method, request_id, answer, at)

"""What the control plane asks of its store, whatever keeps it.

Every method is one transaction: after it returned, its change survives a crash; when it raised,
nothing changed, unless it is an UnavailableError: then it may have been at the commit that the
database went away, and the caller looks before it goes on. Other control planes may use the same
store: what one task drives is changed under the epoch of its lease, and LeaseLostError says that
the lease is not held any more. Names of instances and of disks are unique, and so are volume ids; a
writable target address is a member of one volume at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from controlplane.core.leases import Kind, Lease
from controlplane.core.records import (
    Desired,
    DiskRecord,
    DownstairsRecord,
    InstanceRecord,
    InstanceState,
)
from controlplane.core.repair_shares import RepairWish
from controlplane.core.replacement import Replacement, Transition
from controlplane.core.scrub import Scrub
from controlplane.store.fleet_base import FleetCareStore
from stairlib.model.construction import Construction


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """One span of a trace; `body` is its serialised message. One that is under way is replaced by
    what is known of it later, one that has `ended` stays."""

    trace_id: str
    span_id: str
    body: bytes
    ended: bool = True


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What a request id was answered. `digest` identifies the request it was given with."""

    digest: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user says to the task of a record; `body` is a JSON object."""

    id: str
    kind: Kind
    key: str
    word: str
    body: str


class InstanceStore(Protocol):
    """Instances with their disks."""

    async def add_instance(self, instance: InstanceRecord, disks: Sequence[DiskRecord]) -> Lease:
        """Records both, and the disks' targets as members; the caller drives the instance.

        AlreadyExistsError for a name, id or volume that is taken; StateError (TARGET_IN_USE) for a
        target that is a member of another volume.
        """
        ...

    async def confirm_instance(self, instance_id: UUID, handed: Mapping[UUID, int]) -> None:
        """The machine exists; `handed` are the generations its volumes were given."""
        ...

    async def forget_instance(self, instance_id: UUID) -> None:
        """Takes `add_instance` back, as if it had never been."""
        ...

    async def delete_instance(self, instance_id: UUID) -> None:
        """Removes it and its disks; its members become retired."""
        ...

    async def add_disk(self, disk: DiskRecord) -> None:
        """Records one more disk of an instance, and its targets as members.

        Errors as `add_instance`; AlreadyExistsError (SLOT_TAKEN) when another disk of the instance
        is in its slot; NotFoundError when there is no such instance any more.
        """
        ...

    async def forget_disk(self, disk_key: UUID) -> None:
        """Takes `add_disk` back, as if it had never been."""
        ...

    async def remove_disk(self, disk_key: UUID) -> None:
        """Removes a disk; its members become retired. Nothing when it is gone already."""
        ...

    async def instance(self, name_or_id: str) -> InstanceRecord:
        """NotFoundError when there is none."""
        ...

    async def list_instances(self, *, after: str = "", limit: int) -> list[InstanceRecord]:
        """In the order of names, those after `after`."""
        ...

    async def set_instance_state(
        self, instance_id: UUID, state: InstanceState, reason: str, epoch: int
    ) -> InstanceRecord | None:
        """The record with a risen generation, or None when nothing changed or it is gone."""
        ...

    async def set_desired(self, instance_id: UUID, desired: Desired) -> None:
        """What the machine is brought to when it is made again."""
        ...

    async def next_generation(self, volume_id: UUID, at_least: int) -> int:
        """What `hand_out_generation` would answer; hands out nothing."""
        ...

    async def hand_out_generation(self, volume_id: UUID, at_least: int) -> int:
        """A generation above all handed out for the volume before, and not below `at_least`."""
        ...


class DiskStore(Protocol):
    """Disks and the requests recorded for them."""

    async def disk(self, name_or_id: str) -> DiskRecord:
        """By disk name or volume UUID; NotFoundError when there is none."""
        ...

    async def list_disks(
        self, *, instance_id: UUID | None = None, after: str = "", limit: int
    ) -> list[DiskRecord]:
        """In the order of names, those after `after`; a `limit` of zero means all."""
        ...

    async def record_construction(
        self, disk_key: UUID, expected: Construction, wanted: Construction
    ) -> None:
        """Compare-and-set of the recorded request; ConflictError when it is another one."""
        ...


class ReplacementStore(Protocol):
    """Replacements with their logs."""

    async def begin_replacement(self, record: Replacement) -> Lease:
        """A replacement's first row, the disk's new request and its new member, or nothing.

        The caller drives it. ConflictError unless the recorded request is `record.original`
        (RECORDED_VCR_CHANGED) and no replacement of the disk is running (REPLACEMENT_RUNNING);
        StateError (TARGET_IN_USE) when the new target serves another volume.
        """
        ...

    async def save_replacement(self, record: Replacement, epoch: int) -> None:
        """The present state, the log lines that are not yet stored, and with them the recorded
        request, where it is another one in this state; a cancelled one gives its target back.

        NotFoundError when there is no such replacement; ConflictError when the recorded request is
        not its own any more (RECORDED_VCR_CHANGED).
        """
        ...

    async def save_progress(self, record: Replacement, epoch: int) -> None:
        """The progress alone, of which there is much: the log and the state are as stored.

        NotFoundError when there is no such replacement; LeaseLostError as `save_replacement`.
        """
        ...

    async def retry_replacement(self, record: Replacement) -> Lease:
        """Saves one that has failed and is to go on; the caller drives it from now on.

        ConflictError when the recorded request is not `record.recorded` any more
        (RECORDED_VCR_CHANGED), or another replacement of the disk runs.
        """
        ...

    async def retire_member(self, record: Replacement, epoch: int) -> None:
        """The old target is retired, the new one a member, unless they are shared. Idempotent."""
        ...

    async def replacement(self, replacement_id: UUID) -> Replacement:
        """NotFoundError when there is none."""
        ...

    async def replacement_of_trace(self, trace_id: str) -> Replacement | None:
        """The replacement whose trace this is."""
        ...

    async def transitions(self, replacement_id: UUID, after: int, limit: int) -> list[Transition]:
        """The lines of its log with numbers above `after`, in order; all that ever were."""
        ...

    async def newest_replacement(self, disk_key: UUID) -> Replacement | None:
        """The one that was begun last, of those that were not undone."""
        ...

    async def running_replacements(self) -> list[Replacement]:
        """Those that have not ended, oldest first."""
        ...

    async def list_replacements(
        self, *, disk: str = "", before: int | None = None, limit: int
    ) -> list[tuple[int, Replacement]]:
        """(number, replacement), newest first, those with a number below `before`.

        `disk` is a disk name or a volume UUID; empty means all.
        """
        ...


class ScrubStore(Protocol):
    """The newest scrub of each volume that had one, by disk and path."""

    async def begin_scrub(self, record: Scrub) -> Lease:
        """Records it in the place of an earlier one of the volume; the caller drives it.

        ConflictError (SCRUB_RUNNING) when the earlier one has not ended; NotFoundError when there
        is no such disk any more.
        """
        ...

    async def save_scrub(self, record: Scrub, epoch: int) -> None:
        """The present state; NotFoundError when it went with its disk."""
        ...

    async def drop_parent(
        self, record: Scrub, original: Construction, wanted: Construction, epoch: int
    ) -> None:
        """The disk's new request and the scrub that is done with it, or nothing.

        ConflictError unless the recorded request is `original` (RECORDED_VCR_CHANGED) and no
        replacement of the disk is running (REPLACEMENT_RUNNING): what that one was begun with
        must stay what is recorded.
        """
        ...

    async def scrubs(self, disk_key: UUID) -> list[Scrub]:
        """Those of one disk, in the order of paths."""
        ...

    async def running_scrubs(self) -> list[Scrub]:
        """Those that have not ended, oldest first."""
        ...


class FleetStore(Protocol):
    """The downstairs the control plane knows of."""

    async def put_downstairs(self, record: DownstairsRecord) -> DownstairsRecord:
        """Records or refreshes what a daemon said of itself; a member or retired one stays so."""
        ...

    async def downstairs(self, address: str) -> DownstairsRecord | None:
        """The one at an address."""
        ...

    async def list_downstairs(self) -> list[DownstairsRecord]:
        """All, in the order of addresses."""
        ...

    async def note_region(self, address: str, region_id: UUID) -> None:
        """The region a known downstairs turned out to serve."""
        ...


class TraceStore(Protocol):
    """Spans of replacements' traces, and the answers to request ids."""

    async def save_spans(self, spans: Iterable[StoredSpan]) -> None:
        """Adds those that are not stored yet, or were stored before they ended."""
        ...

    async def spans(self, trace_id: str) -> list[StoredSpan]:
        """The stored spans of a trace."""
        ...

    async def answer(self, method: str, request_id: str) -> StoredAnswer | None:
        """What this request id was answered, if it was."""
        ...

    async def save_answer(
        self, method: str, request_id: str, answer: StoredAnswer, at: float
    ) -> StoredAnswer:
        """Keeps the answer, unless there is one; the one that stands. The oldest make room."""
        ...


class LeaseStore(Protocol):
    """Who drives what, and what users say to it."""

    @property
    def lease_seconds(self) -> float | None:
        """How long a lease lasts without renewal; None where one control plane has the store."""
        ...

    async def claim_leases(self, limit: int) -> list[Lease]:
        """Takes up to `limit` leases of each kind that nobody holds."""
        ...

    async def renew_leases(self) -> list[Lease]:
        """Renews those that this control plane holds and that have not ended; all that it has."""
        ...

    async def release_leases(self, leases: Iterable[Lease]) -> None:
        """Lets them go: others may take them at once."""
        ...

    async def is_driven(self, kind: Kind, key: str) -> bool:
        """Whether there is such a record, and it has not ended."""
        ...

    async def duty_notes(self, name: str) -> str:
        """What who has the duty, or had it last, has noted for the others."""
        ...

    async def save_duty_notes(self, name: str, notes: str, epoch: int) -> None:
        """Notes it in the place of what was noted before; LeaseLostError unless it is held."""
        ...

    async def add_wish(self, wish: Wish) -> None:
        """Keeps a wish for whoever drives the record."""
        ...

    async def open_wishes(self) -> list[Wish]:
        """Those without an answer, oldest first."""
        ...

    async def answer_wish(self, wish: Wish, answer: str) -> None:
        """What came of it, for the one who waits; nothing when he has taken it back."""
        ...

    async def wish_answer(self, wish_id: str) -> str | None:
        """The answer, if there is one."""
        ...

    async def take_back_wish(self, wish_id: str) -> str | None:
        """Forgets a wish; its answer, if there was one."""
        ...

    def listen(self, hear: Callable[[str, str], None]) -> None:
        """Has `hear(kind, key)` called, on the event loop, for what other control planes change.

        An empty kind means that anything may have changed; other kinds are those of `Kind`,
        "disk", "wish", "answer", "lease" and "fleet". Where nobody else can be there, it is never
        called.
        """
        ...


class RepairLimitStore(Protocol):
    """What is wanted of the repairs of volumes."""

    async def repair_wishes(self) -> dict[UUID, RepairWish]:
        """By volume; of those for which anything was set."""
        ...

    async def save_repair_wish(self, volume_id: UUID, wish: RepairWish) -> None:
        """In the place of the one before."""
        ...

    async def repairs_left(self) -> list[tuple[UUID, int]]:
        """(volume, bytes left) of every replacement that is being applied or repairs."""
        ...


class Store(
    InstanceStore,
    DiskStore,
    ReplacementStore,
    ScrubStore,
    FleetStore,
    FleetCareStore,
    RepairLimitStore,
    TraceStore,
    LeaseStore,
    Protocol,
):
    """All of it."""

    async def close(self) -> None:
        """Waits for what was asked and lets the storage go."""
        ...

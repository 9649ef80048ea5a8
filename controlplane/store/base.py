"""What the control plane asks of its store, whatever keeps it.

Every method is one transaction: after it returned, its change survives a crash; when it raised,
nothing changed. Methods are called from one event loop and run one after another in the order of
the calls. Names of instances and of disks are unique, and so are volume ids; a writable target
address is a member of one volume at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

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
from stairlib.model.construction import Construction


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """One span of a trace; `body` is its serialised message."""

    trace_id: str
    span_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What a request id was answered. `digest` identifies the request it was given with."""

    digest: bytes
    body: bytes


class InstanceStore(Protocol):
    """Instances with their disks."""

    async def add_instance(self, instance: InstanceRecord, disks: Sequence[DiskRecord]) -> None:
        """Records both, and the disks' targets as members.

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

    async def instance(self, name_or_id: str) -> InstanceRecord:
        """NotFoundError when there is none."""
        ...

    async def list_instances(self, *, after: str = "", limit: int) -> list[InstanceRecord]:
        """In the order of names, those after `after`."""
        ...

    async def set_instance_state(
        self, instance_id: UUID, state: InstanceState, reason: str
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

    async def begin_replacement(self, record: Replacement) -> None:
        """A replacement's first row, the disk's new request and its new member, or nothing.

        ConflictError unless the recorded request is `record.original` and no replacement of the
        disk is running; StateError (TARGET_IN_USE) when the new target serves another volume.
        """
        ...

    async def save_replacement(self, record: Replacement) -> None:
        """The present state, the log lines that are not yet stored, and with them the recorded
        request, where it is another one in this state; a cancelled one gives its target back.

        NotFoundError when there is no such replacement; ConflictError when the recorded request is
        not its own any more (RECORDED_VCR_CHANGED).
        """
        ...

    async def retry_replacement(self, record: Replacement) -> None:
        """Saves one that has failed and is to go on.

        ConflictError when the recorded request is not `record.recorded` any more
        (RECORDED_VCR_CHANGED), or another replacement of the disk runs.
        """
        ...

    async def retire_member(self, record: Replacement) -> None:
        """The old target is retired, the new one a member, unless they are shared. Idempotent."""
        ...

    async def replacement(self, replacement_id: UUID) -> Replacement:
        """NotFoundError when there is none."""
        ...

    async def replacement_of_trace(self, trace_id: str) -> Replacement | None:
        """The replacement whose trace this is."""
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

    async def begin_scrub(self, record: Scrub) -> None:
        """Records it in the place of an earlier one of the volume.

        NotFoundError when there is no such disk any more.
        """
        ...

    async def save_scrub(self, record: Scrub) -> None:
        """The present state; NotFoundError when it went with its disk."""
        ...

    async def drop_parent(
        self, record: Scrub, original: Construction, wanted: Construction
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

    async def register_downstairs(self, record: DownstairsRecord, place: Place) -> DownstairsRecord:
        """As `put_downstairs`, with where it stands."""
        ...

    async def deregister_downstairs(self, address: str) -> None:
        """Forgets it. NotFoundError when it is not known, StateError (DOWNSTAIRS_IN_USE) while a
        disk or a replacement names it."""
        ...

    async def fleet(self) -> list[FleetEntry]:
        """All downstairs with where they stand and how they are, in the order of addresses."""
        ...

    async def places(self) -> dict[str, Place]:
        """Where those stand of which somebody said so, by address."""
        ...

    async def save_looks(self, looks: Iterable[Look]) -> None:
        """The newest look at each; those at unknown addresses are dropped. A look without
        `seen_at` leaves the earlier one."""
        ...

    async def fleet_policy(self) -> FleetPolicy:
        """The policy in force."""
        ...

    async def set_fleet_policy(self, policy: FleetPolicy) -> None:
        """The whole policy."""
        ...

    async def faulted_members(self) -> list[FaultedMember]:
        """The members found faulted, longest first."""
        ...

    async def set_faulted_members(self, members: Iterable[FaultedMember]) -> None:
        """All of them, in the place of those before."""
        ...

    async def begin_drain(self, drain: Drain) -> Drain:
        """Records a drain, or finds the one of its target that was not cancelled, running again."""
        ...

    async def end_drain(self, drain: Drain) -> bool:
        """Stores the end (DONE or CANCELLED) of one that runs, or the cancellation of one that is
        done; False when it has ended otherwise meanwhile."""
        ...

    async def drain(self, name: str) -> Drain:
        """By id, or the newest of a target; NotFoundError when there is none."""
        ...

    async def list_drains(self) -> list[Drain]:
        """The newest hundred, newest first."""
        ...

    async def holding_drains(self) -> list[Drain]:
        """Those that keep something out of use, oldest first."""
        ...

    async def replacements_asked_by(self, asked_by: str) -> list[Replacement]:
        """The replacements somebody has begun, oldest first."""
        ...


class TraceStore(Protocol):
    """Spans of replacements' traces, and the answers to request ids."""

    async def save_spans(self, spans: Iterable[StoredSpan]) -> None:
        """Adds those that are not stored yet."""
        ...

    async def spans(self, trace_id: str) -> list[StoredSpan]:
        """The stored spans of a trace."""
        ...

    async def answer(self, method: str, request_id: str) -> StoredAnswer | None:
        """What this request id was answered, if it was."""
        ...

    async def save_answer(
        self, method: str, request_id: str, answer: StoredAnswer, at: float
    ) -> None:
        """Keeps the answer; the oldest ones make room."""
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
    InstanceStore, DiskStore, ReplacementStore, ScrubStore, FleetStore, RepairLimitStore,
    TraceStore, Protocol,
):  # fmt: skip
    """All of it."""

    async def close(self) -> None:
        """Waits for what was asked and lets the storage go."""
        ...

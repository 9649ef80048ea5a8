"""What peers' answers mean to a replacement: messages and failures in, events of the table out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from uuid import UUID

from controlplane.core import replacement as core
from controlplane.core.parents import is_below, parent_path
from controlplane.core.records import with_target
from controlplane.core.replacement import Event, Replacement
from controlplane.store.base import InstanceStore
from stairlib.model.construction import Construction
from stairlib.model.errors import (
    InvalidRequestError,
    NotFoundError,
    RefusedError,
    StairwellError,
    StateError,
    UnavailableError,
    UnsupportedError,
)
from stairwell.vmmd.v1 import volume_service_pb2 as pb

# A comparison of one member with itself would prove nothing.
MEMBERS_MIN = 2
_RELEASED = (
    "the region was in a read-only parent that was copied into the volume meanwhile; nothing is"
    " left to replace"
)


def as_event(error: StairwellError, at: float, instance_ended: str) -> Event:
    """What a failed call means. `instance_ended` says why no machine can come, if none can."""
    if instance_ended and isinstance(error, NotFoundError | StateError):
        return core.GaveUp(at=at, error=f"{instance_ended}: {error.message}")
    if isinstance(error, UnavailableError) and error.reason != "DEADLINE_EXCEEDED":
        return core.Blocked(at=at, on=error.message)
    lost = ("MACHINE_NOT_FOUND", "MACHINE_ENDED")
    if isinstance(error, NotFoundError | StateError) and error.reason in lost:
        return core.Blocked(at=at, on=f"{error.message}; waiting until the machine is made")
    if isinstance(error, InvalidRequestError | UnsupportedError | RefusedError):
        return core.GaveUp(at=at, error=error.message)
    return core.StepFailed(at=at, error=error.message)


async def instance_ended(store: InstanceStore, instance_id: UUID) -> str:
    """Why no machine will come any more for an instance; empty when one may."""
    try:
        instance = await store.instance(str(instance_id))
    except NotFoundError:
        return "its instance was deleted"
    if instance.state.ended:
        return f"instance {instance.name!r} is {instance.state}"
    return ""


def look(record: Replacement, info: pb.VolumeInfo, at: float) -> Event:
    """What the present state of the volume says about the repair of the new member."""
    found = _slot(record, info)
    if found is None:
        if released(record, info):
            return core.GaveUp(at=at, error=_RELEASED)
        where = f"region {record.region_path!r}, slot {record.slot}"
        return core.StepFailed(at=at, error=f"the machine's volume has no {where}")
    region, slot = found
    if slot.address != record.new_target:
        detail = f"slot {slot.slot} of the machine has {slot.address}, not {record.new_target}"
        return core.Unapplied(at=at, detail=detail)
    active = region.state == pb.VOLUME_STATE_ACTIVE
    if active and slot.state == pb.SLOT_STATE_ACTIVE:
        mending = _mending(record, region)
        if mending:
            return core.Observed(at=at, blocked_on=mending)
        return core.Repaired(at=at, bytes_copied=slot.repaired_bytes)
    if region.state == pb.VOLUME_STATE_DISABLED:
        return core.StepFailed(at=at, error=f"the volume is disabled: {region.reason}")
    if slot.HasField("repair"):
        return _observed(record, slot.repair, at)
    return core.Observed(at=at, blocked_on=_waiting(region, slot))


def _mending(record: Replacement, region: pb.RegionInfo) -> str:
    """Who else has to be filled before the members are compared again; empty when nobody."""
    for slot in region.slots:
        if slot.slot == record.mending and slot.state != pb.SLOT_STATE_ACTIVE:
            return f"{_slot_text(slot)}; it differed, and is filled again"
    return ""


def held(record: Replacement, info: pb.VolumeInfo, at: float) -> Event | None:
    """What the volume says of a replacement that is paused; None when the machine has to be told
    again."""
    found = _slot(record, info)
    if found is None:
        return look(record, info, at)
    region, slot = found
    if not slot.repair_held:
        return None
    if slot.HasField("repair") and slot.address == record.new_target:
        return _observed(record, slot.repair, at)
    waits = region.state != pb.VOLUME_STATE_ACTIVE
    return core.Observed(at=at, blocked_on=_waiting(region, slot) if waits else "")


def is_held(record: Replacement, info: pb.VolumeInfo) -> bool:
    """Whether the machine copies nothing to the slot because it was told so."""
    found = _slot(record, info)
    return found is not None and found[1].repair_held


def undoable(record: Replacement, info: pb.VolumeInfo, at: float) -> Event:
    """Whether the replacement can be undone as the machine is now, and else why not."""
    found = _slot(record, info)
    if found is None:
        return look(record, info, at)
    region, slot = found
    new = record.new_target
    if slot.address != new or slot.departing_address == record.old_target:
        # The machine never had the new one, or has the old one still.
        return core.CanUndo(at=at)
    if region.state == pb.VOLUME_STATE_ACTIVE and slot.state == pb.SLOT_STATE_ACTIVE:
        detail = (
            f"{new} is filled and serves, and {record.old_target} has left: nothing is to be undone"
            " any more; the members are compared and the old one is retired"
        )
        return core.Kept(at=at, detail=detail)
    detail = (
        f"the machine has let {record.old_target} go already, and {new} is not filled: retry to go"
        f" on with {new}, or replace {new} by another downstairs"
    )
    return core.CannotUndo(at=at, detail=detail)


def is_moving(info: pb.VolumeInfo, record: Replacement) -> bool:
    """Whether the region is active, so that the repair must show progress."""
    found = _slot(record, info)
    return found is not None and found[0].state == pb.VOLUME_STATE_ACTIVE


def limit_of(record: Replacement, info: pb.VolumeInfo) -> int:
    """The bytes a second the machine allows the repair now; zero for no limit, or no repair."""
    found = _slot(record, info)
    return found[1].repair.bytes_per_second_max if found is not None else 0


def serves_alone(record: Replacement, info: pb.VolumeInfo) -> bool:
    """Whether the new member is the only one of a read-only region that serves.

    With nobody to compare it with, and no other replacement possible before this one has ended, its
    own blocks are read and checked instead.
    """
    found = _slot(record, info)
    if found is None or not found[0].read_only:
        return False
    active = [slot.slot for slot in found[0].slots if slot.state == pb.SLOT_STATE_ACTIVE]
    return active == [record.slot]


def verified(record: Replacement, report: pb.VerifyReport, info: pb.VolumeInfo, at: float) -> Event:
    """What a comparison of the members says; `info` is the volume after it."""
    found = _slot(record, info)
    if found is None and released(record, info):
        return core.GaveUp(at=at, error=_RELEASED)
    if found is None or found[1].state != pb.SLOT_STATE_ACTIVE:
        detail = _slot_text(found[1]) if found else "the volume lost its slot"
        return core.MemberLost(at=at, detail=f"the new member left service: {detail}")
    # Another region's trouble is no fault of this replacement, should the report tell of it.
    differing = [each for each in report.differences if each.region_path == record.region_path]
    if differing:
        return _differed(record, differing, at, read_only=found[0].read_only)
    unequal = not report.equal and not report.differences
    least = 1 if report.blocks_read and serves_alone(record, info) else MEMBERS_MIN
    if unequal or report.members_compared < least:
        error = f"only {report.members_compared} members could be compared"
        return core.StepFailed(at=at, error=error)
    return core.Verified(at=at, extents=report.extents_compared, members=report.members_compared)


def _differed(
    record: Replacement, differing: Sequence[pb.ExtentDifference], at: float, *, read_only: bool
) -> Event:
    """The member that is to be filled again; in a read-only set nobody is."""
    first = differing[0]
    text = (
        f"the members differ in {len(differing)} extents, first in extent {first.extent} of"
        f" {first.region_path or 'the region'}"
    )
    if read_only:
        return core.GaveUp(at=at, error=text)
    slot = odd_one(differing, record.slot)
    return core.Differed(at=at, slot=slot, detail=f"{text}; slot {slot} is filled again")


def odd_one(differing: Iterable[pb.ExtentDifference], new: int) -> int:
    """The slot that is to be filled again: the one that two others agree against, in most of the
    extents; the new one where they do not."""
    votes = Counter(_outvoted(each.digests, new) for each in differing)
    # The new member before others that have as many votes.
    return min(votes, key=lambda slot: (-votes[slot], slot != new, slot))


def _outvoted(digests: Sequence[int], new: int) -> int:
    """The slot whose digest is not the others'; zero is a member that was not asked."""
    asked = Counter(each for each in digests if each)
    if not asked:
        return new
    common, count = asked.most_common(1)[0]
    odd = [slot for slot, each in enumerate(digests) if each not in (0, common)]
    return odd[0] if count > 1 and len(odd) == 1 else new


def released(record: Replacement, info: pb.VolumeInfo) -> bool:
    """Whether the region was in a parent that the machine's volume has let go after its scrub."""
    return (
        any(
            each.state == pb.SCRUB_STATE_DONE
            and is_below(record.region_path, parent_path(each.path))
            for each in info.scrubs
        )
        and _slot(record, info) is None
    )


def original_as_running(record: Replacement, info: pb.VolumeInfo) -> Construction:
    """The request the machine has now, but for what the replacement changes.

    They are the same unless an earlier replacement of the slot was recorded and never reached the
    machine: then its target is neither the old nor the new one, and is the one to replace.
    """
    found = _slot(record, info)
    if found is None or found[1].address in ("", record.old_target, record.new_target):
        return record.original
    return with_target(record.original, record.region_path, record.slot, found[1].address)


def region_ids(info: pb.VolumeInfo) -> dict[str, UUID]:
    """The region behind each address that the machine has a session with."""
    return {
        slot.address: UUID(slot.region_id)
        for region in info.regions
        for slot in region.slots
        if slot.region_id
    }


def _slot(record: Replacement, info: pb.VolumeInfo) -> tuple[pb.RegionInfo, pb.SlotInfo] | None:
    for region in info.regions:
        if region.path == record.region_path:
            for slot in region.slots:
                if slot.slot == record.slot:
                    return region, slot
    return None


def _observed(record: Replacement, repair: pb.RepairProgress, at: float) -> core.Observed:
    """Progress in bytes of the whole region: extents that need no repair count as done."""
    bytes_left = max(0, repair.bytes_total - repair.bytes_done)
    extents_left = max(0, repair.extents_total - repair.extents_done)
    return core.Observed(
        at=at,
        bytes_done=max(0, record.progress.bytes_total - bytes_left),
        bytes_copied=repair.bytes_copied,
        extents_done=max(0, record.progress.extents_total - extents_left),
    )


def _waiting(region: pb.RegionInfo, slot: pb.SlotInfo) -> str:
    """What the machine waits for before it can repair."""
    if region.state == pb.VOLUME_STATE_INITIALIZING:
        return "the volume is not active; the new member is filled when the instance runs"
    if region.state != pb.VOLUME_STATE_ACTIVE:
        name = pb.VolumeState.Name(region.state).removeprefix("VOLUME_STATE_")
        return f"the volume is {name}; {_slot_text(slot)}"
    return _slot_text(slot)


def _slot_text(slot: pb.SlotInfo) -> str:
    state = pb.SlotState.Name(slot.state).removeprefix("SLOT_STATE_")
    why = f": {slot.last_error}" if slot.last_error else ""
    return f"slot {slot.slot} ({slot.address}) is {state}{why}"

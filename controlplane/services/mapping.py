"""Records as messages, and requests as wishes. Secrets of construction requests stay behind."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.core.instance_check import DiskRequest
from controlplane.core.records import Desired, InstanceRecord
from controlplane.core.repair_shares import WishChange
from controlplane.core.replacement import Replacement, Transition
from controlplane.core.scrub import Scrub
from controlplane.core.scrub import State as ScrubState
from controlplane.operations.disks import DiskView
from controlplane.operations.instances import CreateInstance
from controlplane.operations.plugging import PlugDisk
from controlplane.operations.replacing import ReplaceAnswer, ReplaceWish
from controlplane.services.fleet_mapping import placement_message
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.wire.construction import Parsed, parse_json, parse_message, to_message
from stairlib.wire.durations import duration, seconds_of
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb

_DESIRED: dict[int, Desired | None] = {
    instance_pb.REQUESTED_STATE_RUN: Desired.RUNNING,
    instance_pb.REQUESTED_STATE_STOP: Desired.STOPPED,
    instance_pb.REQUESTED_STATE_REBOOT: None,
}
_SCRUB_STATES = {
    ScrubState.COPY: disk_pb.SCRUB_STATE_RUNNING,
    ScrubState.DROP: disk_pb.SCRUB_STATE_RUNNING,
    ScrubState.DONE: disk_pb.SCRUB_STATE_DONE,
    ScrubState.STOPPED: disk_pb.SCRUB_STATE_STOPPED,
    ScrubState.FAILED: disk_pb.SCRUB_STATE_FAILED,
}


def create_wish(request: instance_pb.CreateInstanceRequest) -> CreateInstance:
    """The wish of a request; what cannot be read of it is in `unread`."""
    disks: list[DiskRequest] = []
    unread: list[FieldViolation] = []
    for index, disk in enumerate(request.disks):
        read, violations = _disk_request(disk, f"disks[{index}]")
        disks.append(read)
        unread.extend(violations)
    return CreateInstance(
        name=request.name,
        disks=disks,
        id=request.id,
        request_id=request.request_id,
        cpus=request.cpus,
        memory_mib=request.memory_mib,
        activate_with_two_after=seconds_of(request.activate_with_two_after)
        if request.HasField("activate_with_two_after")
        else None,
        unread=tuple(unread),
    )


def plug_wish(request: instance_pb.PlugDiskRequest) -> PlugDisk:
    """The wish of a request; what cannot be read of it is in `unread`."""
    disk, unread = _disk_request(request.disk, "disk")
    return PlugDisk(request.name, disk, unread)


def _disk_request(
    disk: instance_pb.DiskSpec, field: str
) -> tuple[DiskRequest, tuple[FieldViolation, ...]]:
    """A disk of a request, and what cannot be read of it."""
    path = f"{field}.volume_construction_request"
    if disk.HasField("volume_construction_request"):
        parsed = parse_message(disk.volume_construction_request, path=path)
    else:
        parsed = Parsed(None, (FieldViolation(path, "is missing", "MISSING"),))
    read = DiskRequest(disk.device, disk.name, disk.slot, disk.read_only, parsed.construction)
    return read, tuple(parsed.violations)


def desired_state(request: instance_pb.SetInstanceStateRequest) -> Desired | None:
    """The wanted state, None for a reboot; InvalidRequestError when none is named."""
    if request.state not in _DESIRED:
        text = "must be REQUESTED_STATE_RUN, REQUESTED_STATE_STOP or REQUESTED_STATE_REBOOT"
        raise InvalidRequestError(
            f"the state {text}", (FieldViolation("state", text, "UNKNOWN_STATE"),)
        )
    return _DESIRED[request.state]


def disk_name(name: str, field: str = "name") -> str:
    """The disk a request is about; InvalidRequestError when it names none in `field`."""
    if not name:
        text = "is missing; must be the name of a disk or the UUID of its volume"
        raise InvalidRequestError(f"{field} {text}", (FieldViolation(field, text, "REQUIRED"),))
    return name


def replace_wish(request: disk_pb.ReplaceVcrRequest) -> ReplaceWish:
    """The wish of a request; InvalidRequestError when its construction cannot be read."""
    if request.HasField("vcr") == request.HasField("vcr_json"):
        text = "give the construction request either in vcr or as JSON text in vcr_json"
        raise InvalidRequestError(
            text, (FieldViolation("vcr", text, "ONE_OF_REQUIRED"),), reason="ONE_OF_REQUIRED"
        )
    if request.HasField("vcr"):
        field, parsed = "vcr", parse_message(request.vcr, path="vcr")
    else:
        field, parsed = "vcr_json", parse_json(request.vcr_json, path="vcr_json")
    return ReplaceWish(
        name=request.name,
        id=request.id,
        instance=request.instance,
        wanted=parsed.require(),
        field=field,
        validate_only=request.validate_only,
    )


def instance_message(
    record: InstanceRecord, disks: Iterable[str], vmmd: str
) -> instance_pb.Instance:
    """An instance for clients."""
    return instance_pb.Instance(
        id=str(record.id),
        name=record.name,
        state=instance_pb.InstanceState.Value(f"INSTANCE_STATE_{record.state}"),
        state_generation=record.state_generation,
        disks=disks,
        reason=record.reason,
        vmmd=vmmd,
        activate_with_two_after=duration(record.activate_with_two_after)
        if record.activate_with_two_after
        else None,
    )


def disk_message(view: DiskView) -> disk_pb.Disk:
    """A disk for clients, without secrets."""
    disk = view.disk
    return disk_pb.Disk(
        name=disk.name,
        id=str(disk.volume_id),
        instance=disk.instance_name,
        device=disk.device,
        pci_path=disk.pci_path,
        read_only=disk.read_only,
        recorded_generation=disk.recorded_generation,
        vcr=to_message(disk.construction, secrets=False),
        volume=view.volume,
        replacement_id=_text(view.replacement_id),
        scrubs=[scrub_message(each) for each in view.scrubs],
    )


def scrub_message(record: Scrub) -> disk_pb.Scrub:
    """A scrub for clients, to whom copying and recording are one."""
    return disk_pb.Scrub(
        disk=record.disk,
        path=record.path,
        state=_SCRUB_STATES[record.state],
        bytes_done=record.bytes_done,
        bytes_total=record.bytes_total,
        bytes_per_second_max=record.bytes_per_second_max,
        blocked_on=record.blocked_on,
        last_error=record.last_error,
        created_at=record.created_at,
        updated_at=record.updated_at,
        recorded_generation=record.recorded_generation,
        trace_id=record.trace_id,
    )


def replace_answer(answer: ReplaceAnswer) -> disk_pb.ReplaceVcrResponse:
    """The answer to a replacement of the construction request."""
    response = disk_pb.ReplaceVcrResponse(
        result=disk_pb.ReplaceResult.Value(f"REPLACE_RESULT_{answer.result}")
    )
    record, changed = answer.replacement, answer.changed
    if record is not None:
        response.slot = record.slot
        response.old_target = record.old_target
        response.new_target = record.new_target
        response.path = record.path
        response.replacement_id = str(record.id)
        response.trace_id = record.trace_id
        response.replacement.CopyFrom(replacement_message(record))
    elif changed is not None:
        response.slot = changed.slot
        response.old_target = changed.old
        response.new_target = changed.new
        response.path = changed.path
    return response


def replacement_message(record: Replacement) -> replacement_pb.Replacement:
    """A replacement for clients."""
    progress = record.progress
    message = replacement_pb.Replacement(
        id=str(record.id),
        disk=record.disk,
        volume_id=str(record.volume_id),
        state=_state(record.state),
        region_path=record.region_path,
        slot=record.slot,
        old_target=record.old_target,
        new_target=record.new_target,
        from_generation=record.from_generation,
        to_generation=record.to_generation,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        bytes_copied=progress.bytes_copied,
        extents_done=progress.extents_done,
        extents_total=progress.extents_total,
        bytes_per_second=progress.bytes_per_second,
        eta_seconds=progress.eta_seconds,
        blocked_on=record.blocked_on,
        last_error=record.last_error,
        attempt=record.attempt,
        trace_id=record.trace_id,
        create_time=_time(record.created_at),
        update_time=_time(record.updated_at),
        repair_bytes_per_second_max=record.bytes_per_second_max,
        transitions=map(transition_message, record.transitions),
        paused_in=_state(record.paused_in),
        failed_in=_state(record.failed_in),
        restarts=record.restarts,
        mended=record.mended,
    )
    message.asked_by = record.asked_by
    if record.placement is not None:
        message.placement.CopyFrom(placement_message(record.placement))
    if record.next_attempt_at is not None:
        message.next_attempt_time.CopyFrom(_time(record.next_attempt_at))
    if record.blocked_since is not None:
        message.blocked_since_time.CopyFrom(_time(record.blocked_since))
    return message


def transition_message(transition: Transition) -> replacement_pb.Transition:
    """A line of a replacement's log for clients."""
    return replacement_pb.Transition(
        state=_state(transition.state),
        time=_time(transition.at),
        event=transition.event,
        detail=transition.detail,
        number=transition.number,
    )


def wish_change(request: replacement_pb.SetRepairLimitsRequest) -> WishChange:
    """What is to be changed; fields that are not set are None."""
    given = {field.name: value for field, value in request.ListFields()}
    return WishChange(**{name: given.get(name) for name in WishChange.__slots__})


def _state(state: str | None) -> replacement_pb.ReplacementState.ValueType:
    return replacement_pb.ReplacementState.Value(f"REPLACEMENT_STATE_{state or 'UNSPECIFIED'}")


def _time(at: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(at * 1e9))
    return stamp


def _text(value: UUID | None) -> str:
    return str(value) if value is not None else ""

"""Between vmmd's protobuf messages and its own values, both ways, and nothing else."""

from __future__ import annotations

from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.wire import construction as construction_wire
from stairlib.wire.durations import seconds_of
from stairwell.vmmd.v1 import machine_service_pb2 as pb
from vmmd.core.lifecycle import MachineState, Published
from vmmd.core.machine import DiskSpec, MachineRecord, MachineSpec
from vmmd.core.pci_path import PciPath
from vmmd.core.request_queue import RequestKind

_STATES = {state: pb.MachineState.Value(f"MACHINE_STATE_{state.name}") for state in MachineState}
_STATES_BACK = {value: state for state, value in _STATES.items()}
_REQUESTS = {
    pb.MACHINE_REQUESTED_STATE_RUN: RequestKind.RUN,
    pb.MACHINE_REQUESTED_STATE_STOP: RequestKind.STOP,
    pb.MACHINE_REQUESTED_STATE_REBOOT: RequestKind.REBOOT,
}


def requested_state(value: int) -> RequestKind:
    """The state change asked for; InvalidRequestError when none is."""
    kind = _REQUESTS.get(pb.MachineRequestedState.ValueType(value))
    if kind is None:
        raise InvalidRequestError(
            "state: must be RUN, STOP or REBOOT",
            (FieldViolation("state", "must be RUN, STOP or REBOOT"),),
        )
    return kind


def requested_state_message(kind: RequestKind) -> pb.MachineRequestedState.ValueType:
    """The other way of `requested_state`."""
    return next(value for value, known in _REQUESTS.items() if known is kind)


def spec_from_message(message: pb.MachineSpec) -> MachineSpec:
    """The machine asked for, checked; InvalidRequestError names the fields."""
    disks = []
    for index, disk in enumerate(message.disks):
        field = f"spec.disks[{index}]"
        try:
            path = PciPath.parse(disk.pci_path)
            construction = construction_wire.from_message(disk.volume_construction_request)
        except InvalidRequestError as error:
            found = error.violations or (FieldViolation("pci_path", error.message),)
            raise InvalidRequestError(
                f"{field}: {error.message}",
                tuple(FieldViolation(f"{field}.{v.field}", v.description, v.reason) for v in found),
            ) from error
        after = seconds_of(disk.activate_with_two_after)
        disks.append(DiskSpec(disk.device, disk.name, disk.read_only, path, construction, after))
    spec = MachineSpec(
        message.id, message.name, message.cpus or 1, message.memory_mib or 512, tuple(disks)
    )
    spec.check()
    return spec


def record_to_message(record: MachineRecord) -> pb.Machine:
    """For replies and watches."""
    return machine_with_state(record, record.published)


def machine_with_state(record: MachineRecord, published: Published) -> pb.Machine:
    """The machine as it was when `published` was its state."""
    return pb.Machine(
        id=record.id,
        name=record.name,
        state=_STATES[published.state],
        state_generation=published.generation,
        reason=published.reason,
        process_id=record.process_id,
        engine=record.engine,
        disks=record.disks,
        process_died=published.process_died,
    )


def published_from_message(message: pb.Machine) -> Published:
    """What a machine process says of itself."""
    return Published(_STATES_BACK[message.state], message.state_generation, message.reason)

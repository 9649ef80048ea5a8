"""Between vmmd's protobuf messages and its own values, both ways, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from stairlib.model.construction import join_path
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.wire import construction as construction_wire
from stairlib.wire.durations import seconds_of
from stairwell.vmmd.v1 import machine_process_service_pb2 as process_pb
from stairwell.vmmd.v1 import machine_service_pb2 as pb
from vmmd.core.guest_events import GuestSignal
from vmmd.core.lifecycle import MachineState, Published
from vmmd.core.machine import DiskSpec, MachineRecord, MachineSpec
from vmmd.core.pci_path import PciPath
from vmmd.core.request_queue import RequestKind
from vmmd.engine.core.hypervisor import Accelerator, Hypervisor

_STATES = {state: pb.MachineState.Value(f"MACHINE_STATE_{state.name}") for state in MachineState}
_STATES_BACK = {value: state for state, value in _STATES.items()}
_REQUESTS = {
    pb.MACHINE_REQUESTED_STATE_RUN: RequestKind.RUN,
    pb.MACHINE_REQUESTED_STATE_STOP: RequestKind.STOP,
    pb.MACHINE_REQUESTED_STATE_REBOOT: RequestKind.REBOOT,
}

_SIGNALS = {
    pb.GUEST_SIGNAL_POWER_BUTTON: GuestSignal.POWER_BUTTON,
    pb.GUEST_SIGNAL_NMI: GuestSignal.NMI,
}
# Where a disk's construction request is in its message.
CONSTRUCTION = "volume_construction_request"


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


def guest_signal(value: int) -> GuestSignal:
    """The signal asked for; InvalidRequestError when none is."""
    signal = _SIGNALS.get(pb.GuestSignal.ValueType(value))
    if signal is None:
        raise InvalidRequestError(
            "signal: must be POWER_BUTTON or NMI",
            (FieldViolation("signal", "must be POWER_BUTTON or NMI"),),
        )
    return signal


def disk_from_message(disk: pb.MachineDisk, field: str) -> DiskSpec:
    """One disk; InvalidRequestError names the fields, below `field`."""
    with below(f"{field}.pci_path"):
        path = PciPath.parse(disk.pci_path)
    with below(f"{field}.{CONSTRUCTION}"):
        construction = construction_wire.from_message(disk.volume_construction_request)
    after = seconds_of(disk.activate_with_two_after)
    return DiskSpec(
        disk.device,
        disk.name,
        disk.read_only,
        path,
        construction,
        after,
        removable=disk.removable,
    )


@contextlib.contextmanager
def below(field: str) -> Iterator[None]:
    """InvalidRequestError names the whole field, as the request has it."""
    try:
        yield
    except InvalidRequestError as error:
        found = error.violations or (FieldViolation("", error.message),)
        raise InvalidRequestError(
            f"{field}: {error.message}",
            tuple(
                replace(each, field=join_path(field, each.field) if each.field else field)
                for each in found
            ),
            reason=error.reason,
        ) from error


def spec_from_message(message: pb.MachineSpec) -> MachineSpec:
    """The machine asked for, checked; InvalidRequestError names the fields."""
    disks = [
        disk_from_message(disk, f"spec.disks[{index}]") for index, disk in enumerate(message.disks)
    ]
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
    hypervisor = record.hypervisor
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
        accelerator=hypervisor.accelerator.value if hypervisor else "",
        accelerator_reason=hypervisor.accelerator_reason if hypervisor else "",
        hypervisor=f"QEMU {hypervisor.version}" if hypervisor else "",
    )


def published_from_message(message: pb.Machine) -> Published:
    """What a machine process says of itself."""
    return Published(
        _STATES_BACK[message.state],
        message.state_generation,
        message.reason,
        message.process_died,
    )


def hypervisor_to_message(hypervisor: Hypervisor) -> process_pb.Hypervisor:
    """For the machine's process."""
    return process_pb.Hypervisor(
        program=hypervisor.program,
        version=hypervisor.version,
        accelerator=hypervisor.accelerator.value,
        accelerator_reason=hypervisor.accelerator_reason,
        vfio_user=hypervisor.vfio_user,
    )


def hypervisor_from_message(message: process_pb.Hypervisor) -> Hypervisor:
    """The other way of `hypervisor_to_message`."""
    return Hypervisor(
        message.program,
        message.version,
        Accelerator(message.accelerator),
        message.accelerator_reason,
        message.vfio_user,
    )

"""Instances and disks as vmmd's messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from controlplane.core.records import DiskRecord, InstanceRecord, InstanceState, with_generation
from stairlib.wire.construction import to_message
from stairlib.wire.durations import duration
from stairwell.vmmd.v1 import machine_service_pb2 as pb


def machine_spec(
    instance: InstanceRecord,
    disks: Sequence[DiskRecord],
    generations: Mapping[UUID, int],
    unfinished: Collection[UUID] = (),
) -> pb.MachineSpec:
    """The machine of an instance; `generations` are what its volumes are to be activated with.
    `unfinished` are the disks (keys) of which a recorded member may not have been filled: all three
    have to be there."""
    return pb.MachineSpec(
        id=str(instance.id),
        name=instance.name,
        cpus=instance.cpus,
        memory_mib=instance.memory_mib,
        disks=[
            machine_disk(
                instance, disk, generations[disk.volume_id], unfinished=disk.key in unfinished
            )
            for disk in disks
        ],
    )


def machine_disk(
    instance: InstanceRecord, disk: DiskRecord, generation: int, *, unfinished: bool = False
) -> pb.MachineDisk:
    """One disk of it."""
    after = instance.activate_with_two_after
    return pb.MachineDisk(
        device=disk.device,
        name=disk.name,
        read_only=disk.read_only,
        pci_path=disk.pci_path,
        volume_construction_request=to_message(with_generation(disk.construction, generation)),
        activate_with_two_after=duration(after) if after and not unfinished else None,
        removable=disk.plugged,
    )


def state_of(machine: pb.Machine) -> InstanceState:
    """The instance's state, by the same name; CREATING where the machine does not say."""
    if machine.state == pb.MACHINE_STATE_UNSPECIFIED:
        return InstanceState.CREATING
    return InstanceState(pb.MachineState.Name(machine.state).removeprefix("MACHINE_STATE_"))

"""What the control plane remembers: instances, disks and the downstairs of the fleet.

Values only. An instance has up to eight disks; a disk belongs to one instance for as long as it is
recorded. `DiskRecord.key` names one recording of a disk: a volume that is deleted and recorded
again has the same UUID and another key, so that old replacements are not taken for new ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID

from stairlib.model.construction import (
    PARENT,
    Construction,
    RegionSpec,
    VolumeSpec,
    join_path,
    regions,
    volume_id,
)
from stairlib.model.geometry import Geometry


class InstanceState(StrEnum):
    """The published states of an instance, in the words of the API."""

    CREATING = "CREATING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    REBOOTING = "REBOOTING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    DESTROYED = "DESTROYED"

    @property
    def ended(self) -> bool:
        """Whether no later state can come: such a machine takes no more requests."""
        return self in (InstanceState.FAILED, InstanceState.DESTROYED)


class Desired(StrEnum):
    """What the user last asked of an instance; a machine that is made again is brought there."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"


class Role(StrEnum):
    """What a downstairs is to the control plane."""

    SPARE = "SPARE"
    MEMBER = "MEMBER"
    RETIRED = "RETIRED"
    # Begun to be filled for a replacement that was undone: not blank, and nobody's.
    LEFTOVER = "LEFTOVER"


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One instance. `state_generation` rises with each change of (state, reason).

    `confirmed` turns true when the machine was first seen to exist.
    """

    id: UUID
    name: str
    state: InstanceState
    state_generation: int
    desired: Desired
    reason: str
    cpus: int
    memory_mib: int
    request_id: str
    confirmed: bool
    created_at: float
    # Seconds until two copies of a disk serve without the third; 0 = never.
    activate_with_two_after: float = 0.0


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """One disk and the construction request recorded for it, secrets included. `plugged`: into a
    machine that ran."""

    key: UUID
    name: str
    device: str
    instance_id: UUID
    instance_name: str
    slot: int
    read_only: bool
    construction: Construction
    plugged: bool = False

    @property
    def volume_id(self) -> UUID:
        """The volume's UUID."""
        return volume_id(self.construction)

    @property
    def recorded_generation(self) -> int:
        """The highest generation of the recorded request; zero where it has no region."""
        return generation(self.construction)

    @property
    def pci_path(self) -> str:
        """Where the disk sits, as "bus.device.function"."""
        return pci_path(self.slot)


@dataclass(frozen=True, slots=True)
class DownstairsRecord:
    """One downstairs. `region_id` and `geometry` are None until somebody asked the daemon."""

    address: str
    role: Role
    region_id: UUID | None = None
    volume_id: UUID | None = None
    geometry: Geometry | None = None
    encrypted: bool = False


# Disks sit behind the chipset's devices: slot n is PCI device 16 + n on bus 0.
PCI_DEVICE_OF_SLOT_0 = 16


def pci_path(slot: int) -> str:
    """PCI path of a disk slot."""
    return f"0.{PCI_DEVICE_OF_SLOT_0 + slot}.0"


def generation(construction: Construction) -> int:
    """The highest generation of any region; zero without one."""
    return max((region.generation for _, region in regions(construction)), default=0)


def targets(construction: Construction) -> Iterator[tuple[str, str, RegionSpec]]:
    """(field path, address, region) of each target of each region."""
    for path, region in regions(construction):
        for slot, address in enumerate(region.options.targets):
            yield join_path(path, f"opts.target[{slot}]"), address, region


def claims(construction: Construction) -> Iterator[tuple[str, str, RegionSpec]]:
    """(field path, address, region) of the targets that serve this volume and no other.

    A read-only region may be the parent of many volumes, so its members are nobody's own.
    """
    for path, address, region in targets(construction):
        if not region.options.read_only:
            yield path, address, region


def region_at(construction: Construction, region_path: str) -> RegionSpec:
    """The region at a path; KeyError where there is none."""
    return dict(regions(construction))[region_path]


def with_target(
    construction: Construction, region_path: str, slot: int, address: str
) -> Construction:
    """The same construction with another address in one slot of the region at `region_path`."""
    return _with_target(construction, "", region_path, slot, address)


def with_generation(construction: Construction, generation: int) -> Construction:
    """The same construction with no region below `generation`."""
    match construction:
        case RegionSpec():
            return replace(construction, generation=max(generation, construction.generation))
        case VolumeSpec(sub_volumes=children, read_only_parent=parent):
            return replace(
                construction,
                sub_volumes=tuple(with_generation(child, generation) for child in children),
                read_only_parent=parent and with_generation(parent, generation),
            )
        case _:
            return construction


def _with_target(
    node: Construction, path: str, region_path: str, slot: int, address: str
) -> Construction:
    match node:
        case RegionSpec(options=options) if path == region_path:
            addresses = [*options.targets]
            addresses[slot] = address
            return replace(node, options=replace(options, targets=tuple(addresses)))
        case VolumeSpec(sub_volumes=children, read_only_parent=parent):
            changed = tuple(
                _with_target(
                    child, join_path(path, f"sub_volumes[{index}]"), region_path, slot, address
                )
                for index, child in enumerate(children)
            )
            below = join_path(path, PARENT)
            return replace(
                node,
                sub_volumes=changed,
                read_only_parent=parent and _with_target(parent, below, region_path, slot, address),
            )
        case _:
            return node

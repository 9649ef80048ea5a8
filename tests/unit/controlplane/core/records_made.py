"""Records for tests of the control plane."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from controlplane.core.progress import Progress
from controlplane.core.records import Desired, DiskRecord, InstanceRecord, InstanceState
from controlplane.core.replacement import Replacement
from controlplane.core.scrub import Scrub
from stairlib.model.construction import Construction, RegionOptions, RegionSpec, Secret, VolumeSpec
from stairlib.model.geometry import Geometry

VOLUME = UUID("0cedae45-3d6e-4d90-b2cb-56f1a1a42a89")
INSTANCE = UUID(int=1)
DISK_KEY = UUID(int=2)
GEOMETRY = Geometry(4096, 16384, 128)
TARGETS = ("127.0.0.1:8810", "127.0.0.1:8820", "127.0.0.1:8830")


def region(
    targets: tuple[str, ...] = TARGETS, gen: int = 1, key: str | None = None, **changes: Any
) -> RegionSpec:
    options = RegionOptions(id=VOLUME, targets=targets, key=Secret(key) if key else None, **changes)
    return RegionSpec(GEOMETRY, options, gen)


def volume(*regions: Construction, **changes: Any) -> VolumeSpec:
    spec = VolumeSpec(VOLUME, 4096, regions or (region(),))
    return replace(spec, **changes)


def parent(
    targets: tuple[str, ...] = ("p:1", "p:2", "p:3"), gen: int = 1, **changes: Any
) -> VolumeSpec:
    """A read-only volume to be the parent of others."""
    leaf = region(targets, gen=gen, read_only=True)
    spec = VolumeSpec(UUID(int=30), 4096, (leaf,))
    return replace(spec, **changes)


def instance(**changes: Any) -> InstanceRecord:
    record = InstanceRecord(
        id=INSTANCE,
        name="crub",
        state=InstanceState.RUNNING,
        state_generation=3,
        desired=Desired.RUNNING,
        reason="",
        cpus=1,
        memory_mib=512,
        request_id="",
        confirmed=True,
        created_at=100.0,
    )
    return replace(record, **changes)


def disk(**changes: Any) -> DiskRecord:
    record = DiskRecord(
        key=DISK_KEY,
        name="block2",
        device="nvme",
        instance_id=INSTANCE,
        instance_name="crub",
        slot=3,
        read_only=False,
        construction=volume(),
    )
    return replace(record, **changes)


def replacement(number: int = 7, **changes: Any) -> Replacement:
    """Slot 2 of the disk, 8830 by 8840."""
    record = Replacement(
        id=UUID(int=number),
        disk_key=DISK_KEY,
        disk="block2",
        instance_id=INSTANCE,
        volume_id=VOLUME,
        path="sub_volumes[0].opts.target[2]",
        region_path="sub_volumes[0]",
        slot=2,
        old_target="127.0.0.1:8830",
        new_target="127.0.0.1:8840",
        from_generation=1,
        to_generation=2,
        original=volume(),
        replacement=volume(region((*TARGETS[:2], "127.0.0.1:8840"), gen=2)),
        traceparent=f"00-{number:032x}-{number:016x}-01",
        trace_id=f"{number:032x}",
        created_at=1000.0,
        updated_at=1000.0,
        progress=Progress(bytes_total=GEOMETRY.total_bytes, extents_total=128),
    )
    return replace(record, **changes)


def scrub(**changes: Any) -> Scrub:
    """The disk's, of its outermost volume."""
    record = Scrub(
        disk_key=DISK_KEY,
        disk="block2",
        instance_id=INSTANCE,
        volume_id=VOLUME,
        path="",
        created_at=1000.0,
        updated_at=1000.0,
    )
    return replace(record, **changes)

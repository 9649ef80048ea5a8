"""What a request for an instance must look like, whatever the control plane has recorded.

Pure. Field paths are the request's own, as `disks[0].slot`; all violations are found at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from controlplane.core.construction_check import check
from controlplane.core.records import claims
from stairlib.model.construction import Construction, volume_id
from stairlib.model.errors import FieldViolation

NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
DEVICES = ("nvme", "virtio")
# Disks sit at PCI devices 16 to 23: eight slots.
SLOTS = 8
CPUS_MAX = 64
# Of a wait for the third copy: shorter is a restart of a daemon, longer is no wait but a wish.
TWO_AFTER_SECONDS_MIN = 1
TWO_AFTER_SECONDS_MAX = 86_400
# 1 TiB: above it a number of MiB was meant as something else.
MEMORY_MIB_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """One disk of a request. `construction` is None when it could not be read; that is reported
    where it was read."""

    device: str
    name: str
    slot: int
    read_only: bool
    construction: Construction | None


def check_instance(
    name: str,
    disks: Sequence[DiskRequest],
    *,
    cpus: int = 0,
    memory_mib: int = 0,
    activate_with_two_after: float | None = None,
) -> tuple[FieldViolation, ...]:
    """Everything that is wrong with the request; empty when it is well formed."""
    found = list(check_name("name", name))
    if cpus > CPUS_MAX:
        found.append(FieldViolation("cpus", f"{cpus} is above {CPUS_MAX}", reason="TOO_LARGE"))
    if memory_mib > MEMORY_MIB_MAX:
        found.append(
            FieldViolation(
                "memory_mib", f"{memory_mib} MiB is above {MEMORY_MIB_MAX}", reason="TOO_LARGE"
            )
        )
    after = activate_with_two_after
    if after is not None and not TWO_AFTER_SECONDS_MIN <= after <= TWO_AFTER_SECONDS_MAX:
        text = (
            f"{after:g} s is not from {TWO_AFTER_SECONDS_MIN} s to {TWO_AFTER_SECONDS_MAX} s; "
            "leave it out to wait for all three"
        )
        found.append(FieldViolation("activate_with_two_after", text, "OUT_OF_RANGE"))
    if len(disks) > SLOTS:
        found.append(
            FieldViolation(
                "disks", f"{len(disks)} disks; an instance has {SLOTS} slots", reason="TOO_MANY"
            )
        )
    for index, disk in enumerate(disks):
        found.extend(_check_disk(f"disks[{index}]", disk))
    found.extend(_check_unique(disks))
    return tuple(found)


def check_plugged_disk(disk: DiskRequest) -> tuple[FieldViolation, ...]:
    """Everything that is wrong with a disk that comes alone, as `disk`."""
    return tuple(_check_disk("disk", disk))


def check_name(field: str, name: str) -> Iterator[FieldViolation]:
    """Names are words; what looks like a UUID would be taken for an id."""
    if not name:
        yield FieldViolation(field, "is missing: give a name", reason="MISSING")
    elif looks_like_uuid(name):
        yield FieldViolation(
            field, f"{name!r} looks like an id; choose a name", reason="NAME_LOOKS_LIKE_ID"
        )
    elif not NAME_PATTERN.fullmatch(name):
        yield FieldViolation(
            field,
            f"{name!r} is not a name: a letter, then up to 62 letters, digits, '.', '_' or '-'",
            reason="BAD_NAME",
        )


def looks_like_uuid(text: str) -> bool:
    """Whether the text reads as a UUID in any of its spellings."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _check_disk(path: str, disk: DiskRequest) -> Iterator[FieldViolation]:
    """What is wrong with one disk by itself."""
    yield from check_name(f"{path}.name", disk.name)
    if disk.device not in DEVICES:
        yield FieldViolation(
            f"{path}.device",
            f'{disk.device!r} is not offered; the devices are "nvme" and, where the host runs'
            ' guests of their own (engine "qemu"), "virtio"',
            reason="UNKNOWN_DEVICE",
        )
    if not 0 <= disk.slot < SLOTS:
        yield FieldViolation(
            f"{path}.slot", f"{disk.slot} is not from 0 to {SLOTS - 1}", reason="SLOT_OUT_OF_RANGE"
        )
    if disk.construction is not None:
        for violation in check(disk.construction).violations:
            yield FieldViolation(
                f"{path}.volume_construction_request.{violation.field}".rstrip("."),
                violation.description,
                reason=violation.reason,
            )


def _check_unique(disks: Sequence[DiskRequest]) -> Iterator[FieldViolation]:
    """Names, slots, volumes and targets that two disks of the request claim."""
    seen: dict[tuple[str, object], int] = {}
    for index, disk in enumerate(disks):
        for kind, value, field in _claims(disk):
            first = seen.setdefault((kind, value), index)
            if first != index:
                yield FieldViolation(
                    f"disks[{index}].{field}",
                    f"disks[{first}] has the same {kind} {value}",
                    reason=f"DUPLICATE_{kind.upper()}",
                )


def _claims(disk: DiskRequest) -> Iterator[tuple[str, object, str]]:
    """(kind, value, field) of what a disk wants for itself alone."""
    yield "name", disk.name, "name"
    yield "slot", disk.slot, "slot"
    if disk.construction is not None:
        prefix = "volume_construction_request"
        yield "volume", volume_id(disk.construction), f"{prefix}.id"
        for field, address, _region in claims(disk.construction):
            yield "target", address, f"{prefix}.{field}"

"""What a disk is kept on, as people read it: its tree's regions, its sources, its scrubs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table

from controlplane.cli.plain import enum_word
from controlplane.cli.render import fields, new_table, percent, volume_word, word
from controlplane.cli.scrubs import scrubs_table
from controlplane.cli.units import format_bytes, format_rate
from stairlib.model.construction import in_parent
from stairwell.controlplane.v1.disk_service_pb2 import Disk
from stairwell.vmmd.v1.volume_service_pb2 import (
    RegionInfo,
    RepairProgress,
    SlotInfo,
    SlotMode,
    SlotState,
    SourceInfo,
    VolumeState,
)


def disk_status(disk: Disk) -> RenderableType:
    """One disk: what is recorded, what runs, each slot of each region, sources and scrubs."""
    parts: list[RenderableType] = [_disk_fields(disk)]
    if not disk.HasField("volume"):
        parts.append("no machine runs this disk now; only what is recorded is known")
    for region in disk.volume.regions:
        parts += ["", _region_line(region), _slots(region)]
    if disk.volume.sources:
        parts += ["", _sources(disk.volume.sources)]
    if disk.scrubs:
        parts += ["", scrubs_table(disk.scrubs)]
    return Group(*parts)


def _disk_fields(disk: Disk) -> Table:
    volume = disk.volume
    rows: list[tuple[str, RenderableType]] = [
        ("disk", disk.name),
        ("volume", disk.id),
        ("instance", disk.instance),
        ("device", f"{disk.device} at {disk.pci_path}" + (" read-only" * disk.read_only)),
        ("recorded generation", str(disk.recorded_generation)),
    ]
    if disk.HasField("volume"):
        counters = volume.counters
        served = (
            f"{counters.reads} reads, {counters.writes} writes, {counters.flushes} flushes, "
            f"{counters.failed} failed"
        )
        size = f"{format_bytes(volume.total_bytes)} in blocks of {volume.block_size} bytes"
        rows += [
            ("state", word(volume_word(disk))),
            ("reason", volume.reason),
            ("size", size),
            ("nbd_uri", volume.nbd_uri),
            ("nbd_gateway_uri", volume.nbd_gateway_uri),
            ("vhost_user_socket", volume.vhost_user_socket),
            ("vfio_user_socket", volume.vfio_user_socket),
            ("guest_device", volume.guest_device),
            ("served", served),
        ]
        if counters.read_mismatches:
            healed = f"{counters.read_mismatches} reads served by another member, "
            healed += f"{counters.blocks_healed} blocks written again"
            rows.append(("mismatches", healed))
    rows.append(("replacement", disk.replacement_id))
    return fields(rows)


def _region_line(region: RegionInfo) -> str:
    state = enum_word(VolumeState.DESCRIPTOR, region.state)
    notes = [f"{region.path or 'region'} {state}"]
    if in_parent(region.path):
        notes.append("read-only parent" if region.read_only else "parent")
    elif region.read_only:
        notes.append("read-only")
    if region.cipher:
        notes.append(region.cipher)
    notes.append(f"session generation {region.generation}")
    reason = f": {region.reason}" if region.reason else ""
    return ", ".join(notes) + reason


def _sources(sources: Iterable[SourceInfo]) -> Table:
    """Files and URLs of the tree."""
    found = new_table("SOURCE", "TYPE", "SIZE", "FAILED", "NOTE", right=["FAILED"])
    for one in sources:
        parent = ["parent"] if in_parent(one.path) else []
        found.add_row(
            one.path or "volume",
            one.type,
            format_bytes(one.total_bytes),
            str(one.failed),
            "; ".join(parent + [one.last_error] * bool(one.last_error)) or "-",
        )
    return found


def _slots(region: RegionInfo) -> Table:
    table = new_table("SLOT", "ADDRESS", "STATE", "MODE", "REPAIR", "REGION", right=["SLOT"])
    for slot in region.slots:
        table.add_row(
            str(slot.slot),
            slot.address,
            word(enum_word(SlotState.DESCRIPTOR, slot.state)),
            word(mode_word(slot)),
            repair_words(slot),
            slot.region_id or "-",
        )
    return table


def mode_word(slot: SlotInfo) -> str:
    """Why the slot is connecting, or "-" while it is in service."""
    connecting = slot.mode and slot.state != SlotState.SLOT_STATE_ACTIVE
    return enum_word(SlotMode.DESCRIPTOR, slot.mode) if connecting else "-"


def repair_words(slot: SlotInfo) -> str:
    """How far a repair is, else what the slot last suffered, else "-"; held while nothing is to be
    copied to the slot."""
    held = "held: " * slot.repair_held
    if slot.HasField("repair"):
        return held + repair_progress(slot.repair)
    return held + (slot.last_error or "-")


def repair_progress(repair: RepairProgress) -> str:
    """Share, extents and rate of a running repair."""
    return (
        f"{percent(repair.bytes_done, repair.bytes_total)} "
        f"({repair.extents_done}/{repair.extents_total} extents, "
        f"{format_bytes(repair.bytes_copied)} copied, {format_rate(repair.bytes_per_second)})"
    )

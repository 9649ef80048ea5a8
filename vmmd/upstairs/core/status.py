"""What an upstairs tells about itself: plain values, mirroring VolumeService.RegionInfo and
SlotInfo."""

from __future__ import annotations

from dataclasses import dataclass

from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


@dataclass(frozen=True, slots=True)
class RepairProgress:
    """Of one member's repair. `bytes_done` counts bytes of extents looked at, `bytes_copied` those
    sent; `bytes_per_second_max` is the rate in force, 0 for none."""

    extents_done: int
    extents_total: int
    bytes_done: int
    bytes_total: int
    bytes_copied: int
    bytes_per_second: float
    elapsed_seconds: float
    bytes_per_second_max: int
    attempt: int
    copies_in_flight_max: int


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """`departing_address` is the good member that still serves while this slot's new one is being
    filled. `repaired_bytes` were sent by the last repair of the member that completed."""

    slot: int
    address: str
    region_id: str
    state: SlotState
    mode: SlotMode
    last_error: str
    repair: RepairProgress | None
    repairs_completed: int
    repairs_aborted: int
    departing_address: str
    bad_blocks: int
    repair_held: bool = False
    repaired_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SlotLoad:
    """What is in flight on a member: jobs and their bytes."""

    slot: int
    jobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One region set. `cipher` is empty when its blocks are not encrypted, and until a member has
    said how."""

    upstairs_id: str
    session_id: str
    generation: int
    state: UpstairsState
    reason: str
    slots: tuple[SlotStatus, ...]
    flush_number: int
    read_mismatches: int
    blocks_healed: int
    guest_waiting: int
    cipher: str
    read_only: bool


def progress(copies: ExtentCopies, *, now: float, attempt: int) -> RepairProgress:
    """How far the copies are."""
    elapsed = max(0.0, now - copies.started_at)
    done = copies.bytes_done
    return RepairProgress(
        extents_done=copies.extents_done,
        extents_total=copies.extents_total,
        bytes_done=done,
        bytes_total=copies.bytes_total,
        bytes_copied=copies.bytes_moved,
        bytes_per_second=done / elapsed if elapsed else 0.0,
        elapsed_seconds=elapsed,
        bytes_per_second_max=copies.limits.bytes_per_second,
        attempt=attempt,
        copies_in_flight_max=copies.limits.copies_in_flight,
    )


def snapshot(
    region: RegionSet,
    copies: dict[int, ExtentCopies],
    *,
    now: float,
    waiting: int,
    reason: str,
) -> RegionStatus:
    """The status at this moment; `copies` by member index."""
    departing = region.departing
    slots = []
    for member in region.slots:
        running = copies.get(member.index)
        leaving = departing if departing is not None and departing.slot == member.slot else None
        slots.append(
            SlotStatus(
                slot=member.slot,
                address=member.address,
                region_id=member.region_id,
                state=member.state,
                mode=member.mode,
                last_error=member.last_error,
                repair=None
                if running is None
                else progress(
                    running,
                    now=now,
                    attempt=member.repair_attempts,
                ),
                repairs_completed=member.repairs_completed,
                repaired_bytes=member.repaired_bytes,
                repairs_aborted=member.repairs_aborted,
                departing_address=leaving.address if leaving is not None else "",
                bad_blocks=member.bad_blocks,
                repair_held=member.slot in region.held,
            )
        )
    return RegionStatus(
        upstairs_id=region.config.upstairs_id,
        session_id=region.config.session_id,
        generation=region.generation,
        state=region.state,
        reason=reason,
        slots=tuple(slots),
        flush_number=region.flushes.number - 1,
        read_mismatches=region.read_mismatches,
        blocks_healed=region.blocks_healed,
        guest_waiting=waiting,
        cipher=region.cipher,
        read_only=region.config.read_only,
    )

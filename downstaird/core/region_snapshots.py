"""Snapshots of an open region: taken by a flush, listed, deleted, and opened to be read.

Taking one costs a copy of the map; the checkpoint that follows writes it out. Deleting one is a
record in the log; what it alone held is given back by the checkpoint that follows.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from downstaird.core.engine import SnapshotFacts
from downstaird.core.extent_table import ExtentTable
from downstaird.core.region_files import SNAPSHOT_VERSION
from downstaird.core.region_flush import FlushJob
from downstaird.core.snapshot_entry import (
    DELETED,
    TAKEN,
    SnapshotEntries,
    no_snapshots,
)
from downstaird.core.snapshot_file import SNAPSHOTS_NAME, SnapshotMap, load_map
from downstaird.core.snapshot_table import Snapshot, U32Array, Unsettled
from stairlib.model.errors import DataError, StateError
from stairlib.model.snapshot import checked_name
from stairlib.wire.frame import FLAG_INCOMPLETE

if TYPE_CHECKING:
    from downstaird.core.region import Region


def snapshot_id(region_id: uuid.UUID, name: str) -> uuid.UUID:
    """The id of a snapshot served as a region: always the same, and no other region's."""
    return uuid.uuid5(region_id, f"snapshot:{name}")


def entries_to_take(region: Region, name: str, generation: int, flush: int) -> SnapshotEntries:
    """What the flush's record says of its snapshot; nothing when that one was taken already.
    InvalidRequestError SNAPSHOT_NAME, AlreadyExistsError SNAPSHOT_EXISTS, LimitError
    SNAPSHOT_LIMIT, StateError SNAPSHOT_INCOMPLETE."""
    checked_name(name, "name")
    if region.snapshots.is_there(name, generation, flush):
        return no_snapshots()
    incomplete = int(np.count_nonzero(region.extents.durable["flags"] & FLAG_INCOMPLETE))
    if incomplete:
        raise StateError(
            f"{incomplete} extents are being filled by a repair, so a snapshot would not be whole: "
            "take it when the repair has ended",
            reason="SNAPSHOT_INCOMPLETE",
            extents=str(incomplete),
        )
    entry = region.snapshots.entry_for(name, generation, flush)
    entry["flags"] = TAKEN
    _make_room(region)
    return entry


def _make_room(region: Region) -> None:
    """Programs that know no snapshots would free what these hold: they must not open the region
    any more, before there is one."""
    if region.definition.format_version >= SNAPSHOT_VERSION:
        return
    region.files[SNAPSHOTS_NAME] = region.disk.open(SNAPSHOTS_NAME, create=True)
    region.files[SNAPSHOTS_NAME].datasync()
    region.disk.sync_directory()
    region.raise_version(SNAPSHOT_VERSION)


def take(region: Region, job: FlushJob) -> None:
    """The flush is durable, and with it the snapshot that its record names."""
    # Most name none, and an empty array takes longer to walk than this to ask.
    if not len(job.snapshots):
        return
    for entry in job.snapshots:
        if not int(entry["flags"]) & TAKEN:
            continue
        unsettled = Unsettled(
            sequence=job.sequence,
            before=region.overlay.active.start,
            chunks=region.chunks.durable.copy(),
            extents=region.extents.durable.copy(),
        )
        snapshot = snapshot_of(entry, unsettled)
        region.snapshots.add(snapshot, unsettled.chunks)
        if region.seal is not None:
            region.seal.taken(snapshot)


def snapshot_of(entry: np.void, unsettled: Unsettled | None) -> Snapshot:
    """The snapshot of an entry."""
    return Snapshot(
        id=int(entry["id"]),
        name=bytes(entry["name"]).decode(),
        place=int(entry["place"]),
        generation=int(entry["generation"]),
        flush=int(entry["flush"]),
        unsettled=unsettled,
    )


def settle(region: Region) -> None:
    """Writes out what was just taken, on this thread: for a region that is not in service.
    DataError."""
    while region.snapshots.unsettled():
        region.checkpoint_now()


def entries_to_delete(region: Region, name: str) -> SnapshotEntries:
    """What the record of a deletion says. NotFoundError SNAPSHOT_NOT_FOUND, StateError
    SNAPSHOT_SETTLING or SNAPSHOT_BUSY."""
    snapshot = region.snapshots.named(name)
    if snapshot.unsettled is not None:
        raise StateError(
            f"snapshot {name!r} was taken a moment ago and is still being written out: try again "
            "in a few seconds",
            reason="SNAPSHOT_SETTLING",
        )
    # Nobody reads it, nor will before no state lists it any more.
    region.holds.append(region.disk.hold(SNAPSHOTS_NAME, snapshot.place, shared=False))
    entry = region.snapshots.entries([snapshot])
    entry["flags"] = DELETED
    return entry


def forget(region: Region, job: FlushJob) -> None:
    """The deletion is durable: what nobody needs any more is given back by the next checkpoint."""
    for entry in job.snapshots:
        if not int(entry["flags"]) & DELETED:
            continue
        snapshot = region.snapshots.all[bytes(entry["name"]).decode()]
        free = region.snapshots.remove(snapshot, map_of(region, snapshot).chunks)
        for physical in np.setdiff1d(free, region.chunks.durable).tolist():
            region.chunks.give_back(physical)


def map_of(region: Region, snapshot: Snapshot) -> SnapshotMap:
    """The map of a snapshot; an empty one where its header is damaged, since it holds nothing."""
    unsettled = snapshot.unsettled
    if unsettled is not None:
        lost = np.zeros(len(unsettled.chunks), dtype=np.bool_)
        return SnapshotMap(unsettled.chunks, region.chunks.sides, unsettled.extents, lost)
    file = region.files[SNAPSHOTS_NAME]
    layout = region.layout
    try:
        return load_map(file, layout, region.tag, snapshot.place, snapshot.id)
    except DataError as error:
        if error.reason == "FORMAT_VERSION":
            raise
        nothing = np.zeros(layout.chunk_count, dtype=np.uint32)
        extents = ExtentTable(layout.geometry.extent_count).durable
        lost = np.ones(layout.chunk_count, dtype=np.bool_)
        return SnapshotMap(nothing, bytearray(1), extents, lost)


def facts(region: Region) -> Iterator[SnapshotFacts]:
    """All snapshots, oldest first, one map at a time."""
    in_use = np.zeros(region.chunks.space.end, dtype=np.bool_)
    in_use[region.chunks.durable] = True
    for snapshot in region.snapshots.ordered():
        what = map_of(region, snapshot)
        there = what.chunks[what.chunks != 0]
        alone = there[region.snapshots.held[there] == 1]
        unique = int(np.count_nonzero(~in_use[alone]))
        yield SnapshotFacts(
            name=snapshot.name,
            generation=snapshot.generation,
            flush=snapshot.flush,
            unique_bytes=unique * region.layout.chunk_bytes,
            total_bytes=len(there) * region.layout.chunk_bytes,
            settled=snapshot.unsettled is None,
            damaged=bool(what.lost.any()),
        )


def going(region: Region, gone: list[Snapshot], kept: U32Array) -> tuple[U32Array, U32Array]:
    """What snapshots hold that a record deleted and the state lists still, and nothing of `kept`:
    all of it, and what the next checkpoint may give back. That is not what somebody reads."""
    everything = free = kept[:0]
    for snapshot in gone:
        chunks = map_of(region, snapshot).chunks
        everything = np.union1d(everything, chunks)
        try:
            hold = region.disk.hold(SNAPSHOTS_NAME, snapshot.place, shared=False)
        except StateError:
            continue
        region.holds.append(hold)
        free = np.union1d(free, chunks)
    kept = np.append(kept, np.uint32(0))
    return np.setdiff1d(everything, kept), np.setdiff1d(free, kept)


def recovered(region: Region, snapshots: list[Snapshot], sides: bytearray) -> U32Array:
    """Takes over what the state and the log list, and the sides of what only snapshots hold. All
    physical chunks that snapshots hold."""
    for snapshot in snapshots:
        what = map_of(region, snapshot)
        region.snapshots.add(snapshot, what.chunks)
        there = what.chunks[what.chunks != 0]
        sides += bytes(max(0, int(there.max(initial=0)) + 1 - len(sides)))
        if snapshot.unsettled is None and len(there):
            view = np.frombuffer(sides, dtype=np.uint8)
            view[there] = np.frombuffer(what.sides, dtype=np.uint8)[there]
            del view
    return np.flatnonzero(region.snapshots.held).astype(np.uint32)

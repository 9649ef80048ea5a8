"""A snapshot opened to be read, as a region of its own.

The region's daemon may be at work meanwhile: it writes nothing that a settled snapshot holds, and
deletes none that is held. Nothing of the log is looked at.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from downstaird.core.disk import Disk, File
from downstaird.core.layout import DEFAULT_TUNING, Tuning
from downstaird.core.region import Region
from downstaird.core.region_creation import close_all, file_names
from downstaird.core.region_files import read_definition
from downstaird.core.region_snapshots import snapshot_id, snapshot_of
from downstaird.core.snapshot_file import SNAPSHOTS_NAME, load_map
from downstaird.core.snapshot_table import Snapshot
from downstaird.core.state_file import load_state
from stairlib.model.errors import DataError, NotFoundError
from stairlib.model.snapshot import checked_name


def open_snapshot(disk: Disk, name: str, *, tuning: Tuning = DEFAULT_TUNING) -> Region:
    """Read-only, under an id of its own. InvalidRequestError NOT_A_REGION or
    SNAPSHOT_NAME, NotFoundError SNAPSHOT_NOT_FOUND, StateError SNAPSHOT_BUSY, DataError."""
    files: dict[str, File] = {}
    try:
        checked_name(name, "name")
        definition, layout = read_definition(disk)
        for each in file_names(definition):
            files[each] = disk.open(each, read_only=True)
        region = Region(disk, definition, layout, files, read_only=True, tuning=tuning)
        region.load_small_files()
    except BaseException:
        close_all(disk, files)
        raise
    try:
        _adopt(region, name)
    except BaseException:
        region.close()
        raise
    region.become(replace(definition, id=snapshot_id(definition.id, name)))
    return region


def _adopt(region: Region, name: str) -> None:
    """Makes of a region whose files were just opened read-only its snapshot. The daemon of the
    region may be at work meanwhile: it writes nothing that a settled snapshot holds.
    NotFoundError SNAPSHOT_NOT_FOUND, StateError SNAPSHOT_BUSY, DataError."""
    layout = region.layout
    snapshot = _listed(region, name)
    region.holds = [region.disk.hold(SNAPSHOTS_NAME, snapshot.place, shared=True)]
    # Between the list and the hold it may have been deleted.
    if _listed(region, name).id != snapshot.id:
        raise NotFoundError("snapshot", name)
    file = region.files[SNAPSHOTS_NAME]
    what = load_map(file, layout, region.tag, snapshot.place, snapshot.id)
    region.chunks.adopt(what.chunks, what.sides, {})
    region.extents.adopt(what.extents)
    for chunk in np.flatnonzero(what.lost).tolist():
        found = DataError(f"a page of {file.name} with the map of {name!r} is damaged")
        region.extents.fault(chunk // layout.chunks_per_extent, found)
    starts = what.chunks.astype(np.int64) * layout.chunk_bytes
    for chunk in np.flatnonzero((starts > 0) & (starts >= region.chunks.data.size())).tolist():
        found = DataError(
            f"{region.chunks.data.name} ends before what is stored at {starts[chunk]}"
        )
        region.extents.fault(chunk // layout.chunks_per_extent, found)


def _listed(region: Region, name: str) -> Snapshot:
    """As the newest state lists it."""
    if SNAPSHOTS_NAME in region.files:
        state = load_state(region.state_files, region.layout, region.tag, region.void.checkpoint)
        for entry in state.snapshots:
            if bytes(entry["name"]) == name.encode():
                return snapshot_of(entry, None)
    raise NotFoundError(
        "snapshot",
        name,
        f"there is no snapshot {name!r} that can be read. One that was taken a moment ago can be "
        "as soon as the region's daemon has written it out; 'downstaird snapshot list' names all",
    )

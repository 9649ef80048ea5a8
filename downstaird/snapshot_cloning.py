"""A new region from a snapshot on the same host.

Where the file system can share data between files none is copied; elsewhere what is stored is.
Contexts are always written anew, since they bear the id of their region: 0.8 % of the data at 4 KiB
blocks. The directory becomes a region with the last rename, as in every clone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from downstaird.core.chunk_contexts import CONTEXT_NAMES, ContextFiles
from downstaird.core.chunk_map import DATA_NAME
from downstaird.core.disk import File
from downstaird.core.region import Region
from downstaird.core.region_creation import create_files
from downstaird.core.region_files import OWNER_NAME, OwnerFile, region_tag, version_for
from downstaird.core.repair_plan import runs
from downstaird.core.snapshot_reader import open_snapshot
from downstaird.core.state_file import STATE_NAMES, State, store_state
from downstaird.core.unfinished import UnfinishedDisk
from downstaird.regions import begin_clone, settle_snapshots
from downstaird.store.files import DirectoryFile, FileDisk, share_range
from stairlib.model.context import written
from stairlib.model.errors import StateError
from stairlib.wire.frame import FLAG_FAULTED, FLAG_INCOMPLETE

# Chunks of which the contexts are written at once.
_STEP = 256


@dataclass(slots=True)
class SnapshotClone:
    """What it took. Bytes."""

    bytes_shared: int = 0
    bytes_copied: int = 0


def clone_snapshot(
    directory: Path,
    name: str,
    target: Path,
    region_id: uuid.UUID,
    show: Callable[[int, int], None],
) -> SnapshotClone:
    """Makes it. `show` is told bytes done and in all. AlreadyExistsError, StateError
    SNAPSHOT_DAMAGED or DIRECTORY_NOT_EMPTY, and as open_snapshot."""
    settle_snapshots(directory)
    source = open_snapshot(FileDisk(directory), name)
    try:
        states = source.extent_states()
        if (states.flags & (FLAG_FAULTED | FLAG_INCOMPLETE)).any():
            raise StateError(
                f"snapshot {name!r} is damaged, and a clone would be: clone another member's",
                reason="SNAPSHOT_DAMAGED",
            )
        marker = begin_clone(target)
        disk = UnfinishedDisk(FileDisk(target))
        try:
            disk.lock(shared=False)
            done = _fill(source, disk, region_id, show)
            disk.sync_directory()
            disk.publish()
        finally:
            disk.close()
    finally:
        source.close()
    marker.unlink(missing_ok=True)
    return done


def _fill(
    source: Region, disk: UnfinishedDisk, region_id: uuid.UUID, show: Callable[[int, int], None]
) -> SnapshotClone:
    cipher = source.definition.cipher
    version = version_for(cipher)
    definition = replace(source.definition, id=region_id, format_version=version)
    layout = source.layout
    create_files(disk, definition, layout)
    chunks = np.flatnonzero(source.chunks.durable)
    homes = np.zeros(layout.chunk_count, dtype=np.uint32)
    # In the order in which they lie, so that what is read together lies together again.
    order = chunks[np.argsort(source.chunks.durable[chunks], kind="stable")]
    homes[order] = np.arange(1, len(order) + 1, dtype=np.uint32)
    done = SnapshotClone()
    tag = region_tag(region_id)
    files = [disk.open(each) for each in CONTEXT_NAMES]
    data = disk.open(DATA_NAME)
    try:
        data.truncate((len(order) + 1) * layout.chunk_bytes)
        contexts = ContextFiles(files, layout.chunk_blocks, tag)
        for first in range(0, len(order), _STEP):
            part = order[first : first + _STEP].tolist()
            blocks = []
            for chunk in part:
                home = source.chunks.home(chunk, int(source.chunks.durable[chunk]))
                blocks.append((chunk, int(homes[chunk]), home.contexts))
                _take_chunk(source, data, chunk, int(homes[chunk]), done)
            contexts.store(0, blocks)
            show((first + len(part)) * layout.chunk_bytes, len(order) * layout.chunk_bytes)
        for file in (data, *files):
            file.datasync()
    finally:
        for file in (data, *files):
            file.close()
    _store_state(source, disk, homes, tag, len(order))
    return done


def _take_chunk(source: Region, data: File, chunk: int, home: int, done: SnapshotClone) -> None:
    size = source.layout.chunk_bytes
    start = int(source.chunks.durable[chunk]) * size
    origin = source.chunks.data
    assert isinstance(origin, DirectoryFile)
    assert isinstance(data, DirectoryFile)
    if share_range(origin, start, data, home * size, size):
        done.bytes_shared += size
        return
    block = source.layout.geometry.block_size
    contexts = source.chunks.home(chunk, int(source.chunks.durable[chunk])).contexts
    for run in runs(written(contexts)):
        at = run.first * block
        data.pwritev([origin.pread(run.count * block, start + at)], home * size + at)
        done.bytes_copied += run.count * block


def _store_state(
    source: Region, disk: UnfinishedDisk, homes: np.ndarray, tag: int, count: int
) -> None:
    state = State(
        file=1,
        count=2,
        log=0,
        sequence=1,
        chain=0,
        chunks=homes,
        sides=bytearray(count + 1),
        extents=source.extents.durable,
    )
    file = disk.open(STATE_NAMES[1])
    owner = disk.open(OWNER_NAME)
    try:
        store_state(file, state, tag)
        slots = OwnerFile(owner)
        slots.load()
        slots.store(replace(source.ownership, session_id=None))
    finally:
        file.close()
        owner.close()

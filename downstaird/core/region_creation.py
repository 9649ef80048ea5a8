"""The files of a region: made, synced, and closed."""

from __future__ import annotations

import contextlib

import numpy as np

from downstaird.core.chunk_contexts import CONTEXT_NAMES
from downstaird.core.chunk_map import DATA_NAME
from downstaird.core.disk import Disk, File
from downstaird.core.engine import Ownership, RegionDefinition
from downstaird.core.extent_table import ExtentTable
from downstaird.core.layout import Layout
from downstaird.core.log import LOG_NAMES
from downstaird.core.region_files import (
    OWNER_NAME,
    SNAPSHOT_VERSION,
    VOID_NAME,
    OwnerFile,
    VoidFile,
    region_tag,
    write_definition,
)
from downstaird.core.snapshot_file import SNAPSHOTS_NAME
from downstaird.core.state_file import STATE_NAMES, State, encode_state
from stairlib.model.errors import StairwellError

_FILE_NAMES = (*STATE_NAMES, *LOG_NAMES, DATA_NAME, *CONTEXT_NAMES, OWNER_NAME, VOID_NAME)


def file_names(definition: RegionDefinition) -> tuple[str, ...]:
    """The files that a region of that format version has."""
    if definition.format_version >= SNAPSHOT_VERSION:
        return (*_FILE_NAMES, SNAPSHOTS_NAME)
    return _FILE_NAMES


def create_files(disk: Disk, definition: RegionDefinition, layout: Layout) -> None:
    """All files of an empty region; the definition, which makes it one, last."""
    tag = region_tag(definition.id)
    extents = ExtentTable(definition.geometry.extent_count).durable
    state = State(
        file=0,
        count=1,
        log=0,
        sequence=1,
        chain=0,
        chunks=np.zeros(layout.chunk_count, dtype=np.uint32),
        sides=bytearray(1),
        extents=extents,
    )
    for name in file_names(definition):
        file = disk.open(name, create=True)
        try:
            if name == STATE_NAMES[0]:
                file.pwritev([encode_state(state, tag)], 0)
                file.datasync()
            elif name == OWNER_NAME:
                OwnerFile(file).store(Ownership(None, None, 0))
            elif name == VOID_NAME:
                VoidFile(file).store()
        finally:
            file.close()
    write_definition(disk, definition, layout)


def sync_all(files: dict[str, File]) -> None:
    """What a killed daemon left may be in the page cache alone, and is built upon from now on."""
    for file in files.values():
        file.datasync()


def close_all(disk: Disk, files: dict[str, File]) -> None:
    """Closes what is open, and lets go of the lock."""
    for file in files.values():
        with contextlib.suppress(StairwellError, OSError):
            file.close()
    disk.close()

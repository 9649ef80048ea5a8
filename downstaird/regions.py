"""Regions in real directories: making and opening them. The only place that names the engine's
class."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from downstaird.config import CreateOptions
from downstaird.core.engine import Engine, RegionDefinition
from downstaird.core.layout import DEFAULT_TUNING
from downstaird.core.region import Region
from downstaird.core.region_files import DEFINITION_NAME, version_for
from downstaird.core.region_snapshots import settle
from downstaird.core.snapshot_reader import open_snapshot
from downstaird.core.unfinished import UnfinishedDisk
from downstaird.store.files import FileDisk
from stairlib.model.cipher import describe_cipher
from stairlib.model.errors import AlreadyExistsError, StairwellError, StateError
from stairlib.model.geometry import Geometry

# Lies in a directory that a clone is being made in, from before the first of its files on.
CLONE_MARKER = "clone-unfinished"


def create_region(options: CreateOptions) -> None:
    """Makes the region; AlreadyExistsError when the directory holds one, StateError
    CLONE_UNFINISHED when it is becoming one."""
    _refuse_unfinished(options.directory)
    version = version_for(options.cipher)
    definition = RegionDefinition(options.id, options.geometry, options.cipher, version)
    Region.create(FileDisk(options.directory), definition).close()


def open_region(directory: Path, *, read_only: bool = False) -> Engine:
    """Opens and locks it. InvalidRequestError NOT_A_REGION, StateError REGION_LOCKED or
    CLONE_UNFINISHED, DataError."""
    _refuse_unfinished(directory)
    # The members of a set get the same writes. With a log size of its own each has its checkpoints
    # at another time, and two of three are always quick to flush.
    log_bytes = int(DEFAULT_TUNING.log_bytes * random.uniform(1, 2))
    tuning = replace(DEFAULT_TUNING, log_bytes=log_bytes)
    return Region.open(FileDisk(directory), read_only=read_only, tuning=tuning)


def open_snapshot_of(directory: Path, name: str) -> Engine:
    """A snapshot to be read. One that was just taken is written out first, unless the region's
    daemon is there to do that. NotFoundError SNAPSHOT_NOT_FOUND, and as open_region."""
    settle_snapshots(directory)
    return open_snapshot(FileDisk(directory), name)


def settle_snapshots(directory: Path) -> None:
    """Writes out what was just taken when a daemon was stopped. DataError."""
    _refuse_unfinished(directory)
    try:
        region = Region.open(FileDisk(directory))
    except StairwellError as error:
        # In service, or on read-only media.
        if error.reason in {"REGION_LOCKED", "IO_ERROR"}:
            return
        raise
    try:
        settle(region)
    finally:
        region.close()


def delete_snapshot(directory: Path, name: str) -> int:
    """Deletes a snapshot of a region at rest and gives its space back; how many bytes that were.
    NotFoundError SNAPSHOT_NOT_FOUND, StateError SNAPSHOT_BUSY, and as open_region."""
    _refuse_unfinished(directory)
    region = Region.open(FileDisk(directory))
    try:
        settle(region)
        before = region.stored_bytes()
        work = region.begin_delete_snapshot(name)
        work.run()
        region.finish_flush(work, None)
        region.checkpoint_now()
        return max(0, before - region.stored_bytes())
    finally:
        region.close()


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A region to be filled as a whole; nobody takes it for one before `publish`."""

    engine: Engine
    disk: UnfinishedDisk
    marker: Path

    def publish(self) -> None:
        """Makes it a region, durably. What it holds must be durable already."""
        self.disk.publish()
        # Beside a definition it means nothing: not worth a failure.
        with suppress(OSError):
            self.marker.unlink()


def begin_clone(directory: Path) -> Path:
    """Marks an empty directory, made where it is missing, as one a clone is made in; the marker.
    AlreadyExistsError, StateError DIRECTORY_NOT_EMPTY, DataError."""
    if is_region(directory):
        raise AlreadyExistsError(
            f"{directory} holds a region already: choose another directory, or remove that one",
            path=str(directory),
        )
    marker = directory / CLONE_MARKER
    if not marker.exists() and directory.is_dir() and any(directory.iterdir()):
        raise StateError(
            f"{directory} is not empty: clone into a directory of its own",
            reason="DIRECTORY_NOT_EMPTY",
            path=str(directory),
        )
    disk = FileDisk(directory)
    disk.prepare()
    marker.touch()
    disk.sync_directory()
    return marker


def open_clone(directory: Path, definition: RegionDefinition) -> Unfinished:
    """A new region to be filled, or what an interrupted clone left of it. AlreadyExistsError,
    StateError DIRECTORY_NOT_EMPTY, CLONE_DIFFERS or REGION_LOCKED, DataError."""
    marker = begin_clone(directory)
    disk = UnfinishedDisk(FileDisk(directory))
    if not disk.begun:
        return Unfinished(Region.create(disk, definition), disk, marker)
    engine = Region.open(disk)
    if engine.definition != definition:
        found = engine.definition
        engine.close()
        raise StateError(
            f"{directory} holds the beginning of another clone, region {found.id} with "
            f"{found.geometry.describe()}: go on with that one, or empty the directory",
            reason="CLONE_DIFFERS",
            path=str(directory),
        )
    return Unfinished(engine, disk, marker)


def _refuse_unfinished(directory: Path) -> None:
    if (directory / CLONE_MARKER).exists() and not is_region(directory):
        raise StateError(
            f"{directory} holds an unfinished clone: finish it with 'downstaird clone', or empty "
            "the directory",
            reason="CLONE_UNFINISHED",
            path=str(directory),
        )


def is_region(directory: Path) -> bool:
    """Whether the directory has a region's definition, of whatever soundness."""
    return (directory / DEFINITION_NAME).is_file()


def check_matches(engine: Engine, options: CreateOptions) -> None:
    """StateError REGION_DIFFERS when the region is not the one `run --create` describes."""
    definition = engine.definition
    wanted = (options.id, options.geometry, options.cipher)
    found = (definition.id, definition.geometry, definition.cipher)
    if found != wanted:
        raise StateError(
            f"{options.directory} holds {_described(*found)}, not {_described(*wanted)}: "
            "correct the flags or choose another directory",
            reason="REGION_DIFFERS",
        )


def _described(region_id: uuid.UUID, geometry: Geometry, cipher: str) -> str:
    return f"region {region_id} with {geometry.describe()}, {describe_cipher(cipher)}"


@contextmanager
def opened(directory: Path) -> Iterator[Engine]:
    """The region for looking at, closed at the end. It must not be in service."""
    engine = open_region(directory, read_only=True)
    try:
        yield engine
    finally:
        engine.close()

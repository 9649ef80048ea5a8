"""Regions in real directories: making and opening them. The only place that names the engine's
class."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from downstaird.config import CreateOptions
from downstaird.core.engine import Engine, RegionDefinition
from downstaird.core.layout import DEFAULT_TUNING
from downstaird.core.region import Region
from downstaird.core.region_files import DEFINITION_NAME, version_for
from downstaird.store.files import FileDisk
from stairlib.model.cipher import describe_cipher
from stairlib.model.errors import StateError
from stairlib.model.geometry import Geometry


def create_region(options: CreateOptions) -> None:
    """Makes the region; AlreadyExistsError when the directory holds one."""
    version = version_for(options.cipher)
    definition = RegionDefinition(options.id, options.geometry, options.cipher, version)
    Region.create(FileDisk(options.directory), definition).close()


def open_region(directory: Path, *, read_only: bool = False) -> Engine:
    """Opens and locks it. InvalidRequestError NOT_A_REGION, StateError REGION_LOCKED, DataError."""
    # The members of a set get the same writes. With a log size of its own each has its checkpoints
    # at another time, and two of three are always quick to flush.
    log_bytes = int(DEFAULT_TUNING.log_bytes * random.uniform(1, 2))
    tuning = replace(DEFAULT_TUNING, log_bytes=log_bytes)
    return Region.open(FileDisk(directory), read_only=read_only, tuning=tuning)


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

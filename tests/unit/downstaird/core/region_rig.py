"""Small regions on a MemoryDisk, and what tests do with them."""

from __future__ import annotations

import uuid

from downstaird.core.engine import RegionDefinition
from downstaird.core.layout import Tuning
from downstaird.core.region import Region
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import block_hashes, plain_contexts
from stairlib.model.geometry import Geometry

BLOCK = 512
CHUNK_BLOCKS = 8
CHUNK_BYTES = CHUNK_BLOCKS * BLOCK
GEOMETRY = Geometry(BLOCK, 16, 4)
TUNING = Tuning(
    large_bytes=CHUNK_BYTES,
    arena_bytes=32 * BLOCK,
    log_bytes=6 * 4096,
    log_bytes_max=64 * 4096,
    step_blocks=8,
    log_zero_bytes=4096,
)


def definition_of(geometry=GEOMETRY, **changes):
    fields = {"id": uuid.uuid4(), "geometry": geometry, "cipher": "", "format_version": 1}
    return RegionDefinition(**{**fields, **changes})


def new_region(disk=None, geometry=GEOMETRY, tuning=TUNING):
    return Region.create(
        disk or MemoryDisk(), definition_of(geometry), tuning=tuning, chunk_bytes=CHUNK_BYTES
    )


def reopened(region, disk, tuning=TUNING):
    region.close()
    return Region.open(disk, tuning=tuning)


def content(mark, count=1):
    """Blocks that say what they are."""
    return b"".join(f"{mark}/{index} ".encode().ljust(BLOCK, b"=") for index in range(count))


def write(region, offset, data):
    region.write(offset, plain_contexts(data, BLOCK), data)


def read(region, offset, count):
    """The data, after a look at the contexts."""
    contexts, buffers = region.read(offset, count)
    data = b"".join(map(bytes, buffers))
    hashes = block_hashes(data, BLOCK)
    for index in range(count):
        if contexts[index].any():
            assert int(contexts[index, 0]) == hashes[index]
        else:
            assert data[index * BLOCK : (index + 1) * BLOCK] == bytes(BLOCK)
    return data


def flush(region, number=1, generation=1):
    work = region.begin_flush(number, generation)
    work.run()
    region.finish_flush(work, None)


def checkpoint(region):
    """All steps; how many they were."""
    steps = 0
    while True:
        work = region.begin_checkpoint()
        work.run()
        region.finish_checkpoint(work, None)
        steps += 1
        if region.seal is None:
            return steps

"""A region without a definition: nobody's until it is published."""

from __future__ import annotations

import uuid

import pytest

from downstaird.core.engine import RegionDefinition
from downstaird.core.region import Region
from downstaird.core.unfinished import UnfinishedDisk
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import plain_contexts
from stairlib.model.errors import AlreadyExistsError, InvalidRequestError
from stairlib.model.geometry import Geometry

DEFINITION = RegionDefinition(uuid.UUID(int=1), Geometry(4096, 64, 2), cipher="", format_version=1)


def flush(region):
    work = region.begin_flush(1, 1)
    work.run()
    region.finish_flush(work, None)


def test_it_is_no_region_before_it_is_published():
    memory = MemoryDisk()
    disk = UnfinishedDisk(memory)
    assert not disk.begun
    region = Region.create(disk, DEFINITION)
    data = bytes([7]) * 4096
    region.write(3, plain_contexts(data, 4096), data)
    flush(region)
    region.close()
    assert disk.begun
    with pytest.raises(InvalidRequestError) as refused:
        Region.open(memory)
    assert refused.value.reason == "NOT_A_REGION"
    again = Region.open(UnfinishedDisk(memory))
    assert again.definition == DEFINITION
    again.close()
    disk.publish()
    found = Region.open(memory)
    assert found.definition == DEFINITION
    assert b"".join(found.read(3, 1)[1]) == data
    found.close()


def test_publishing_ends_with_the_name_made_durable():
    """The disk in memory does not lose names in a power cut; so the order is looked at."""
    calls = []

    class Recording(MemoryDisk):
        def rename(self, old, new):
            super().rename(old, new)
            calls.append("rename")

        def sync_directory(self):
            calls.append("sync_directory")

    disk = UnfinishedDisk(Recording())
    Region.create(disk, DEFINITION).close()
    calls.clear()
    disk.publish()
    assert calls == ["rename", "sync_directory"]


def test_a_published_one_is_not_made_anew():
    memory = MemoryDisk()
    disk = UnfinishedDisk(memory)
    Region.create(disk, DEFINITION).close()
    disk.publish()
    with pytest.raises(AlreadyExistsError):
        Region.create(UnfinishedDisk(memory), DEFINITION)
    Region.open(memory).close()

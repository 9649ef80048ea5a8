"""The key check in a region: recorded by promotions, in regions from before it too, at any power
cut."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pytest

from downstaird.core.engine import Ownership
from downstaird.core.region import Region
from downstaird.core.region_files import DEFINITION_NAME, OWNER_NAME, write_definition
from downstaird.store.memory import MemoryDisk
from stairlib.model.cipher import AES_256_GCM
from stairlib.model.errors import DataError
from stairlib.model.geometry import Geometry
from tests.unit.downstaird.core.region_rig import definition_of

GEOMETRY = Geometry(4096, 16, 4)
CHECK = bytes(range(16))
OWNED = Ownership(uuid.UUID(int=1), uuid.UUID(int=2), 7)
KEYED = Ownership(uuid.UUID(int=1), uuid.UUID(int=3), 8, key_check=CHECK)


@pytest.fixture
def disk():
    return MemoryDisk()


def made(disk):
    return Region.create(disk, definition_of(GEOMETRY, cipher=AES_256_GCM, format_version=3))


def from_before(disk):
    """A region that was promoted and closed by a program that knows no key check."""
    region = made(disk)
    region.promote(OWNED)
    region.close()
    older = replace(region.definition, format_version=2)
    write_definition(disk, older, region.layout)
    return older


def format_of(disk):
    file = disk.open(DEFINITION_NAME)
    return json.loads(file.pread(file.size(), 0))["format_version"]


def slot_versions(disk):
    file = disk.open(OWNER_NAME)
    return {int.from_bytes(file.pread(2, at + 4), "little") for at in (0, 4096)}


def test_a_check_comes_back(disk) -> None:
    region = made(disk)
    region.promote(KEYED)
    region.close()
    again = Region.open(disk, read_only=True)
    assert again.ownership == KEYED
    assert again.ownership.key_check == CHECK
    again.close()


def test_a_region_from_before_opens_and_stays_what_it_is_until_a_check_is_named(disk) -> None:
    older = from_before(disk)
    region = Region.open(disk)
    assert (region.definition, region.ownership) == (older, OWNED)
    region.promote(replace(OWNED, generation=9))
    assert (format_of(disk), slot_versions(disk)) == (2, {1})
    region.promote(replace(KEYED, generation=10))
    assert region.definition == replace(older, format_version=3)
    region.close()
    assert format_of(disk) == 3
    again = Region.open(disk)
    assert again.ownership == replace(KEYED, generation=10)
    again.close()


def test_at_any_power_cut_no_older_program_meets_the_newer_slot(disk) -> None:
    from_before(disk)
    region = Region.open(disk)
    images = []

    def picture(_action, _name):
        images.append(disk.image(lambda _file, _sector: True))
        images.append(disk.image(lambda _file, _sector: False))

    disk.observer = picture
    region.promote(KEYED)
    picture("end", "")
    assert len(images) > 8
    seen = set()
    for image in images:
        version, slots = format_of(image), slot_versions(image)
        assert version == 3 or slots == {1}
        found = Region.open(image)
        assert found.ownership in (OWNED, KEYED)
        seen.add((version, found.ownership.key_check))
        found.close()
    assert seen == {(2, b""), (3, b""), (3, CHECK)}
    region.close()


def test_a_promotion_that_cannot_be_stored_leaves_the_owner_before(disk) -> None:
    from_before(disk)
    region = Region.open(disk)
    disk.fail_sync = lambda name: name.startswith(DEFINITION_NAME)
    with pytest.raises(DataError):
        region.promote(KEYED)
    assert region.ownership == OWNED
    assert (region.definition.format_version, slot_versions(disk)) == (2, {1})
    disk.fail_sync = lambda _name: False
    region.promote(KEYED)
    assert region.ownership == KEYED
    region.close()

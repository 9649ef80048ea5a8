"""Constructions as the records look at them."""

from __future__ import annotations

from uuid import UUID

import pytest

from controlplane.core import records
from stairlib.model.construction import FileSpec, VolumeSpec
from tests.unit.controlplane.core.records_made import TARGETS, VOLUME, disk, region, volume

PARENT = VolumeSpec(UUID(int=9), 4096, (region(("p:1", "p:2", "p:3"), gen=5, read_only=True),))
TREE = volume(region(gen=3), region(("b:1", "b:2", "b:3"), gen=2), read_only_parent=PARENT)


def test_generation_is_the_highest_and_zero_without_regions() -> None:
    assert records.generation(TREE) == 5
    assert records.generation(FileSpec(VOLUME, 512, "/x")) == 0


def test_the_id_of_any_construction() -> None:
    assert records.volume_id(region()) == VOLUME
    assert records.volume_id(FileSpec(UUID(int=4), 512, "/x")) == UUID(int=4)


def test_targets_and_what_is_one_s_own() -> None:
    found = {path: address for path, address, _ in records.targets(TREE)}
    assert found["sub_volumes[1].opts.target[0]"] == "b:1"
    assert found["read_only_parent.sub_volumes[0].opts.target[2]"] == "p:3"
    own = {address for _, address, _ in records.claims(TREE)}
    assert own == {*TARGETS, "b:1", "b:2", "b:3"}


def test_a_target_is_changed_in_its_place_only() -> None:
    path = "read_only_parent.sub_volumes[0]"
    changed = records.with_target(TREE, path, 1, "n:9")
    before = {where: address for where, address, _ in records.targets(TREE)}
    after = {where: address for where, address, _ in records.targets(changed)}
    assert {w: a for w, a in after.items() if before[w] != a} == {f"{path}.opts.target[1]": "n:9"}
    assert records.with_target(region(), "", 0, "n:9").options.targets[0] == "n:9"


def test_generations_are_raised_and_never_lowered() -> None:
    raised = records.with_generation(TREE, 4)
    found = [each.generation for _, each in records.regions(raised)]
    assert found == [4, 4, 5]


def test_region_at() -> None:
    assert records.region_at(TREE, "sub_volumes[1]").generation == 2
    with pytest.raises(KeyError):
        records.region_at(TREE, "sub_volumes[2]")


def test_where_a_disk_sits() -> None:
    assert disk(slot=0).pci_path == "0.16.0"
    assert disk(slot=3).pci_path == "0.19.0"

"""Which parents a request drops, and the request that is recorded without one."""

from __future__ import annotations

from uuid import UUID

import pytest

from controlplane.core.parents import dropped, is_below, parent_path, parents, without_parent
from controlplane.core.records import generation, regions
from stairlib.model.construction import U64_MAX, Construction, FileSpec, UrlSpec, VolumeSpec
from stairlib.model.construction_diff import Outcome, compare
from stairlib.model.errors import NotFoundError, StateError
from tests.unit.controlplane.core.records_made import VOLUME, parent, region, volume

URL = UrlSpec(UUID(int=8), 4096, "http://example/base.img")
# Two levels of parents, and a nested volume with a parent of its own.
DEEP = parent(gen=70, read_only_parent=parent(id=UUID(int=31), targets=("q:1", "q:2", "q:3")))
NESTED = VolumeSpec(UUID(int=20), 4096, (region(("n:1", "n:2", "n:3"), gen=4),), parent(
    id=UUID(int=32), targets=("r:1", "r:2", "r:3")))  # fmt: skip
TREE = volume(region(gen=3), NESTED, read_only_parent=DEEP)


def test_the_volumes_that_can_be_freed() -> None:
    assert parents(TREE) == ["", "sub_volumes[1]"]
    assert parents(volume()) == []
    assert parents(FileSpec(VOLUME, 512, "/x")) == []


@pytest.mark.parametrize("path", ["", "sub_volumes[1]"])
def test_the_parent_goes_and_every_generation_rises_above_all_before(path: str) -> None:
    wanted = without_parent(TREE, path, disk="d")
    assert dropped(TREE, wanted) == [path]
    below = parent_path(path)
    left = {at for at, _ in regions(TREE) if not is_below(at, below)}
    assert {at for at, _ in regions(wanted)} == left
    assert {each.generation for _, each in regions(wanted)} == {generation(TREE) + 1} == {71}
    assert compare(TREE, wanted).outcome is Outcome.GENERATION_ONLY


def test_one_after_the_other() -> None:
    once = without_parent(TREE, "", disk="d")
    twice = without_parent(once, "sub_volumes[1]", disk="d")
    assert parents(twice) == []
    assert dropped(TREE, twice) == ["", "sub_volumes[1]"]
    assert generation(twice) == 72


def test_a_parent_of_any_kind_can_be_dropped() -> None:
    for kind in (URL, FileSpec(UUID(int=9), 4096, "/base"), region(read_only=True)):
        wanted = without_parent(volume(read_only_parent=kind), "", disk="d")
        assert wanted == volume(region(gen=2))


@pytest.mark.parametrize(
    ("construction", "path", "reason"),
    [
        (volume(), "", "NO_PARENT"),
        (region(), "", "NO_PARENT"),
        (FileSpec(VOLUME, 512, "/x"), "", "NO_PARENT"),
        (TREE, "sub_volumes[0]", "VOLUME_NOT_FOUND"),
        (TREE, "sub_volumes[7]", "VOLUME_NOT_FOUND"),
        (TREE, "nonsense", "VOLUME_NOT_FOUND"),
        (TREE, "read_only_parent", "IN_PARENT"),
        (TREE, "read_only_parent.read_only_parent", "NO_PARENT"),
        (VolumeSpec(VOLUME, 4096, (), parent()), "", "NOTHING_TO_COPY_INTO"),
        # No request could be compared with one that has a file or a URL left in it.
        (volume(NESTED, read_only_parent=URL), "sub_volumes[0]", "NOT_RECORDABLE"),
        (volume(region(gen=U64_MAX), read_only_parent=URL), "", "NOT_RECORDABLE"),
        (volume(FileSpec(VOLUME, 4096, "/x"), region(), read_only_parent=URL), "",
         "NOT_RECORDABLE"),
    ],
)  # fmt: skip
def test_what_cannot_be_freed(construction: Construction, path: str, reason: str) -> None:
    with pytest.raises((StateError, NotFoundError)) as caught:
        without_parent(construction, path, disk="block2")
    assert caught.value.reason == reason
    assert "block2" in caught.value.message


def test_a_wrong_path_is_told_the_right_ones() -> None:
    with pytest.raises(NotFoundError) as caught:
        without_parent(TREE, "sub_volumes[9]", disk="d")
    assert caught.value.message.endswith("are: the outermost (leave the path out), sub_volumes[1]")


def test_what_a_request_drops() -> None:
    assert dropped(TREE, TREE) == []
    assert dropped(volume(), TREE) == []
    assert dropped(TREE, volume(region(), read_only_parent=URL)) == []
    inner = volume(region(), read_only_parent=parent(read_only_parent=URL))
    assert dropped(inner, volume(region(), read_only_parent=parent())) == ["read_only_parent"]


def test_being_below_is_by_whole_names() -> None:
    assert is_below("read_only_parent", "read_only_parent")
    assert is_below("read_only_parent.sub_volumes[0]", "read_only_parent")
    assert not is_below("sub_volumes[10]", "sub_volumes[1]")
    assert not is_below("sub_volumes[0]", "read_only_parent")

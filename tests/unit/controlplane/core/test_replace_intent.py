"""From a wish to the construction request that says it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.construction_check import check
from controlplane.core.replace_intent import Wish, is_same, locate, running, wanted
from controlplane.core.replacement import State
from stairlib.model.construction import GENERATION_MAX, VolumeSpec, regions
from stairlib.model.construction_diff import Outcome, compare
from stairlib.model.errors import InvalidRequestError
from tests.unit.controlplane.core import records_made as made


def tree() -> VolumeSpec:
    """Two regions over a parent."""
    second = made.region(("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), gen=5)
    return made.volume(made.region(), second, read_only_parent=made.parent())


@pytest.mark.parametrize("path", ["sub_volumes[0]", "sub_volumes[1]",
                                  "read_only_parent.sub_volumes[0]"])  # fmt: skip
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_one_target_and_one_generation_change(path: str, slot: int) -> None:
    disk = made.disk(construction=tree())
    found = locate(disk, Wish(slot, region_path=path))
    request = wanted(disk, found, "10.9.9.9:9")
    comparison = compare(disk.construction, request)
    assert comparison.outcome is Outcome.REPLACE
    assert comparison.changed is not None
    assert (comparison.changed.region_path, comparison.changed.slot) == (path, slot)
    assert (comparison.changed.old, comparison.changed.new) == (found.target, "10.9.9.9:9")
    before, after = dict(regions(disk.construction)), dict(regions(request))
    for each, region in after.items():
        assert region.generation == before[each].generation + (each == path)
    assert not check(request).violations


def test_the_generation_stays_in_its_bounds() -> None:
    disk = made.disk(construction=made.volume(made.region(gen=GENERATION_MAX)))
    request = wanted(disk, locate(disk, Wish(0)), "10.9.9.9:9")
    assert dict(regions(request))["sub_volumes[0]"].generation == GENERATION_MAX
    assert compare(disk.construction, request).outcome is Outcome.REPLACE


def test_an_address_is_enough_and_a_bare_region_too() -> None:
    disk = made.disk(construction=tree())
    assert locate(disk, Wish(old_target="10.0.0.2:1")).region_path == "sub_volumes[1]"
    bare = made.disk(construction=made.region())
    found = locate(bare, Wish(1))
    assert (found.region_path, found.target) == ("", made.TARGETS[1])
    assert compare(bare.construction, wanted(bare, found, "a:1")).outcome is Outcome.REPLACE


@pytest.mark.parametrize(
    ("wish", "field", "word"),
    [
        (Wish(), "slot", "is needed"),
        (Wish(0), "region_path", "sub_volumes[0], sub_volumes[1], read_only_parent"),
        (Wish(7, region_path="sub_volumes[0]"), "slot", "no slot 7"),
        (Wish(0, region_path="nope"), "region_path", "'sub_volumes[1]'"),
        (Wish(old_target="a:1"), "old_target", f"0 {made.TARGETS[0]}"),
        (Wish(0, made.TARGETS[1]), "old_target", "is not in slot 0"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(wish: Wish, field: str, word: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        locate(made.disk(construction=tree()), wish)
    assert [each.field for each in caught.value.violations] == [field]
    assert word in caught.value.message


def test_the_same_wish_again() -> None:
    newest = made.replacement()
    new, old = newest.new_target, newest.old_target
    assert is_same(newest, Wish(2, "", None, new))
    assert is_same(newest, Wish(None, old, "sub_volumes[0]", new))
    for other in (Wish(2), Wish(1, "", None, new), Wish(None, "", None, new),
                  Wish(2, "", "sub_volumes[1]", new), Wish(2, "x:1", None, new),
                  Wish(2, "", None, "x:1")):  # fmt: skip
        assert not is_same(newest, other)
    error = running(replace(newest, state=State.REPAIR))
    assert str(newest.id) in error.message
    assert error.metadata["replacement"] == str(newest.id)

"""Two requests side by side: which rows there are, and how they look in narrow and wide places."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from controlplane.cli import tree_diff
from controlplane.cli.tree_diff import Change
from stairlib.model.construction import (
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
)
from stairlib.model.geometry import Geometry

ID = UUID("0cedae45-3d6e-4d90-b2cb-56f1a1a42a89")
OTHER = UUID("1cedae45-3d6e-4d90-b2cb-56f1a1a42a89")


def region(first: int = 1, generation: int = 1, **options: Any) -> RegionSpec:
    targets = tuple(f"10.0.0.{first + slot}:8810" for slot in range(3))
    made = RegionOptions(**{"id": ID, "targets": targets} | options)
    return RegionSpec(Geometry(4096, 16384, 128), made, generation)


def volume(*subs: Any, parent: Any = None, identity: UUID = ID) -> VolumeSpec:
    return VolumeSpec(identity, 4096, subs, parent)


def shown(old: Any, new: Any, *objections: str) -> list[tuple[str, str, str | None, str | None]]:
    """(mark, name, old, new) of each row."""
    marks = {Change.SAME: " ", Change.CHANGED: "~", Change.ADDED: "+", Change.REMOVED: "-"}
    found = tree_diff.rows(old, new, objections)
    return [(marks[row.change], row.name, row.old, row.new) for row in found]


def drawn(old: Any, new: Any, *objections: str, width: int = 160, colour: bool = False) -> str:
    out = StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None,
        markup=False, highlight=False, emoji=False, legacy_windows=False, no_color=not colour,
    )  # fmt: skip
    console.print(tree_diff.table(tree_diff.rows(old, new, objections), "old", "new"))
    return out.getvalue()


def test_a_changed_region_shows_generation_targets_and_what_else_differs():
    new = region(generation=2, targets=("10.0.0.1:8810", "10.0.0.2:8810", "10.0.0.9:8810"))
    assert shown(volume(region()), volume(replace(new, geometry=Geometry(4096, 16384, 64)))) == [
        (" ", "", "volume 0cedae45, 1 sub-volume", "volume 0cedae45, 1 sub-volume"),
        (" ", "sub_volumes[0]", "region, 8 GiB", "region, 4 GiB"),
        ("~", "extent_count", "128", "64"),
        ("~", "gen", "1", "2"),
        (" ", "target[0]", "10.0.0.1:8810", "10.0.0.1:8810"),
        (" ", "target[1]", "10.0.0.2:8810", "10.0.0.2:8810"),
        ("~", "target[2]", "10.0.0.3:8810", "10.0.0.9:8810"),
    ]


def test_neighbours_that_are_the_same_are_folded():
    regions = [region(10 * number) for number in range(1, 9)]
    changed = [*regions]
    changed[3] = replace(changed[3], generation=2)
    names = [name for _, name, *_ in shown(volume(*regions), volume(*changed))]
    assert names[:3] == ["", "sub_volumes[0] to [2]", "sub_volumes[3]"]
    assert names[-1] == "sub_volumes[4] to [7]"
    alone = shown(volume(*regions[:2]), volume(regions[0], changed[3]))[1]
    assert alone == (" ", "sub_volumes[0]", "region, 8 GiB, unchanged", "region, 8 GiB, unchanged")


def test_the_same_tree_is_one_line():
    tree = volume(region(), parent=volume(region(7)))
    assert len(shown(tree, tree)) == 1


def test_what_only_one_side_has():
    old = volume(region(), parent=FileSpec(ID, 4096, "/base"))
    new = volume(region(), region(7))
    assert shown(old, new)[1:] == [
        (" ", "sub_volumes[0]", "region, 8 GiB, unchanged", "region, 8 GiB, unchanged"),
        ("+", "sub_volumes[1]", None, "region, 8 GiB"),
        ("-", "read_only_parent", "file /base", None),
    ]
    assert [mark for mark, *_ in shown(new, old)[2:]] == ["-", "+"]


def test_other_kinds_and_other_fields():
    found = shown(volume(region(), UrlSpec(ID, 4096, "http://a/1")), volume(volume(region()),
                  UrlSpec(ID, 4096, "http://a/2"), identity=OTHER))  # fmt: skip
    assert found[1:] == [
        ("~", "id", str(ID), str(OTHER)),
        ("~", "sub_volumes[0]", "region, 8 GiB", "volume 0cedae45, 1 sub-volume"),
        ("~", "sub_volumes[1]", "url http://a/1", "url http://a/2"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lossy", True, "true"),
        ("read_only", True, "true"),
        ("flush_timeout", 2.5, "2.5"),
        ("control", "127.0.0.1:7777", "127.0.0.1:7777"),
        ("cert_pem", "/cert.pem", "/cert.pem"),
        ("id", OTHER, str(OTHER)),
    ],
)
def test_options_that_changed(name, value, text):
    rows = shown(region(), region(**{name: value}))
    assert [(mark, new) for mark, row, _, new in rows if row == name] == [("~", text)]


def test_secrets_are_hidden_and_still_told_apart():
    pem = "-----BEGIN PRIVATE KEY-----hush"
    one, other = (region(key=Secret(key), key_pem=pem + key) for key in ("secret-1", "secret-2"))
    assert ("~", "key", "(hidden)", "(hidden, another one)") in shown(one, other)
    assert ("~", "key_pem", "(hidden)", "(hidden, another one)") in shown(one, other)
    assert ("~", "key", "null", "(hidden)") in shown(region(), region(key=Secret("secret-1")))
    for text in (drawn(one, other), repr(tree_diff.differences(tree_diff.rows(one, other)))):
        assert "secret" not in text
        assert "hush" not in text


def test_objections_stand_at_their_field_or_at_what_is_nearest():
    old = volume(volume(region()), region(7), parent=UrlSpec(ID, 4096, "http://a/1"))
    new = volume(volume(region()), region(7, generation=2), parent=old.read_only_parent)
    objections = (
        "sub_volumes[1].gen", "sub_volumes[0].type", "read_only_parent.type", "sub_volumes",
    )  # fmt: skip
    rows = tree_diff.rows(old, new, objections)
    places = {number: row.path for row in rows for number in row.notes}
    assert places == {1: "sub_volumes[1].gen", 2: "sub_volumes[0]", 3: "read_only_parent", 4: ""}


def test_nothing_with_an_objection_is_folded_away():
    regions = [region(10 * number) for number in range(1, 9)]
    rows = tree_diff.rows(volume(*regions), volume(*regions), ("sub_volumes[4].opts.target",))
    assert [row.path for row in rows if row.notes] == ["sub_volumes[4]"]


@pytest.mark.parametrize("width", [40, 80, 140])
def test_both_columns_fit_the_width_there_is(width):
    new = region(
        generation=2,
        targets=("10.0.0.1:8810", "10.0.0.2:8810", "[2001:db8:1234:5678:9abc:def0:1234:5678]:8810"),
    )
    text = drawn(volume(region(), identity=OTHER), volume(new), "sub_volumes[0].gen", width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "OLD old" in lines[0]
    assert any(line.startswith("~") and "[1]" in line for line in lines)
    # What is too long for its column goes on in the same column.
    assert "".join(text.split()).count("8810") >= 3


def test_colour_only_where_there_is_a_terminal():
    assert "\x1b[" in drawn(region(), region(generation=2), colour=True)
    assert "\x1b" not in drawn(region(), region(generation=2))


def test_a_name_cannot_steer_the_terminal():
    text = drawn(FileSpec(ID, 4096, "/a\x1b[2Jb"), FileSpec(ID, 4096, "/b"))
    assert "/a\\x1b[2Jb" in text
    assert "\x1b" not in text


def test_a_long_comparison_is_cut_and_says_so():
    regions = [region(number * 3 % 200) for number in range(200)]
    raised = [replace(one, generation=2) for one in regions]
    text = drawn(volume(*regions), volume(*raised))
    assert len(text.splitlines()) == tree_diff.ROWS_MAX + 2
    assert "lines more" in text


def test_differences_for_programs():
    found = tree_diff.rows(volume(region(), region(7)), volume(region(generation=2)))
    assert tree_diff.differences(found) == [
        {"path": "sub_volumes[0].gen", "change": "changed", "old": "1", "new": "2"},
        {"path": "sub_volumes[1]", "change": "removed", "old": "region, 8 GiB", "new": None},
    ]

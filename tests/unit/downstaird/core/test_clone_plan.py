"""What may be cloned, and when a clone is whole."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest

from downstaird.core.clone_plan import (
    STEP_BYTES,
    Expected,
    SourceFacts,
    check_unchanged,
    clone_definition,
    extent_steps,
    is_copy,
)
from downstaird.core.engine import ExtentStates, Ownership, RegionDefinition
from downstaird.core.region_files import FORMAT_VERSION
from stairlib.model.cipher import AES_256_GCM
from stairlib.model.errors import StateError
from stairlib.model.geometry import Geometry

SOURCE = RegionDefinition(uuid.UUID(int=1), Geometry(4096, 256, 8), cipher="", format_version=1)
OWNER = Ownership(uuid.UUID(int=3), None, 4)
FACTS = SourceFacts(SOURCE, OWNER, read_only=True, incomplete=0, faulted=0)
CLONE = uuid.UUID(int=2)


def test_a_clone_is_like_its_source_but_for_the_id():
    assert clone_definition("a:1", FACTS, CLONE, Expected()) == replace(SOURCE, id=CLONE)
    sealed = replace(SOURCE, cipher=AES_256_GCM, format_version=2)
    found = clone_definition("a:1", replace(FACTS, definition=sealed), CLONE, Expected())
    assert found == replace(sealed, id=CLONE, format_version=3)
    again = replace(FACTS, definition=found)
    assert clone_definition("a:1", again, SOURCE.id, Expected()) == replace(found, id=SOURCE.id)
    expected = Expected(4096, 256, 8, False)
    assert clone_definition("a:1", FACTS, CLONE, expected) == replace(SOURCE, id=CLONE)


@pytest.mark.parametrize(
    ("expected", "field"),
    [
        (Expected(block_size=512), "block_size"),
        (Expected(extent_size=255), "extent_size"),
        (Expected(extent_count=9), "extent_count"),
        (Expected(encrypted=True), "encrypted"),
    ],
)
def test_a_source_that_is_not_as_expected_is_refused_with_both_values(expected, field):
    with pytest.raises(StateError) as refused:
        clone_definition("a:1", FACTS, CLONE, expected)
    assert refused.value.reason == "REGION_INCOMPATIBLE"
    assert refused.value.metadata["field"] == field
    assert refused.value.metadata["wanted"] in refused.value.message
    assert refused.value.metadata["source"] in refused.value.message


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(FACTS, read_only=False), "SOURCE_NOT_READ_ONLY"),
        (replace(FACTS, incomplete=1), "SOURCE_NOT_WHOLE"),
        (replace(FACTS, faulted=2), "SOURCE_NOT_WHOLE"),
        (replace(FACTS, definition=replace(SOURCE, id=CLONE)), "SAME_REGION"),
        (
            replace(FACTS, definition=replace(SOURCE, format_version=FORMAT_VERSION + 1)),
            "FORMAT_VERSION",
        ),
        (replace(FACTS, definition=replace(SOURCE, format_version=2)), "FORMAT_VERSION"),
    ],
)
def test_a_source_that_cannot_be_cloned_is_refused_by_name(facts, reason):
    with pytest.raises(StateError) as refused:
        clone_definition("a:1", facts, CLONE, Expected())
    assert refused.value.reason == reason
    assert "a:1" in refused.value.message


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(4096, 256, 8),
        Geometry(512, 1, 1),
        Geometry(4096, 131072, 9),
        Geometry(512, 8, 5000),
    ],
)
def test_the_steps_hold_every_extent_once(geometry):
    steps = extent_steps(replace(SOURCE, geometry=geometry))
    assert [extent for step in steps for extent in step] == list(range(geometry.extent_count))
    for step in steps:
        assert len(step) <= 4 or len(step) * geometry.extent_bytes <= STEP_BYTES


def test_a_stamp_that_moved_names_both():
    check_unchanged("a:1", 3, (1, 2), (1, 2))
    with pytest.raises(StateError, match=r"flush 2, and is of 1, 3") as refused:
        check_unchanged("a:1", 3, (1, 2), (1, 3))
    assert refused.value.reason == "SOURCE_CHANGED"


def test_a_clone_is_whole_with_all_stamps_and_no_flag():
    states = ExtentStates(
        np.array([1, 0], dtype=np.uint64),
        np.array([7, 0], dtype=np.uint64),
        np.zeros(2, dtype=np.uint8),
    )
    assert is_copy(states, {0: (1, 7), 1: (0, 0)})
    assert not is_copy(states, {0: (1, 7)})
    assert not is_copy(states, {0: (1, 8), 1: (0, 0)})
    states.flags[1] = 2
    assert not is_copy(states, {0: (1, 7), 1: (0, 0)})

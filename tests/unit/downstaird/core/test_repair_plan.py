"""What is compared, asked for and sent in a copy; who may ask."""

import json
import uuid

import numpy as np
import pytest

from downstaird.core.engine import ExtentStates, Ownership
from downstaird.core.repair_plan import (
    STEP_BYTES,
    Run,
    compare,
    contexts_of,
    first_steps,
    parse_source,
    runs,
    steps,
    stored_runs,
)
from downstaird.core.repair_source import check_caller, check_extent, checked_runs
from stairlib.model.context import empty_contexts
from stairlib.model.errors import DataError, InvalidRequestError, RefusedError, StateError
from stairlib.wire.frame import FLAG_FAULTED, FLAG_INCOMPLETE

A, B = uuid.UUID(int=1), uuid.UUID(int=2)


def contexts(*values):
    array = empty_contexts(len(values))
    array[:, 0] = values
    array[:, 1] = array[:, 0] != 0
    return array


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ("", []),
        ("0000", []),
        ("1111", [Run(0, 4)]),
        ("0110", [Run(1, 2)]),
        ("1011", [Run(0, 1), Run(2, 2)]),
    ],
)
def test_runs(mask, found):
    assert runs(np.array([each == "1" for each in mask], dtype=bool)) == found


def test_contexts_travel_as_runs_without_the_holes():
    original = contexts(5, 0, 0, 6, 7, 0)
    parts = stored_runs(original)
    assert [(first, len(raw)) for first, raw in parts] == [(0, 32), (3, 64)]
    assert (contexts_of(parts, 6) == original).all()
    assert stored_runs(empty_contexts(9)) == []


@pytest.mark.parametrize("part", [(5, bytes(64)), (0, bytes(33)), (7, bytes(32))])
def test_contexts_that_do_not_fit_are_the_sources_fault(part):
    with pytest.raises(DataError) as caught:
        contexts_of([part], 6)
    assert caught.value.reason == "REPAIR_SOURCE"


def test_only_what_differs_is_fetched_and_what_the_source_never_wrote_is_cleared():
    own, source = contexts(1, 2, 0, 4, 5, 0), contexts(1, 9, 3, 0, 5, 0)
    difference = compare(own, source, 4096)
    assert difference.fetch == [Run(1, 2)]
    assert difference.clear == [Run(3, 1)]
    assert compare(source, source, 4096).fetch == compare(source, source, 4096).clear == []


def test_a_step_with_many_blocks_to_fetch_is_not_cut_by_equal_ones():
    blocks = STEP_BYTES // 4096
    source = contexts(*range(1, 2 * blocks + 11))
    source[blocks // 4] = 0
    own = source.copy()
    own[: blocks // 2 + 1] = 0
    own[blocks : blocks + blocks // 2 - 1] = 0
    own[2 * blocks] = 0
    assert compare(own, source, 4096).fetch == [
        Run(0, blocks // 4),
        Run(blocks // 4 + 1, blocks - blocks // 4 - 1 + blocks // 2 - 1),
        Run(2 * blocks, 1),
    ]
    assert compare(empty_contexts(0), empty_contexts(0), 4096).fetch == []


def test_steps_are_bounded_in_bytes_and_cut_where_chunks_are():
    blocks = STEP_BYTES // 4096
    assert list(steps([Run(3, 2 * blocks + 1), Run(500, 1)], 4096)) == [
        Run(3, blocks - 3),
        Run(blocks, blocks),
        Run(2 * blocks, 4),
        Run(500, 1),
    ]
    assert list(steps([Run(1, 2)], 2 * STEP_BYTES)) == [Run(1, 1), Run(2, 1)]


def test_a_copy_source_is_read_and_a_wrong_one_named():
    fields = {"address": "10.0.0.1:8810", "upstairs_id": str(A), "generation": 3}
    source = parse_source(json.dumps({**fields, "traceparent": "00-x"}).encode())
    assert (source.address, source.upstairs_id, source.generation) == ("10.0.0.1:8810", A, 3)
    assert source.traceparent == "00-x"
    assert parse_source(json.dumps(fields).encode()).traceparent is None
    for key, value in (("address", ""), ("upstairs_id", "x"), ("generation", True)):
        with pytest.raises(InvalidRequestError, match=key):
            parse_source(json.dumps({**fields, key: value}).encode())
    with pytest.raises(InvalidRequestError):
        parse_source(b"[]")


def test_only_the_owning_set_in_its_generation_may_copy():
    ownership = Ownership(A, B, 4)
    check_caller(ownership, A, 4, read_only=False)
    check_caller(Ownership(None, None, 0), B, 9, read_only=True)
    with pytest.raises(RefusedError):
        check_caller(ownership, B, 4, read_only=False)
    with pytest.raises(RefusedError):
        check_caller(Ownership(None, None, 0), B, 0, read_only=False)
    for generation in (3, 5):
        with pytest.raises(StateError) as caught:
            check_caller(ownership, A, generation, read_only=False)
        assert caught.value.reason == "GENERATION_MISMATCH"


def test_an_extent_under_repair_or_damaged_is_no_source():
    zeros = np.zeros(3, dtype=np.uint64)
    flags = np.array([0, FLAG_INCOMPLETE, FLAG_FAULTED], dtype=np.uint8)
    states = ExtentStates(zeros, zeros, flags)
    check_extent(states, 0)
    with pytest.raises(StateError) as caught:
        check_extent(states, 1)
    assert caught.value.reason == "EXTENT_INCOMPLETE"
    with pytest.raises(DataError):
        check_extent(states, 2)
    with pytest.raises(InvalidRequestError):
        check_extent(states, 3)


@pytest.mark.parametrize("parts", [[(0, 0)], [(9, 2)], [(4, 2), (5, 1)], [(4, 2), (0, 1)]])
def test_ranges_ascend_within_the_extent(parts):
    assert checked_runs([Run(0, 4), Run(4, 6)], 10) == [Run(0, 4), Run(4, 6)]
    with pytest.raises(InvalidRequestError):
        checked_runs([Run(*part) for part in parts], 10)


def test_what_is_asked_at_a_time_is_whole_steps_and_all_of_them_in_the_end():
    block, per_step = 4096, STEP_BYTES // 4096
    wanted = [Run(0, 3 * per_step), Run(4 * per_step, 5)]
    cut = steps(wanted, block)
    assert first_steps(cut, STEP_BYTES + 1, block) == [Run(0, 2 * per_step)]
    # However little may be asked for, a step is.
    assert first_steps(cut, 1, block) == [Run(2 * per_step, per_step)]
    assert first_steps(cut, 1 << 40, block) == [Run(4 * per_step, 5)]
    assert first_steps(cut, 1, block) == []
    assert first_steps(steps(wanted, block), 1 << 40, block) == wanted


def test_steps_may_change_their_size_on_the_way():
    blocks = STEP_BYTES // 4096
    sizes = iter((4 * STEP_BYTES, STEP_BYTES, 4 * STEP_BYTES, 4 * STEP_BYTES))
    assert list(steps([Run(3, 10 * blocks)], 4096, lambda: next(sizes))) == [
        Run(3, 4 * blocks - 3),
        Run(4 * blocks, blocks),
        Run(5 * blocks, 3 * blocks),
        Run(8 * blocks, 2 * blocks + 3),
    ]

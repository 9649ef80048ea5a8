"""What comes late to a machine does not undo what came after it."""

from __future__ import annotations

import pytest

from stairlib.model.errors import ConflictError, StateError
from vmmd.core.replacement_fence import ReplacementFence

PATH = "sub_volumes[0]"


@pytest.fixture
def fence() -> ReplacementFence:
    return ReplacementFence()


def test_the_same_one_again_passes_while_it_is_the_newest(fence: ReplacementFence) -> None:
    for _ in range(3):
        fence.check(PATH, 5, "one")
        fence.begun(PATH, 5, "one")


def test_one_that_another_one_followed_is_over(fence: ReplacementFence) -> None:
    fence.begun(PATH, 5, "one")
    fence.check(PATH, 5, "two")
    fence.begun(PATH, 5, "two")
    with pytest.raises(ConflictError) as refused:
        fence.check(PATH, 5, "one")
    assert refused.value.reason == "REPLACEMENT_OVERTAKEN"
    assert refused.value.metadata["newest"] == "two"
    fence.check(PATH, 5, "two")
    fence.check(PATH, 5, "three")


def test_a_lower_generation_is_refused_whoever_asks(fence: ReplacementFence) -> None:
    fence.begun(PATH, 5, "one")
    for replacement_id in ("never seen", ""):
        with pytest.raises(StateError) as refused:
            fence.check(PATH, 4, replacement_id)
        assert refused.value.reason == "GENERATION_TOO_LOW"
        assert refused.value.metadata["required"] == "5"
    fence.begun(PATH, 0, "")
    with pytest.raises(StateError):
        fence.check(PATH, 4, "two")


def test_regions_do_not_hold_each_other_up(fence: ReplacementFence) -> None:
    fence.begun(PATH, 5, "one")
    fence.check("sub_volumes[1]", 1, "two")
    fence.begun("sub_volumes[1]", 1, "two")
    fence.check(PATH, 5, "one")


def test_what_was_taken_back_leaves_the_generation_from_before_in_force(
    fence: ReplacementFence,
) -> None:
    """The recorded request is that one again, and may be asked with as it is."""
    fence.begun(PATH, 4, "zero")
    for _ in range(2):
        fence.begun(PATH, 9, "one")
    fence.taken_back(PATH, "another")
    with pytest.raises(StateError):
        fence.check(PATH, 4, "two")
    fence.taken_back(PATH, "one")
    fence.check(PATH, 4, "two")
    with pytest.raises(StateError):
        fence.check(PATH, 3, "two")
    with pytest.raises(ConflictError):
        fence.check(PATH, 4, "zero")

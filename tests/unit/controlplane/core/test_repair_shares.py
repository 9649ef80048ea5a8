"""What is wanted of repairs, and the fleet's rate divided."""

import pytest

from controlplane.core.repair_shares import (
    EXTENTS_IN_FLIGHT_MAX,
    RATE_MAX,
    Need,
    RepairWish,
    WishChange,
    changed,
    shares,
)
from stairlib.model.errors import InvalidRequestError


def test_only_what_is_given_changes():
    wish = changed(RepairWish(), WishChange(bytes_per_second_max=50, adaptive=False))
    assert wish == RepairWish(bytes_per_second_max=50, adaptive=False)
    wish = changed(wish, WishChange(extents_in_flight_max=2))
    assert wish == RepairWish(bytes_per_second_max=50, extents_in_flight_max=2, adaptive=False)
    assert changed(wish, WishChange(bytes_per_second_max=0)).bytes_per_second_max == 0


def test_everything_that_is_wrong_is_told():
    with pytest.raises(InvalidRequestError) as caught:
        changed(
            RepairWish(bytes_per_second_max=10),
            WishChange(
                bytes_per_second_min=RATE_MAX + 1, extents_in_flight_max=EXTENTS_IN_FLIGHT_MAX + 1
            ),
        )
    assert [each.field for each in caught.value.violations] == [
        "bytes_per_second_min", "extents_in_flight_max", "bytes_per_second_min",
    ]  # fmt: skip


def test_a_floor_above_the_limit_is_refused():
    with pytest.raises(InvalidRequestError, match="above the limit of 10"):
        changed(RepairWish(bytes_per_second_max=10), WishChange(bytes_per_second_min=11))


def test_nobody_repairs():
    assert shares(100, []) == {}


def test_what_one_cannot_use_is_the_others():
    needs = [Need("a", 100, 10), Need("b", 100), Need("c", 100)]
    assert shares(100, needs) == {"a": 10, "b": 45, "c": 45}


def test_who_has_more_left_gets_more_and_nobody_starves():
    found = shares(1000, [Need("large", 1 << 40), Need("small", 0)])
    assert found == {"large": 750, "small": 250}


def test_nothing_left_to_copy_is_no_reason_for_none():
    assert shares(10, [Need("a", 0), Need("b", 0)]) == {"a": 5, "b": 5}

"""Random stops: the interval's limits and the choice of a member."""

import pytest

from downstaird.dsc.core.random_stop import RandomStop, pick
from stairlib.model.errors import InvalidRequestError


def test_defaults_and_changes() -> None:
    policy = RandomStop()
    assert (policy.enabled, policy.min_seconds, policy.max_seconds) == (False, 9, 10)
    changed = policy.changed(enabled=True, max_seconds=20)
    assert changed == RandomStop(True, 9, 20)
    assert changed.changed() == changed


@pytest.mark.parametrize(("low", "high"), [(0, 5), (11, 10), (9, 86401), (86401, 86401)])
def test_intervals_that_make_no_sense(low: int, high: int) -> None:
    with pytest.raises(InvalidRequestError, match="seconds"):
        RandomStop().changed(min_seconds=low, max_seconds=high)


def test_the_delay_is_within_the_interval() -> None:
    policy = RandomStop(True, 2, 6)
    assert [policy.delay(chance) for chance in (0.0, 0.5, 1.0)] == [2.0, 4.0, 6.0]


def test_pick_reaches_every_member_and_no_other() -> None:
    assert [pick([4, 5, 6], chance) for chance in (0.0, 0.34, 0.67, 1.0)] == [4, 5, 6, 6]
    assert pick([], 0.5) is None

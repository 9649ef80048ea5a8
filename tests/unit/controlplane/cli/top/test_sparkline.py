"""Numbers as a line."""

import pytest

from controlplane.cli.top.sparkline import gathered, sparkline


def test_the_highest_is_full_and_nothing_is_lowest():
    assert sparkline([0, 1, 50, 100], 4) == "▁▂▅█"


def test_few_values_stand_at_the_right():
    assert sparkline([1.0], 3) == "  █"
    assert sparkline([], 3) == "   "
    assert sparkline([0, 0], 3) == " ▁▁"


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 31])
def test_many_values_keep_their_highest(count):
    values = [float(number) for number in range(count)]
    shown = gathered(values, 4)
    assert len(shown) <= 4
    assert shown[-1] == max(values)
    assert len(sparkline(values, 4)) == 4

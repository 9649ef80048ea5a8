"""Axes and their numbers."""

import pytest

from controlplane.cli.plot.scale import (
    Scale,
    from_zero,
    linear_ticks,
    logarithmic,
    logarithmic_ticks,
    round_down,
    round_up,
)


@pytest.mark.parametrize(
    ("value", "down", "up"),
    [(1, 1, 1), (1.01, 1, 2), (3, 2, 5), (7, 5, 10), (0.03, 0.02, 0.05), (99, 50, 100)],
)
def test_numbers_are_rounded_to_one_two_or_five(value, down, up):
    assert round_down(value) == pytest.approx(down)
    assert round_up(value) == pytest.approx(up)


def test_a_scale_goes_from_edge_to_edge_and_not_beyond():
    scale = Scale(-5, 5, 100, 0)
    assert [scale(value) for value in (-9, -5, 0, 5, 9)] == [100, 100, 50, 0, 0]
    tens = Scale(1, 100, 0, 10, logarithmic=True)
    assert [tens(value) for value in (0.1, 1, 10, 100, 1e6)] == [0, 0, 5, 10, 10]


def test_ticks_are_round_and_within():
    assert linear_ticks(-2.5, 16, 10) == [-2, 0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert linear_ticks(0, 1, 4) == pytest.approx([0, 0.5, 1])
    assert logarithmic_ticks(1, 20) == [1, 2, 5, 10, 20]
    assert logarithmic_ticks(0.5, 10_000) == [1, 10, 100, 1000, 10_000]


def test_scales_around_values_hold_them_all():
    assert from_zero([3, 17], 0, 1).high == 20
    assert from_zero([], 0, 1).high == 1
    kibi = from_zero([3000, 17_000], 0, 1, 1024)
    assert kibi.high == 20 * 1024
    assert kibi.ticks(4) == [0, 5 * 1024, 10 * 1024, 15 * 1024, 20 * 1024]
    scale = logarithmic([0, 0.7, 130], 0, 1)
    assert (scale.low, scale.high) == (pytest.approx(0.5), 200)
    assert logarithmic([], 0, 1).high >= 10 * logarithmic([], 0, 1).low
    assert logarithmic([3.0, 3.0], 0, 1).high >= 10 * 2

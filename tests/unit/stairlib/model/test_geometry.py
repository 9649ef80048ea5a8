"""A region's shape: sizes, and each limit refused by the name of its field."""

from __future__ import annotations

import pytest

from stairlib.model.geometry import EXTENT_COUNT_MAX, Geometry


def test_the_walkthroughs_region_is_eight_gibibytes() -> None:
    geometry = Geometry(4096, 16384, 128)
    assert geometry.problems() == []
    assert geometry.extent_bytes == 64 << 20
    assert geometry.total_bytes == 8 << 30
    assert geometry.block_count == 2 << 20


@pytest.mark.parametrize(
    ("geometry", "field"),
    [
        (Geometry(1536, 100, 15), "block_size"),
        (Geometry(256, 100, 15), "block_size"),
        (Geometry(65536, 100, 15), "block_size"),
        (Geometry(0, 100, 15), "block_size"),
        (Geometry(512, 0, 15), "blocks_per_extent"),
        (Geometry(4096, (512 << 20) // 4096 + 1, 15), "blocks_per_extent"),
        (Geometry(512, 100, 0), "extent_count"),
        (Geometry(512, 100, EXTENT_COUNT_MAX + 1), "extent_count"),
    ],
)
def test_each_limit_names_its_field(geometry: Geometry, field: str) -> None:
    assert [name for name, _text in geometry.problems()] == [field]


def test_limits_themselves_are_legal() -> None:
    assert Geometry(512, 1, 1).problems() == []
    assert Geometry(32768, (512 << 20) // 32768, EXTENT_COUNT_MAX).problems() == []

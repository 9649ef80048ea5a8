"""Chunks of even, uneven and tiny extents."""

from __future__ import annotations

import pytest

from downstaird.core.layout import CHUNK_BYTES, Layout
from stairlib.model.errors import InvalidRequestError
from stairlib.model.geometry import Geometry


def test_the_usual_region_has_chunks_of_256_kib() -> None:
    layout = Layout.for_geometry(Geometry(4096, 16384, 128))
    assert layout.chunk_bytes == CHUNK_BYTES == 256 << 10
    assert layout.chunk_count == 8 << 30 >> 18
    assert layout.even


@pytest.mark.parametrize(
    ("geometry", "offset", "count", "pieces"),
    [
        (Geometry(512, 16, 4), 3, 5, [(0, 3, 5)]),
        (Geometry(512, 16, 4), 6, 12, [(0, 6, 2), (1, 0, 8), (2, 0, 2)]),
        # 20 blocks: chunks of 8, 8 and 4.
        (Geometry(512, 20, 2), 15, 10, [(1, 7, 1), (2, 0, 4), (3, 0, 5)]),
        (Geometry(512, 20, 2), 19, 1, [(2, 3, 1)]),
        # An extent smaller than a chunk is one.
        (Geometry(512, 3, 9), 2, 5, [(0, 2, 1), (1, 0, 3), (2, 0, 1)]),
    ],
)
def test_ranges_are_cut_at_chunks_and_extents(geometry, offset, count, pieces) -> None:
    assert Layout.for_geometry(geometry, 8 * 512).pieces(offset, count) == pieces


def test_every_block_has_a_place_of_its_own() -> None:
    geometry = Geometry(512, 13, 5)
    layout = Layout.for_geometry(geometry, 4 * 512)
    places = [layout.pieces(block, 1)[0][:2] for block in range(geometry.block_count)]
    assert len(set(places)) == geometry.block_count
    assert all(first < layout.blocks_in(chunk) for chunk, first in places)
    whole = sum(layout.blocks_in(chunk) for chunk in range(layout.chunk_count))
    assert whole == geometry.block_count
    assert {chunk // layout.chunks_per_extent for chunk, _ in places} == set(range(5))


@pytest.mark.parametrize(("offset", "count"), [(-1, 1), (0, 0), (63, 2), (64, 1), (1 << 60, 1)])
def test_ranges_outside_are_refused(offset, count) -> None:
    layout = Layout.for_geometry(Geometry(512, 16, 4))
    with pytest.raises(InvalidRequestError) as refused:
        layout.check(offset, count)
    assert refused.value.reason == "OUT_OF_RANGE"

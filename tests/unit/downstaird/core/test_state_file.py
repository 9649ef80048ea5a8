"""State files: two copies, damage by the page."""

from __future__ import annotations

import numpy as np
import pytest

from downstaird.core import state_file
from downstaird.core.extent_table import ExtentTable
from downstaird.core.layout import Layout
from downstaird.core.state_file import PAGE_BYTES, STATE_NAMES, State, encode_state, load_state
from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import DataError
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FLAG_FAULTED, FLAG_INCOMPLETE

TAG = 5
# Two chunks an extent: 1200 map entries on two pages, 600 extents on four.
LAYOUT = Layout.for_geometry(Geometry(512, 16, 600), 8 * 512)


@pytest.fixture
def files():
    disk = MemoryDisk()
    return [disk.open(name, create=True) for name in STATE_NAMES]


def state_of(file=0, count=1):
    chunks = np.zeros(LAYOUT.chunk_count, dtype=np.uint32)
    chunks[[0, 1, 1100]] = (2, 1, 3)
    extents = ExtentTable(600).durable
    extents["flush"][550] = 12 + count
    extents["flags"][3] = FLAG_INCOMPLETE
    return State(
        file=file,
        count=count,
        log=1,
        sequence=1 << 40,
        chain=99,
        chunks=chunks,
        sides=bytearray([0, 1, 0, 1]),
        extents=extents,
    )


def put(files, state):
    files[state.file].pwritev([encode_state(state, TAG)], 0)


def load(files, void=0):
    return load_state(files, LAYOUT, TAG, void)


def test_a_state_comes_back_as_it_was(files) -> None:
    put(files, state_of(file=1))
    found, wanted = load(files), state_of(file=1)
    assert (found.chunks == wanted.chunks).all()
    assert (found.extents == wanted.extents).all()
    assert found.sides == wanted.sides
    assert (found.file, found.count, found.log, found.sequence, found.chain) == (
        1, 1, 1, 1 << 40, 99,
    )  # fmt: skip
    assert not found.damaged


def test_the_higher_count_is_true_unless_void(files) -> None:
    put(files, state_of(0, 8))
    put(files, state_of(1, 7))
    assert load(files).count == 8
    assert load(files, void=8).count == 7


def test_a_damaged_header_costs_that_copy(files) -> None:
    put(files, state_of(0, 8))
    put(files, state_of(1, 7))
    files[0].pwritev([b"?"], 17)
    assert load(files).count == 7
    files[1].pwritev([b"?"], 30)
    with pytest.raises(DataError, match="both damaged at byte 0") as damaged:
        load(files)
    assert damaged.value.metadata["file"] == "memory/state-0"


@pytest.mark.parametrize(
    ("page", "extents"),
    [
        (1, range(510)),  # 1020 chunks, two an extent
        (2, range(510, 600)),
        (3, range(170)),
        (6, range(510, 600)),
    ],
)
def test_a_damaged_page_costs_the_extents_it_speaks_of(files, page, extents) -> None:
    put(files, state_of())
    files[0].pwritev([b"??"], page * PAGE_BYTES + 5)
    found = load(files)
    assert found.damaged == frozenset(extents)
    faulted = np.flatnonzero(found.extents["flags"] & FLAG_FAULTED)
    assert faulted.tolist() == list(extents)


def test_a_page_that_is_missing_or_of_another_checkpoint_is_damaged(files) -> None:
    put(files, state_of(0, 2))
    old = encode_state(state_of(0, 1), TAG)
    files[0].pwritev([old[6 * PAGE_BYTES :]], 6 * PAGE_BYTES)
    assert load(files).damaged == frozenset(range(510, 600))
    files[0].truncate(6 * PAGE_BYTES)
    assert load(files).damaged == frozenset(range(510, 600))


def test_another_region_a_newer_version_and_another_geometry_are_refused(
    files, monkeypatch
) -> None:
    put(files, state_of())
    with pytest.raises(DataError, match="both damaged"):
        load_state(files, LAYOUT, TAG + 1, 0)
    other = Layout.for_geometry(Geometry(512, 16, 9000), 8 * 512)
    with pytest.raises(DataError, match="geometry needs"):
        load_state(files, other, TAG, 0)
    monkeypatch.setattr(state_file, "VERSION", 2)
    put(files, state_of())
    monkeypatch.undo()
    with pytest.raises(DataError) as newer:
        load(files)
    assert newer.value.reason == "FORMAT_VERSION"

"""Context blocks: what is read back is what was stored, or an error."""

from __future__ import annotations

import numpy as np
import pytest

from downstaird.core import chunk_contexts
from downstaird.core.chunk_contexts import CONTEXT_NAMES, ContextFiles, Home
from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import DataError

TAG = 0x1234567890


@pytest.fixture
def store():
    disk = MemoryDisk()
    return ContextFiles([disk.open(name, create=True) for name in CONTEXT_NAMES], 16, TAG)


def contexts_of(mark):
    return np.arange(64, dtype=np.uint64).reshape(16, 4) + mark


def test_blocks_come_back_from_the_side_they_were_put(store) -> None:
    store.store(0, [(70, 3, contexts_of(1)), (71, 1, contexts_of(2)), (9, 2, contexts_of(3))])
    store.store(1, [(70, 3, contexts_of(4))])
    assert (store.load(70, 3, 0) == contexts_of(1)).all()
    assert (store.load(71, 1, 0) == contexts_of(2)).all()
    assert (store.load(9, 2, 0) == contexts_of(3)).all()
    assert (store.load(70, 3, 1) == contexts_of(4)).all()


def test_no_sector_holds_parts_of_two(store) -> None:
    assert store.stride == 1024
    assert store.stride >= 32 + 16 * 32


@pytest.mark.parametrize(("chunk", "physical", "side"), [(7, 2, 0), (70, 2, 1), (70, 99, 0)])
def test_what_was_never_stored_there_is_an_error(store, chunk, physical, side) -> None:
    store.store(0, [(70, 2, contexts_of(1))])
    with pytest.raises(DataError) as damaged:
        store.load(chunk, physical, side)
    assert damaged.value.reason == "EXTENT_FAULTED"
    assert damaged.value.metadata["file"] == f"memory/{CONTEXT_NAMES[side]}"
    assert damaged.value.metadata["offset"] == str(physical * store.stride)


def test_any_changed_byte_is_noticed(store) -> None:
    store.store(0, [(70, 2, contexts_of(1))])
    file = store.files[0]
    whole = file.pread(32 + 16 * 32, 2 * store.stride)
    for at in [*range(32), *range(32, len(whole), 13)]:
        file.pwritev([bytes([whole[at] ^ 1])], 2 * store.stride + at)
        with pytest.raises(DataError):
            store.load(70, 2, 0)
        file.pwritev([whole[at : at + 1]], 2 * store.stride + at)
    store.load(70, 2, 0)


def test_a_newer_version_is_refused(store, monkeypatch) -> None:
    monkeypatch.setattr(chunk_contexts, "VERSION", 2)
    store.store(0, [(70, 2, contexts_of(1))])
    monkeypatch.undo()
    with pytest.raises(DataError, match="version"):
        store.load(70, 2, 0)


def test_a_home_is_full_when_all_its_own_blocks_are_written() -> None:
    contexts = contexts_of(1)
    contexts[10:] = 0
    assert Home.of(contexts, 10).full
    assert not Home.of(contexts, 11).full

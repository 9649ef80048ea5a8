"""The model says of a block exactly what it may hold."""

from __future__ import annotations

import pytest

from vmmd.guest.disk_model import DiskModel

SIZE = 512


@pytest.fixture
def model() -> DiskModel:
    return DiskModel(SIZE, 64, seed=1)


def write(model: DiskModel, first: int, count: int, *, succeeded: bool | None = True) -> bytes:
    """The content; with None the write stays in flight."""
    buffer = bytearray(count * SIZE)
    model.claim(first, count)
    model.begin_write(first, count, memoryview(buffer))
    if succeeded is not None:
        model.end_write(first, count, succeeded=succeeded)
    return bytes(buffer)


def wrong(model: DiskModel, first: int, content: bytes) -> list[int]:
    return model.mismatches(model.begin_read(first, len(content) // SIZE), memoryview(content))


def test_the_written_content_and_nothing_else(model: DiskModel) -> None:
    content = write(model, 4, 3)
    assert wrong(model, 4, content) == []
    assert wrong(model, 4, content[SIZE:] + content[:SIZE]) == [4, 5, 6]
    damaged = bytearray(content)
    damaged[SIZE + 511] ^= 0x80
    assert wrong(model, 4, bytes(damaged)) == [5]
    assert wrong(model, 4, bytes(3 * SIZE)) == [4, 5, 6]


def test_an_overwritten_version_is_wrong(model: DiskModel) -> None:
    old, new = write(model, 0, 1), write(model, 0, 1)
    assert old != new
    assert wrong(model, 0, new) == []
    assert wrong(model, 0, old) == [0]


def test_blocks_and_seeds_differ(model: DiskModel) -> None:
    content = write(model, 0, 2)
    assert content[:SIZE] != content[SIZE:]
    assert write(DiskModel(SIZE, 64, seed=2), 0, 2) != content


def test_blocks_never_written_may_hold_anything(model: DiskModel) -> None:
    assert wrong(model, 0, b"\xaa" * SIZE * 4) == []


def test_a_write_in_flight_may_be_there_or_not(model: DiskModel) -> None:
    old = write(model, 0, 1)
    new = write(model, 0, 1, succeeded=None)
    assert model.busy(0, 1)
    assert wrong(model, 0, old) == []
    assert wrong(model, 0, new) == []
    assert wrong(model, 0, bytes(SIZE)) == [0]


def test_failed_writes_leave_every_attempt_possible(model: DiskModel) -> None:
    versions = [write(model, 0, 1), *(write(model, 0, 1, succeeded=False) for _ in range(2))]
    for version in versions:
        assert wrong(model, 0, version) == []
    last = write(model, 0, 1)
    assert wrong(model, 0, last) == []
    assert [wrong(model, 0, version) for version in versions] == [[0], [0], [0]]


def test_a_write_that_ends_during_a_read_makes_both_right(model: DiskModel) -> None:
    old = write(model, 0, 1)
    expected = model.begin_read(0, 1)
    new = write(model, 0, 1)
    assert model.mismatches(expected, memoryview(old)) == []
    assert model.mismatches(expected, memoryview(new)) == []


def test_a_discarded_block_is_zero_or_as_before_until_written(model: DiskModel) -> None:
    old = write(model, 0, 2)
    model.claim(0, 1)
    model.begin_discard(0, 1)
    model.end_discard(0, 1)
    assert wrong(model, 0, bytes(SIZE)) == []
    assert wrong(model, 0, old[:SIZE]) == []
    assert wrong(model, 1, bytes(SIZE)) == [1]
    write(model, 0, 1)
    assert wrong(model, 0, bytes(SIZE)) == [0]


def test_written_runs(model: DiskModel) -> None:
    assert model.written_runs(8) == []
    for first, count in ((0, 3), (10, 5), (63, 1)):
        write(model, first, count)
    write(model, 30, 2, succeeded=False)
    assert model.written_runs(4) == [(0, 3), (10, 4), (14, 1), (63, 1)]
    assert model.written_runs(64) == [(0, 3), (10, 5), (63, 1)]

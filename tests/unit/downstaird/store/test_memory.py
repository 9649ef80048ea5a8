"""The disk in memory forgets what a real one may forget."""

from __future__ import annotations

import pytest

from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import DataError, StateError


@pytest.fixture
def disk():
    return MemoryDisk()


def nothing(_name, _sector):
    return False


def everything(_name, _sector):
    return True


def content_of(disk, name="f"):
    file = disk.open(name)
    return file.pread(file.size(), 0)


def test_unsynced_sectors_survive_one_by_one(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"a" * 1536], 0)
    file.datasync()
    file.pwritev([b"b" * 512, b"c" * 512], 300)
    assert content_of(disk) == b"a" * 300 + b"b" * 512 + b"c" * 512 + b"a" * 212
    assert content_of(disk.image(nothing)) == b"a" * 1536
    assert content_of(disk.image(everything)) == content_of(disk)
    middle = disk.image(lambda _name, sector: sector == 1)
    assert content_of(middle) == b"a" * 512 + b"b" * 300 + b"c" * 212 + b"a" * 512


def test_a_size_is_durable_with_the_data(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"a"], 5000)
    assert content_of(disk.image(nothing)) == b""
    file.datasync()
    assert content_of(disk.image(nothing)) == bytes(5000) + b"a"
    file.truncate(700)
    assert len(content_of(disk.image(nothing))) == 5001
    file.datasync()
    assert content_of(disk.image(nothing)) == bytes(700)


def test_what_a_longer_file_left_is_zero_only_once_synced(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"x" * 1024], 0)
    file.datasync()
    file.truncate(0)
    file.truncate(1024)
    assert content_of(disk) == bytes(1024)
    assert content_of(disk.image(nothing)) == b"x" * 1024
    file.datasync()
    assert content_of(disk.image(nothing)) == bytes(1024)


def test_after_a_failed_sync_no_later_one_helps(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"a" * 512], 0)
    disk.fail_sync = lambda name: name == "f"
    with pytest.raises(DataError):
        file.datasync()
    disk.fail_sync = lambda _: False
    file.datasync()
    assert content_of(disk) == b"a" * 512
    assert content_of(disk.image(everything)) == bytes(512)


def test_after_a_failed_sync_only_what_is_written_later_becomes_durable(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"a" * 1024], 0)
    file.datasync()
    file.pwritev([b"b" * 512], 0)
    disk.fail_sync = lambda _: True
    with pytest.raises(DataError):
        file.datasync()
    disk.fail_sync = lambda _: False
    file.pwritev([b"c" * 512], 512)
    file.datasync()
    assert content_of(disk) == b"b" * 512 + b"c" * 512
    assert content_of(disk.image(nothing)) == b"a" * 512 + b"c" * 512


def test_a_disk_and_its_images_do_not_change_each_other(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"a" * 8192], 0)
    file.datasync()
    one, other = disk.image(nothing), disk.image(nothing)
    one.open("f").pwritev([b"b" * 4096], 0)
    one.open("f").datasync()
    disk.rot("f", 4096)
    file.pwritev([b"c"], 1)
    assert content_of(one.image(nothing)) == b"b" * 4096 + b"a" * 4096
    assert content_of(other) == content_of(other.image(nothing)) == b"a" * 8192
    assert content_of(disk)[4096:] == content_of(disk.image(nothing))[4096:] == b"`" + b"a" * 4095


def test_a_lying_sync_makes_nothing_durable(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"a"], 0)
    disk.lie_about_sync = lambda _: True
    file.datasync()
    assert content_of(disk.image(nothing)) == b""
    assert disk.syncs == ["f"]


def test_writes_fail_as_asked(disk) -> None:
    file = disk.open("f", create=True)
    disk.capacity = 3
    file.pwritev([b"abc"], 0)
    with pytest.raises(DataError) as full:
        file.pwritev([b"d"], 3)
    assert full.value.reason == "NO_SPACE"
    disk.capacity = None
    disk.fail_write = lambda _: True
    with pytest.raises(DataError) as failed:
        file.pwritev([b"d"], 3)
    assert failed.value.reason == "IO_ERROR"
    assert content_of(disk) == b"abc"


def test_holes_are_sparse_and_given_back(disk) -> None:
    file = disk.open("f", create=True)
    file.truncate(1 << 40)
    assert file.pread(10, 1 << 39) == bytes(10)
    file.pwritev([b"a" * 8192], 1 << 30)
    assert file.stored_bytes() == 8192
    file.punch(1 << 30, 4096)
    assert file.stored_bytes() == 4096
    assert file.size() == 1 << 40


def test_reading_past_the_end_is_an_error(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"abc"], 0)
    with pytest.raises(DataError, match="ends at byte 3"):
        file.pread(4, 0)


def test_names_and_locks(disk) -> None:
    disk.lock(shared=False)
    with pytest.raises(StateError):
        disk.lock(shared=False)
    disk.close()
    disk.lock(shared=True)
    with pytest.raises(DataError):
        disk.open("missing")
    disk.open("a", create=True)
    disk.rename("a", "b")
    assert disk.exists("b")
    assert not disk.exists("a")


def test_the_observer_is_told_after_writes_and_before_syncs(disk) -> None:
    seen = []
    disk.observer = lambda action, name: seen.append((action, name))
    file = disk.open("f", create=True)
    file.pwritev([b"a"], 0)
    file.datasync()
    assert seen == [("write", "f"), ("sync", "f")]


def test_the_medium_is_what_no_unsynced_sector_outlived() -> None:
    disk = MemoryDisk()
    file = disk.open("data", create=True)
    file.pwritev([b"a" * 5000], 0)
    file.datasync()
    file.pwritev([b"b" * 600], 100)
    file.pwritev([b"c"], 9000)
    medium, image = disk.medium(), disk.image(lambda _name, _sector: False)
    for other in (medium, image):
        there = other.open("data")
        assert there.size() == 5000
        assert there.pread(5000, 0) == b"a" * 5000
    medium.open("data").pwritev([b"d" * 5000], 0)
    assert file.pread(5000, 0) == b"a" * 100 + b"b" * 600 + b"a" * 4300

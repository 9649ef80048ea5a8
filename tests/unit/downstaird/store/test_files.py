"""A region's files in a real directory."""

from __future__ import annotations

import errno
import os
import socket
import time
import uuid
from pathlib import Path

import pytest

from downstaird.core.region import Region
from downstaird.store.files import BUFFERS_MAX, DirectoryFile, FileDisk
from stairlib.model.context import plain_contexts
from stairlib.model.errors import AlreadyExistsError, DataError, InvalidRequestError, StateError
from stairlib.model.geometry import Geometry
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
    checkpoint,
    content,
    definition_of,
    flush,
    read,
    write,
)


@pytest.fixture
def disk(tmp_path):
    disk = FileDisk(tmp_path / "region")
    disk.prepare()
    yield disk
    disk.close()


def test_bytes_come_back(disk) -> None:
    file = disk.open("f", create=True)
    parts = [bytes([index % 251]) * (index % 7) for index in range(BUFFERS_MAX * 2 + 5)]
    file.pwritev(parts, 4096)
    whole = b"".join(parts)
    assert file.pread(len(whole), 4096) == whole
    assert file.size() == 4096 + len(whole)
    assert file.pread(4096, 0) == bytes(4096)
    file.datasync()
    file.start_writeback()
    file.close()
    file.close()


def test_a_write_the_kernel_takes_in_parts_is_whole(disk, monkeypatch) -> None:
    real = os.pwritev

    def sparing(descriptor, buffers, offset):
        return real(descriptor, [b"".join(buffers)[:3]], offset)

    file = disk.open("f", create=True)
    monkeypatch.setattr(os, "pwritev", sparing)
    file.pwritev([b"abcd", b"", b"efg"], 1)
    monkeypatch.undo()
    assert file.pread(8, 0) == b"\0abcdefg"
    file.close()


@pytest.mark.parametrize("refused", [errno.EOPNOTSUPP, None])
def test_what_is_written_past_the_cache_is_there(disk, monkeypatch, refused) -> None:
    real, flags = os.pwritev, []

    def knows(descriptor, buffers, offset, flag=0):
        flags.append(flag)
        if flag and refused:
            raise OSError(refused, "not known")
        return real(descriptor, [b"".join(buffers)[:5000]], offset)

    file = disk.open("f", create=True)
    monkeypatch.setattr(os, "pwritev", knows)
    data = bytes(range(250)) * 100
    for at in (0, 50_000):
        file.write_past_cache(memoryview(data), at)
        assert file.pread(len(data), at) == data
    # One that does not know the flag is asked once.
    assert sum(map(bool, flags)) == (1 if refused else 2)
    file.close()


def test_a_medium_that_fails_below_the_cache_says_so(disk, monkeypatch) -> None:
    file = disk.open("f", create=True)

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", fails)
    monkeypatch.setattr(os, "sendfile", fails)
    with pytest.raises(DataError, match=r"could not write .*f at byte 512"):
        file.write_past_cache(memoryview(bytes(512)), 512)
    with pytest.raises(DataError, match=r"could not read .*f at byte 512"):
        file.sendfile(0, 512, 512)
    file.close()


def test_a_file_is_sent_in_what_the_socket_takes(disk) -> None:
    file = disk.open("f", create=True)
    data = os.urandom(1 << 20)
    file.pwritev([data], 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        at, full = 4096, False
        while at < len(data) and not full:
            try:
                at += file.sendfile(ours.fileno(), at, len(data) - at)
            except BlockingIOError:
                full = True
        assert full
        assert theirs.recv(at - 4096, socket.MSG_WAITALL) == data[4096:at]
        with pytest.raises(DataError, match="ends at byte"):
            file.sendfile(ours.fileno(), len(data), 1)
        theirs.close()
        with pytest.raises(BrokenPipeError):
            file.sendfile(ours.fileno(), 0, 4096)
    file.close()


def test_a_read_the_kernel_does_in_parts_is_whole(disk, monkeypatch) -> None:
    real = os.pread
    file = disk.open("f", create=True)
    file.pwritev([b"abcdefgh"], 0)
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 3), at))
    assert file.pread(8, 0) == b"abcdefgh"
    file.close()


def test_holes_take_no_space_and_can_be_made(disk) -> None:
    file = disk.open("f", create=True)
    file.truncate(1 << 30)
    assert file.stored_bytes() == 0
    file.pwritev([b"x" * 65536], 1 << 20)
    file.datasync()
    assert file.stored_bytes() >= 65536
    file.punch(1 << 20, 65536)
    assert file.pread(65536, 1 << 20) == bytes(65536)
    assert file.stored_bytes() == 0
    assert file.size() == 1 << 30
    file.close()


def test_reading_past_the_end_names_the_place(disk) -> None:
    file = disk.open("f", create=True)
    file.pwritev([b"abc"], 0)
    with pytest.raises(DataError) as short:
        file.pread(8, 1)
    assert short.value.reason == "IO_ERROR"
    assert short.value.metadata == {"file": file.name, "offset": "3"}
    file.close()


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "NO_SPACE"), (errno.EDQUOT, "NO_SPACE"), (errno.EIO, "IO_ERROR")],
)
def test_failed_calls_say_why_and_where(disk, monkeypatch, number, reason) -> None:
    def fail(*_):
        raise OSError(number, os.strerror(number))

    file = disk.open("f", create=True)
    for call, name in (
        (lambda: file.pwritev([b"x"], 9), "pwritev"),
        (lambda: file.pread(1, 9), "pread"),
        (lambda: file.datasync(), "fdatasync"),
        (lambda: file.truncate(9), "ftruncate"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(DataError) as failed:
                call()
        assert failed.value.reason == reason
        assert failed.value.metadata["file"] == file.name
        assert failed.value.metadata["offset"] == ("0" if name == "fdatasync" else "9")
    file.close()


def test_zeros_are_written_where_holes_cannot_be_made(disk, monkeypatch) -> None:
    monkeypatch.setattr("downstaird.store.files._libc", None)
    file = disk.open("f", create=True)
    file.pwritev([b"abc"], 0)
    file.punch(1, 1)
    file.start_writeback()
    assert file.pread(3, 0) == b"a\0c"
    file.close()


def test_the_lock_keeps_others_out(disk, tmp_path) -> None:
    disk.lock(shared=False)
    other = FileDisk(tmp_path / "region")
    for shared in (False, True):
        with pytest.raises(StateError) as refused:
            other.lock(shared=shared)
        assert refused.value.reason == "REGION_LOCKED"
        assert str(tmp_path / "region") in refused.value.message
    disk.close()
    other.lock(shared=True)
    third = FileDisk(tmp_path / "region")
    third.lock(shared=True)
    third.close()
    other.close()


def test_a_copy_without_a_lock_can_be_looked_at(disk, tmp_path) -> None:
    disk.lock(shared=True)
    with pytest.raises(InvalidRequestError) as refused:
        FileDisk(tmp_path / "missing").lock(shared=True)
    assert refused.value.reason == "NOT_A_REGION"


def test_files_are_named_renamed_and_missed(disk) -> None:
    disk.open("a", create=True).close()
    disk.rename("a", "b")
    disk.sync_directory()
    assert disk.exists("b")
    assert not disk.exists("a")
    for call in (lambda: disk.open("a"), lambda: disk.rename("a", "c")):
        with pytest.raises(DataError) as missing:
            call()
        assert missing.value.metadata["file"].endswith("/a")


def test_what_is_not_a_region_directory_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("missing", "file", "."):
        with pytest.raises(InvalidRequestError) as refused:
            Region.open(FileDisk(tmp_path / path))
        assert refused.value.reason == "NOT_A_REGION"
        assert str(tmp_path / path) in refused.value.message
    with pytest.raises(InvalidRequestError):
        Region.create(FileDisk(tmp_path / "file"), definition_of())


def test_a_region_lives_in_a_directory(tmp_path) -> None:
    region = Region.create(FileDisk(tmp_path / "deep" / "region"), definition_of())
    write(region, 3, content("a", 40))
    flush(region, 1)
    write(region, 5, content("b"))
    flush(region, 2)
    checkpoint(region)
    region.discard(0, 16)
    flush(region, 3)
    write(region, 40, content("unflushed"))
    with pytest.raises(AlreadyExistsError):
        Region.create(FileDisk(tmp_path / "deep" / "region"), definition_of())
    with pytest.raises(StateError):
        Region.open(FileDisk(tmp_path / "deep" / "region"))
    region.close()
    region = Region.open(FileDisk(tmp_path / "deep" / "region"), read_only=True)
    data = content("a", 40)
    assert read(region, 0, 43) == bytes(16 * BLOCK) + data[13 * BLOCK :]
    region.close()


def test_eight_gib_are_made_quickly_and_take_nothing(tmp_path) -> None:
    definition = definition_of(Geometry(4096, 16384, 128), id=uuid.uuid4())
    started = time.monotonic()
    region = Region.create(FileDisk(tmp_path / "region"), definition)
    # Milliseconds where the machine is idle; far from what zeroing would take in any case.
    assert time.monotonic() - started < 5
    assert region.stored_bytes() < 1 << 20
    data = bytes(1 << 20)
    region.write(0, plain_contexts(data, 4096), data)
    flush(region)
    assert region.stored_bytes() < 4 << 20
    region.close()


def test_a_file_knows_its_path(disk, tmp_path) -> None:
    file = disk.open("f", create=True)
    assert isinstance(file, DirectoryFile)
    assert file.name == str(tmp_path / "region" / "f")
    assert disk.name == str(tmp_path / "region")
    file.close()


def test_looking_at_a_file_says_why_it_cannot(disk, monkeypatch) -> None:
    file = disk.open("there", create=True)

    def broken(*_arguments, **_named):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fstat", broken)
    monkeypatch.setattr(Path, "is_file", broken)
    for look in (file.size, file.stored_bytes, lambda: disk.exists("there")):
        with pytest.raises(DataError, match="there") as caught:
            look()
        assert caught.value.reason == "IO_ERROR"
    monkeypatch.undo()
    file.close()

"""A region's files in a real directory.

Invariants: an flock on the file `lock` is held as long as the disk is open, so that no second
daemon can use the directory; every system call's failure leaves here as a DataError that names
file and offset.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from downstaird.core.disk import Appender
from downstaird.store.base import Buffer, busy, data_error
from stairlib.model.errors import DataError, InvalidRequestError, StateError

LOCK_NAME = "lock"
# Linux's limit on the buffers of one pwritev (IOV_MAX).
BUFFERS_MAX = 1024

# What a file's medium can answer to a sendfile; all else it answers is of the socket.
_READ_FAILURES = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA})
# From linux/fs.h; Linux has it from 6.14 on, each file system from a version of its own.
_RWF_DONTCACHE = 0x80
_UNKNOWN_FLAG = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_SYNC_FILE_RANGE_WRITE = 2
_STAT_BLOCK_BYTES = 512
_FICLONERANGE = 0x4020940D
# struct file_clone_range: source, its offset, length, offset.
_CLONE_RANGE = struct.Struct("qQQQ")
# struct flock: type, whence, start, length, process (zero: the lock is the open file's).
_FLOCK = struct.Struct("hh4xqqi4x")

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class DirectoryFile:
    """One file of a FileDisk."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._past_cache = True
        self._appended_at = 0

    @property
    def name(self) -> str:
        """The path, as errors name it."""
        return str(self._path)

    @property
    def descriptor(self) -> int:
        """For system calls that take two files."""
        return self._descriptor

    def size(self) -> int:
        """Bytes, holes included."""
        return self._stat().st_size

    def _stat(self) -> os.stat_result:
        try:
            return os.fstat(self._descriptor)
        except OSError as error:
            # xfs says so of a file system that it has shut down.
            raise data_error("look at", self.name, 0, error) from error

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly `size` bytes."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise data_error("read", self.name, offset, error) from error
        if len(data) == size:
            return data
        return self._pread_rest(data, size, offset)

    def _pread_rest(self, data: bytes, size: int, offset: int) -> bytes:
        """One read returns at most 2 GiB, and less at the end of the file."""
        parts = [data]
        have = len(data)
        while have < size:
            try:
                part = os.pread(self._descriptor, size - have, offset + have)
            except OSError as error:
                raise data_error("read", self.name, offset + have, error) from error
            if not part:
                raise self._ended(offset + have, size - have)
            parts.append(part)
            have += len(part)
        return b"".join(parts)

    def sendfile(self, descriptor: int, offset: int, size: int) -> int:
        """sendfile: the kernel hands over pages, nothing is copied here."""
        try:
            sent = os.sendfile(descriptor, self._descriptor, offset, size)
        except OSError as error:
            if error.errno in _READ_FAILURES:
                raise data_error("read", self.name, offset, error) from error
            raise
        if not sent:
            raise self._ended(offset, size)
        return sent

    def _ended(self, offset: int, missing: int) -> DataError:
        return DataError(
            f"{self.name} ends at byte {offset}, {missing} bytes short of what is recorded in it",
            reason="IO_ERROR",
            file=self.name,
            offset=str(offset),
        )

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Writes all of them, however often the kernel takes only a part."""
        for start in range(0, len(buffers), BUFFERS_MAX):
            offset = self._pwritev_some(buffers[start : start + BUFFERS_MAX], offset)

    def write_past_cache(self, data: Buffer, offset: int) -> None:
        """By RWF_DONTCACHE, where kernel and file system know it: written out at once, its pages
        free again after that."""
        view, done = memoryview(data), 0
        if self._past_cache:
            try:
                done = os.pwritev(self._descriptor, [view], offset, _RWF_DONTCACHE)
            except OSError as error:
                if error.errno not in _UNKNOWN_FLAG:
                    raise data_error("write", self.name, offset, error) from error
                self._past_cache = False
        if done < len(view):
            self.pwritev([view[done:]], offset + done)
            self.start_writeback()

    def _pwritev_some(self, buffers: Sequence[Buffer], offset: int) -> int:
        total = sum(map(len, buffers))
        written = 0
        while True:
            try:
                written += os.pwritev(self._descriptor, buffers, offset + written)
            except OSError as error:
                raise data_error("write", self.name, offset + written, error) from error
            if written == total:
                return offset + total
            whole = memoryview(b"".join(buffers))
            buffers = [whole[len(whole) - (total - written) :]]

    def datasync(self) -> None:
        """fdatasync."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise data_error("sync", self.name, 0, error) from error

    def begin_append(
        self, front: Buffer, data: Buffer, end: Buffer, offset: int, appender: Appender
    ) -> None:
        """By the appender's thread."""
        self._appended_at = offset
        appender.begin(self._descriptor, front, data, end, offset)

    def end_append(self, appender: Appender) -> None:
        """Raises as `pwritev` and `datasync` do."""
        failure, syncing = appender.outcome
        if failure:
            error = OSError(failure, os.strerror(failure))
            if syncing:
                raise data_error("sync", self.name, 0, error)
            raise data_error("write", self.name, self._appended_at, error)

    def start_writeback(self) -> None:
        """sync_file_range without waiting; its result does not matter, as `datasync` follows."""
        if _libc is not None:
            nothing = ctypes.c_int64(0)
            _libc.sync_file_range(self._descriptor, nothing, nothing, _SYNC_FILE_RANGE_WRITE)

    def truncate(self, size: int) -> None:
        """Sets the size."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise data_error("resize", self.name, size, error) from error

    def punch(self, offset: int, length: int) -> None:
        """FALLOC_FL_PUNCH_HOLE; zeros are written where the file system cannot punch."""
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _libc is not None:
            result = _libc.fallocate(
                self._descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)
            )
            if result == 0:
                return
        self.pwritev([bytes(length)], offset)

    def stored_bytes(self) -> int:
        """What stat counts."""
        return self._stat().st_blocks * _STAT_BLOCK_BYTES

    def close(self) -> None:
        """Closes the descriptor; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def share_range(
    source: DirectoryFile, start: int, target: DirectoryFile, offset: int, length: int
) -> bool:
    """Makes a range of one file that of another too, without copying. False where the file system
    cannot, or the files are on two."""
    what = _CLONE_RANGE.pack(source.descriptor, start, length, offset)
    try:
        fcntl.ioctl(target.descriptor, _FICLONERANGE, what)
    except OSError:
        # What stops it may be the request's form, the medium or anything else: a copy says which.
        return False
    return True


class FileHold:
    """A lock on one byte, of an open file of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Closes the descriptor, and so lets go; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileDisk:
    """The directory `path`. Made by `prepare`; locked by `lock` until `close`."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = -1

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    def prepare(self) -> None:
        """Makes the directory and its parents."""
        try:
            if not self._path.is_dir():
                self._path.mkdir(parents=True, exist_ok=True)
                _sync_directory(self._path.parent)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidRequestError(
                f"{self._path} is not a directory: name one, or a path that does not exist yet",
                reason="NOT_A_REGION",
                path=self.name,
            ) from error
        except OSError as error:
            raise data_error("make directory", self.name, 0, error) from error

    def lock(self, *, shared: bool) -> None:
        """Takes the flock. A directory that does not exist is no region."""
        flags = os.O_CLOEXEC | (os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT)
        try:
            descriptor = os.open(self._path / LOCK_NAME, flags, 0o644)
        except (FileNotFoundError, NotADirectoryError) as error:
            if shared and self._path.is_dir():
                # A copy of a region, that no daemon has ever opened: nobody is to be kept out.
                return
            raise InvalidRequestError(
                f"{self._path} is not a region directory: create it with 'downstaird create'",
                reason="NOT_A_REGION",
                path=self.name,
            ) from error
        except OSError as error:
            raise data_error("lock", str(self._path / LOCK_NAME), 0, error) from error
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StateError(
                f"the region in {self._path} is in use by another process: stop that one first",
                reason="REGION_LOCKED",
                path=self.name,
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise data_error("lock", str(self._path / LOCK_NAME), 0, error) from error
        self._lock = descriptor

    def hold(self, name: str, byte: int, *, shared: bool) -> FileHold:
        """An open file description lock on the byte, which need not exist."""
        path = self._path / name
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        try:
            descriptor = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if shared else os.O_RDWR))
        except OSError as error:
            raise data_error("lock", str(path), byte, error) from error
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except BlockingIOError as error:
            os.close(descriptor)
            raise busy(str(path)) from error
        except OSError as error:
            os.close(descriptor)
            raise data_error("lock", str(path), byte, error) from error
        return FileHold(descriptor)

    def exists(self, name: str) -> bool:
        """Whether the directory has that file."""
        path = self._path / name
        try:
            return path.is_file()
        except OSError as error:
            raise data_error("look at", str(path), 0, error) from error

    def open(self, name: str, *, create: bool = False, read_only: bool = False) -> DirectoryFile:
        """Opens, or with `create` makes or empties, one file."""
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        if create:
            flags |= os.O_CREAT | os.O_TRUNC
        path = self._path / name
        try:
            return DirectoryFile(path, os.open(path, flags, 0o644))
        except OSError as error:
            raise data_error("open", str(path), 0, error) from error

    def rename(self, old: str, new: str) -> None:
        """rename(2)."""
        try:
            os.replace(self._path / old, self._path / new)
        except OSError as error:
            raise data_error("rename", str(self._path / old), 0, error) from error

    def sync_directory(self) -> None:
        """fsync of the directory."""
        try:
            _sync_directory(self._path)
        except OSError as error:
            raise data_error("sync", self.name, 0, error) from error

    def close(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = -1


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A backend on a file or block device of the host, through a pool of threads.

Each batch is spread over the pool; its completions come back to the loop together per thread. Every
block of a file counts as written: WRITE_UNWRITTEN is UNSUPPORTED.
Invariant: the file's size is fixed when it is opened; a part smaller than a block is not offered.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stairlib.model.errors import (
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from vmmd.block.backend import READS, BackendInfo, BlockOp, BlockStatus, Completion, Done, Request

DEFAULT_BLOCK_SIZE = 512
DEFAULT_WORKERS = 8
WORKERS_MAX = 32
_FALLOC_KEEP_SIZE = 0x01
_FALLOC_PUNCH_HOLE = 0x02
# Of one ALLOCATION: blocks told of, and stretches of data looked for.
_TOLD_BLOCKS_MAX = 1 << 20
_STRETCHES_MAX = 512


class FileBackend:
    """`path` as `block_size`-byte blocks. Use on one asyncio loop; `close` at the end.

    With `lock`, nobody who locks it too may write beside others: StateError FILE_IN_USE.
    NotFoundError when there is no such file, UnavailableError when it cannot be opened as asked,
    InvalidRequestError for a block size that is none or a file smaller than a block. `size` is the
    file's in bytes; `failed` and `last_error` tell of requests the host refused.
    """

    kind = "file"

    def __init__(
        self,
        path: Path | str,
        *,
        block_size: int = DEFAULT_BLOCK_SIZE,
        read_only: bool = False,
        workers: int = DEFAULT_WORKERS,
        lock: bool = False,
    ) -> None:
        _check_block_size(block_size)
        self._workers = max(1, min(workers, WORKERS_MAX))
        flags = os.O_RDONLY if read_only else os.O_RDWR
        try:
            self._descriptor = os.open(path, flags | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError("file", str(path)) from error
        except OSError as error:
            raise UnavailableError(
                f"{path} cannot be opened: {error.strerror}",
                reason="FILE_NOT_OPENED",
                path=str(path),
            ) from error
        if not _holds_blocks(self._descriptor):
            os.close(self._descriptor)
            text = f"{path} is neither a file nor a block device"
            raise InvalidRequestError(text, (FieldViolation("path", text),), reason="NOT_A_FILE")
        if lock:
            _lock(self._descriptor, path, read_only=read_only)
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        if size < block_size:
            os.close(self._descriptor)
            text = f"{path} has {size} bytes: less than one block of {block_size}"
            raise InvalidRequestError(
                text, (FieldViolation("path", text),), reason="FILE_TOO_SMALL"
            )
        self.size = size
        self.failed = 0
        self.last_error = ""
        self._info = BackendInfo(block_size, size // block_size, read_only, supports_discard=True)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="file-backend")
        self._closed = False

    @property
    def info(self) -> BackendInfo:
        """What a device tells its guest."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As Backend.submit."""
        if self._closed:
            done([Completion(request.token, BlockStatus.ABORTED) for request in batch])
            return
        loop = asyncio.get_running_loop()
        lanes = min(self._workers, len(batch))
        for lane in range(lanes):
            share = list(batch[lane::lanes])
            future = self._pool.submit(self._execute_all, share)
            future.add_done_callback(partial(_hand_over, loop, done))

    def close(self) -> None:
        """Waits for what is in flight, then closes the file."""
        self._closed = True
        self._pool.shutdown(wait=True)
        os.close(self._descriptor)

    def _execute_all(self, share: list[Request]) -> list[Completion]:
        return [self._execute(request) for request in share]

    def _execute(self, request: Request) -> Completion:
        info = self._info
        op, token, offset, length, data = request
        if op is not BlockOp.FLUSH and (offset < 0 or offset + length > info.block_count):
            return Completion(token, BlockStatus.OUT_OF_RANGE)
        if op is BlockOp.WRITE_UNWRITTEN:
            return Completion(token, BlockStatus.UNSUPPORTED)
        if op in (BlockOp.WRITE, BlockOp.DISCARD) and info.read_only:
            return Completion(token, BlockStatus.READ_ONLY)
        start, size = offset * info.block_size, length * info.block_size
        try:
            if op in READS:
                content = os.pread(self._descriptor, size, start)
                if len(content) != size:
                    self._note(f"READ at byte {start}: the file is shorter than it was")
                    return Completion(token, BlockStatus.FAILED)
                if op is BlockOp.READ:
                    return Completion(token, BlockStatus.OK, content)
                return Completion(token, BlockStatus.OK, content, np.ones(length, dtype=np.bool_))
            if op is BlockOp.ALLOCATION:
                return Completion(token, BlockStatus.OK, None, self._allocation(offset, length))
            if op is BlockOp.WRITE:
                if data is None or len(data) != size:
                    return Completion(token, BlockStatus.FAILED)
                _write_all(self._descriptor, memoryview(data), start)
            elif op is BlockOp.FLUSH:
                os.fdatasync(self._descriptor)
            else:
                return Completion(token, _punch_hole(self._descriptor, start, size))
        except OSError as error:
            self._note(f"{op.name} at byte {start}: {error.strerror}")
            return Completion(token, BlockStatus.FAILED)
        return Completion(token, BlockStatus.OK)

    def _allocation(self, offset: int, length: int) -> npt.NDArray[np.bool_]:
        """Of the blocks from `offset` on. A block that holes cover only in part counts as held, and
        so does every block where the filesystem tells of no holes."""
        size = self._info.block_size
        length = min(length, _TOLD_BLOCKS_MAX)
        held = np.zeros(length, dtype=np.bool_)
        start, end = offset * size, (offset + length) * size
        at = start
        for _ in range(_STRETCHES_MAX):
            try:
                first = os.lseek(self._descriptor, at, os.SEEK_DATA)
                at = os.lseek(self._descriptor, min(first, end), os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return held
                return np.ones(length, dtype=np.bool_)
            if first >= end:
                return held
            held[(first - start) // size : -(-(at - start) // size)] = True
            if at >= end:
                return held
        return held[: (at - start) // size]

    def _note(self, error: str) -> None:
        self.failed += 1
        self.last_error = error


def _check_block_size(block_size: int) -> None:
    if not 512 <= block_size <= 32768 or block_size & (block_size - 1):
        text = f"{block_size} is not a power of two from 512 to 32768"
        raise InvalidRequestError(text, (FieldViolation("block_size", text),))


def _holds_blocks(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _lock(descriptor: int, path: Path | str, *, read_only: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_NB | (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX))
    except OSError as error:
        os.close(descriptor)
        raise StateError(
            f"{path} is in use by another disk: it takes one that writes, or any number that only "
            "read",
            reason="FILE_IN_USE",
            path=str(path),
        ) from error


def _hand_over(
    loop: asyncio.AbstractEventLoop, done: Done, future: Future[list[Completion]]
) -> None:
    completions = future.result()
    # A loop that is closed has nobody left to tell.
    if not loop.is_closed():
        loop.call_soon_threadsafe(done, completions)


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    while len(data):
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written


def _punch_hole(descriptor: int, start: int, size: int) -> BlockStatus:
    """Gives the space back where the filesystem can."""
    fallocate = getattr(_LIBC, "fallocate64", None)
    if fallocate is None:
        return BlockStatus.UNSUPPORTED
    mode = _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE
    result = fallocate(descriptor, mode, ctypes.c_int64(start), ctypes.c_int64(size))
    return BlockStatus.OK if result == 0 else BlockStatus.UNSUPPORTED


_LIBC = ctypes.CDLL(None, use_errno=True)

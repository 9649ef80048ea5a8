"""A backend in memory: for tests, and for machines whose disks need not last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Done, Request


class MemoryBackend:
    """`block_count` blocks of zeros. Completes inside `submit`, in order.

    Every block counts as written: WRITE_UNWRITTEN is UNSUPPORTED.
    """

    def __init__(self, block_size: int, block_count: int, *, read_only: bool = False) -> None:
        self._info = BackendInfo(block_size, block_count, read_only, supports_discard=True)
        self.content = bytearray(block_size * block_count)

    @property
    def info(self) -> BackendInfo:
        """What a device tells its guest."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As Backend.submit."""
        done([self._execute(request) for request in batch])

    def _execute(self, request: Request) -> Completion:
        op, token, offset, length, data = request
        if op is BlockOp.FLUSH:
            return Completion(token, BlockStatus.OK)
        if offset < 0 or length < 0 or offset + length > self._info.block_count:
            return Completion(token, BlockStatus.OUT_OF_RANGE)
        size = self._info.block_size
        place = slice(offset * size, (offset + length) * size)
        if op is BlockOp.READ:
            return Completion(token, BlockStatus.OK, bytes(memoryview(self.content)[place]))
        if op is BlockOp.READ_OWNED:
            content = bytes(memoryview(self.content)[place])
            return Completion(token, BlockStatus.OK, content, np.ones(length, dtype=np.bool_))
        if op is BlockOp.ALLOCATION:
            return Completion(token, BlockStatus.OK, None, np.ones(length, dtype=np.bool_))
        if op is BlockOp.WRITE_UNWRITTEN:
            return Completion(token, BlockStatus.UNSUPPORTED)
        if self._info.read_only:
            return Completion(token, BlockStatus.READ_ONLY)
        if op is BlockOp.DISCARD:
            self.content[place] = bytes(length * size)
        else:
            if data is None or len(data) != length * size:
                return Completion(token, BlockStatus.FAILED)
            self.content[place] = data
        return Completion(token, BlockStatus.OK)

"""An NBD request at work: its pieces at the backend, and what its reply will be. Pure.

Requests above a mebibyte go in pieces, a few at a time; FUA is a flush once all pieces are done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Request
from vmmd.block.nbd_transmission import NbdRequest
from vmmd.block.pieces import (
    DISCARD_PIECE_BYTES,
    PIECES_IN_FLIGHT,
    TRANSFER_PIECE_BYTES,
    ZEROES,
    split,
)

_ERRORS = {
    BlockStatus.OK: wire.Error.OK,
    BlockStatus.FAILED: wire.Error.EIO,
    BlockStatus.READ_ONLY: wire.Error.EPERM,
    BlockStatus.UNSUPPORTED: wire.Error.ENOTSUP,
    BlockStatus.OUT_OF_RANGE: wire.Error.EINVAL,
    BlockStatus.ABORTED: wire.Error.ESHUTDOWN,
    BlockStatus.BUSY: wire.Error.EIO,
}


def error_of(status: BlockStatus) -> wire.Error:
    """What a request that ended so is answered."""
    return _ERRORS[status]


_UNCHANGING = (wire.Command.READ, wire.Command.FLUSH, wire.Command.BLOCK_STATUS)


class NbdJob:
    """One request that passed `check_request`. Tokens of its backend requests are (job, byte
    offset in the request)."""

    __slots__ = ("_flush_due", "_pieces", "data", "error", "held", "outstanding", "request")

    def __init__(self, request: NbdRequest, info: BackendInfo) -> None:
        self.request = request
        self.error: int = wire.Error.OK
        self.outstanding = 0
        self.data: bytes | bytearray = b""
        # Of a BLOCK_STATUS.
        self.held: npt.NDArray[np.bool_] | None = None
        changing = request.command not in _UNCHANGING
        self._flush_due = changing and bool(request.flags & wire.COMMAND_FUA)
        self._pieces = self._split(info.block_size)

    @property
    def bytes_held(self) -> int:
        """Bytes of data it keeps in memory."""
        if self.request.command in (wire.Command.READ, wire.Command.WRITE):
            return self.request.length
        return 0

    def begin(self) -> list[Request]:
        """The first requests for the backend; never empty."""
        return self._more(PIECES_IN_FLIGHT)

    def completed(self, offset: int, completion: Completion) -> list[Request]:
        """Takes one completion and returns what goes to the backend next.

        The job is over when that is nothing and `outstanding` is 0.
        """
        self.outstanding -= 1
        assert self.outstanding >= 0
        if completion.status is not BlockStatus.OK:
            self.error = self.error or _ERRORS[completion.status]
            self._pieces = iter(())
            self._flush_due = False
        elif self.request.command == wire.Command.READ:
            self._take_data(offset, completion.data)
        elif self.request.command == wire.Command.BLOCK_STATUS:
            assert completion.owned is not None
            self.held = completion.owned.copy()
        further = self._more(1)
        if not further and self.outstanding == 0 and self._flush_due:
            self._flush_due = False
            self.outstanding = 1
            return [Request(BlockOp.FLUSH, (self, 0))]
        return further

    def _more(self, count: int) -> list[Request]:
        requests = list(islice(self._pieces, count))
        self.outstanding += len(requests)
        return requests

    def _take_data(self, offset: int, data: bytes | bytearray | memoryview | None) -> None:
        """Data is only lent until the completion callback returns, unless it is immutable."""
        length = self.request.length
        if data is None:
            self.error = self.error or wire.Error.EIO
        elif len(data) == length:
            self.data = data if isinstance(data, bytes) else bytes(data)
        else:
            if not isinstance(self.data, bytearray):
                self.data = bytearray(length)
            self.data[offset : offset + len(data)] = data

    def _split(self, block_size: int) -> Iterator[Request]:
        request = self.request
        command = request.command
        if command == wire.Command.FLUSH:
            yield Request(BlockOp.FLUSH, (self, 0))
            return
        if command == wire.Command.BLOCK_STATUS:
            first, count = request.offset // block_size, request.length // block_size
            yield Request(BlockOp.ALLOCATION, (self, 0), first, count)
            return
        trim = command == wire.Command.TRIM
        payload = memoryview(request.payload) if request.payload is not None else None
        step = DISCARD_PIECE_BYTES if trim else TRANSFER_PIECE_BYTES
        for start, length in split(0, request.length, step):
            token = (self, start)
            first, count = (request.offset + start) // block_size, length // block_size
            if command == wire.Command.READ:
                yield Request(BlockOp.READ, token, first, count)
            elif trim:
                yield Request(BlockOp.DISCARD, token, first, count)
            elif length == request.length and isinstance(request.payload, bytes):
                yield Request(BlockOp.WRITE, token, first, count, request.payload)
            elif payload is not None:
                data = payload[start : start + length]
                yield Request(BlockOp.WRITE, token, first, count, data)
            else:
                yield Request(BlockOp.WRITE, token, first, count, ZEROES[:length])

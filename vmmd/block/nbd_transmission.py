"""NBD transmission, server side: requests out of bytes, replies into bytes. Knows no sockets.

Bytes are received in place: `target` says where the next ones go, `received` how many came. A large
write's payload is received straight into the buffer that is then written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stairlib import native
from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BackendInfo
from vmmd.block.pieces import TRANSFER_PIECE_BYTES
from vmmd.block.request_run import Run

_STAGING_BYTES = 256 << 10


class NbdRequest(NamedTuple):
    """One request. `payload` only of a WRITE. Offset and length in bytes."""

    flags: int
    command: int
    handle: int
    offset: int
    length: int
    payload: bytes | bytearray | None


class NbdProtocolError(Exception):
    """The client does not speak the protocol: there is nothing to do but hang up."""


class RequestParser:
    """Cuts a client's bytes into requests. Holds at most one payload and one staging buffer."""

    def __init__(self) -> None:
        self._staging = bytearray(_STAGING_BYTES)
        self._start = 0
        self._end = 0
        self._header: tuple[int, int, int, int, int] | None = None
        # Of the write whose header was taken: its data, and where it goes.
        self._payload: bytes | bytearray = b""
        self._room = memoryview(b"")
        self._filled = 0

    def push(self, data: bytes) -> None:
        """Takes bytes that were received elsewhere."""
        while data:
            target = self.target()
            count = min(len(data), len(target))
            target[:count] = data[:count]
            self.received(count)
            data = data[count:]

    def target(self) -> memoryview:
        """Where the next bytes go; never empty, valid until `received`."""
        if self._header is not None and self._filled < len(self._payload):
            return self._room[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._staging):
            # A new array: whoever still holds a view of the old one keeps it.
            kept = self._staging[self._start : self._end]
            self._staging = kept + bytearray(max(_STAGING_BYTES - len(kept), _STAGING_BYTES // 4))
            self._start, self._end = 0, len(kept)
        return memoryview(self._staging)[self._end :]

    @property
    def empty(self) -> bool:
        """Nothing was received that is not taken."""
        return self._header is None and self._start == self._end

    def received(self, count: int) -> None:
        """`count` bytes were put into the last `target`."""
        if self._header is not None and self._filled < len(self._payload):
            self._filled += count
            assert self._filled <= len(self._payload)
        else:
            self._end += count
            assert self._end <= len(self._staging)

    def runs(self, info: BackendInfo, room: int, bytes_room: int) -> list[Run]:
        """The requests that come next and are whole, as far as they are plain reads and writes
        (compiled code alone knows them): `room` at most, begun within `bytes_room`."""
        if self._header is not None or self._start == self._end:
            return []
        used, reads, writes = native.requests(
            Run,
            self._staging,
            self._start,
            self._end,
            info.block_size,
            info.block_count,
            room,
            bytes_room,
            TRANSFER_PIECE_BYTES,
            info.read_only,
        )
        self._start += used
        return [run for run in (writes, reads) if run is not None]

    def next_request(self) -> NbdRequest | None:
        """The next whole request, or None; NbdProtocolError when there cannot be one."""
        if self._header is None and not self._take_header():
            return None
        assert self._header is not None
        flags, command, handle, offset, length = self._header
        if command != wire.Command.WRITE:
            self._header = None
            return NbdRequest(flags, command, handle, offset, length, None)
        if self._filled < length:
            return None
        payload, self._payload, self._room = self._payload, b"", memoryview(b"")
        self._header = None
        return NbdRequest(flags, command, handle, offset, length, payload)

    def _take_header(self) -> bool:
        available = self._end - self._start
        if available < wire.REQUEST.size:
            return False
        magic, *fields = wire.REQUEST.unpack_from(self._staging, self._start)
        if magic != wire.REQUEST_MAGIC:
            raise NbdProtocolError(f"a request starts with {magic:#010x}")
        self._start += wire.REQUEST.size
        flags, command, handle, offset, length = fields
        self._header = (flags, command, handle, offset, length)
        if command == wire.Command.WRITE:
            if length > wire.REQUEST_BYTES_MAX:
                raise NbdProtocolError(f"a write of {length} bytes")
            here = min(length, self._end - self._start)
            if native.compiled:
                # Neither zeroed first, nor copied when it is sent: nobody can change it any more.
                self._payload, self._room = native.new_bytes(length)
            else:
                self._payload = bytearray(length)
                self._room = memoryview(self._payload)
            self._room[:here] = memoryview(self._staging)[self._start : self._start + here]
            self._filled = here
            self._start += here
        return True


_FLAGS_OF = {
    wire.Command.READ: wire.COMMAND_FUA | wire.COMMAND_DF,
    wire.Command.WRITE: wire.COMMAND_FUA,
    wire.Command.FLUSH: wire.COMMAND_FUA,
    wire.Command.TRIM: wire.COMMAND_FUA,
    wire.Command.WRITE_ZEROES: wire.COMMAND_FUA | wire.COMMAND_NO_HOLE,
    wire.Command.BLOCK_STATUS: wire.COMMAND_FUA | wire.COMMAND_REQ_ONE,
}
_CHANGING = (wire.Command.WRITE, wire.Command.TRIM, wire.Command.WRITE_ZEROES)


def check_request(request: NbdRequest, info: BackendInfo) -> wire.Error:
    """OK, or the error a request is refused with before anything is done."""
    command = request.command
    if command not in _FLAGS_OF or request.flags & ~_FLAGS_OF[wire.Command(command)]:
        return wire.Error.EINVAL
    if command == wire.Command.FLUSH:
        return wire.Error.EINVAL if request.offset or request.length else wire.Error.OK
    if command in _CHANGING and info.read_only:
        return wire.Error.EPERM
    if command == wire.Command.TRIM and not info.supports_discard:
        return wire.Error.ENOTSUP
    if request.length == 0 or (request.offset | request.length) & (info.block_size - 1):
        return wire.Error.EINVAL
    if request.offset + request.length > info.total_bytes:
        return wire.Error.ENOSPC if command in _CHANGING else wire.Error.EINVAL
    if command == wire.Command.READ and request.length > wire.REQUEST_BYTES_MAX:
        return wire.Error.EINVAL
    return wire.Error.OK


def simple_reply(handle: int, error: int) -> bytes:
    """The reply to anything but a READ with structured replies; data follows on its own."""
    return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, handle)


def data_chunk(handle: int, offset: int, length: int) -> bytes:
    """What precedes the data of a READ answered in one chunk."""
    header = wire.STRUCTURED_REPLY.pack(
        wire.STRUCTURED_REPLY_MAGIC,
        wire.CHUNK_DONE,
        wire.CHUNK_OFFSET_DATA,
        handle,
        wire.CHUNK_OFFSET.size + length,
    )
    return header + wire.CHUNK_OFFSET.pack(offset)


def status_chunk(handle: int, held: npt.NDArray[np.bool_], block_size: int, *, one: bool) -> bytes:
    """The answer to a BLOCK_STATUS: stretches of data and of holes, or only the first `one`.
    `held`, at least one block, tells from the request's offset on which may be other than zero."""
    starts = np.concatenate(([0], np.flatnonzero(held[1:] != held[:-1]) + 1))
    extents = np.empty(len(starts), dtype=wire.EXTENT)
    extents["length"] = np.diff(starts, append=len(held)) * block_size
    extents["flags"] = np.where(held[starts], 0, wire.STATE_HOLE | wire.STATE_ZERO)
    body = wire.CHUNK_CONTEXT.pack(wire.ALLOCATION_CONTEXT_ID)
    body += extents[:1].tobytes() if one else extents.tobytes()
    header = wire.STRUCTURED_REPLY.pack(
        wire.STRUCTURED_REPLY_MAGIC,
        wire.CHUNK_DONE,
        wire.CHUNK_BLOCK_STATUS,
        handle,
        len(body),
    )
    return header + body


def error_chunk(handle: int, error: int) -> bytes:
    """A READ or BLOCK_STATUS that failed, with structured replies."""
    header = wire.STRUCTURED_REPLY.pack(
        wire.STRUCTURED_REPLY_MAGIC,
        wire.CHUNK_DONE,
        wire.CHUNK_ERROR_TYPE,
        handle,
        wire.CHUNK_ERROR.size,
    )
    return header + wire.CHUNK_ERROR.pack(error, 0)

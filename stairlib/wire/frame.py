"""The data connection's frames: one codec, whatever carries the bytes.

A frame holds everything that arrived in one turn of the sender's loop. All integers are little
endian.

    header   40 bytes, see HEADER
    ops      op_count entries of OP (48 bytes)
    deps     dependency_count u64 job ids: those of the first op, then of the second, ...
    blobs    blob_bytes: each op's blob in turn (snapshot names, addresses, error texts),
    zero-padded to 8 contexts context_count entries of 32 bytes, in op order
    payload  payload_bytes: block data in op order

Which ops carry contexts and payload: WRITE and WRITE_UNWRITTEN in a request; READ with status OK
in a reply (`length` contexts and `length` blocks). EXTENT_STATES and EXTENT_DIGEST replies carry
their arrays as payload. A block context is four u64 (see stairlib.model.context). Nothing here
knows sockets or roles.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stairlib import native

MAGIC = 0x31465753  # "SWF1"
DATA_VERSION = 2
HEADER = struct.Struct("<IHHIIIIIIQ")
HEADER_BYTES = HEADER.size
CONTEXT_BYTES = 32

# A frame's payload stays below this, so that neither end ever buffers more than one of them per
# connection and a large request cannot hold up small ones for long (1 MiB guest requests, four of
# them in a turn).
PAYLOAD_BYTES_MAX = 4 << 20
# Payload, plus contexts and table for the smallest block size (512 bytes), plus blobs.
FRAME_BYTES_MAX = PAYLOAD_BYTES_MAX + (PAYLOAD_BYTES_MAX // 512) * (CONTEXT_BYTES + 48) + (1 << 20)
OPS_MAX = 4096
# Of a peer's words in a message.
TEXT_BYTES_MAX = 1024


class FrameKind(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1  # client, first: blob = a token, of a session or of a repair's block connection
    WELCOME = 2  # server's answer to HELLO
    REQUEST = 3
    REPLY = 4
    PING = 5
    PONG = 6
    NOTICE = 7  # server: the session has ended; blob of a single op = the reason


class OpKind(enum.IntEnum):
    """What an op asks. `offset` and `length` are in blocks unless said otherwise."""

    READ = 1
    WRITE = 2
    WRITE_UNWRITTEN = 3
    DISCARD = 4
    FLUSH = 5  # number = flush number, generation = generation; blob = name of a snapshot
    NOOP = 6
    EXTENT_STATES = 7  # reply payload: per extent generation u64, flush u64, flags u64
    EXTENT_DIGEST = 8  # offset = first extent, length = extents; reply payload: u64 per extent
    REPAIR_BEGIN = 9  # blob = an EXTENT_MARK each; the marks are durable before the reply
    EXTENT_COPY = 10  # offset = extent, blob = CopySource JSON; reply number = bytes copied
    REPAIR_END = 11  # refused while an extent is still marked incomplete
    # number = bytes per second of all copies together, length = copies at once; 0 = none. The reply
    # repeats them; its offset = bytes that the session's copies have moved so far
    REPAIR_LIMIT = 12
    COPY_CHECK = 13  # as an EXTENT_COPY that changes nothing: would it go well?


# A FLUSH's `flags`: marks of incomplete extents stay, whatever was copied into them so far. What
# was copied may be newer than this flush; only one sent after the copies were answered covers it on
# every member alike. A flush without the flag clears the marks of the extents copied by then.
FLUSH_KEEPS_MARKS = 1
# Another FLUSH comes right behind on the connection, with nothing but writes, discards and such
# flushes before it: what this one covers may be made durable by that one's sync, and is answered
# then. It is stamped with its own number all the same. A daemon that flushes at once does right.
FLUSH_WITH_NEXT = 2


class OpStatus(enum.IntEnum):
    """How an op ended; anything but OK may carry a text as its blob."""

    OK = 0
    IO_ERROR = 1
    OUT_OF_RANGE = 2
    HASH_MISMATCH = 3
    READ_ONLY = 4
    NOT_ACTIVE = 5
    EXTENT_FAULTED = 6
    BAD_REQUEST = 7
    NO_SPACE = 8
    REPAIR_SOURCE = 9  # the copy's source could not be reached or refused
    ABORTED = 10
    SNAPSHOT_FAILED = 11  # the flush is done and durable, its snapshot was not taken
    SOURCE_DAMAGED = 12  # the copy's source has not what it says, in a block that is needed here


OP = np.dtype(
    [
        ("job", "<u8"),
        ("kind", "u1"),
        ("status", "u1"),
        ("flags", "<u2"),
        ("dependency_count", "<u4"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("blob_bytes", "<u4"),
        ("generation", "<u8"),
        ("number", "<u8"),
    ]
)
OP_BYTES = OP.itemsize
assert OP_BYTES == 48
_OP_STRUCT = struct.Struct("<QBBHIQIIQQ")
assert _OP_STRUCT.size == OP_BYTES
_OP_FLAGS = struct.Struct("<H")
# Of the first op of a frame.
_OP_FLAGS_AT = HEADER_BYTES + 10

# One extent of a REPAIR_BEGIN, and the stamp of the copy it is going to be filled from, or a lower
# bound of it; `told` is 0 where that is not known, else 1. It is kept with the mark: no older copy
# may stand in, should that one be lost meanwhile.
EXTENT_MARK = np.dtype(
    [("extent", "<u4"), ("told", "<u4"), ("generation", "<u8"), ("flush", "<u8")]
)

# The flags of an extent, in the reply to EXTENT_STATES and in a region's files. TOWARDS is told of
# an incomplete one: its stamp is that of the copy it is being filled from. Without it, that one was
# not told, and the extent's own stamp says nothing.
FLAG_DIRTY = 1
FLAG_INCOMPLETE = 2
FLAG_FAULTED = 4
FLAG_TOWARDS = 8

_KINDS = {kind.value: kind for kind in FrameKind}
_U64 = np.dtype("<u8")
# Up to so many entries are added up one by one: calling numpy twice takes longer.
_FEW_OPS = 16

OpArray = npt.NDArray[np.void]
Bytes = bytes | bytearray | memoryview


class FrameError(ValueError):
    """The peer sent bytes that are not a frame: the connection is to be ended."""


def extent_marks(
    extents: npt.ArrayLike,
    generations: npt.ArrayLike = 0,
    flushes: npt.ArrayLike = 0,
    told: npt.ArrayLike = False,
) -> npt.NDArray[np.void]:
    """EXTENT_MARKs of these extents; single values stand for all of them."""
    numbers = np.asarray(extents)
    table = np.zeros(len(numbers), dtype=EXTENT_MARK)
    table["extent"] = numbers
    table["told"], table["generation"], table["flush"] = told, generations, flushes
    return table


def pack_op(
    job: int,
    kind: int,
    *,
    offset: int = 0,
    length: int = 0,
    status: int = 0,
    generation: int = 0,
    number: int = 0,
    dependency_count: int = 0,
    blob_bytes: int = 0,
    flags: int = 0,
) -> bytes:
    """One table entry. Four times quicker than filling a numpy record, for small batches."""
    return _OP_STRUCT.pack(
        job, kind, status, flags, dependency_count, offset, length, blob_bytes, generation, number
    )


def done_behind(kept: Sequence[Bytes], jobs: Sequence[int], kind: int) -> list[Bytes]:
    """Replies that tell of nothing but ops that ended well, one buffer each, and of some more such
    ops of one kind; all in one frame where they fit, since a frame costs who takes it about the
    same whatever is in it."""
    entries = [_OP_STRUCT.pack(job, kind, 0, 0, 0, 0, 0, 0, 0, 0) for job in jobs]
    tables: list[Bytes] = []
    count, sequence = len(entries), 0
    for reply in kept:
        fields = HEADER.unpack_from(reply)
        if fields[3] != HEADER_BYTES + fields[4] * OP_BYTES or fields[3] != len(reply):
            break
        sequence = sequence or fields[9]
        count += fields[4]
        tables.append(memoryview(reply)[HEADER_BYTES:])
    if len(tables) < len(kept) or count > OPS_MAX:
        return [*kept, *done_behind((), jobs, kind)]
    length = HEADER_BYTES + count * OP_BYTES
    head = HEADER.pack(MAGIC, FrameKind.REPLY, 0, length, count, 0, 0, 0, 0, sequence)
    return [b"".join((head, *tables, *entries))]


def with_next(buffers: Sequence[Bytes]) -> list[Bytes]:
    """The frame of one flush, with FLUSH_WITH_NEXT said of it."""
    frame = bytearray().join(buffers)
    (flags,) = _OP_FLAGS.unpack_from(frame, _OP_FLAGS_AT)
    _OP_FLAGS.pack_into(frame, _OP_FLAGS_AT, flags | FLUSH_WITH_NEXT)
    return [frame]


def pack_done(rows: Sequence[Sequence[int]]) -> list[bytes]:
    """An entry for each of a request's, in order: done, and nothing comes back but where it was."""
    pack = _OP_STRUCT.pack
    return [pack(row[0], row[1], 0, 0, 0, row[5], row[6], 0, 0, 0) for row in rows]


class Frame:
    """A parsed frame; its parts are views into the bytes it was parsed from, made when asked
    for."""

    __slots__ = (
        "_answers",
        "_blob_at",
        "_blob_starts",
        "_context_at",
        "_contexts",
        "_ops",
        "_payload_at",
        "context_count",
        "data",
        "dependency_count",
        "flags",
        "kind",
        "op_count",
        "sequence",
    )

    def __init__(
        self,
        data: memoryview,
        kind: FrameKind,
        sequence: int,
        flags: int,
        counts: tuple[int, int, int, int],
        answers: tuple[int, int, bool] | None = None,
    ) -> None:
        """`data`: the whole frame. `counts`: of ops, dependencies, contexts, and bytes of blobs.
        `answers` as the property."""
        self.data = data
        self.kind = kind
        self.sequence = sequence
        self.flags = flags
        self.op_count, self.dependency_count, self.context_count, blob_bytes = counts
        self._blob_at = HEADER_BYTES + self.op_count * OP_BYTES + self.dependency_count * 8
        self._context_at = self._blob_at + blob_bytes
        self._payload_at = self._context_at + self.context_count * CONTEXT_BYTES
        self._answers = answers
        self._ops: OpArray | None = None
        self._contexts: npt.NDArray[np.uint64] | None = None
        self._blob_starts: list[int] = []

    @property
    def ops(self) -> OpArray:
        """The table."""
        if self._ops is None:
            self._ops = np.frombuffer(self.data, OP, self.op_count, HEADER_BYTES)
        return self._ops

    @property
    def first_op(self) -> tuple[int, ...]:
        """The first row of a table that has one, as numbers."""
        return _OP_STRUCT.unpack_from(self.data, HEADER_BYTES)

    @property
    def dependencies(self) -> npt.NDArray[np.uint64]:
        """Job ids."""
        at = HEADER_BYTES + self.op_count * OP_BYTES
        return np.frombuffer(self.data, _U64, self.dependency_count, at)

    @property
    def blobs(self) -> memoryview:
        """All blobs."""
        return self.data[self._blob_at : self._context_at]

    @property
    def contexts(self) -> npt.NDArray[np.uint64]:
        """Shape (n, 4)."""
        if self._contexts is None:
            found = np.frombuffer(self.data, _U64, self.context_count * 4, self._context_at)
            self._contexts = found.reshape(-1, 4)
        return self._contexts

    @property
    def raw_contexts(self) -> memoryview:
        """The contexts' bytes."""
        return self.data[self._context_at : self._payload_at]

    @property
    def payload(self) -> memoryview:
        """Block data."""
        return self.data[self._payload_at :]

    @property
    def answers(self) -> tuple[int, int, bool]:
        """The first op's job, the last one's, and whether all ops have status OK. With an op at
        least."""
        if self._answers is None:
            jobs, statuses = self.ops["job"], self.ops["status"]
            bad = statuses[0] if len(statuses) == 1 else statuses.any()
            self._answers = int(jobs[0]), int(jobs[-1]), not bad
        return self._answers

    def blob(self, index: int) -> bytes:
        """The blob of op `index` of this frame."""
        if not self._blob_starts:
            ends = np.cumsum(self.ops["blob_bytes"], dtype=np.int64)
            self._blob_starts = [0, *ends.tolist()]
        return bytes(self.blobs[self._blob_starts[index] : self._blob_starts[index + 1]])

    def text(self, index: int) -> str:
        """The blob of op `index` as a peer's words in a message: what is no text is replaced, and
        what is longer than any message is cut."""
        return self.blob(index)[:TEXT_BYTES_MAX].decode("utf-8", "replace")


def encode(
    kind: FrameKind,
    ops: Sequence[bytes] | OpArray = (),
    *,
    sequence: int = 0,
    dependencies: Sequence[int] | npt.NDArray[np.uint64] = (),
    blobs: Sequence[Bytes] = (),
    contexts: npt.NDArray[np.uint64] | None = None,
    payload: Sequence[Bytes] = (),
    flags: int = 0,
) -> list[Bytes]:
    """A frame as buffers ready for a scatter write; `payload` buffers are passed through, not
    copied.

    The first buffer holds header, table, dependencies, blobs and contexts.
    """
    if isinstance(ops, np.ndarray):
        table, op_count = ops.tobytes(), len(ops)
    else:
        table, op_count = b"".join(ops), len(ops)
    deps = np.asarray(dependencies, dtype="<u8").tobytes() if len(dependencies) else b""
    blob = b"".join(blobs)
    blob += bytes(-len(blob) % 8)
    context_bytes = b"" if contexts is None else np.ascontiguousarray(contexts).tobytes()
    payload_bytes = sum(map(len, payload))
    length = HEADER_BYTES + len(table) + len(deps) + len(blob) + len(context_bytes) + payload_bytes
    header = HEADER.pack(
        MAGIC,
        kind,
        flags,
        length,
        op_count,
        len(deps) // 8,
        len(context_bytes) // CONTEXT_BYTES,
        len(blob),
        payload_bytes,
        sequence,
    )
    return [b"".join((header, table, deps, blob, context_bytes)), *payload]


def frame_length(head: Bytes) -> int:
    """The whole length of the frame whose first HEADER_BYTES are given; FrameError when it cannot
    be one."""
    magic, _kind, _flags, length = struct.unpack_from("<IHHI", head)
    if magic != MAGIC:
        raise FrameError(f"not a frame: starts with {bytes(head[:4])!r}")
    if not HEADER_BYTES <= length <= FRAME_BYTES_MAX:
        raise FrameError(f"frame of {length} bytes: limit is {FRAME_BYTES_MAX}")
    return int(length)


def decode(data: Bytes) -> Frame:
    """Parses one whole frame. Every count is checked against the length; FrameError names what is
    wrong."""
    view = memoryview(data)
    if native.compiled:
        told = native.summary(view)
        if told is not None:
            return Frame(view, _KINDS[told[0]], told[2], told[1], told[3:7], told[7:])
    if len(view) < HEADER_BYTES:
        raise FrameError(f"{len(view)} bytes are less than a header")
    fields = HEADER.unpack_from(view)
    magic, kind, flags, length = fields[:4]
    op_count, dep_count, context_count, blob_bytes, payload_bytes, sequence = fields[4:]
    if magic != MAGIC or length != len(view):
        raise FrameError(f"header says {length} bytes, got {len(view)}")
    if op_count > OPS_MAX:
        raise FrameError(f"{op_count} ops in a frame: limit is {OPS_MAX}")
    sizes = (op_count * OP_BYTES, dep_count * 8, blob_bytes, context_count * CONTEXT_BYTES)
    if HEADER_BYTES + sum(sizes) + payload_bytes != length:
        raise FrameError("the parts of the frame do not add up to its length")
    frame_kind = _KINDS.get(kind)
    if frame_kind is None:
        raise FrameError(f"unknown frame kind {kind}")
    counts = (op_count, dep_count, context_count, blob_bytes)
    frame = Frame(view, frame_kind, sequence, flags, counts)
    table = view[HEADER_BYTES : HEADER_BYTES + sizes[0]]
    _check_table(frame.ops, table, dep_count, blob_bytes)
    return frame


def _check_table(ops: OpArray, table: memoryview, dep_count: int, blob_bytes: int) -> None:
    if not len(ops):
        if dep_count or blob_bytes:
            raise FrameError("dependencies or blobs without an op")
        return
    if len(ops) <= _FEW_OPS:
        named = dependencies = 0
        for row in _OP_STRUCT.iter_unpack(table):
            dependencies += row[4]
            named += row[7]
    else:
        dependencies = int(ops["dependency_count"].sum(dtype=np.int64))
        named = int(ops["blob_bytes"].sum(dtype=np.int64))
    if dependencies != dep_count:
        raise FrameError("the ops' dependency counts do not add up")
    if named + (-named % 8) != blob_bytes:
        raise FrameError("the ops' blob sizes do not add up")

"""The kinds of ops as a session takes them apart: which are done on the spot, which carry data,
which change something, in which order each may start, and what is wrong with some."""

from __future__ import annotations

from downstaird.core.work_queue import Order
from stairlib.model.errors import DataError, InvalidRequestError
from stairlib.wire.frame import OpKind

READ = int(OpKind.READ)
WRITE = int(OpKind.WRITE)
WRITE_UNWRITTEN = int(OpKind.WRITE_UNWRITTEN)
DISCARD = int(OpKind.DISCARD)
FLUSH = int(OpKind.FLUSH)
NOOP = int(OpKind.NOOP)
EXTENT_STATES = int(OpKind.EXTENT_STATES)
EXTENT_DIGEST = int(OpKind.EXTENT_DIGEST)
REPAIR_BEGIN = int(OpKind.REPAIR_BEGIN)
EXTENT_COPY = int(OpKind.EXTENT_COPY)
REPAIR_END = int(OpKind.REPAIR_END)
REPAIR_LIMIT = int(OpKind.REPAIR_LIMIT)
COPY_CHECK = int(OpKind.COPY_CHECK)

KINDS = frozenset(map(int, OpKind))
ASYNCHRONOUS = frozenset((FLUSH, REPAIR_BEGIN, EXTENT_COPY, COPY_CHECK))
# Started unasked while nothing waits; a REPAIR_END is rare and takes the ordered way.
IMMEDIATE = KINDS - ASYNCHRONOUS - {REPAIR_END}
CARRY_DATA = frozenset((WRITE, WRITE_UNWRITTEN))
MUTATING = frozenset((WRITE, WRITE_UNWRITTEN, DISCARD))
GUEST = frozenset((READ, WRITE, WRITE_UNWRITTEN, DISCARD, FLUSH))
CHANGING = frozenset(
    (WRITE, WRITE_UNWRITTEN, DISCARD, REPAIR_BEGIN, EXTENT_COPY, COPY_CHECK, REPAIR_END)
)
ORDERS = {
    READ: Order.LOOK,
    EXTENT_DIGEST: Order.LOOK,
    WRITE: Order.CHANGE,
    WRITE_UNWRITTEN: Order.CHANGE,
    DISCARD: Order.CHANGE,
    FLUSH: Order.BARRIER,
    REPAIR_BEGIN: Order.BARRIER,
    EXTENT_STATES: Order.SURVEY,
    EXTENT_COPY: Order.FOLLOW,
    COPY_CHECK: Order.FOLLOW,
    REPAIR_END: Order.FOLLOW,
    NOOP: Order.FREE,
    REPAIR_LIMIT: Order.FREE,
}


def check_range(offset: int, length: int, blocks: int) -> None:
    """InvalidRequestError OUT_OF_RANGE for what ends past the region's blocks."""
    if offset + length > blocks:
        raise InvalidRequestError(
            f"blocks {offset} to {offset + length} end past the region's {blocks} blocks",
            reason="OUT_OF_RANGE",
        )


def damaged(offset: int, length: int) -> DataError:
    """The error for blocks that are not what they were told to be."""
    return DataError(
        f"data written to blocks {offset} to {offset + length} does not match its contexts",
        reason="HASH_MISMATCH",
    )

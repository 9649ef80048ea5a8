"""A FLUSH as a session meets it: one that comes alone in its frame, and how one begins."""

from __future__ import annotations

from downstaird.core.engine import Engine, FlushWork
from downstaird.core.session_ops import FLUSH
from stairlib.model.errors import StairwellError
from stairlib.wire.frame import Frame


def lone_flush(frame: Frame) -> tuple[int, ...] | None:
    """The row of a flush that is all of its frame, without dependencies or a snapshot's name; None
    for any other frame."""
    if frame.op_count != 1:
        return None
    row = frame.first_op
    if row[1] != FLUSH or row[4] or row[7] or frame.context_count or len(frame.payload):
        return None
    return row


def begun_flush(engine: Engine, row: tuple[int, ...], snapshot: bytes) -> tuple[FlushWork, str]:
    """The flush, and why its snapshot is not taken: what was written is flushed in any case.
    StairwellError when it cannot begin."""
    number, generation = row[9], row[8]
    if not snapshot:
        return engine.begin_flush(number, generation), ""
    try:
        name = snapshot.decode("ascii", "backslashreplace")
        return engine.begin_flush(number, generation, name), ""
    except StairwellError as error:
        return engine.begin_flush(number, generation), error.message

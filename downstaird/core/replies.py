"""Building a reply frame, and the status an error is answered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stairlib.model.context import ContextArray
from stairlib.model.errors import (
    DataError,
    InvalidRequestError,
    RefusedError,
    StairwellError,
    StateError,
    UnavailableError,
)
from stairlib.wire.frame import (
    OPS_MAX,
    PAYLOAD_BYTES_MAX,
    Bytes,
    FrameKind,
    OpKind,
    OpStatus,
    encode,
    pack_done,
    pack_op,
)

# An error's text is for a log line, not for a dump.
TEXT_BYTES_MAX = 1000

_PATIENT = frozenset((OpKind.WRITE, OpKind.WRITE_UNWRITTEN, OpKind.DISCARD))

_BY_REASON = {
    "OUT_OF_RANGE": OpStatus.OUT_OF_RANGE,
    "HASH_MISMATCH": OpStatus.HASH_MISMATCH,
    "READ_ONLY": OpStatus.READ_ONLY,
    "EXTENT_FAULTED": OpStatus.EXTENT_FAULTED,
    "NO_SPACE": OpStatus.NO_SPACE,
    "NO_LONGER_ACTIVE": OpStatus.NOT_ACTIVE,
    "REPAIR_SOURCE": OpStatus.REPAIR_SOURCE,
    "SOURCE_DAMAGED": OpStatus.SOURCE_DAMAGED,
    "ABORTED": OpStatus.ABORTED,
}


def status_of(error: StairwellError) -> OpStatus:
    """How an op that failed with `error` is answered."""
    known = _BY_REASON.get(error.reason)
    if known is not None:
        return known
    if isinstance(error, InvalidRequestError | StateError):
        return OpStatus.BAD_REQUEST
    if isinstance(error, UnavailableError | RefusedError):
        return OpStatus.REPAIR_SOURCE
    if isinstance(error, DataError):
        return OpStatus.IO_ERROR
    return OpStatus.IO_ERROR


@dataclass(slots=True)
class Answer:
    """The outcome of asynchronous work, to be part of the next reply."""

    job: int
    kind: int
    number: int = 0
    status: OpStatus = OpStatus.OK
    text: str = ""


class Reply:
    """Entries of one reply frame, in the order the ops were answered."""

    __slots__ = ("_blobs", "_contexts", "_entries", "_payload", "patient", "payload_bytes")

    def __init__(self) -> None:
        self._entries: list[bytes] = []
        self._blobs: list[bytes] = []
        self._contexts: list[ContextArray] = []
        self._payload: list[Bytes] = []
        self.payload_bytes = 0
        # Nobody waits for it: it tells of changes alone, that went well.
        self.patient = True

    def __len__(self) -> int:
        return len(self._entries)

    def has_room(self, coming: int) -> bool:
        """Whether one more op with so many bytes of payload fits; one alone always does."""
        count = len(self._entries)
        if not count:
            return True
        return count < OPS_MAX and self.payload_bytes + coming <= PAYLOAD_BYTES_MAX

    def done(self, job: int, kind: int, offset: int = 0, length: int = 0, number: int = 0) -> None:
        """An op that ended well and carries nothing back."""
        self.patient = self.patient and kind in _PATIENT
        self._entries.append(pack_op(job, kind, offset=offset, length=length, number=number))

    def all_done(self, rows: Sequence[Sequence[int]]) -> None:
        """The same for many ops: entries of the request's table."""
        self._entries += pack_done(rows)

    def read(
        self, job: int, kind: int, offset: int, contexts: ContextArray, data: Sequence[Bytes]
    ) -> None:
        """Blocks that were read. Their contexts are kept as they are now: a later op of the same
        frame may change what they are a view of."""
        self.patient = False
        if contexts.base is not None:
            contexts = contexts.copy()
        self._entries.append(pack_op(job, kind, offset=offset, length=len(contexts)))
        self._contexts.append(contexts)
        self._payload.extend(data)
        self.payload_bytes += sum(map(len, data))

    def array(self, job: int, kind: int, offset: int, length: int, data: bytes) -> None:
        """An op answered with an array as payload."""
        self.patient = False
        self._entries.append(pack_op(job, kind, offset=offset, length=length))
        self._payload.append(data)
        self.payload_bytes += len(data)

    def failed(self, job: int, kind: int, status: OpStatus, text: str) -> None:
        """An op that failed."""
        self.patient = False
        blob = text.encode()[:TEXT_BYTES_MAX]
        self._entries.append(pack_op(job, kind, status=status, blob_bytes=len(blob)))
        self._blobs.append(blob)

    def frame(self, sequence: int) -> list[Bytes]:
        """The frame as buffers."""
        contexts: ContextArray | None = None
        if len(self._contexts) == 1:
            contexts = self._contexts[0]
        elif self._contexts:
            contexts = np.concatenate(self._contexts)
        return encode(
            FrameKind.REPLY,
            self._entries,
            sequence=sequence,
            blobs=self._blobs,
            contexts=contexts,
            payload=self._payload,
        )

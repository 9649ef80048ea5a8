"""What a serial port has said: the first mebibyte and the latest one.

Positions are bytes since the port's start. Once more was said than both parts hold there is a gap
between them, which nobody can read any more. Invariant: memory is bounded by the two parts.
"""

from __future__ import annotations

from typing import NamedTuple

from stairlib.model.errors import FieldViolation, InvalidRequestError

PART_BYTES = 1 << 20
READ_BYTES_DEFAULT = 16 << 10


class HistoryRead(NamedTuple):
    """`end` is the position just after the last byte of `data`: where to read on."""

    data: bytes
    end: int


class HistoryBuffer:
    """Two parts of `part_bytes` each."""

    def __init__(self, part_bytes: int = PART_BYTES) -> None:
        assert part_bytes > 0
        self._part_bytes = part_bytes
        self._beginning = bytearray()
        self._latest = bytearray()
        self._total = 0

    @property
    def total(self) -> int:
        """Bytes ever said."""
        return self._total

    def next_kept(self, position: int) -> int:
        """`position`, or the end of the gap it lies in."""
        latest_start = self._total - len(self._latest)
        if len(self._beginning) <= position < latest_start:
            return latest_start
        return position

    def append(self, data: bytes) -> None:
        """The port said `data`."""
        self._total += len(data)
        self._latest += data
        surplus = len(self._latest) - self._part_bytes
        if surplus <= 0:
            return
        room = self._part_bytes - len(self._beginning)
        self._beginning += self._latest[: min(room, surplus)]
        del self._latest[:surplus]

    def read_from(self, start: int, count: int = READ_BYTES_DEFAULT) -> HistoryRead:
        """Up to `count` bytes from position `start`; nothing at and beyond the end.

        InvalidRequestError when `start` lies in the gap. A read stops where the gap begins.
        """
        assert start >= 0
        latest_start = self._total - len(self._latest)
        if start >= self._total:
            return HistoryRead(b"", self._total)
        if start >= latest_start:
            offset = start - latest_start
            data = bytes(self._latest[offset : offset + count])
        elif start < len(self._beginning):
            data = bytes(self._beginning[start : start + count])
            if len(self._beginning) == latest_start and len(data) < count:
                data += bytes(self._latest[: count - len(data)])
        else:
            text = (
                f"{start} lies between what is kept: bytes 0 to {len(self._beginning)} "
                f"and {latest_start} to {self._total}"
            )
            raise InvalidRequestError(text, (FieldViolation("from_start", text),))
        return HistoryRead(data, start + len(data))

    def read_latest(self, distance: int, count: int = READ_BYTES_DEFAULT) -> HistoryRead:
        """Up to `count` bytes from `distance` bytes before the end, or from the start; from the end
        of the gap when that lies in it."""
        assert distance >= 0
        return self.read_from(self.next_kept(max(0, self._total - distance)), count)

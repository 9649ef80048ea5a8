"""The guest's buffers of one transfer: views of its memory, in order, which belong together."""

from __future__ import annotations

from collections.abc import Sequence


def gather(segments: Sequence[memoryview]) -> bytes:
    """A copy of the buffers, contiguous; later changes by the guest do not reach it."""
    return bytes(segments[0]) if len(segments) == 1 else b"".join(segments)


def scatter(segments: Sequence[memoryview], data: bytes | bytearray | memoryview) -> None:
    """Copies `data` into the buffers, which together are as long."""
    if len(segments) == 1:
        segments[0][:] = data
        return
    source = memoryview(data)
    position = 0
    for segment in segments:
        segment[:] = source[position : position + len(segment)]
        position += len(segment)
    assert position == len(source)


def cut(segments: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """The buffers of `length` bytes from `start` on; fewer when there are not so many."""
    found = []
    for segment in segments:
        if start >= len(segment):
            start -= len(segment)
            continue
        part = segment[start : start + length]
        found.append(part)
        length -= len(part)
        start = 0
        if not length:
            break
    return found

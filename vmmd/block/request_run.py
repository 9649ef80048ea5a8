"""Requests of one kind as one thing: made by compiled code, and worked off by it as a whole where
every one of them is of the ordinary sort.

A `Run` is a sequence of Requests for whoever looks at them one by one, and `Whole` the sequence of
their completions: a backend need not know either. Each request's token is (run, its index).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from stairlib import native
from vmmd.block.backend import BlockOp, BlockStatus, Completion, Request


class Run(native.Spans, Sequence[Request]):
    """Reads, or writes with their data in `payload`, each within the backend's blocks."""

    __slots__ = ()

    @property
    def op(self) -> BlockOp:
        """Of all of them."""
        return BlockOp.READ if self.reads else BlockOp.WRITE

    def __len__(self) -> int:
        return self.requests

    def spans(self) -> list[tuple[int, int]]:
        """(first block, blocks) of each."""
        return [(offset, length) for _kind, offset, length in self.ops()]

    def token(self, index: int) -> object:
        """Of one of them; always the same object."""
        if self.tokens is None:
            self.tokens = [(self, each) for each in range(self.requests)]
        return self.tokens[index]

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> list[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | list[Request]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(self.requests))]
        _handle, offset, length, before = self.span(index)
        data = None
        if self.payload is not None:
            size = self.block_size
            data = memoryview(self.payload)[before * size : (before + length) * size]
        return Request(self.op, self.token(index), offset, length, data)


class Whole(Sequence[Completion]):
    """All requests of a run ended OK. `data`: of reads, what they read, one after the other, as
    long as a completion's."""

    __slots__ = ("data", "run")

    def __init__(self, run: Run, data: bytes | bytearray | memoryview | None = None) -> None:
        self.run = run
        self.data = data

    def __len__(self) -> int:
        return self.run.requests

    @overload
    def __getitem__(self, index: int) -> Completion: ...

    @overload
    def __getitem__(self, index: slice) -> list[Completion]: ...

    def __getitem__(self, index: int | slice) -> Completion | list[Completion]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        _handle, _offset, length, before = self.run.span(index)
        data = None
        if self.data is not None:
            size = self.run.block_size
            data = memoryview(self.data)[before * size : (before + length) * size]
        return Completion(self.run.token(index), BlockStatus.OK, data)

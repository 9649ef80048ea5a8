"""Backends one after another as one: the address space of a volume's sub-volumes.

A request that lies in one child goes there as it is; one that spans several is cut and put together
again, but for a question for holes, which its first child answers alone; one that passes the end,
or that changes what one of its children may not change, is refused whole. A flush goes to every
child and succeeds when all do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from vmmd.block.backend import (
    CHANGES,
    READS,
    WRITES,
    Backend,
    BackendInfo,
    BlockOp,
    BlockStatus,
    Completion,
    Done,
    Request,
)


class _Whole:
    """A request that was cut: completes when its last part has. `owned` is kept for READ_OWNED."""

    __slots__ = ("buffer", "left", "owned", "status", "token")

    def __init__(self, token: object, parts: int) -> None:
        self.token = token
        self.left = parts
        self.status = BlockStatus.OK
        self.buffer: bytearray | None = None
        self.owned: npt.NDArray[np.bool_] | None = None


class _Part:
    """The token of one part; `at` in blocks within the whole."""

    __slots__ = ("at", "whole")

    def __init__(self, whole: _Whole, at: int) -> None:
        self.whole = whole
        self.at = at


class Concatenation:
    """See the module. At least one child; all have the same block size."""

    def __init__(self, children: Sequence[Backend]) -> None:
        infos = [child.info for child in children]
        self._children = list(children)
        self._starts = list(accumulate((info.block_count for info in infos), initial=0))[:-1]
        self._ends = list(accumulate(info.block_count for info in infos))
        self._read_only = [info.read_only for info in infos]
        self._info = BackendInfo(
            infos[0].block_size,
            self._ends[-1],
            read_only=all(self._read_only),
            supports_discard=all(info.supports_discard for info in infos),
        )

    @property
    def info(self) -> BackendInfo:
        """Read-only when all children are; discards are offered when all take them."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`."""
        refused: list[Completion] = []
        shares: list[list[Request]] = [[] for _ in self._children]
        for request in batch:
            self._route(request, shares, refused)

        def finished(completions: Sequence[Completion]) -> None:
            joined = [c for c in map(self._joined, completions) if c is not None]
            if joined:
                done(joined)

        for child, share in zip(self._children, shares, strict=True):
            if share:
                child.submit(share, finished)
        if refused:
            done(refused)

    def _route(
        self, request: Request, shares: list[list[Request]], refused: list[Completion]
    ) -> None:
        op, token, offset, length, data = request
        if op is BlockOp.FLUSH:
            whole = _Whole(token, len(shares))
            for share in shares:
                share.append(Request(op, _Part(whole, 0)))
            return
        if offset < 0 or length < 0 or offset + length > self._info.block_count:
            refused.append(Completion(token, BlockStatus.OUT_OF_RANGE))
            return
        if op in WRITES and len(data or b"") != length * self._info.block_size:
            refused.append(Completion(token, BlockStatus.FAILED))
            return
        first = self._child_at(offset)
        last = max(first, self._child_at(offset + length - 1))
        if op in CHANGES and any(self._read_only[first : last + 1]):
            refused.append(Completion(token, BlockStatus.READ_ONLY))
        elif first == last or op is BlockOp.ALLOCATION:
            length = min(length, self._ends[first] - offset)
            share = shares[first]
            share.append(Request(op, token, offset - self._starts[first], length, data))
        else:
            self._cut(request, first, last, shares)

    def _child_at(self, block: int) -> int:
        return min(max(0, bisect_right(self._starts, block) - 1), len(self._children) - 1)

    def _cut(self, request: Request, first: int, last: int, shares: list[list[Request]]) -> None:
        op, token, offset, length, data = request
        size = self._info.block_size
        # A child without blocks may stand between two others.
        touched = [
            index for index in range(first, last + 1) if self._ends[index] > self._starts[index]
        ]
        whole = _Whole(token, len(touched))
        if op in READS:
            whole.buffer = bytearray(length * size)
        if op is BlockOp.READ_OWNED:
            whole.owned = np.zeros(length, dtype=np.bool_)
        view = memoryview(data) if data is not None else None
        for index in touched:
            begin = max(offset, self._starts[index])
            end = min(offset + length, self._ends[index])
            at = begin - offset
            piece = view[at * size : (end - offset) * size] if view is not None else None
            local = begin - self._starts[index]
            shares[index].append(Request(op, _Part(whole, at), local, end - begin, piece))

    def _joined(self, completion: Completion) -> Completion | None:
        """The completion of a whole request, or None while parts of it are missing."""
        part = completion.token
        if not isinstance(part, _Part):
            return completion
        whole = part.whole
        whole.left -= 1
        if completion.status is not BlockStatus.OK:
            whole.status = completion.status
        elif whole.buffer is not None and completion.data is not None:
            start = part.at * self._info.block_size
            whole.buffer[start : start + len(completion.data)] = completion.data
            if whole.owned is not None and completion.owned is not None:
                whole.owned[part.at : part.at + len(completion.owned)] = completion.owned
        if whole.left:
            return None
        if whole.status is not BlockStatus.OK:
            return Completion(whole.token, whole.status)
        return Completion(whole.token, whole.status, whole.buffer, whole.owned)

"""A backend over a read-only parent: blocks that were never written come from the parent.

Which block belongs to whom is decided block by block by ownership, which travels upwards: what an
overlay owns is what its front or its parent owns, so layers can be stacked (reference
vcr-and-upstairs.md §2). A read asks the front first, and the parent only for what the front has
not. Writes and flushes never reach the parent. A discard is not offered while there is a parent,
since the parent's old data would come back. There is no high-water mark of a scrub: what it wrote
and did not flush yet may be lost with the members, and then the parent must show through again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vmmd.block.backend import (
    CHANGES,
    READS,
    TELLS_OWNED,
    Backend,
    BackendInfo,
    BlockOp,
    BlockStatus,
    Completion,
    Done,
    Request,
)

_ASKING = READS | TELLS_OWNED


class _Filling:
    """A read whose blocks are partly the parent's: `missing` from block `first` of it on."""

    __slots__ = ("buffer", "first", "missing", "owned", "request")

    def __init__(self, request: Request, front: Completion, missing: npt.NDArray[np.bool_]) -> None:
        assert front.owned is not None
        wanted = np.flatnonzero(missing)
        self.request = request
        # A question for holes is answered without.
        self.buffer = bytearray()
        if request.op in READS:
            assert front.data is not None
            self.buffer += front.data
        self.owned = front.owned.copy()
        self.first = int(wanted[0])
        self.missing = missing[self.first : int(wanted[-1]) + 1].copy()


class Overlay:
    """See the module. The parent serves blocks 0 to `covered`; what is above is the front's
    alone."""

    def __init__(self, front: Backend, parent: Backend) -> None:
        self.front = front
        # Each may mean that acknowledged writes are gone: a scrub has to look at all again.
        self.failed_flushes = 0
        self.covered = min(front.info.block_count, parent.info.block_count)
        self._parent: Backend | None = parent
        self._failure_owed = False
        self._layered = 0
        self._idle = asyncio.Event()
        self._idle.set()
        info = front.info
        self._info = BackendInfo(
            info.block_size, info.block_count, info.read_only, supports_discard=False
        )

    @property
    def info(self) -> BackendInfo:
        """The front's, without discards; stays so when the parent is gone: guests ask once."""
        return self._info

    @property
    def parent(self) -> Backend | None:
        """None once it was dropped."""
        return self._parent

    async def drop_parent(self) -> None:
        """From now on the front alone serves; returns when no earlier read needs the parent."""
        self._parent = None
        await self._idle.wait()

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`."""
        parent = self._parent
        if parent is None and not self._failure_owed:
            self.front.submit(batch, done)
            return
        covered = self.covered if parent is not None else 0
        own: list[Request] = []
        flushes: list[Request] = []
        layered: list[Request] = []
        refused: list[Completion] = []
        for request in batch:
            op, token, offset, length, _data = request
            if op is BlockOp.ALLOCATION and offset < covered:
                layered.append(Request(op, request, offset, length))
            elif op in READS and offset < covered:
                layered.append(Request(BlockOp.READ_OWNED, request, offset, length))
            elif op is BlockOp.FLUSH:
                flushes.append(request)
            elif op is BlockOp.DISCARD and parent is not None:
                refused.append(Completion(token, BlockStatus.UNSUPPORTED))
            else:
                own.append(request)
        if own:
            self.front.submit(own, done)
        if flushes:
            self.front.submit(flushes, lambda found: self._flushed(found, done))
        if parent is not None and layered:
            self._layered += len(layered)
            self._idle.clear()
            self.front.submit(layered, lambda found: self._front_read(parent, found, done))
        if refused:
            done(refused)

    def submit_flush(self, batch: Sequence[Request], done: Done) -> None:
        """A flush of the front that no guest asked for. A front tells once that acknowledged writes
        are gone; when it may have told here, the next flush of the guest's fails as well."""

        def flushed(found: Sequence[Completion]) -> None:
            if any(each.status is not BlockStatus.OK for each in found):
                self._failure_owed = True
            done(found)

        self.front.submit(batch, flushed)

    def _flushed(self, found: Sequence[Completion], done: Done) -> None:
        if self._failure_owed:
            self._failure_owed = False
            found = [Completion(each.token, BlockStatus.FAILED) for each in found]
        self.failed_flushes += sum(each.status is not BlockStatus.OK for each in found)
        done(found)

    def _front_read(self, parent: Backend, found: Sequence[Completion], done: Done) -> None:
        finished: list[Completion] = []
        wanted: list[Request] = []
        for completion in found:
            request = completion.token
            assert isinstance(request, Request)
            if completion.status is not BlockStatus.OK:
                finished.append(Completion(request.token, completion.status))
                continue
            assert completion.owned is not None
            missing = ~completion.owned[: self.covered - request.offset]
            if missing.any():
                filling = _Filling(request, completion, missing)
                wanted.append(
                    Request(
                        request.op,
                        filling,
                        request.offset + filling.first,
                        len(filling.missing),
                    )
                )
            else:
                finished.append(_answer(request, completion.data, completion.owned))
        if wanted:
            parent.submit(wanted, lambda read: self._parent_read(read, done))
        self._finish(finished, done)

    def _parent_read(self, read: Sequence[Completion], done: Done) -> None:
        finished = []
        for completion in read:
            filling = completion.token
            assert isinstance(filling, _Filling)
            request = filling.request
            if completion.status is not BlockStatus.OK:
                finished.append(Completion(request.token, completion.status))
                continue
            if request.op is BlockOp.ALLOCATION:
                finished.append(_answer(request, None, _either(filling, completion)))
                continue
            assert completion.data is not None
            _merge(filling, completion, self._info.block_size)
            finished.append(_answer(request, filling.buffer, filling.owned))
        self._finish(finished, done)

    def _finish(self, finished: list[Completion], done: Done) -> None:
        if not finished:
            return
        self._layered -= len(finished)
        if not self._layered:
            self._idle.set()
        done(finished)


def _merge(filling: _Filling, parent: Completion, block_size: int) -> None:
    """Puts the parent's blocks where the front has none."""
    assert parent.data is not None
    rows = slice(filling.first, filling.first + len(filling.missing))
    target = np.frombuffer(filling.buffer, dtype=np.uint8).reshape(-1, block_size)[rows]
    source = np.frombuffer(parent.data, dtype=np.uint8).reshape(-1, block_size)
    target[filling.missing] = source[filling.missing]
    if parent.owned is not None:
        filling.owned[rows] |= parent.owned & filling.missing


def _either(filling: _Filling, parent: Completion) -> npt.NDArray[np.bool_]:
    """Which blocks the front or the parent holds, as far as both tell."""
    assert parent.owned is not None
    count = len(parent.owned)
    owned = filling.owned
    if count < len(filling.missing):
        owned = owned[: filling.first + count]
    owned[filling.first : filling.first + count] |= parent.owned & filling.missing[:count]
    return owned


def _answer(
    request: Request,
    data: bytes | bytearray | memoryview | None,
    owned: npt.NDArray[np.bool_],
) -> Completion:
    told = owned if request.op in TELLS_OWNED else None
    return Completion(request.token, BlockStatus.OK, data, told)


class ReadOnlyView:
    """A backend that nobody may change through here: a volume that has only a parent."""

    def __init__(self, backend: Backend) -> None:
        info = backend.info
        self._backend = backend
        self._info = BackendInfo(
            info.block_size, info.block_count, read_only=True, supports_discard=False
        )

    @property
    def info(self) -> BackendInfo:
        """The backend's, read-only."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`: reads and questions for holes pass, changes are refused, a flush has
        nothing to do."""
        reads = [request for request in batch if request.op in _ASKING]
        others = [
            Completion(
                request.token,
                BlockStatus.READ_ONLY if request.op in CHANGES else BlockStatus.OK,
            )
            for request in batch
            if request.op not in _ASKING
        ]
        if reads:
            self._backend.submit(reads, done)
        if others:
            done(others)

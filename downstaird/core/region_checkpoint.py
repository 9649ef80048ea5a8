"""The checkpoint: what is flushed to a sealed log goes home, so that the log can be written again.

It is done in steps, each short enough for a flush to wait behind: one plan, as many moves as it
takes, one commit. Order of what becomes durable: blocks and context blocks; then the pages of a
state file; then its header; only then is the log free and are the chunks of discards given back.
A crash anywhere leaves the state before, and the log with it.

The log's blocks are moved as they were when the log was sealed, whatever has been written since:
a flushed block hidden by an unflushed write still has to get home. Chunks remapped by a later
*flushed* record are left out: their old place may hold something else by now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from downstaird.core.chunk_contexts import ContextFiles, Home
from downstaird.core.disk import Buffer, File
from downstaird.core.layout import Layout
from downstaird.core.log_plan import LogPlan, plan_of
from downstaird.core.overlay import DISCARDED, HOME, I64Array, LoggedEpoch
from downstaird.core.state_file import PAGE_BYTES, State, encode_state
from stairlib.model.context import ContextArray
from stairlib.model.errors import DataError

if TYPE_CHECKING:
    from downstaird.core.region import Region


# The largest step is step_growth to this power times step_blocks: about a second.
_URGENCY_MAX = 3


@dataclass(slots=True)
class Seal:
    """A sealed log. sequence, chain: what the first record after it has, and is chained to."""

    log: int
    epochs: int
    sequence: int
    chain: int
    plan: LogPlan | None = None
    cursor: int = 0
    # Chunks remapped by records after the seal.
    remapped: set[int] = field(default_factory=set)


@dataclass(slots=True)
class PlanJob:
    """First step: works out what goes home."""

    epochs: Sequence[LoggedEpoch]
    layout: Layout
    plan: LogPlan | None = None

    def run(self) -> None:
        """No I/O."""
        size = self.layout.geometry.block_size
        self.plan = plan_of(self.epochs, self.layout.chunk_blocks, size)


@dataclass(slots=True)
class Move:
    """One chunk of a step. base: contexts so far, None = to be read. The rest are the entries of
    the plan."""

    chunk: int
    physical: int
    side: int
    base: Home | None
    indexes: I64Array
    ids: I64Array
    offsets: I64Array
    contexts: ContextArray
    result: Home | None = None


@dataclass(slots=True)
class MoveJob:
    """A middle step: blocks and context blocks of some chunks, written but not synced."""

    layout: Layout
    log: File
    data: File
    context_files: ContextFiles
    moves: list[Move]
    cursor: int
    damaged: list[tuple[int, DataError]] = field(default_factory=list)

    def run(self) -> None:
        """DataError when something cannot be written."""
        for move in self.moves:
            base = self._base(move)
            if base is None:
                continue
            if len(move.indexes):
                contexts = base.contexts.copy()
                contexts[move.indexes] = move.contexts
                base = Home.of(contexts, self.layout.blocks_in(move.chunk))
                self._move_blocks(move)
            move.result = base
        for side in (0, 1):
            stored = [
                (move.chunk, move.physical, move.result.contexts)
                for move in self.moves
                if move.result is not None and move.side == side
            ]
            if stored:
                self.context_files.store(side, stored)
                self.context_files.files[side].start_writeback()
        self.data.start_writeback()

    def _base(self, move: Move) -> Home | None:
        """Contexts so far; a chunk where they are damaged is left alone, its extent faulted."""
        if move.base is not None:
            return move.base
        try:
            contexts = self.context_files.load(move.chunk, move.physical, 1 - move.side)
        except DataError as error:
            if error.reason != "EXTENT_FAULTED":
                raise
            self.damaged.append((move.chunk, error))
            return None
        return Home.of(contexts, self.layout.blocks_in(move.chunk))

    def _move_blocks(self, move: Move) -> None:
        size = self.layout.geometry.block_size
        home = move.physical * self.layout.chunk_bytes
        for start, stop in _runs(move.indexes, move.offsets, size):
            at = home + int(move.indexes[start]) * size
            if move.offsets[start] < 0:
                self.data.punch(at, (stop - start) * size)
                continue
            block: Buffer = self.log.pread((stop - start) * size, int(move.offsets[start]))
            self.data.pwritev([block], at)


def _runs(indexes: I64Array, offsets: I64Array, size: int) -> list[tuple[int, int]]:
    """Runs of entries whose homes and whose places in the log are consecutive, or that are all
    discards."""
    if len(indexes) == 1:
        return [(0, 1)]
    together = np.diff(indexes) == 1
    both_gone = (offsets[1:] < 0) & (offsets[:-1] < 0)
    together &= both_gone | ((np.diff(offsets) == size) & (offsets[:-1] >= 0))
    edges = (np.flatnonzero(~together) + 1).tolist()
    return list(zip([0, *edges], [*edges, len(indexes)], strict=True))


@dataclass(slots=True)
class CommitJob:
    """Last step: all that was moved becomes durable, then the state that says so."""

    data: File
    context_files: ContextFiles
    file: File
    state: State
    tag: int
    chunk_bytes: int
    punch: list[int]
    void: Callable[[int], None]

    def run(self) -> None:
        """DataError."""
        self.data.datasync()
        for file in self.context_files.files:
            file.datasync()
        raw = encode_state(self.state, self.tag)
        self.file.pwritev([memoryview(raw)[PAGE_BYTES:]], PAGE_BYTES)
        self.file.datasync()
        try:
            self.file.pwritev([memoryview(raw)[:PAGE_BYTES]], 0)
            self.file.datasync()
        except DataError:
            with contextlib.suppress(DataError):
                self.void(self.state.count)
            raise
        for physical in self.punch:
            self.data.punch(physical * self.chunk_bytes, self.chunk_bytes)


CheckpointJob = PlanJob | MoveJob | CommitJob


def next_job(region: Region, seal: Seal) -> CheckpointJob:
    """The step that comes next. On the loop's thread, while no flush runs."""
    if seal.plan is None:
        return PlanJob(region.overlay.logged[: seal.epochs], region.layout)
    if seal.cursor < len(seal.plan.chunks):
        return _move_job(region, seal, seal.plan)
    chunks = region.chunks
    punch, chunks.to_punch = chunks.to_punch, []
    state = State(
        file=1 - region.state_at,
        count=region.state_count + 1,
        log=1 - seal.log,
        sequence=seal.sequence,
        chain=seal.chain,
        chunks=chunks.durable.copy(),
        sides=bytearray(chunks.sides),
        extents=region.extents.durable.copy(),
        followed=region.log.next_sequence - 1,
    )
    return CommitJob(
        data=chunks.data,
        context_files=chunks.context_files,
        file=region.state_files[state.file],
        state=state,
        tag=region.tag,
        chunk_bytes=chunks.chunk_bytes,
        punch=punch,
        void=region.void.set_checkpoint,
    )


def _move_job(region: Region, seal: Seal, plan: LogPlan) -> MoveJob:
    moves: list[Move] = []
    tuning = region.tuning
    behind = min(region.log.active_bytes // tuning.log_bytes, _URGENCY_MAX)
    budget = tuning.step_blocks * tuning.step_growth**behind
    cursor = seal.cursor
    while cursor < len(plan.chunks) and budget > 0:
        chunk = int(plan.chunks[cursor])
        start, stop = int(plan.bounds[cursor]), int(plan.bounds[cursor + 1])
        # A chunk costs a context block at least, about as much as a block.
        budget -= stop - start + 1
        cursor += 1
        if chunk not in seal.remapped:
            move = _move_of(region, plan, chunk, start, stop)
            if move is not None:
                moves.append(move)
    return MoveJob(
        layout=region.layout,
        log=region.log.files[seal.log],
        data=region.chunks.data,
        context_files=region.chunks.context_files,
        moves=moves,
        cursor=cursor,
    )


def _move_of(region: Region, plan: LogPlan, chunk: int, start: int, stop: int) -> Move | None:
    chunks = region.chunks
    layout = region.layout
    physical = int(chunks.durable[chunk])
    ids = plan.ids[start:stop]
    if not physical:
        if not (ids != DISCARDED).any():
            flip(region, chunk, plan.addresses[start:stop] - chunk * layout.chunk_blocks, ids)
            return None
        (physical,) = chunks.take(1)
        chunks.settle(chunk, physical)
    return Move(
        chunk=chunk,
        physical=physical,
        side=1 - chunks.sides[physical],
        base=chunks.known(physical),
        indexes=plan.addresses[start:stop] - chunk * layout.chunk_blocks,
        ids=ids,
        offsets=plan.offsets[start:stop],
        contexts=plan.contexts[start:stop],
    )


def finish_move(region: Region, seal: Seal, job: MoveJob) -> None:
    """The step's blocks are read from their homes from now on."""
    chunks = region.chunks
    for chunk, error in job.damaged:
        region.fault_chunk(chunk, error)
    for move in job.moves:
        if move.result is None:
            continue
        physical = move.physical
        chunks.fresh.pop(physical, None)
        chunks.sides[physical] = move.side
        chunks.remember(physical, move.result)
        flip(region, move.chunk, move.indexes, move.ids)
        empty = not move.result.contexts.any()
        if empty and move.chunk not in chunks.active_remaps:
            chunks.empty(move.chunk, physical)
    seal.cursor = job.cursor


def finish_commit(region: Region, seal: Seal, job: CommitJob) -> None:
    """The sealed log is free."""
    region.state_count = job.state.count
    region.state_at = job.state.file
    region.overlay.drop_logged(seal.epochs)
    region.log.retire(seal.log, region.tuning.log_bytes)
    region.void.forget(seal.sequence)
    for physical in job.punch:
        region.chunks.release(physical)


def flip(region: Region, chunk: int, indexes: I64Array, ids: I64Array) -> None:
    """Entries that are home now and have not been replaced since leave the chunk's table."""
    table = region.overlay.tables.get(chunk)
    if table is None:
        return
    moved = table[indexes] == ids
    if chunk in region.chunks.active_remaps:
        # A discard seen here came after the unflushed remap; the sealed one went with the table
        # then.
        moved &= ids != DISCARDED
    table[indexes[moved]] = HOME
    if bool((table == HOME).all()):
        del region.overlay.tables[chunk]

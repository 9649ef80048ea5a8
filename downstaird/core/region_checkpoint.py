"""The checkpoint: what is flushed to a sealed log goes home, so that the log can be written again.

It is done in steps, each short enough for a flush to wait behind: one plan, as many moves as it
takes, one commit. Order of what becomes durable: blocks and context blocks; then the pages of a
state file; then its header; only then is the log free and are the chunks of discards given back.
A crash anywhere leaves the state before, and the log with it.

The log's blocks are moved as they were when the log was sealed, whatever has been written since:
a flushed block hidden by an unflushed write still has to get home. Chunks remapped by a later
*flushed* record are left out, unless a snapshot still needs their old place, which may else hold
something else by now. With snapshots a log goes home in stages: see checkpoint_stages. What a
settled snapshot holds is never written: its blocks are copied to a fresh place first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from downstaird.core.checkpoint_stages import Seal
from downstaird.core.chunk_contexts import ContextFiles, Home, zero_home
from downstaird.core.disk import Buffer, File
from downstaird.core.layout import Layout
from downstaird.core.log_plan import LogPlan, plan_of
from downstaird.core.overlay import DISCARDED, HOME, I64Array, LoggedEpoch
from downstaird.core.repair_plan import runs
from downstaird.core.snapshot_file import SNAPSHOTS_NAME, SnapshotMap, store_map
from downstaird.core.snapshot_table import Snapshot, Unsettled
from downstaird.core.state_file import PAGE_BYTES, State, encode_state
from stairlib.model.context import ContextArray, written
from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_FAULTED

if TYPE_CHECKING:
    from downstaird.core.region import Region


# The largest step is step_growth to this power times step_blocks: about a second.
_URGENCY_MAX = 3


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
    """One chunk of a step. origin, origin_side: where what it holds so far is, `physical` itself
    unless a snapshot holds that. base: contexts so far, None = to be read. sharing, own: whose home
    it is, see Seal.sharing. The rest are the entries of the plan."""

    chunk: int
    physical: int
    side: int
    origin: int
    origin_side: int
    base: Home | None
    sharing: list[Unsettled]
    own: bool
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
            if move.origin != move.physical:
                self._copy(move, base)
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
            contexts = self.context_files.load(move.chunk, move.origin, move.origin_side)
        except DataError as error:
            if error.reason != "EXTENT_FAULTED":
                raise
            self.damaged.append((move.chunk, error))
            return None
        return Home.of(contexts, self.layout.blocks_in(move.chunk))

    def _copy(self, move: Move, base: Home) -> None:
        """What a snapshot holds, to where the rest is added. DataError."""
        size = self.layout.geometry.block_size
        chunk_bytes = self.layout.chunk_bytes
        for run in runs(written(base.contexts)):
            block = self.data.pread(run.count * size, move.origin * chunk_bytes + run.first * size)
            self.data.pwritev([block], move.physical * chunk_bytes + run.first * size)

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
    layout: Layout
    maps_file: File | None
    maps: list[tuple[Snapshot, SnapshotMap]]

    def run(self) -> None:
        """DataError."""
        self.data.datasync()
        for file in self.context_files.files:
            file.datasync()
        if self.maps:
            self._store_maps()
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

    def _store_maps(self) -> None:
        """Of the snapshots that the state is going to list."""
        assert self.maps_file is not None
        for snapshot, what in self.maps:
            store_map(self.maps_file, self.layout, self.tag, snapshot.place, snapshot.id, what)
        self.maps_file.datasync()


CheckpointJob = PlanJob | MoveJob | CommitJob


def next_job(region: Region, seal: Seal) -> CheckpointJob:
    """The step that comes next. On the loop's thread, while no flush runs."""
    while True:
        stage = seal.stages[seal.at]
        if seal.plan is None:
            return PlanJob(region.overlay.logged[stage.first : stage.stop], region.layout)
        if seal.cursor < len(seal.plan.chunks):
            return _move_job(region, seal, seal.plan)
        if stage.snapshot is None:
            return _commit_job(region, seal)
        region.snapshots.settle(stage.snapshot)
        seal.at += 1
        seal.plan = None
        seal.cursor = 0


def _commit_job(region: Region, seal: Seal) -> CommitJob:
    chunks = region.chunks
    punch, chunks.to_punch = chunks.to_punch, []
    maps = [
        (stage.snapshot, SnapshotMap(unsettled.chunks, bytearray(chunks.sides), unsettled.extents))
        for stage in seal.stages
        if stage.snapshot is not None and (unsettled := stage.unsettled) is not None
    ]
    settled = [each for each in region.snapshots.ordered() if each.unsettled is None]
    map_now, extents = chunks.durable, region.extents.durable.copy()
    if seal.later and seal.later[0].unsettled is not None:
        # The log goes on from the seal: what came after the next snapshot is not in that one.
        map_now = seal.later[0].unsettled.chunks
        faulted = extents["flags"] & FLAG_FAULTED
        extents = seal.later[0].unsettled.extents.copy()
        extents["flags"] |= faulted
    state = State(
        file=1 - region.state_at,
        count=region.state_count + 1,
        log=1 - seal.log,
        sequence=seal.sequence,
        chain=seal.chain,
        chunks=map_now.copy(),
        sides=bytearray(chunks.sides),
        extents=extents,
        followed=region.log.next_sequence - 1,
        snapshots=region.snapshots.entries([*settled, *(snapshot for snapshot, _ in maps)]),
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
        layout=region.layout,
        maps_file=region.files.get(SNAPSHOTS_NAME),
        maps=maps,
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
        try:
            move = _move_of(region, seal, plan, chunk, start, stop)
        except DataError:
            if moves:
                break
            raise
        cursor += 1
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


def _move_of(
    region: Region, seal: Seal, plan: LogPlan, chunk: int, start: int, stop: int
) -> Move | None:
    chunks = region.chunks
    sharing, own = seal.sharing(chunk)
    if not sharing and not own:
        return None
    indexes = plan.addresses[start:stop] - chunk * region.layout.chunk_blocks
    ids = plan.ids[start:stop]
    physical = origin = int(sharing[0].chunks[chunk] if sharing else chunks.durable[chunk])
    if not physical:
        if not (ids != DISCARDED).any():
            if own:
                flip(region, seal, chunk, indexes, ids)
            return None
        (physical,) = chunks.take(1)
        origin = physical
        _settle(region, chunk, physical, sharing, own=own)
    elif region.snapshots.is_fixed(physical):
        (physical,) = chunks.take(1)
    return Move(
        chunk=chunk,
        physical=physical,
        side=1 - chunks.sides[physical],
        origin=origin,
        origin_side=chunks.sides[origin],
        base=chunks.known(origin),
        sharing=sharing,
        own=own,
        indexes=indexes,
        ids=ids,
        offsets=plan.offsets[start:stop],
        contexts=plan.contexts[start:stop],
    )


def _settle(
    region: Region, chunk: int, physical: int, sharing: Sequence[Unsettled], *, own: bool
) -> None:
    """Gives the chunk, which had no home, an empty one."""
    if own:
        region.chunks.settle(chunk, physical)
    else:
        region.chunks.fresh[physical] = zero_home(region.layout.chunk_blocks)
    _share(region, chunk, physical, sharing)


def _share(region: Region, chunk: int, physical: int, sharing: Sequence[Unsettled]) -> None:
    """From now on these snapshots have the chunk at `physical`."""
    for unsettled in sharing:
        old = unsettled.chunks[chunk : chunk + 1].copy()
        unsettled.chunks[chunk] = physical
        region.snapshots.count("held", old, -1)
        region.snapshots.count("held", unsettled.chunks[chunk : chunk + 1], 1)


def finish_move(region: Region, seal: Seal, job: MoveJob) -> None:
    """The step's blocks are read from their homes from now on."""
    chunks = region.chunks
    _tell_damage(region, job)
    for move in job.moves:
        physical = move.physical
        if move.result is None:
            if move.origin != physical:
                chunks.release(physical)
            continue
        chunks.fresh.pop(physical, None)
        chunks.sides[physical] = move.side
        chunks.remember(physical, move.result)
        if move.origin != physical:
            _share(region, move.chunk, physical, move.sharing)
            if move.own:
                chunks.move(move.chunk, physical)
        if not move.own:
            continue
        flip(region, seal, move.chunk, move.indexes, move.ids)
        empty = not move.sharing and not move.result.contexts.any()
        if empty and move.chunk not in chunks.active_remaps:
            chunks.empty(move.chunk, physical)
    seal.cursor = job.cursor


def _tell_damage(region: Region, job: MoveJob) -> None:
    found = dict(job.damaged)
    for move in job.moves:
        error = found.get(move.chunk)
        if error is None:
            continue
        for unsettled in move.sharing:
            extent = move.chunk // region.layout.chunks_per_extent
            unsettled.extents["flags"][extent] |= FLAG_FAULTED
        if move.own:
            region.fault_chunk(move.chunk, error)


def finish_commit(region: Region, seal: Seal, job: CommitJob) -> None:
    """The sealed log is free."""
    region.state_count = job.state.count
    region.state_at = job.state.file
    region.overlay.drop_logged(seal.epochs)
    region.log.retire(seal.log, region.tuning.log_bytes)
    region.void.forget(seal.sequence)
    for snapshot, _ in job.maps:
        snapshot.unsettled = None
    settled = [each for each in region.snapshots.ordered() if each.unsettled is None]
    region.snapshots.state_stored(settled)
    region.let_go()
    for physical in job.punch:
        region.chunks.release(physical)


def flip(region: Region, seal: Seal, chunk: int, indexes: I64Array, ids: I64Array) -> None:
    """Entries that are home now and have not been replaced since leave the chunk's table."""
    table = region.overlay.tables.get(chunk)
    if table is None:
        return
    moved = table[indexes] == ids
    gone = ids == DISCARDED
    if gone.any():
        if chunk in region.chunks.active_remaps:
            # A discard seen here came after the unflushed remap; the sealed one went with the table
            # then.
            moved &= ~gone
        else:
            # Discards look alike. Were one of these a later one, a write between the two would show
            # once it is home.
            later = region.overlay.discarded_since(seal.stages[seal.at].stop, chunk)
            moved &= ~(gone & later[indexes])
    table[indexes[moved]] = HOME
    if bool((table == HOME).all()):
        del region.overlay.tables[chunk]

"""Opening a region: the state of the last checkpoint, then the log's records on top. Writes
nothing, but where a record is lost. A region that is to be written has had all its files synced
before, so that what is read here is durable.

Damage faults the extents it can have touched, and no more: of a record whose table is whole those
where a damaged block is still the newest; of a lost page of the map those with a chunk that no
later record has given a new place; behind the end of the data file those that lie there; of a
record whose table is lost all of them, and then a new state says so durably before anything is
added to the log: only so can a record of the repair that follows be told from one before it.

Afterwards the region is exactly as the last flush that is found whole left it; unflushed writes
are gone, so no extent is dirty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from downstaird.core.checkpoint_stages import Seal, Stage, stages_of
from downstaird.core.chunk_contexts import Home
from downstaird.core.log import Chain, LogReader, LostRecord, Replayed
from downstaird.core.log_plan import plan_of
from downstaird.core.overlay import DISCARDED, LoggedEpoch
from downstaird.core.region_snapshots import going, recovered, snapshot_of
from downstaird.core.snapshot_entry import DELETED
from downstaird.core.snapshot_table import Snapshot, Unsettled
from downstaird.core.state_file import State, load_state, page_of_chunk, page_of_extent, store_state
from stairlib.model.context import mismatches
from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_FAULTED

if TYPE_CHECKING:
    from downstaird.core.region import Region

# Doubtful blocks are checked in parts of this size, to bound memory.
_CHECK_BYTES = 4 << 20


@dataclass(slots=True)
class _Replay:
    """What is being rebuilt while the records are gone through."""

    state: State
    fresh: dict[int, Home]
    next_id: int = 0
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    # Physical chunks of the snapshots found in records.
    held: set[int] = field(default_factory=set)
    # Records whose table is whole and whose data is not, with the id of their first block.
    doubtful: list[tuple[Replayed, int]] = field(default_factory=list)


def recover(region: Region, *, read_only: bool) -> None:
    """Fills a region whose files have just been opened. DataError."""
    layout = region.layout
    state = load_state(region.state_files, layout, region.tag, region.void.checkpoint)
    reader = LogReader(
        region.log.files,
        tag=region.tag,
        block_size=layout.geometry.block_size,
        void=region.void.records,
    )
    chain = reader.replay(state.log, state.sequence, state.chain, state.followed)
    replay = _Replay(state, {})
    for entry in state.snapshots:
        replay.snapshots[int(entry["id"])] = snapshot_of(entry, None)
    for replayed in chain.found:
        _apply(region, replay, replayed)
    if chain.lost is not None:
        state.extents["flags"] |= FLAG_FAULTED
        state.snapshots = region.snapshots.entries(
            each for each in replay.snapshots.values() if each.unsettled is None
        )
        if not read_only:
            _begin_anew(region, state, chain.lost)
            recover(region, read_only=False)
            _explain(region, chain.lost)
            return
    region.state_count = max(state.count, region.void.checkpoint)
    region.state_at = state.file
    held = recovered(region, list(replay.snapshots.values()), state.sides)
    gone = [
        snapshot_of(entry, None)
        for entry in state.snapshots
        if int(entry["id"]) not in replay.snapshots
    ]
    region.snapshots.state_stored([*region.snapshots.all.values(), *gone])
    if gone and not read_only:
        # Until no state lists a snapshot any more, somebody may be reading it.
        ending, free = going(region, gone, np.concatenate((held, state.chunks)))
        held = np.concatenate((held, ending))
        region.chunks.to_punch = free.tolist()
    region.chunks.adopt(state.chunks, state.sides, replay.fresh, held)
    region.extents.adopt(state.extents)
    region.log.resume(chain.active, chain.ends, chain.next_sequence, chain.chain)
    region.overlay.active.reset(replay.next_id)
    _fill_tables(region)
    region.seal = _seal_of(state, chain, region)
    _fault_what_is_lost(region, replay)
    if chain.lost is not None:
        _explain(region, chain.lost)


def _explain(region: Region, lost: LostRecord) -> None:
    found = DataError(lost.text, file=lost.file, offset=str(lost.offset))
    for extent in range(region.layout.geometry.extent_count):
        region.extents.fault(extent, found)


def _begin_anew(region: Region, state: State, lost: LostRecord) -> None:
    """Stores a state with all extents faulted, from which a new chain begins. The map is kept as
    far as it is known, and so is what lies there, until the repair lets go of it."""
    state.file = 1 - state.file
    state.count = max(state.count, region.void.checkpoint) + 1
    state.log = 0
    state.sequence = lost.highest + 1
    state.chain = 0
    top = int(state.chunks.max(initial=0)) + 1
    state.sides += bytes(max(0, top - len(state.sides)))
    region.overlay.drop_logged(len(region.overlay.logged))
    store_state(region.state_files[state.file], state, region.tag)


def _fault_what_is_lost(region: Region, replay: _Replay) -> None:
    """Extents of which something that counts cannot be read."""
    layout = region.layout
    state_file = region.state_files[replay.state.file].name
    data = region.chunks.data

    def fault(chunk: int, text: str, name: str, offset: int) -> None:
        found = DataError(text, file=name, offset=str(offset))
        region.extents.fault(chunk // layout.chunks_per_extent, found)

    for extent in np.flatnonzero(replay.state.extents["flags"] & FLAG_FAULTED).tolist():
        at = page_of_extent(extent, layout)
        text = f"the page of {state_file} at byte {at} is damaged, or says so since it was found"
        region.extents.fault(extent, DataError(text, file=state_file, offset=str(at)))
    for chunk in np.flatnonzero(replay.state.lost).tolist():
        at = page_of_chunk(chunk)
        text = f"the page of {state_file} at byte {at} that says where it is stored is damaged"
        fault(chunk, text, state_file, at)
    chunks, size = replay.state.chunks, data.size()
    # Never 0, which is "nowhere".
    first_behind = max(1, -(-size // layout.chunk_bytes))
    for chunk in np.flatnonzero(chunks >= first_behind).tolist():
        at = int(chunks[chunk]) * layout.chunk_bytes
        text = f"{data.name} ends at byte {size}, before what is stored at {at}"
        fault(chunk, text, data.name, at)
    for replayed, first in replay.doubtful:
        log = region.log.files[replayed.place.log].name
        for index in _bad_blocks(region, replayed):
            chunk, place = divmod(int(replayed.record.addresses[index]), layout.chunk_blocks)
            table = region.overlay.tables.get(chunk)
            if table is not None and table[place] == first + index:
                at = replayed.place.data_offset + index * layout.geometry.block_size
                fault(chunk, f"the block in {log} at byte {at} is damaged", log, at)


def _bad_blocks(region: Region, replayed: Replayed) -> list[int]:
    """Indexes of the record's blocks that are not what their contexts say, or cannot be read."""
    size = region.layout.geometry.block_size
    file = region.log.files[replayed.place.log]
    count = len(replayed.record.addresses)
    bad: list[int] = []
    step = max(1, _CHECK_BYTES // size)
    for first in range(0, count, step):
        here = min(step, count - first)
        try:
            data = file.pread(here * size, replayed.place.data_offset + first * size)
        except DataError:
            bad += range(first, first + here)
            continue
        contexts = replayed.record.contexts[first : first + here]
        encrypted = region.definition.encrypted
        found = mismatches(data, contexts, size, encrypted=encrypted)
        bad += [first + int(index) for index in found]
    # The hash over all said that one is: where none gives itself away, any may be it.
    return bad or list(range(count))


def _apply(region: Region, replay: _Replay, replayed: Replayed) -> None:
    record, place = replayed.record, replayed.place
    state = replay.state
    layout = region.layout
    file = region.log.files[place.log]
    if len(record.extents):
        extents = record.extents["extent"]
        if int(extents.max()) >= len(state.extents):
            raise _impossible(file.name, place.offset, "an extent")
        state.extents[extents] = record.extents
    if len(record.remaps) and int(record.remaps[:, 0].max()) >= layout.chunk_count:
        raise _impossible(file.name, place.offset, "a chunk")
    limit = layout.chunk_count * layout.chunk_blocks
    if len(record.addresses) and int(record.addresses.max()) >= limit:
        raise _impossible(file.name, place.offset, "a block")
    at = 0
    state.lost[record.remaps[:, 0]] = False
    for chunk, physical in record.remaps.tolist():
        old = int(state.chunks[chunk])
        if old not in replay.held:
            replay.fresh.pop(old, None)
        state.chunks[chunk] = physical
        if physical:
            # Held by a snapshot that is older than this record: the record had the place for a
            # while, and a checkpoint has used it since.
            reused = physical in replay.held
            contexts = record.remap_contexts[at : at + layout.chunk_blocks]
            if not reused:
                replay.fresh[physical] = Home.of(contexts, layout.blocks_in(chunk))
            at += layout.chunk_blocks
    if len(record.addresses) or len(record.discards) or len(record.remaps):
        _add_epoch(region, replay, replayed)
    for entry in record.snapshots:
        if int(entry["flags"]) & DELETED:
            # A state may have left it out already.
            replay.snapshots.pop(int(entry["id"]), None)
            continue
        unsettled = Unsettled(
            record.sequence, replay.next_id, state.chunks.copy(), state.extents.copy()
        )
        replay.snapshots[int(entry["id"])] = snapshot_of(entry, unsettled)
        replay.held.update(unsettled.chunks[unsettled.chunks != 0].tolist())


def _add_epoch(region: Region, replay: _Replay, replayed: Replayed) -> None:
    record, place = replayed.record, replayed.place
    count = len(record.addresses)
    if not replayed.whole:
        replay.doubtful.append((replayed, replay.next_id))
    region.overlay.add_logged(
        LoggedEpoch(
            start=replay.next_id,
            end=replay.next_id + count,
            log=place.log,
            file=region.log.files[place.log],
            data_offset=place.data_offset,
            addresses=record.addresses,
            contexts=record.contexts,
            slots=None,
            discards=record.discards,
            remapped=record.remaps[:, 0].copy(),
        )
    )
    replay.next_id += count + 1


def _impossible(name: str, offset: int, what: str) -> DataError:
    return DataError(
        f"{name} has a record at byte {offset} that names {what} outside the region: it was not "
        "written by this program for this region",
        file=name,
        offset=str(offset),
    )


def _fill_tables(region: Region) -> None:
    """Makes the tables that say where each logged block is."""
    layout = region.layout
    size = layout.chunk_blocks
    plan = plan_of(region.overlay.logged, size, layout.geometry.block_size)
    for index, chunk in enumerate(plan.chunks.tolist()):
        start, stop = int(plan.bounds[index]), int(plan.bounds[index + 1])
        if start == stop:
            continue
        table = region.overlay.table(chunk)
        table[plan.addresses[start:stop] - chunk * size] = plan.ids[start:stop]
    assert not len(plan.ids) or int(plan.ids.min()) >= DISCARDED


def _seal_of(state: State, chain: Chain, region: Region) -> Seal | None:
    """A checkpoint that the last run did not finish: the records of the first log are still to go
    home."""
    if chain.active == state.log:
        return None
    logged = region.overlay.logged
    second = [replayed for replayed in chain.found if replayed.place.log != state.log]
    sequence = second[0].record.sequence
    sealed = sum(1 for epoch in logged if epoch.log == state.log)
    waiting = region.snapshots.unsettled()
    before = [each for each in waiting if each[1].sequence < sequence]
    seal = Seal(
        log=state.log,
        epochs=sealed,
        sequence=sequence,
        chain=second[0].record.previous,
        stages=stages_of(logged[:sealed], before),
    )
    *taken, rest = stages_of(logged[sealed:], waiting[len(before) :])
    seal.later = [Stage(0, 0, stage.snapshot, stage.unsettled, stage.remapped) for stage in taken]
    seal.remapped = rest.remapped
    return seal

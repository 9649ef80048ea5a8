"""Opening a region: the state of the last checkpoint, then the log's records on top. Writes
nothing. A region that is to be written has had all its files synced before, so that what is read
here is durable.

Afterwards the region is exactly as the last flush that is found whole left it; unflushed writes
are gone, so no extent is dirty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downstaird.core.chunk_contexts import Home
from downstaird.core.log import Chain, LogReader, Replayed
from downstaird.core.log_plan import plan_of
from downstaird.core.overlay import DISCARDED, LoggedEpoch
from downstaird.core.region_checkpoint import Seal
from downstaird.core.state_file import State, load_state
from stairlib.model.errors import DataError

if TYPE_CHECKING:
    from downstaird.core.region import Region


@dataclass(slots=True)
class _Replay:
    """What is being rebuilt while the records are gone through."""

    state: State
    fresh: dict[int, Home]
    next_id: int = 0


def recover(region: Region) -> None:
    """Fills a region whose files have just been opened. DataError."""
    layout = region.layout
    state = load_state(region.state_files, layout, region.tag, region.void.checkpoint)
    reader = LogReader(
        region.log.files,
        tag=region.tag,
        block_size=layout.geometry.block_size,
        void=region.void.records,
    )
    chain = reader.replay(state.log, state.sequence, state.chain)
    replay = _Replay(state, {})
    for replayed in chain.found:
        _apply(region, replay, replayed)
    region.state_count = max(state.count, region.void.checkpoint)
    region.state_at = state.file
    region.chunks.adopt(state.chunks, state.sides, replay.fresh)
    region.extents.adopt(state.extents)
    region.log.resume(chain.active, chain.ends, chain.next_sequence, chain.chain)
    region.overlay.active.reset(replay.next_id)
    _fill_tables(region)
    region.seal = _seal_of(state, chain, region.overlay.logged)


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
    for chunk, physical in record.remaps.tolist():
        replay.fresh.pop(int(state.chunks[chunk]), None)
        state.chunks[chunk] = physical
        if physical:
            contexts = record.remap_contexts[at : at + layout.chunk_blocks]
            replay.fresh[physical] = Home.of(contexts, layout.blocks_in(chunk))
            at += layout.chunk_blocks
    if not (len(record.addresses) or len(record.discards) or len(record.remaps)):
        return
    count = len(record.addresses)
    region.overlay.add_logged(
        LoggedEpoch(
            start=replay.next_id,
            end=replay.next_id + count,
            log=place.log,
            file=file,
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


def _seal_of(state: State, chain: Chain, logged: list[LoggedEpoch]) -> Seal | None:
    """A checkpoint that the last run did not finish: the records of the first log are still to go
    home."""
    if chain.active == state.log:
        return None
    second = [replayed for replayed in chain.found if replayed.place.log != state.log]
    sealed = sum(1 for epoch in logged if epoch.log == state.log)
    later = logged[sealed:]
    remapped = np.concatenate([epoch.remapped for epoch in later]) if later else np.zeros(0)
    return Seal(
        log=state.log,
        epochs=sealed,
        sequence=second[0].record.sequence,
        chain=second[0].record.previous,
        remapped=set(remapped.astype(np.int64).tolist()),
    )

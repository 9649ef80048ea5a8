"""What a series of logged epochs comes to: for each block they name, the entry that counts in the
end.

Within a record remaps come first, then discards, then blocks; a remap hides all earlier entries
of its chunk. Used by a checkpoint, to know what goes home, and by recovery, to rebuild the
tables in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from downstaird.core.overlay import DISCARDED, I64Array, LoggedEpoch
from stairlib.model.context import ContextArray, empty_contexts


@dataclass(frozen=True, slots=True)
class LogPlan:
    """Entries sorted by address, one per block. ids: DISCARDED where the block becomes never-
    written.

    offsets: of the data in the log file, in bytes (-1 for discards). chunks: ascending, all that
    have an entry or were remapped. bounds: entries of chunk i are `bounds[i]` to `bounds[i +
    1]`.
    """

    addresses: I64Array
    ids: I64Array
    offsets: I64Array
    contexts: ContextArray
    chunks: I64Array
    bounds: I64Array


def plan_of(epochs: Sequence[LoggedEpoch], chunk_blocks: int, block_size: int) -> LogPlan:
    """The plan of the epochs, which are in the order of their records."""
    addresses: list[I64Array] = []
    ids: list[I64Array] = []
    offsets: list[I64Array] = []
    contexts: list[ContextArray] = []
    records: list[I64Array] = []
    remapped: dict[int, int] = {}
    for number, epoch in enumerate(epochs):
        for chunk in epoch.remapped.tolist():
            remapped[chunk] = number
        for start, count in epoch.discards.tolist():
            addresses.append(np.arange(start, start + count))
            ids.append(np.full(count, DISCARDED, dtype=np.int64))
            offsets.append(np.full(count, -1, dtype=np.int64))
            contexts.append(empty_contexts(count))
            records.append(np.full(count, number, dtype=np.int64))
        count = len(epoch.addresses)
        if count:
            addresses.append(epoch.addresses)
            ids.append(epoch.ids())
            offsets.append(epoch.data_offset + np.arange(count, dtype=np.int64) * block_size)
            contexts.append(epoch.contexts)
            records.append(np.full(count, number, dtype=np.int64))
    hidden_by = np.array(sorted(remapped), dtype=np.int64)
    if not addresses:
        nothing = np.zeros(0, dtype=np.int64)
        bounds = np.zeros(len(hidden_by) + 1, dtype=np.int64)
        return LogPlan(nothing, nothing, nothing, empty_contexts(0), hidden_by, bounds)
    all_addresses = np.concatenate(addresses)
    kept = _last_of_each(all_addresses)
    if len(hidden_by):
        since = np.array([remapped[int(chunk)] for chunk in hidden_by], dtype=np.int64)
        kept = kept[
            _not_hidden(
                all_addresses, np.concatenate(records), kept, hidden_by, since, chunk_blocks
            )
        ]
    final = all_addresses[kept]
    chunks = final // chunk_blocks
    chunks = chunks[_changes(chunks)]
    if len(hidden_by):
        chunks = np.union1d(chunks, hidden_by)
    starts = final.searchsorted(chunks * chunk_blocks)
    return LogPlan(
        addresses=final,
        ids=np.concatenate(ids)[kept],
        offsets=np.concatenate(offsets)[kept],
        contexts=np.concatenate(contexts)[kept],
        chunks=chunks,
        bounds=np.append(starts, len(final)),
    )


def _last_of_each(addresses: I64Array) -> npt.NDArray[np.intp]:
    """Index of the last occurrence of each address, in address order."""
    order = addresses.argsort(kind="stable")
    last = _changes(addresses[order][::-1])[::-1]
    kept: npt.NDArray[np.intp] = order[last]
    return kept


def _changes(values: I64Array) -> npt.NDArray[np.bool_]:
    """Which are the first of a run of equal ones."""
    first = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first


def _not_hidden(
    addresses: I64Array,
    records: I64Array,
    kept: npt.NDArray[np.intp],
    hidden_by: I64Array,
    since: I64Array,
    chunk_blocks: int,
) -> npt.NDArray[np.bool_]:
    """Which of the kept entries are not older than the last remap of their chunk."""
    chunks = addresses[kept] // chunk_blocks
    at = np.minimum(np.searchsorted(hidden_by, chunks), len(hidden_by) - 1)
    shown: npt.NDArray[np.bool_] = (hidden_by[at] != chunks) | (records[kept] >= since[at])
    return shown

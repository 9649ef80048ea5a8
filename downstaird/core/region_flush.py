"""One flush: what an epoch changed becomes one log record.

Order: data file synced (only when whole chunks were written straight to it), record written, log
synced. A record that could not be made durable is voided in the owner file, because after a
failed sync the page cache may show it although the medium does not have it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from downstaird.core.chunk_contexts import Home
from downstaird.core.disk import Appender, Buffer, File
from downstaird.core.log import BlocksToLog, Log, LogPlace, MadeRecord
from downstaird.core.log_record import NO_I64_PAIRS, ExtentEntries, Record, U32Array
from downstaird.core.mask_runs import Mask, true_runs
from downstaird.core.overlay import Arena, I64Array, LoggedEpoch
from downstaird.core.snapshot_entry import SnapshotEntries, no_snapshots
from stairlib import native
from stairlib.model.context import empty_contexts
from stairlib.model.errors import DataError

# What is hashed on the loop for it costs no more than a read.
BEGUN_BYTES_MAX = 256 << 10
_NO_CHUNKS: U32Array = np.zeros(0, dtype=np.uint32)


@dataclass(slots=True)
class FlushJob:
    """A flush in progress. All fields are frozen while `run` uses them on its thread.

    remaps: logical chunk to physical chunk. homes: contexts of those that are not 0. discards:
    per chunk, which blocks. void: called with the record's sequence when it failed. snapshots:
    taken by this flush, or deleted. sequence: of the record, once it is written.
    """

    log: Log
    data: File
    block_size: int
    chunk_blocks: int
    number: int
    generation: int
    extents: ExtentEntries
    arena: Arena | None
    remaps: dict[int, int]
    homes: list[Home]
    discards: dict[int, Mask]
    void: Callable[[int], None]
    snapshots: SnapshotEntries = field(default_factory=no_snapshots)
    epoch: LoggedEpoch | None = field(default=None, init=False)
    sequence: int = field(default=0, init=False)
    done: bool = field(default=False, init=False)
    _begun: tuple[BlocksToLog, MadeRecord, Appender] | None = field(default=None, init=False)

    def begin(self, appender: Appender) -> bool:
        """As FlushWork, where there are blocks alone, and not many of them."""
        blocks = self._blocks_alone()
        if blocks is None or len(blocks.data) > BEGUN_BYTES_MAX:
            return False
        made = self.log.begin(blocks, appender)
        if made is None:
            return False
        self._begun = blocks, made, appender
        return True

    def end(self) -> None:
        """As FlushWork."""
        assert self._begun is not None
        blocks, made, appender = self._begun
        self._log_blocks(blocks, lambda: self.log.end(made, appender))

    def run(self) -> None:
        """Writes and syncs. DataError."""
        blocks = self._blocks_alone()
        if blocks is not None:
            self._log_blocks(blocks, lambda: self.log.append_blocks(blocks))
            return
        record, data, slots = self._record()
        record.snapshots = self.snapshots
        changed = bool(self.remaps or self.discards or len(self.snapshots))
        if changed or len(record.addresses) or len(record.extents):
            try:
                if self.homes:
                    self.data.datasync()
                place = self.log.append(record, data)
            except DataError:
                self._void()
                raise
            self.sequence = record.sequence
            self.epoch = self._epoch(record, place, slots)
        self.done = True

    def _blocks_alone(self) -> BlocksToLog | None:
        """The record of the most usual flush, which compiled code can make: small writes, none of
        which hides another. None for any other."""
        arena = self.arena
        if not native.compiled or arena is None or not arena.used or arena.dead:
            return None
        if self.remaps or self.discards or len(self.snapshots):
            return None
        used = arena.used
        return BlocksToLog(
            self.number,
            self.generation,
            self.extents,
            arena.addresses[:used].copy(),
            arena.contexts[:used].copy(),
            arena.data[: used * self.block_size],
        )

    def _log_blocks(self, blocks: BlocksToLog, append: Callable[[], LogPlace]) -> None:
        assert self.arena is not None
        sequence, start = self.log.next_sequence, self.arena.start
        try:
            place = append()
        except DataError:
            self._void()
            raise
        self.sequence = sequence
        self.epoch = LoggedEpoch(
            start=start,
            end=start + self.arena.used,
            log=place.log,
            file=self.log.files[place.log],
            data_offset=place.data_offset,
            addresses=blocks.addresses,
            contexts=blocks.contexts,
            slots=None,
            discards=NO_I64_PAIRS,
            remapped=_NO_CHUNKS,
        )
        self.done = True

    def _void(self) -> None:
        """What failed may be on the medium all the same, and is not to count."""
        with contextlib.suppress(DataError):
            self.void(self.log.next_sequence)

    def _record(self) -> tuple[Record, list[Buffer], I64Array | None]:
        record = Record(flush=self.number, generation=self.generation, extents=self.extents)
        if self.remaps:
            record.remaps = np.array(list(self.remaps.items()), dtype=np.uint32)
        if self.homes:
            record.remap_contexts = np.concatenate([home.contexts for home in self.homes])
        if self.discards:
            record.discards = _runs_of(self.discards, self.chunk_blocks)
        if self.arena is None or not self.arena.used:
            return record, [], None
        return self._with_blocks(record, self.arena)

    def _with_blocks(
        self, record: Record, arena: Arena
    ) -> tuple[Record, list[Buffer], I64Array | None]:
        used = arena.used
        size = self.block_size
        live = arena.live()
        if live is None:
            record.addresses = arena.addresses[:used].copy()
            record.contexts = arena.contexts[:used].copy()
            return record, [arena.data[: used * size]], None
        slots = np.flatnonzero(live).astype(np.int64)
        record.addresses = arena.addresses[slots]
        record.contexts = arena.contexts[slots]
        edges = np.flatnonzero(np.diff(slots) != 1) + 1
        starts = np.concatenate(([0], edges)).tolist() if len(slots) else []
        stops = [*edges.tolist(), len(slots)]
        data: list[Buffer] = [
            arena.data[int(slots[start]) * size : (int(slots[stop - 1]) + 1) * size]
            for start, stop in zip(starts, stops, strict=False)
        ]
        return record, data, slots

    def _epoch(self, record: Record, place: LogPlace, slots: I64Array | None) -> LoggedEpoch:
        # A record of extent marks alone has no ids; it is given none by the caller either.
        start = self.arena.start if self.arena is not None else 0
        used = self.arena.used if self.arena is not None else 0
        return LoggedEpoch(
            start=start,
            end=start + used,
            log=place.log,
            file=self.log.files[place.log],
            data_offset=place.data_offset,
            addresses=record.addresses,
            contexts=record.contexts if len(record.contexts) else empty_contexts(0),
            slots=slots,
            discards=record.discards,
            remapped=record.remaps[:, 0].copy(),
        )


def _runs_of(masks: dict[int, Mask], chunk_blocks: int) -> I64Array:
    """(first address, count) of each run of set blocks. Shape (n, 2)."""
    runs = []
    for chunk, mask in masks.items():
        base = chunk * chunk_blocks
        runs += [(base + start, stop - start) for start, stop in true_runs(mask)]
    return np.array(runs, dtype=np.int64).reshape(-1, 2)

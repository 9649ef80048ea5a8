"""Small writes that are not home yet: in memory until a flush, then in the log until a checkpoint.

Every block put in gets an *id*, rising for ever; ids of one epoch (the time between two flushes)
are consecutive and one id is left out between epochs, so that a run of ids never spans two. A
table per touched chunk says for each block which id holds it, or HOME, or DISCARDED. Who owns an
id follows from its value alone: the active arena, the frozen one, or an epoch in the log; so a
flush moves nothing but one entry in a list.

A block put in twice in one epoch keeps its id; one hidden by a large write or discard of its own
epoch is dead (address -1) and is not logged.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from downstaird.core.disk import Buffer, File
from stairlib.model.context import ContextArray, empty_contexts

HOME = -1
DISCARDED = -2
DEAD = -1

I64Array = npt.NDArray[np.int64]


class Arena:
    """Blocks of one epoch in memory. Slot s has id `start + s`."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self._block_size = block_size
        # Zeroed memory is not backed by pages before it is first used.
        self.data = np.zeros(blocks * block_size, dtype=np.uint8).data
        self.contexts: ContextArray = empty_contexts(blocks)
        self.addresses: I64Array = np.zeros(blocks, dtype=np.int64)
        self.start = 0
        self.used = 0
        self.dead = 0

    def reset(self, start: int) -> None:
        """Empties it; the next block gets id `start`."""
        self.start = start
        self.used = 0
        self.dead = 0

    def bytes_of(self, slot: int, count: int) -> bytes:
        """A copy, as later writes of the epoch may change the blocks in place."""
        size = self._block_size
        return bytes(self.data[slot * size : (slot + count) * size])

    def live(self) -> npt.NDArray[np.bool_] | None:
        """Which of the used slots count; None when all do."""
        if not self.dead:
            return None
        alive: npt.NDArray[np.bool_] = self.addresses[: self.used] != DEAD
        return alive


@dataclass(slots=True)
class LoggedEpoch:
    """Blocks of one record, ids `start` to `end` (excluded).

    addresses, contexts: of the live ones, in the order of the data. slots: id - start of each of
    them, ascending; None when all ids are live. discards: shape (n, 2), first address and count.
    remapped: chunks.
    """

    start: int
    end: int
    log: int
    file: File
    data_offset: int
    addresses: I64Array
    contexts: ContextArray
    slots: I64Array | None
    discards: I64Array
    remapped: npt.NDArray[np.uint32]

    def rank(self, block_id: int) -> int:
        """Place of the id's block in the record's data."""
        index = block_id - self.start
        return index if self.slots is None else int(np.searchsorted(self.slots, index))

    def ids(self) -> I64Array:
        """Ids of the live blocks, in the order of the data."""
        if self.slots is None:
            return np.arange(self.start, self.start + len(self.addresses))
        return self.slots + self.start


class Overlay:
    """The tables and everything the ids in them lead to."""

    def __init__(self, chunk_blocks: int, block_size: int, arena_blocks: int) -> None:
        self._chunk_blocks = chunk_blocks
        self._block_size = block_size
        self._arena_blocks = arena_blocks
        self._untouched: I64Array = np.full(chunk_blocks, HOME, dtype=np.int64)
        self.tables: dict[int, I64Array] = {}
        self.active = Arena(arena_blocks, block_size)
        self.frozen: Arena | None = None
        self._spare: Arena | None = None
        self.logged: list[LoggedEpoch] = []
        self._starts: list[int] = []
        self.discards: dict[int, npt.NDArray[np.bool_]] = {}

    def table(self, chunk: int) -> I64Array:
        """The chunk's table, made on first use."""
        table = self.tables.get(chunk)
        if table is None:
            table = self.tables[chunk] = self._untouched.copy()
        return table

    @property
    def table_bytes(self) -> int:
        """Memory held by the tables."""
        return len(self.tables) * self._chunk_blocks * 8

    def room(self) -> int:
        """Blocks that still fit into the active arena."""
        return self.active.blocks - self.active.used

    def put(self, chunk: int, first: int, contexts: ContextArray, data: Buffer) -> None:
        """Takes blocks of one chunk; there must be room for them."""
        arena = self.active
        count = len(contexts)
        table = self.tables.get(chunk)
        if table is None:
            table = self.table(chunk)
        elif self._overwrite(table, first, contexts, data):
            return
        slot = arena.used
        stop = slot + count
        size = self._block_size
        assert stop <= arena.blocks
        arena.data[slot * size : stop * size] = data
        arena.contexts[slot:stop] = contexts
        address = chunk * self._chunk_blocks + first
        if count == 1:
            arena.addresses[slot] = address
            table[first] = arena.start + slot
        else:
            arena.addresses[slot:stop] = np.arange(address, address + count)
            table[first : first + count] = np.arange(arena.start + slot, arena.start + stop)
        arena.used = stop
        if self.discards:
            mask = self.discards.get(chunk)
            if mask is not None:
                mask[first : first + count] = False

    def put_scattered(self, addresses: Sequence[int], contexts: ContextArray, data: Buffer) -> None:
        """Takes one block for each address, in order; there must be room for them. The copying is
        done at once for all, unless one of them writes over a block of this epoch."""
        arena = self.active
        tables, size, start = self.tables, self._chunk_blocks, self.active.start
        slots = []
        taken = arena.used
        for address in addresses:
            chunk, block = divmod(address, size)
            table = tables.get(chunk)
            if table is None:
                table = self.table(chunk)
            else:
                old = table.item(block)
                if old >= start:
                    slots.append(old - start)
                    continue
            table[block] = start + taken
            slots.append(taken)
            taken += 1
        if taken - arena.used == len(slots):
            self._fill(arena.used, addresses, contexts, data)
        else:
            view = memoryview(data)
            bytes_of = self._block_size
            for index, slot in enumerate(slots):
                part = view[index * bytes_of : (index + 1) * bytes_of]
                self._fill(slot, addresses[index : index + 1], contexts[index : index + 1], part)
        arena.used = taken
        if self.discards:
            self._undo_discards(addresses)

    def _fill(
        self, slot: int, addresses: Sequence[int], contexts: ContextArray, data: Buffer
    ) -> None:
        """Copies blocks to the slots from `slot` on."""
        arena = self.active
        stop = slot + len(addresses)
        assert stop <= arena.blocks
        size = self._block_size
        arena.data[slot * size : stop * size] = data
        arena.contexts[slot:stop] = contexts
        arena.addresses[slot:stop] = addresses

    def _undo_discards(self, addresses: Sequence[int]) -> None:
        """These blocks have been written since they were discarded in this epoch."""
        for address in addresses:
            chunk, block = divmod(address, self._chunk_blocks)
            mask = self.discards.get(chunk)
            if mask is not None:
                mask[block] = False

    def _overwrite(self, table: I64Array, first: int, contexts: ContextArray, data: Buffer) -> bool:
        """Writes over blocks of this epoch where they lie in one run, and kills them where not."""
        arena = self.active
        count = len(contexts)
        old = int(table[first])
        if count > 1:
            ids = table[first : first + count]
            if int(ids.max()) < arena.start:
                return False
            if old < arena.start or np.count_nonzero(ids[1:] - ids[:-1] == 1) < count - 1:
                self._kill(ids)
                return False
        elif old < arena.start:
            return False
        slot = old - arena.start
        size = self._block_size
        arena.data[slot * size : (slot + count) * size] = data
        arena.contexts[slot : slot + count] = contexts
        return True

    def _kill(self, ids: I64Array) -> None:
        """Blocks of the active epoch among `ids` are not to be logged."""
        arena = self.active
        slots = ids[ids >= arena.start] - arena.start
        arena.addresses[slots] = DEAD
        arena.dead += len(slots)

    def clear(self, chunk: int) -> None:
        """A large write or a discard hides all that is here of the chunk."""
        table = self.tables.pop(chunk, None)
        if table is not None:
            self._kill(table)
        self.discards.pop(chunk, None)

    def forget(self, chunk: int, first: int, count: int) -> None:
        """These blocks have been written in place of this epoch's home of the chunk."""
        ids = self.tables[chunk][first : first + count]
        self._kill(ids)
        ids[:] = HOME
        mask = self.discards.get(chunk)
        if mask is not None:
            mask[first : first + count] = False

    def discard(self, chunk: int, first: int, count: int) -> None:
        """Makes a part of a chunk never-written."""
        ids = self.table(chunk)[first : first + count]
        self._kill(ids)
        ids[:] = DISCARDED
        mask = self.discards.get(chunk)
        if mask is None:
            mask = np.zeros(self._chunk_blocks, dtype=np.bool_)
            self.discards[chunk] = mask
        mask[first : first + count] = True

    def fetch(self, block_id: int, count: int) -> tuple[ContextArray, Buffer]:
        """Contexts and data of `count` consecutive ids of one epoch. DataError."""
        arena = self.active
        if block_id < arena.start:
            if self.frozen is None or block_id < self.frozen.start:
                return self._fetch_logged(block_id, count)
            arena = self.frozen
        slot = block_id - arena.start
        return arena.contexts[slot : slot + count].copy(), arena.bytes_of(slot, count)

    def _fetch_logged(self, block_id: int, count: int) -> tuple[ContextArray, Buffer]:
        epoch = self.epoch_of(block_id)
        rank = epoch.rank(block_id)
        size = self._block_size
        data = epoch.file.pread(count * size, epoch.data_offset + rank * size)
        return epoch.contexts[rank : rank + count], data

    def contexts(self, block_id: int, count: int) -> ContextArray:
        """Contexts of `count` consecutive ids of one epoch."""
        arena = self.active
        if block_id < arena.start:
            if self.frozen is None or block_id < self.frozen.start:
                epoch = self.epoch_of(block_id)
                rank = epoch.rank(block_id)
                return epoch.contexts[rank : rank + count]
            arena = self.frozen
        slot = block_id - arena.start
        return arena.contexts[slot : slot + count].copy()

    def gather(self, ids: I64Array) -> ContextArray:
        """Contexts of any ids, in their order: one step per epoch, not per run of ids."""
        found = empty_contexts(len(ids))
        for arena in (self.active, self.frozen):
            if arena is not None and arena.used:
                there = (ids >= arena.start) & (ids < arena.start + arena.used)
                found[there] = arena.contexts[ids[there] - arena.start]
        oldest = self.active.start if self.frozen is None else self.frozen.start
        logged = (ids < oldest).nonzero()[0]
        if not len(logged):
            return found
        epochs = np.array(self._starts).searchsorted(ids[logged], side="right") - 1
        order = epochs.argsort(kind="stable")
        logged, epochs = logged[order], epochs[order]
        edges = [0, *((epochs[1:] != epochs[:-1]).nonzero()[0] + 1).tolist(), len(logged)]
        for start, stop in pairwise(edges):
            epoch = self.logged[int(epochs[start])]
            places = logged[start:stop]
            ranks = ids[places] - epoch.start
            if epoch.slots is not None:
                ranks = np.searchsorted(epoch.slots, ranks)
            found[places] = epoch.contexts[ranks]
        return found

    def epoch_of(self, block_id: int) -> LoggedEpoch:
        """Whose id it is, of one that is in the log."""
        epoch = self.logged[bisect_right(self._starts, block_id) - 1]
        assert epoch.start <= block_id < epoch.end
        return epoch

    def freeze(self) -> Arena:
        """Ends the epoch: the arena of its blocks, unchanged until `publish`."""
        assert self.frozen is None
        frozen = self.active
        self.frozen = frozen
        self.active = self._spare or Arena(self._arena_blocks, self._block_size)
        self._spare = None
        self.active.reset(frozen.start + frozen.used + 1)
        return frozen

    def take_discards(self) -> dict[int, npt.NDArray[np.bool_]]:
        """The epoch's partial discards: per chunk, which blocks."""
        taken, self.discards = self.discards, {}
        return taken

    def publish(self, epoch: LoggedEpoch | None) -> None:
        """The frozen epoch is in the log now (None: it held nothing)."""
        assert self.frozen is not None
        if epoch is not None:
            self.add_logged(epoch)
        frozen = self.frozen
        self.frozen = None
        # An arena that grew large is given back, so that a burst does not hold memory for ever.
        if frozen.used <= _SPARE_BLOCKS_MAX:
            self._spare = frozen

    def add_logged(self, epoch: LoggedEpoch) -> None:
        """Appends an epoch whose ids are above those of all others."""
        assert not self._starts or self._starts[-1] < epoch.start
        self.logged.append(epoch)
        self._starts.append(epoch.start)

    def discarded_since(self, first: int, chunk: int) -> npt.NDArray[np.bool_]:
        """Which blocks of the chunk are discarded by a logged epoch from number `first` on, or by
        the one in memory. Not while an epoch is frozen."""
        size = self._chunk_blocks
        found = np.zeros(size, dtype=np.bool_)
        for epoch in self.logged[first:]:
            if not len(epoch.discards):
                continue
            starts = epoch.discards[:, 0]
            for start, count in epoch.discards[starts // size == chunk].tolist():
                found[start - chunk * size : start - chunk * size + count] = True
        active = self.discards.get(chunk)
        return found if active is None else found | active

    def drop_logged(self, count: int) -> None:
        """Forgets the oldest `count` epochs: their blocks are home."""
        del self.logged[:count]
        del self._starts[:count]


# 16 MiB of 4 KiB blocks.
_SPARE_BLOCKS_MAX = 4096

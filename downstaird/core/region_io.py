"""Reading and changing blocks: the hot path. Knows nothing of flushes, stamps, repairs or refusals.

Works on pieces (runs of blocks within a chunk); the range checks are done before. One step per
run of blocks that lie together, never one per block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from downstaird.core.chunk_contexts import Home
from downstaird.core.chunk_map import ChunkMap
from downstaird.core.disk import Buffer
from downstaird.core.layout import Layout, Piece
from downstaird.core.mask_runs import Mask, true_runs
from downstaird.core.overlay import DISCARDED, HOME, I64Array, Overlay
from stairlib.model.context import CONTEXT_BYTES, ContextArray, empty_contexts, written


class RegionBlocks:
    """The blocks of one region as its session sees them: chunk map and overlay together."""

    def __init__(
        self, layout: Layout, chunks: ChunkMap, overlay: Overlay, large_bytes: int
    ) -> None:
        self._layout = layout
        self._chunks = chunks
        self._overlay = overlay
        self._large_bytes = large_bytes
        self._size = layout.geometry.block_size
        self._chunk_bytes = layout.chunk_bytes
        # Of an extent without any context, once it was asked for.
        self._digest_of_nothing: int | None = None

    # --- reading

    def read(self, pieces: Sequence[Piece]) -> tuple[ContextArray, Sequence[Buffer]]:
        """Contexts (n, 4), and buffers that add up to the n blocks. Unwritten blocks are zeros."""
        if len(pieces) == 1:
            return self._read_piece(*pieces[0])
        tables = self._overlay.tables
        live = self._chunks.live
        contexts: list[ContextArray] = []
        buffers: list[Buffer] = []
        run_start = run_stop = 0
        for chunk, first, count in pieces:
            physical = int(live[chunk])
            home = None
            if physical and chunk not in tables:
                home = self._chunks.home(chunk, physical)
            if home is not None and home.full:
                contexts.append(home.contexts[first : first + count])
                at = physical * self._chunk_bytes + first * self._size
                if at != run_stop:
                    if run_stop:
                        buffers.append(self._chunks.data.pread(run_stop - run_start, run_start))
                    run_start = at
                run_stop = at + count * self._size
                continue
            if run_stop:
                buffers.append(self._chunks.data.pread(run_stop - run_start, run_start))
                run_start = run_stop = 0
            part, data = self._read_piece(chunk, first, count)
            contexts.append(part)
            buffers += data
        if run_stop:
            buffers.append(self._chunks.data.pread(run_stop - run_start, run_start))
        return np.concatenate(contexts), buffers

    def _read_piece(self, chunk: int, first: int, count: int) -> tuple[ContextArray, list[Buffer]]:
        table = self._overlay.tables.get(chunk)
        if table is None:
            part, data = self._read_home(chunk, first, count)
            return part, [data]
        if count == 1:
            place = int(table[first])
            if place >= 0:
                part, data = self._overlay.fetch(place, 1)
            else:
                part, data = self._read_other(place, chunk, first, 1)
            return part, [data]
        contexts: list[ContextArray] = []
        buffers: list[Buffer] = []
        for place, start, length in _places(table[first : first + count]):
            if place >= 0:
                part, data = self._overlay.fetch(place, length)
            else:
                part, data = self._read_other(place, chunk, first + start, length)
            contexts.append(part)
            buffers.append(data)
        return np.concatenate(contexts), buffers

    def _read_other(
        self, place: int, chunk: int, first: int, count: int
    ) -> tuple[ContextArray, Buffer]:
        if place == DISCARDED:
            return empty_contexts(count), bytes(count * self._size)
        assert place == HOME
        return self._read_home(chunk, first, count)

    def _read_home(self, chunk: int, first: int, count: int) -> tuple[ContextArray, Buffer]:
        physical = int(self._chunks.live[chunk])
        if not physical:
            return empty_contexts(count), bytes(count * self._size)
        home = self._chunks.home(chunk, physical)
        contexts = home.contexts[first : first + count]
        length = count * self._size
        if not home.full:
            there = written(contexts)
            some = np.count_nonzero(there)
            if not some:
                return contexts, bytes(length)
            if some < count:
                data = self._chunks.data.pread(
                    length, physical * self._chunk_bytes + first * self._size
                )
                blocks = np.frombuffer(bytearray(data), dtype=np.uint8).reshape(count, self._size)
                blocks[~there] = 0
                return contexts, blocks.reshape(-1).data
        at = physical * self._chunk_bytes + first * self._size
        return contexts, self._chunks.data.pread(length, at)

    def contexts(self, pieces: Sequence[Piece]) -> ContextArray:
        """Contexts alone."""
        live, tables = self._chunks.live, self._overlay.tables
        found = empty_contexts(sum(count for _, _, count in pieces))
        parts: list[I64Array] = []
        starts: list[int] = []
        at = 0
        for chunk, first, count in pieces:
            physical = int(live[chunk])
            if physical:
                home = self._chunks.home(chunk, physical)
                found[at : at + count] = home.contexts[first : first + count]
            table = tables.get(chunk)
            if table is not None:
                parts.append(table[first : first + count])
                starts.append(at)
            at += count
        if parts:
            self._lay_over(found, parts, starts)
        return found

    def _lay_over(self, found: ContextArray, parts: list[I64Array], starts: list[int]) -> None:
        """Puts what the tables' `parts` say into `found`, where they begin at `starts`."""
        if len(parts) == 1:
            (places,) = parts
            indexes = np.arange(starts[0], starts[0] + len(places))
        else:
            places = np.concatenate(parts)
            lengths = [len(part) for part in parts]
            before = np.cumsum([0, *lengths[:-1]])
            indexes = np.arange(len(places)) + np.repeat(np.array(starts) - before, lengths)
        found[indexes[places == DISCARDED]] = 0
        here = places >= 0
        found[indexes[here]] = self._overlay.gather(places[here])

    def untouched(self, first: int, count: int) -> bool:
        """Whether nothing is stored of these chunks."""
        if self._chunks.live[first : first + count].any():
            return False
        return self._overlay.tables.keys().isdisjoint(range(first, first + count))

    def digest(self, extent: int) -> int:
        """xxh3-64 over the contexts of an extent."""
        chunks = self._layout.chunks_per_extent
        per_extent = self._layout.geometry.blocks_per_extent
        if self.untouched(extent * chunks, chunks):
            if self._digest_of_nothing is None:
                self._digest_of_nothing = xxhash.xxh3_64_intdigest(
                    bytes(per_extent * CONTEXT_BYTES)
                )
            return self._digest_of_nothing
        contexts = self.contexts(self._layout.pieces(extent * per_extent, per_extent))
        return xxhash.xxh3_64_intdigest(np.ascontiguousarray(contexts, dtype="<u8").data)

    # --- changing

    def write(self, pieces: Sequence[Piece], contexts: ContextArray, data: Buffer) -> None:
        """Takes the blocks. DataError when whole chunks cannot be written; nothing is changed of
        these then."""
        if len(data) >= self._large_bytes:
            view = memoryview(data)
            whole = [
                index
                for index, (chunk, _, count) in enumerate(pieces)
                if count == self._layout.blocks_in(chunk)
            ]
            blocks = sum(pieces[index][2] for index in whole)
            if blocks * self._size >= self._large_bytes:
                self._write_pieces(pieces, set(whole), contexts, view)
                return
        if len(pieces) == 1:
            chunk, first, _ = pieces[0]
            self._write_small(chunk, first, contexts, data)
            return
        self._write_pieces(pieces, set(), contexts, memoryview(data))

    def write_scattered(self, offsets: Sequence[int], contexts: ContextArray, data: Buffer) -> bool:
        """Takes one block for each offset, in order. False: nothing was taken, and they have to be
        written one by one: they are not as many as the data, not all within the region, more than
        there is memory for before a flush, or chunks in themselves; or extents end within a
        chunk."""
        count = len(offsets)
        layout = self._layout
        if not layout.even or self._size >= self._large_bytes or count > self._overlay.room():
            return False
        if len(contexts) != count or len(data) != count * self._size:
            return False
        if min(offsets) < 0 or max(offsets) >= layout.block_count:
            return False
        self._overlay.put_scattered(offsets, contexts, data)
        return True

    def _write_small(self, chunk: int, first: int, contexts: ContextArray, data: Buffer) -> None:
        if self._overlay.room() >= len(contexts):
            self._overlay.put(chunk, first, contexts, data)
        else:
            self._write_through(chunk, first, contexts, data)

    def _write_pieces(
        self, pieces: Sequence[Piece], whole: set[int], contexts: ContextArray, view: memoryview
    ) -> None:
        """The pieces whose index is in `whole` go straight to their places."""
        at = 0
        chunks: list[tuple[int, int, int]] = []
        for index, (chunk, first, count) in enumerate(pieces):
            if index in whole:
                chunks.append((chunk, at, count))
            else:
                part = view[at * self._size : (at + count) * self._size]
                self._write_small(chunk, first, contexts[at : at + count], part)
            at += count
        if chunks:
            self._write_chunks(chunks, contexts, view)

    def _write_chunks(
        self,
        chunks: Sequence[tuple[int, int, int]],
        contexts: ContextArray,
        view: memoryview,
        *,
        full: bool = True,
    ) -> None:
        """Writes (chunk, first block in `view`, blocks) to fresh places, consecutive ones in one
        go. `full`: every block has a context."""
        taken, writes = self.place(chunks, view)
        try:
            for part, at in writes:
                self._chunks.data.pwritev([part], at)
        except BaseException:
            self.give_up(taken)
            raise
        self.settle(chunks, taken, contexts, full=full)

    def place(
        self, chunks: Sequence[tuple[int, int, int]], view: memoryview
    ) -> tuple[list[int], list[tuple[memoryview, int]]]:
        """Takes fresh places for (chunk, first block in `view`, blocks): them, and what is to be
        written where in the data file, consecutive ones in one go. They hold nothing that counts
        until `settle`; else `give_up` frees them. DataError NO_SPACE."""
        size = self._size
        taken = self._chunks.take(len(chunks))
        writes = []
        start = 0
        while start < len(chunks):
            stop = start + 1
            while stop < len(chunks) and self._follows(chunks, taken, stop):
                stop += 1
            low = chunks[start][1] * size
            high = (chunks[stop - 1][1] + chunks[stop - 1][2]) * size
            writes.append((view[low:high], taken[start] * self._chunk_bytes))
            start = stop
        return taken, writes

    def settle(
        self,
        chunks: Sequence[tuple[int, int, int]],
        taken: Sequence[int],
        contexts: ContextArray,
        *,
        full: bool = True,
    ) -> None:
        """What was written to the places is what the chunks hold from now on."""
        kept = contexts.copy()
        for (chunk, at, count), physical in zip(chunks, taken, strict=True):
            self._remap(chunk, physical, kept[at : at + count], full=full)

    def give_up(self, taken: Sequence[int]) -> None:
        """Frees places that did not come to hold anything."""
        for physical in taken:
            self._chunks.release(physical)

    def homes_of(self, pieces: Sequence[Piece]) -> list[tuple[int, int, Home]] | None:
        """(chunk, physical chunk, contexts) of each piece, when all that is read of them lies in
        their homes; None otherwise. DataError EXTENT_FAULTED."""
        found = []
        for chunk, first, count in pieces:
            physical = int(self._chunks.live[chunk])
            if not physical or chunk in self._overlay.tables:
                return None
            home = self._chunks.home(chunk, physical)
            # Where a block has no context, its place holds anything.
            if not home.full and not written(home.contexts[first : first + count]).all():
                return None
            found.append((chunk, physical, home))
        return found

    def still_home(self, homes: Sequence[tuple[int, int, Home]]) -> bool:
        """Whether nothing has changed in these homes since `homes_of`: whatever writes to one in
        place leaves a table or other contexts."""
        return all(
            int(self._chunks.live[chunk]) == physical
            and chunk not in self._overlay.tables
            and self._chunks.known(physical) is home
            for chunk, physical, home in homes
        )

    def _follows(
        self, chunks: Sequence[tuple[int, int, int]], taken: Sequence[int], index: int
    ) -> bool:
        """Whether chunk `index` lies behind the one before, in the request and in its new place."""
        _, at, count = chunks[index - 1]
        return (
            taken[index] == taken[index - 1] + 1
            and chunks[index][1] == at + count
            and count == self._layout.chunk_blocks
        )

    def _remap(self, chunk: int, physical: int, contexts: ContextArray, *, full: bool) -> None:
        if len(contexts) < self._layout.chunk_blocks:
            padded = empty_contexts(self._layout.chunk_blocks)
            padded[: len(contexts)] = contexts
            contexts = padded
        self._chunks.remap(chunk, physical, Home(contexts, full))
        self._overlay.clear(chunk)

    def _write_through(self, chunk: int, first: int, contexts: ContextArray, data: Buffer) -> None:
        """A small write while the arena is full: its chunk gets a fresh place, and is then written
        in place until the next flush, since nothing durable names that place."""
        physical = self._chunks.active_remaps.get(chunk, 0)
        if not physical:
            blocks = self._layout.blocks_in(chunk)
            before, buffers = self._read_piece(chunk, 0, blocks)
            (physical,) = self._chunks.take(1)
            try:
                self._chunks.data.pwritev(buffers, physical * self._chunk_bytes)
            except BaseException:
                self._chunks.release(physical)
                raise
            self._remap(chunk, physical, before, full=False)
        at = physical * self._chunk_bytes + first * self._size
        self._chunks.data.pwritev([data], at)
        now = self._chunks.fresh[physical].contexts.copy()
        now[first : first + len(contexts)] = contexts
        self._chunks.fresh[physical] = Home.of(now, self._layout.blocks_in(chunk))
        table = self._overlay.tables.get(chunk)
        if table is not None:
            self._overlay.forget(chunk, first, len(contexts))

    def merge(
        self, pieces: Sequence[Piece], wanted: Mask, contexts: ContextArray, data: Buffer
    ) -> None:
        """Takes the `wanted` ones of the blocks. A chunk that gets half of its blocks or more goes
        to a fresh place at once, together with what it holds: by the log, all would be written
        twice. DataError."""
        view = memoryview(data)
        at = 0
        whole: list[tuple[int, int, int]] = []
        for chunk, first, count in pieces:
            here = wanted[at : at + count]
            part = view[at * self._size : (at + count) * self._size]
            blocks = self._layout.blocks_in(chunk)
            taken = np.count_nonzero(here)
            if taken == blocks:
                whole.append((chunk, at, count))
            elif 2 * taken >= blocks:
                self._merge_chunk(chunk, first, here, contexts[at : at + count], part)
            else:
                for start, stop in true_runs(here):
                    self._write_small(
                        chunk,
                        first + start,
                        contexts[at + start : at + stop],
                        part[start * self._size : stop * self._size],
                    )
            at += count
        if whole:
            self._write_chunks(whole, contexts, view)

    def _merge_chunk(
        self, chunk: int, first: int, wanted: Mask, contexts: ContextArray, part: memoryview
    ) -> None:
        blocks = self._layout.blocks_in(chunk)
        stop = first + len(wanted)
        before, buffers = self._read_piece(chunk, 0, blocks)
        merged = before.copy()
        merged[first:stop][wanted] = contexts[wanted]
        data = np.frombuffer(bytearray().join(buffers), dtype=np.uint8).reshape(blocks, self._size)
        fresh = np.frombuffer(part, dtype=np.uint8).reshape(-1, self._size)
        data[first:stop][wanted] = fresh[wanted]
        full = bool(written(merged).all())
        self._write_chunks([(chunk, 0, blocks)], merged, data.reshape(-1).data, full=full)

    def discard(self, pieces: Sequence[Piece]) -> None:
        """Makes the blocks never-written."""
        for chunk, first, count in pieces:
            if not self._chunks.live[chunk] and chunk not in self._overlay.tables:
                continue
            if count == self._layout.blocks_in(chunk):
                self.drop(chunk)
            else:
                self._overlay.discard(chunk, first, count)

    def drop(self, chunk: int) -> None:
        """Makes a whole chunk never-written."""
        self._overlay.clear(chunk)
        self._chunks.remap(chunk, 0, None)


def _places(locations: I64Array) -> list[tuple[int, int, int]]:
    """(place of the first block, its index, blocks) of each run of blocks that lie together:
    consecutive ids, or all home, or all discarded."""
    before = locations[:-1]
    apart = (locations[1:] - before) != (before >= 0)
    edges = (apart.nonzero()[0] + 1).tolist()
    if not edges:
        return [(int(locations[0]), 0, len(locations))]
    starts = [0, *edges]
    firsts = locations[starts].tolist()
    stops = [*edges, len(locations)]
    return [
        (place, start, stop - start)
        for place, start, stop in zip(firsts, starts, stops, strict=True)
    ]

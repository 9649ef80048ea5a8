"""Reading and changing blocks: the hot path. Knows nothing of flushes, stamps, repairs or refusals.

Works on pieces (runs of blocks within a chunk); the range checks are done before. One step per
run of blocks that lie together, never one per block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from downstaird.core.chunk_contexts import Home
from downstaird.core.chunk_map import ChunkMap
from downstaird.core.disk import Buffer
from downstaird.core.layout import Layout, Piece
from downstaird.core.overlay import DISCARDED, HOME, I64Array, Overlay
from stairlib.model.context import ContextArray, empty_contexts


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
            there = contexts.any(axis=1)
            if not there.any():
                return contexts, bytes(length)
            if not there.all():
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
        parts = [self._piece_contexts(*piece) for piece in pieces]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _piece_contexts(self, chunk: int, first: int, count: int) -> ContextArray:
        table = self._overlay.tables.get(chunk)
        physical = int(self._chunks.live[chunk])
        if physical:
            contexts = self._chunks.home(chunk, physical).contexts[first : first + count]
            if table is None:
                return contexts
            contexts = contexts.copy()
        else:
            contexts = empty_contexts(count)
            if table is None:
                return contexts
        for place, start, length in _places(table[first : first + count]):
            if place >= 0:
                contexts[start : start + length] = self._overlay.contexts(place, length)
            elif place == DISCARDED:
                contexts[start : start + length] = 0
        return contexts

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
                self._write_large(pieces, set(whole), contexts, view)
                return
        at = 0
        for chunk, first, count in pieces:
            if count == len(contexts):
                self._write_small(chunk, first, contexts, data)
                return
            view = memoryview(data)
            self._write_small(
                chunk,
                first,
                contexts[at : at + count],
                view[at * self._size : (at + count) * self._size],
            )
            at += count

    def _write_small(self, chunk: int, first: int, contexts: ContextArray, data: Buffer) -> None:
        if self._overlay.room() >= len(contexts):
            self._overlay.put(chunk, first, contexts, data)
        else:
            self._write_through(chunk, first, contexts, data)

    def _write_large(
        self, pieces: Sequence[Piece], whole: set[int], contexts: ContextArray, view: memoryview
    ) -> None:
        at = 0
        chunks: list[tuple[int, int, int]] = []
        for index, (chunk, first, count) in enumerate(pieces):
            if index in whole:
                chunks.append((chunk, at, count))
            else:
                part = view[at * self._size : (at + count) * self._size]
                self._write_small(chunk, first, contexts[at : at + count], part)
            at += count
        self._write_chunks(chunks, contexts, view)

    def _write_chunks(
        self, chunks: Sequence[tuple[int, int, int]], contexts: ContextArray, view: memoryview
    ) -> None:
        """Writes (chunk, first block in `view`, blocks) to fresh places, consecutive ones in one
        go."""
        size = self._size
        taken = self._chunks.take(len(chunks))
        try:
            start = 0
            while start < len(chunks):
                stop = start + 1
                while stop < len(chunks) and self._follows(chunks, taken, stop):
                    stop += 1
                low = chunks[start][1] * size
                high = (chunks[stop - 1][1] + chunks[stop - 1][2]) * size
                self._chunks.data.pwritev([view[low:high]], taken[start] * self._chunk_bytes)
                start = stop
        except BaseException:
            for physical in taken:
                self._chunks.release(physical)
            raise
        kept = contexts.copy()
        for (chunk, at, count), physical in zip(chunks, taken, strict=True):
            self._remap(chunk, physical, kept[at : at + count], full=True)

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
    before, after = locations[:-1], locations[1:]
    together = np.where(before >= 0, after - before == 1, after == before)
    edges = (np.flatnonzero(~together) + 1).tolist()
    starts = [0, *edges]
    firsts = locations[starts].tolist()
    stops = [*edges, len(locations)]
    return [
        (place, start, stop - start)
        for place, start, stop in zip(firsts, starts, stops, strict=True)
    ]

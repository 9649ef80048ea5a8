"""Where each logical chunk's home is, and the contexts kept there.

Two maps, one u32 per logical chunk, 0 = never written: `durable` is as of the last flush that
succeeded, `live` has the large writes and discards since then on top. Invariant: they differ
only in chunks of `active_remaps` or `frozen_remaps`, and there `live` has their value.

A physical chunk is free again when the flush that no longer needs it is durable. Contexts of
chunks written since the last checkpoint are in `fresh`; those of others in the contexts files,
with a bounded cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from downstaird.core.chunk_contexts import ContextFiles, Home, zero_home
from downstaird.core.chunk_space import ChunkSpace
from downstaird.core.disk import File
from downstaird.core.layout import Layout
from stairlib.model.context import CONTEXT_BYTES
from stairlib.model.errors import DataError

DATA_NAME = "data"
# The data file's size is raised this much at a time, as each change of size costs a journal commit.
_GROWTH_BYTES = 1 << 30

U32Array = npt.NDArray[np.uint32]


class ChunkMap:
    """The chunks of one region. All methods are for the loop's thread unless they say otherwise."""

    def __init__(
        self,
        layout: Layout,
        data: File,
        contexts: ContextFiles,
        *,
        cache_bytes: int,
        on_damage: Callable[[int, DataError], None],
        is_held: Callable[[int], bool] = lambda _physical: False,
    ) -> None:
        self._layout = layout
        self.data = data
        self.context_files = contexts
        self.chunk_bytes = layout.chunk_bytes
        self.durable: U32Array = np.zeros(layout.chunk_count, dtype=np.uint32)
        self.live: U32Array = np.zeros(layout.chunk_count, dtype=np.uint32)
        self.sides = bytearray(1)
        self.space = ChunkSpace()
        self.active_remaps: dict[int, int] = {}
        self.frozen_remaps: dict[int, int] = {}
        self.fresh: dict[int, Home] = {}
        self.cached: dict[int, Home] = {}
        self._cached_max = max(1, cache_bytes // (layout.chunk_blocks * CONTEXT_BYTES))
        self._on_damage = on_damage
        # Whether a snapshot needs a physical chunk: then it is not free.
        self._is_held = is_held
        self._data_chunks = data.size() // self.chunk_bytes
        # Freed by discards: their space is given back by the next checkpoint, then they are free.
        self.to_punch: list[int] = []

    def adopt(
        self,
        durable: U32Array,
        sides: bytearray,
        fresh: dict[int, Home],
        held: U32Array | None = None,
    ) -> None:
        """Takes over what recovery found. held: physical chunks that snapshots need."""
        self.durable = durable
        self.live = durable.copy()
        used = durable if held is None else np.concatenate((durable, held))
        self.space = ChunkSpace.around(used)
        self.sides = sides + bytes(max(0, self.space.end - len(sides)))
        self.fresh = fresh

    @property
    def fresh_bytes(self) -> int:
        """Memory held by contexts that wait for a checkpoint."""
        return len(self.fresh) * self._layout.chunk_blocks * CONTEXT_BYTES

    def home(self, chunk: int, physical: int) -> Home:
        """The contexts at `physical`, which is the home of `chunk`. DataError EXTENT_FAULTED, also
        reported to `on_damage`, when they cannot be read."""
        home = self.fresh.get(physical) or self.cached.get(physical)
        if home is not None:
            return home
        try:
            contexts = self.context_files.load(chunk, physical, self.sides[physical])
        except DataError as error:
            self._on_damage(chunk, error)
            raise
        home = Home.of(contexts, self._layout.blocks_in(chunk))
        self.remember(physical, home)
        return home

    def known(self, physical: int) -> Home | None:
        """The contexts at `physical` if they are in memory."""
        return self.fresh.get(physical) or self.cached.get(physical)

    def remember(self, physical: int, home: Home) -> None:
        """Puts contexts that are in the files into the cache; the oldest entry makes room."""
        cache = self.cached
        if len(cache) >= self._cached_max and physical not in cache:
            del cache[next(iter(cache))]
        cache[physical] = home

    def take(self, count: int) -> list[int]:
        """Physical chunks to write to, all within the data file. DataError NO_SPACE."""
        taken = self.space.take(count)
        if self.space.end > self._data_chunks:
            step = max(1, _GROWTH_BYTES // self.chunk_bytes)
            chunks = -(-self.space.end // step) * step
            try:
                self.data.truncate(chunks * self.chunk_bytes)
            except DataError:
                for physical in taken:
                    self.space.release(physical)
                raise
            self._data_chunks = chunks
        if self.space.end > len(self.sides):
            self.sides += bytes(self.space.end - len(self.sides))
        return taken

    def remap(self, chunk: int, physical: int, home: Home | None) -> None:
        """From now on `chunk` is at `physical` (0: never written), unflushed."""
        unflushed = self.active_remaps.get(chunk, 0)
        if unflushed:
            self.release(unflushed)
        self.active_remaps[chunk] = physical
        self.live[chunk] = physical
        if home is not None:
            self.fresh[physical] = home

    def settle(self, chunk: int, physical: int) -> None:
        """A checkpoint gives `chunk`, unmapped so far in the durable state, a home that is still
        empty."""
        assert not self.frozen_remaps
        self.durable[chunk] = physical
        if chunk not in self.active_remaps:
            self.live[chunk] = physical
        self.fresh[physical] = zero_home(self._layout.chunk_blocks)

    def move(self, chunk: int, physical: int) -> None:
        """A checkpoint has put what the durable state has of `chunk` elsewhere: a snapshot keeps
        the old place."""
        assert not self.frozen_remaps
        if self.live[chunk] == self.durable[chunk]:
            self.live[chunk] = physical
        self.durable[chunk] = physical

    def empty(self, chunk: int, physical: int) -> None:
        """A checkpoint found nothing left in `chunk`: the commit gives its home back."""
        self.durable[chunk] = 0
        self.live[chunk] = 0
        self.give_back(physical)

    def give_back(self, physical: int) -> None:
        """The region does not need the chunk any more: unless a snapshot does, the next checkpoint
        gives its space back."""
        if self._is_held(physical):
            return
        self.fresh.pop(physical, None)
        self.cached.pop(physical, None)
        self.to_punch.append(physical)

    def release(self, physical: int) -> None:
        """Nothing durable or to be flushed names the chunk any more."""
        self.fresh.pop(physical, None)
        self.cached.pop(physical, None)
        self.sides[physical] = 0
        self.space.release(physical)

    def freeze(self) -> dict[int, int]:
        """The remaps of the epoch that ends now."""
        assert not self.frozen_remaps
        self.frozen_remaps, self.active_remaps = self.active_remaps, {}
        return self.frozen_remaps

    def publish(self, remaps: dict[int, int]) -> None:
        """The record with `remaps` is durable: what they replaced is free."""
        for chunk, physical in remaps.items():
            old = int(self.durable[chunk])
            self.durable[chunk] = physical
            if not old:
                continue
            if not physical:
                self.give_back(old)
            elif not self._is_held(old):
                self.release(old)
        self.frozen_remaps = {}

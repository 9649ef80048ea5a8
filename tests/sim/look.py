"""One look at a member's medium, opened apart: what a power cut of this moment would leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downstaird.core.region import Region
from stairlib.model.context import ContextArray, mismatches

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon
    from tests.sim.sealing import Sealing


class Look:
    """Opened when it is first needed, and read once whatever is asked of it. Good for one moment
    only."""

    def __init__(self, daemon: Daemon, sealing: Sealing) -> None:
        self.daemon = daemon
        self._sealing = sealing
        self._region: Region | None = None
        self._contexts: ContextArray | None = None

    def region(self) -> Region:
        """As recovery finds it. StairwellError."""
        if self._region is None:
            self._region = self.daemon.durable()
        return self._region

    def values(self) -> tuple[list[bytes], list[int]]:
        """All blocks as the guest wrote them, and the numbers of those that do not match their
        contexts. StairwellError."""
        region = self.region()
        definition = region.definition
        size = definition.geometry.block_size
        self._contexts, buffers = region.read(0, definition.geometry.block_count)
        data = b"".join(map(bytes, buffers))
        bad = mismatches(data, self._contexts, size, encrypted=definition.encrypted)
        values = self._sealing.values(self._contexts, data, size)
        if None in values:
            bad = sorted({*bad, *(n for n, value in enumerate(values) if value is None)})
        return [value or b"" for value in values], bad

    def contexts(self, offset: int, count: int) -> ContextArray:
        """Of some blocks. StairwellError."""
        if self._contexts is not None:
            return self._contexts[offset : offset + count]
        return self.region().contexts(offset, count)

"""`downstaird verify`: checks a region that is not in service."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic

from downstaird.core.verification import Verification
from downstaird.regions import opened

PROGRESS_SECONDS = 0.5


def verify(directory: Path) -> int:
    """Reads every stored block. 0 when each matches its context, 1 when one does not."""
    with opened(directory) as engine:
        definition = engine.definition
        check = Verification(engine)
        shown = monotonic()
        progress = sys.stderr.isatty()
        for _ in check.steps():
            if progress and monotonic() - shown >= PROGRESS_SECONDS:
                shown = monotonic()
                _show(check, definition.geometry.extent_count, end="\r")
        if progress:
            _show(check, definition.geometry.extent_count, end="\n")
        size = check.blocks_read * definition.geometry.block_size / (1 << 20)
        print(
            f"region {definition.id}: {check.blocks_read} blocks ({size:.0f} MiB) read, "
            f"{check.blocks_bad} bad"
        )
        for bad in check.bad_blocks:
            print(f"  block {bad.block}: {bad.reason}")
        if check.blocks_bad > len(check.bad_blocks):
            print("  and more; the first are named")
        return 1 if check.blocks_bad else 0


def _show(check: Verification, extents: int, *, end: str) -> None:
    done = check.extents_done
    print(
        f"extent {done} of {extents} ({100 * done // extents} %), "
        f"{check.blocks_read} blocks read, {check.blocks_bad} bad",
        end=end,
        file=sys.stderr,
        flush=True,
    )

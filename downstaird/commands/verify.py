"""`downstaird verify`: checks a region that is not in service."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from downstaird.commands.bars import bar
from downstaird.core.verification import BAD_BLOCKS_NAMED_MAX, BadBlock, Verification
from downstaird.regions import opened


def verify(directory: Path, *, threads: int = 0, output: str = "human") -> int:
    """Reads every stored block. 0 when each matches its context, 1 when one does not. threads 0: as
    many as there are processors."""
    with opened(directory) as engine:
        definition = engine.definition
    extents = definition.geometry.extent_count
    count = max(1, min(threads or os.cpu_count() or 1, extents))
    edges = [extents * part // count for part in range(count + 1)]
    with bar("verify", MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("verify", total=extents)

        def check(part: range) -> Verification:
            # A region is for one thread; opened read-only, it can be open as often as it is asked.
            with opened(directory) as engine:
                checked = Verification(engine, extents=part)
                done = 0
                for _ in checked.steps():
                    if checked.extents_done > done:
                        progress.advance(task, checked.extents_done - done)
                        done = checked.extents_done
                return checked

        with ThreadPoolExecutor(count) as pool:
            parts = list(pool.map(check, map(range, edges[:-1], edges[1:])))
    bad = [block for part in parts for block in part.bad_blocks][:BAD_BLOCKS_NAMED_MAX]
    read = sum(part.blocks_read for part in parts)
    blocks_bad = sum(part.blocks_bad for part in parts)
    if output == "json":
        _print_json(str(definition.id), read, blocks_bad, bad)
    else:
        size = read * definition.geometry.block_size / (1 << 20)
        print(f"region {definition.id}: {read} blocks ({size:.0f} MiB) read, {blocks_bad} bad")
        for block in bad:
            print(f"  block {block.block}: {block.reason}")
        if blocks_bad > len(bad):
            print("  and more; the first are named")
    return 1 if blocks_bad else 0


def _print_json(region: str, read: int, bad: int, blocks: list[BadBlock]) -> None:
    named = [{"block": each.block, "reason": each.reason} for each in blocks]
    found = {"region": region, "blocks_read": read, "blocks_bad": bad, "bad_blocks": named}
    print(json.dumps(found, indent=2))

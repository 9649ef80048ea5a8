"""`downstaird snapshot`: snapshots of a region that is not in service."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path

from rich.progress import DownloadColumn, TimeRemainingColumn

from downstaird.commands.bars import bar
from downstaird.core.by_hand import next_flush
from downstaird.core.engine import SnapshotFacts
from downstaird.regions import delete_snapshot, open_region, opened, settle_snapshots
from downstaird.snapshot_cloning import clone_snapshot

_MIB = 1 << 20


def list_all(directory: Path, *, output: str) -> int:
    """Prints them, for people or as JSON."""
    with opened(directory) as engine:
        found = list(engine.list_snapshots())
    if output == "json":
        print(json.dumps([asdict(facts) for facts in found], indent=2))
        return 0
    if not found:
        print("no snapshots")
        return 0
    width = max(len("name"), *(len(facts.name) for facts in found))
    print(f"{'name':<{width}}  generation       flush    MiB only here    MiB in all")
    for facts in found:
        print(
            f"{facts.name:<{width}}  {facts.generation:>10}  {facts.flush:>10}  "
            f"{facts.unique_bytes / _MIB:>15.1f}  {facts.total_bytes / _MIB:>12.1f}{_note(facts)}"
        )
    return 0


def _note(facts: SnapshotFacts) -> str:
    if facts.damaged:
        return "  damaged: not all of it can be read"
    return "" if facts.settled else "  just taken"


def create(directory: Path, name: str) -> int:
    """Takes one; durable when it returns."""
    engine = open_region(directory)
    try:
        flush = next_flush(engine)
        work = engine.begin_flush(flush, engine.ownership.generation, name)
        work.run()
        engine.finish_flush(work, None)
    finally:
        engine.close()
    settle_snapshots(directory)
    print(f"snapshot {name} taken, of flush {flush}")
    return 0


def delete(directory: Path, name: str) -> int:
    """Deletes one; durable, and its space free, when it returns."""
    freed = delete_snapshot(directory, name)
    print(f"snapshot {name} deleted, {freed / _MIB:.1f} MiB freed")
    return 0


def clone(directory: Path, name: str, target: Path, region_id: uuid.UUID) -> int:
    """A new region of one; whole and durable when it returns."""
    with bar("clone", DownloadColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("clone", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        done = clone_snapshot(directory, name, target, region_id, show)
    shared, copied = done.bytes_shared / _MIB, done.bytes_copied / _MIB
    print(
        f"region {region_id} in {target} is a clone of snapshot {name} in {directory}: "
        f"{shared:.1f} MiB shared, {copied:.1f} MiB copied"
    )
    if done.bytes_copied:
        print("copied because this file system shares no data between files, or the two differ")
    return 0

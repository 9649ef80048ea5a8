"""Snapshots survive power cuts, whole or not at all, and keep what they were taken of; and the
tester of that finds planted bugs.

STAIRWELL_SEEDS=first:count runs other seeds."""

from __future__ import annotations

import os

import numpy as np
import pytest

from downstaird.core import region_checkpoint, region_recovery, region_snapshots
from downstaird.core.checkpoint_stages import Seal
from downstaird.core.region_checkpoint import CommitJob, MoveJob
from downstaird.core.region_flush import FlushJob
from downstaird.core.snapshot_table import SnapshotTable
from stairlib.model.errors import StairwellError
from tests.property.snapshot_crashes import SnapshotWorld

FIRST, COUNT = map(int, os.environ.get("STAIRWELL_SEEDS", "0:16").split(":"))
STEPS = 150
MUTANT_SEEDS = 150


def test_snapshots_are_whole_or_not_there_and_never_change() -> None:
    taken = read = crashes = 0
    for seed in range(FIRST, FIRST + COUNT):
        world = SnapshotWorld(seed)
        try:
            world.run(STEPS)
        except Exception as error:
            error.add_note(f"STAIRWELL_SEEDS={seed}:1")
            raise
        taken, read, crashes = taken + world.taken, read + world.read, crashes + world.crashes
    assert min(taken, read, crashes) > 0


def chunks_are_freed_though_held(monkeypatch):
    monkeypatch.setattr(SnapshotTable, "is_held", lambda _self, _physical: False)


def homes_are_written_though_a_snapshot_has_them(monkeypatch):
    monkeypatch.setattr(SnapshotTable, "is_fixed", lambda _self, _physical: False)


def counts_are_forgotten_by_a_reopening(monkeypatch):
    def forgetful(region, snapshots, _sides):
        for snapshot in snapshots:
            region.snapshots.all[snapshot.name] = snapshot
            region.snapshots.next_id = max(region.snapshots.next_id, snapshot.id + 1)
        return np.zeros(0, dtype=np.uint32)

    monkeypatch.setattr(region_recovery, "recovered", forgetful)


def deleted_chunks_are_free_before_the_record(monkeypatch):
    begin = region_snapshots.entries_to_delete

    def early(region, name):
        entry = begin(region, name)
        snapshot = region.snapshots.all[name]
        chunks = region_snapshots.map_of(region, snapshot).chunks
        for physical in np.setdiff1d(chunks[chunks != 0], region.chunks.durable).tolist():
            if region.snapshots.held[physical] == 1:
                region.chunks.data.punch(
                    physical * region.chunks.chunk_bytes, region.chunks.chunk_bytes
                )
        return entry

    monkeypatch.setattr(region_snapshots, "entries_to_delete", early)


def maps_are_not_synced_before_the_state(monkeypatch):
    def unsynced(self: CommitJob) -> None:
        for snapshot, what in self.maps:
            region_checkpoint.store_map(
                self.maps_file, self.layout, self.tag, snapshot.place, snapshot.id, what
            )

    monkeypatch.setattr(CommitJob, "_store_maps", unsynced)


def what_a_snapshot_has_is_not_copied(monkeypatch):
    monkeypatch.setattr(MoveJob, "_copy", lambda _self, _move, _base: None)


def blocks_go_home_as_of_the_seal_alone(monkeypatch):
    """The stages are forgotten: a snapshot gets what was written after it."""
    stages_of = region_checkpoint.__dict__.get("stages_of")
    assert stages_of is None
    from downstaird.core import region

    real = region.stages_of

    def one(epochs, snapshots):
        found = real(epochs, snapshots)
        for stage in found[:-1]:
            stage.stop = stage.first
            stage.remapped = set()
        found[-1].first = 0
        return found

    monkeypatch.setattr(region, "stages_of", one)


def later_snapshots_do_not_learn_of_new_homes(monkeypatch):
    monkeypatch.setattr(Seal, "taken", lambda _self, _snapshot: None)


def the_snapshot_is_not_in_the_record(monkeypatch):
    encode = FlushJob._record

    def without(self: FlushJob):
        kept, self.snapshots = self.snapshots, self.snapshots[:0]
        try:
            return encode(self)
        finally:
            self.snapshots = kept

    run = FlushJob.run

    def silent(self: FlushJob) -> None:
        kept, self.snapshots = self.snapshots, self.snapshots[:0]
        run(self)
        self.snapshots = kept

    monkeypatch.setattr(FlushJob, "run", silent)


MUTANTS = [
    chunks_are_freed_though_held,
    homes_are_written_though_a_snapshot_has_them,
    counts_are_forgotten_by_a_reopening,
    deleted_chunks_are_free_before_the_record,
    maps_are_not_synced_before_the_state,
    what_a_snapshot_has_is_not_copied,
    blocks_go_home_as_of_the_seal_alone,
    later_snapshots_do_not_learn_of_new_homes,
    the_snapshot_is_not_in_the_record,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_bug_is_found(mutant, monkeypatch) -> None:
    mutant(monkeypatch)
    for seed in range(MUTANT_SEEDS):
        world = SnapshotWorld(seed)
        try:
            world.run(STEPS)
        except (AssertionError, StairwellError, ValueError, IndexError):
            return
    pytest.fail(f"{MUTANT_SEEDS} seeds did not find it")

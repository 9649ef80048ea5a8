"""A region survives power cuts at any write and sync; and the tester of that finds planted bugs.

STAIRWELL_SEEDS=first:count runs other seeds."""

from __future__ import annotations

import os

import pytest

from downstaird.core import log, log_record, region_checkpoint
from downstaird.core import region as region_module
from downstaird.core.chunk_map import ChunkMap
from downstaird.core.log import LogReader
from downstaird.core.region_checkpoint import CommitJob
from downstaird.core.region_files import VoidFile
from downstaird.core.region_flush import FlushJob
from downstaird.core.region_io import RegionBlocks
from downstaird.store.memory import MemoryDisk
from tests.property.region_crashes import CrashWorld

FIRST, COUNT = map(int, os.environ.get("STAIRWELL_SEEDS", "0:48").split(":"))
SEEDS_PER_TEST = 12
STEPS = 150
# Seeds within which each planted bug must be found; the slowest needs about a third of them.
MUTANT_SEEDS = 150


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, SEEDS_PER_TEST))
def test_every_block_is_as_flushed_last_or_in_flight(first: int) -> None:
    crashes = 0
    for seed in range(first, min(first + SEEDS_PER_TEST, FIRST + COUNT)):
        world = CrashWorld(seed)
        try:
            world.run(STEPS)
        except Exception as error:
            error.add_note(f"STAIRWELL_SEEDS={seed}:1")
            raise
        crashes += world.crashes
    assert crashes > 0


def lying_disk(*names: str):
    """Disks that do not make these files durable when asked to."""

    def make() -> MemoryDisk:
        disk = MemoryDisk()
        # The region is made first; creation is not what is tested here.
        disk.lie_about_sync = lambda name: name.startswith(names) and disk.exists("region.json")
        return disk

    return make


def no_log_sync(_monkeypatch):
    return lying_disk("log-")


def no_context_sync(_monkeypatch):
    return lying_disk("contexts-")


def no_data_sync_before_the_record(monkeypatch):
    run = FlushJob.run

    def without_data(self: FlushJob) -> None:
        homes, self.homes = self.homes, []
        record = FlushJob._record

        def whole(job: FlushJob):
            job.homes = homes
            found = record(job)
            job.homes = []
            return found

        monkeypatch.setattr(FlushJob, "_record", whole)
        try:
            run(self)
        finally:
            monkeypatch.setattr(FlushJob, "_record", record)

    monkeypatch.setattr(FlushJob, "run", without_data)
    return MemoryDisk


def no_record_checksum(monkeypatch):
    class Blind:
        def __init__(self, *_):
            pass

        def update(self, _):
            pass

        def intdigest(self):
            return 7

    class Xxhash:
        xxh3_64 = Blind

    monkeypatch.setattr(log_record, "xxhash", Xxhash)
    monkeypatch.setattr(log, "xxhash", Xxhash)
    return MemoryDisk


def no_data_checksum(monkeypatch):
    reader = LogReader._record_at

    def at(self, index, offset, sequence, chain):
        head = self._head_at(index, offset)
        if head is None or head.sequence != sequence or head.previous != chain:
            return reader(self, index, offset, sequence, chain)
        start = log_record.data_start(head.table_bytes, self._block_size)
        file = self._files[index]
        if offset + start + head.data_bytes > file.size():
            return None
        record = log_record.decode(
            head, file.pread(head.table_bytes, offset + log_record.HEADER_BYTES)
        )
        if record is None:
            return None
        return log.Replayed(record, log.LogPlace(index, offset, offset + start))

    monkeypatch.setattr(LogReader, "_record_at", at)
    return MemoryDisk


def chunks_freed_before_the_flush(monkeypatch):
    remap = ChunkMap.remap

    def early(self: ChunkMap, chunk, physical, home):
        old = int(self.durable[chunk])
        first = chunk not in self.active_remaps and chunk not in self.frozen_remaps
        remap(self, chunk, physical, home)
        if old and first and physical:
            self.durable[chunk] = 0
            self.release(old)

    monkeypatch.setattr(ChunkMap, "remap", early)
    return MemoryDisk


def space_given_back_before_the_flush(monkeypatch):
    drop = RegionBlocks.drop

    def early(self: RegionBlocks, chunk: int) -> None:
        old = int(self._chunks.durable[chunk])
        if old:
            self._chunks.data.punch(old * self._chunk_bytes, self._chunk_bytes)
        drop(self, chunk)

    monkeypatch.setattr(RegionBlocks, "drop", early)
    return MemoryDisk


def state_header_before_its_pages(monkeypatch):
    run = CommitJob.run

    def hasty(self: CommitJob) -> None:
        raw = region_checkpoint.encode_state(self.state, self.tag)
        self.data.datasync()
        for file in self.context_files.files:
            file.datasync()
        self.file.pwritev([raw], 0)
        self.file.datasync()
        run(self)

    monkeypatch.setattr(CommitJob, "run", hasty)
    return MemoryDisk


def checkpoint_ignores_later_remaps(monkeypatch):
    class Deaf(set):
        def update(self, *_):
            pass

    seal = region_module.Seal

    def deaf(*args, **kwargs):
        made = seal(*args, **kwargs)
        made.remapped = Deaf()
        return made

    monkeypatch.setattr("downstaird.core.region.Seal", deaf)
    return MemoryDisk


def context_blocks_written_in_place(monkeypatch):
    store = region_checkpoint.ContextFiles.store

    def same_side(self, side, blocks):
        store(self, 0, blocks)
        store(self, 1, blocks)

    monkeypatch.setattr(region_checkpoint.ContextFiles, "store", same_side)
    return MemoryDisk


def no_sync_at_opening(monkeypatch):
    monkeypatch.setattr(region_module, "sync_all", lambda _files: None)
    return MemoryDisk


def failed_records_count(monkeypatch):
    monkeypatch.setattr(VoidFile, "add_record", lambda _self, _sequence: None)
    return MemoryDisk


def failed_checkpoints_count(monkeypatch):
    monkeypatch.setattr(VoidFile, "set_checkpoint", lambda _self, _count: None)
    return MemoryDisk


MUTANTS = [
    no_log_sync,
    no_context_sync,
    no_data_sync_before_the_record,
    no_record_checksum,
    no_data_checksum,
    chunks_freed_before_the_flush,
    space_given_back_before_the_flush,
    state_header_before_its_pages,
    checkpoint_ignores_later_remaps,
    context_blocks_written_in_place,
    no_sync_at_opening,
    failed_records_count,
    failed_checkpoints_count,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_bug_is_found(mutant, monkeypatch) -> None:
    make = mutant(monkeypatch)
    for seed in range(MUTANT_SEEDS):
        world = CrashWorld(seed, make)
        try:
            world.run(STEPS)
        except Exception:  # noqa: BLE001 - a planted bug may show in any way
            return
    pytest.fail(f"{MUTANT_SEEDS} seeds did not find it")

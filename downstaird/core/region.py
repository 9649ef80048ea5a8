"""One open region: the `Engine` of downstaird.core.engine on the files of a Disk.

    small writes     overlay (memory) -> log record at flush -> home at checkpoint
    whole chunks     straight to a fresh physical chunk; the log record carries the remap and the
                     contexts
    contexts         with the blocks in the overlay; of homes in the contexts files, through a cache

Invariants:
- nothing that is flushed is written over before what replaces it is flushed, except blocks
  that the log still has;
- a block's data and context always come from the same place;
- a failure to make something durable ends all further writes and flushes until the region is
  opened again.

docs/region-format.md describes the files. The parts are in the other region_*.py modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from downstaird.core import region_snapshots, repair_work
from downstaird.core.checkpoint_stages import Seal, stages_of
from downstaird.core.chunk_contexts import CONTEXT_NAMES, ContextFiles
from downstaird.core.chunk_map import DATA_NAME, ChunkMap
from downstaird.core.disk import Buffer, Disk, File, Hold
from downstaird.core.engine import (
    CheckpointWork,
    ExtentStates,
    FlushWork,
    Marks,
    MergeWork,
    Ownership,
    ReadWork,
    RegionDefinition,
    SnapshotFacts,
)
from downstaird.core.extent_table import ExtentTable
from downstaird.core.layout import CHUNK_BYTES, DEFAULT_TUNING, Layout, Tuning
from downstaird.core.log import LOG_NAMES, Log
from downstaird.core.log_record import ExtentEntries
from downstaird.core.mask_runs import true_runs
from downstaird.core.overlay import Arena, Overlay
from downstaird.core.region_checkpoint import (
    CheckpointJob,
    CommitJob,
    MoveJob,
    PlanJob,
    finish_commit,
    finish_move,
    next_job,
)
from downstaird.core.region_creation import close_all, create_files, file_names, sync_all
from downstaird.core.region_files import (
    OWNER_NAME,
    VOID_MAX,
    VOID_NAME,
    OwnerFile,
    VoidFile,
    read_definition,
    refuse_existing,
    region_tag,
    require_region,
    version_for,
    write_definition,
)
from downstaird.core.region_flush import FlushJob
from downstaird.core.region_io import RegionBlocks
from downstaird.core.region_recovery import recover
from downstaird.core.region_repair import RepairTracker, by_extent, in_order, require_whole
from downstaird.core.repair_work import MergeJob, ReadJob
from downstaird.core.snapshot_entry import SnapshotEntries, no_snapshots
from downstaird.core.snapshot_table import SnapshotTable
from downstaird.core.state_file import STATE_NAMES
from stairlib.model.context import ContextArray, written
from stairlib.model.errors import DataError, InvalidRequestError, StateError


class Region:
    """An open region, by `create` or `open`. Every method but a job's `run` is for one thread."""

    def __init__(
        self,
        disk: Disk,
        definition: RegionDefinition,
        layout: Layout,
        files: dict[str, File],
        *,
        read_only: bool,
        tuning: Tuning,
    ) -> None:
        geometry = definition.geometry
        self._definition = definition
        self.disk = disk
        self.files = files
        self._read_only = read_only
        self._block_size = geometry.block_size
        self._per_extent = geometry.blocks_per_extent
        self.layout = layout
        self.tuning = tuning
        self.tag = region_tag(definition.id)
        self._owner = OwnerFile(files[OWNER_NAME])
        self.void = VoidFile(files[VOID_NAME])
        self.state_files = [files[name] for name in STATE_NAMES]
        self.state_count = 0
        self.state_at = 0
        self.log = Log(
            [files[name] for name in LOG_NAMES],
            tag=self.tag,
            block_size=geometry.block_size,
            zero_bytes=tuning.log_zero_bytes,
        )
        self.extents = ExtentTable(geometry.extent_count)
        self.snapshots = SnapshotTable()
        # Keep a snapshot that is read from being deleted, or one that is deleted from being read.
        self.holds: list[Hold] = []
        contexts = ContextFiles(
            [files[name] for name in CONTEXT_NAMES], layout.chunk_blocks, self.tag
        )
        self.chunks = ChunkMap(
            layout,
            files[DATA_NAME],
            contexts,
            cache_bytes=tuning.cached_context_bytes,
            on_damage=self.fault_chunk,
            is_held=self.snapshots.is_held,
        )
        arena_blocks = max(layout.chunk_blocks, tuning.arena_bytes // geometry.block_size)
        self.overlay = Overlay(layout.chunk_blocks, geometry.block_size, arena_blocks)
        self.seal: Seal | None = None
        self.repair = RepairTracker(geometry.blocks_per_extent)
        self.blocks = RegionBlocks(layout, self.chunks, self.overlay, tuning.large_bytes)
        self._job: FlushJob | CheckpointJob | None = None
        self._failure: DataError | None = None

    @classmethod
    def create(
        cls,
        disk: Disk,
        definition: RegionDefinition,
        *,
        tuning: Tuning = DEFAULT_TUNING,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Region:
        """Makes an empty region, and opens it. AlreadyExistsError, InvalidRequestError, StateError,
        DataError."""
        problems = definition.geometry.problems()
        version = version_for(definition.cipher)
        if problems or definition.format_version != version:
            text = "; ".join(f"{field}: {text}" for field, text in problems)
            text = text or f"the format version must be {version}"
            raise InvalidRequestError(f"the region cannot be created: {text}")
        layout = Layout.for_geometry(definition.geometry, chunk_bytes)
        disk.prepare()
        refuse_existing(disk)
        disk.lock(shared=False)
        try:
            refuse_existing(disk)
            create_files(disk, definition, layout)
        except BaseException:
            disk.close()
            raise
        return cls._opened(disk, read_only=False, tuning=tuning)

    @classmethod
    def open(
        cls, disk: Disk, *, read_only: bool = False, tuning: Tuning = DEFAULT_TUNING
    ) -> Region:
        """Opens it. InvalidRequestError NOT_A_REGION, StateError REGION_LOCKED, DataError."""
        require_region(disk)
        disk.lock(shared=read_only)
        return cls._opened(disk, read_only=read_only, tuning=tuning)

    @classmethod
    def _opened(cls, disk: Disk, *, read_only: bool, tuning: Tuning) -> Region:
        files: dict[str, File] = {}
        try:
            definition, layout = read_definition(disk)
            for name in file_names(definition):
                files[name] = disk.open(name, read_only=read_only)
            region = cls(disk, definition, layout, files, read_only=read_only, tuning=tuning)
            if not read_only:
                sync_all(files)
            region.load_small_files()
            if not read_only:
                region._store_again()
            recover(region, read_only=read_only)
        except BaseException:
            close_all(disk, files)
            raise
        return region

    def load_small_files(self) -> None:
        """Owner and void. DataError."""
        self._owner.load()
        self.void.load()

    def _store_again(self) -> None:
        """Makes durable what says who owns the region and what does not count. Should the sync of
        these have failed before the restart, the page cache shows them, the medium does not have
        them, and no sync of today would put them there: they have to be written again."""
        if self.ownership.owner_id is not None:
            self._owner.store(self.ownership)
        if self.void.records or self.void.checkpoint:
            self.void.store()

    @property
    def definition(self) -> RegionDefinition:
        """As created, but for the format version, which a promotion may raise."""
        return self._definition

    def become(self, definition: RegionDefinition) -> None:
        """Goes by another id: for a snapshot that is read."""
        self._definition = definition

    @property
    def ownership(self) -> Ownership:
        """Who was promoted last."""
        return self._owner.ownership

    @property
    def writable(self) -> bool:
        """Whether it takes writes."""
        return self._failure is None and not self._read_only

    # --- blocks

    def read(self, offset: int, count: int) -> tuple[ContextArray, Sequence[Buffer]]:
        """Contexts and data; see Engine.read."""
        self.layout.check(offset, count)
        if self.extents.damaged:
            self.refuse_damaged(offset, count)
        return self.blocks.read(self.layout.pieces(offset, count))

    def contexts(self, offset: int, count: int) -> ContextArray:
        """Contexts alone, shape (count, 4)."""
        self.layout.check(offset, count)
        if self.extents.damaged:
            self.refuse_damaged(offset, count)
        return self.blocks.contexts(self.layout.pieces(offset, count))

    def write(self, offset: int, contexts: ContextArray, data: Buffer) -> None:
        """Takes the blocks; see Engine.write."""
        count = len(contexts)
        self._check_change(offset, count, len(data))
        self._touch(offset, count)
        if self.repair:
            self._note(offset, count)
        self.blocks.write(self.layout.pieces(offset, count), contexts, data)

    def write_scattered(self, offsets: Sequence[int], contexts: ContextArray, data: Buffer) -> bool:
        """Takes blocks that lie apart; see Engine.write_scattered."""
        if self._failure is not None or self._read_only or self.extents.damaged:
            return False
        if not self.blocks.write_scattered(offsets, contexts, data):
            return False
        self.extents.touch_all({offset // self._per_extent for offset in offsets})
        if self.repair:
            for offset in offsets:
                self._note(offset, 1)
        return True

    def write_unwritten(self, offset: int, contexts: ContextArray, data: Buffer) -> None:
        """Takes only the blocks that have no context yet. Not remembered as written by a repair
        that runs: whether a block of an incomplete extent is unwritten is the source's to say."""
        count = len(contexts)
        self._check_change(offset, count, len(data))
        free = ~written(self.contexts(offset, count))
        view = memoryview(data)
        size = self.layout.geometry.block_size
        for start, stop in true_runs(free):
            self._touch(offset + start, stop - start)
            self.blocks.write(
                self.layout.pieces(offset + start, stop - start),
                contexts[start:stop],
                view[start * size : stop * size],
            )

    def discard(self, offset: int, count: int) -> None:
        """Makes the blocks never-written again."""
        self._check_change(offset, count, None)
        self._touch(offset, count)
        if self.repair:
            self._note(offset, count)
        self.blocks.discard(self.layout.pieces(offset, count))

    def digest(self, extent: int) -> int:
        """xxh3-64 over the extent's contexts."""
        self.extents.refuse_damaged(extent, extent)
        return self.blocks.digest(extent)

    def _check_change(self, offset: int, count: int, data_bytes: int | None) -> None:
        self.layout.check(offset, count)
        if self._failure is not None or self._read_only:
            self._check_writable()
        size = self._block_size
        if data_bytes is not None and data_bytes != count * size:
            raise InvalidRequestError(
                f"{count} contexts came with {data_bytes} bytes; blocks have {size} bytes",
                reason="BAD_LENGTH",
            )
        if self.extents.damaged:
            self.refuse_damaged(offset, count)

    def _check_writable(self) -> None:
        if self._failure is not None:
            raise DataError(
                "the region takes no more writes or flushes until the daemon is restarted, because "
                f"an earlier one failed: {self._failure.message}",
                reason=self._failure.reason,
            )
        if self._read_only:
            raise StateError("the region is open read-only", reason="READ_ONLY")

    def refuse_damaged(self, offset: int, count: int) -> None:
        """DataError EXTENT_FAULTED when one of the blocks is in a damaged extent."""
        first, last = offset // self._per_extent, (offset + count - 1) // self._per_extent
        self.extents.refuse_damaged(first, last)

    def _touch(self, offset: int, count: int) -> None:
        first = offset // self._per_extent
        last = (offset + count - 1) // self._per_extent
        self.extents.touch_all(range(first, last + 1))

    def _note(self, offset: int, count: int) -> None:
        for extent, first, here, _ in by_extent(self._per_extent, offset, count):
            self.repair.note(extent, first, here)

    def fault_chunk(self, chunk: int, found: DataError) -> None:
        """Something stored for the chunk is damaged: its extent waits for repair."""
        self.extents.fault(chunk // self.layout.chunks_per_extent, found)
        self.overlay.clear(chunk)

    # --- extents, ownership

    def extent_states(self) -> ExtentStates:
        """Stamps and flags of every extent."""
        return self.extents.states()

    def promote(self, ownership: Ownership) -> None:
        """Stores the new owner durably before it returns. DataError."""
        if self._read_only:
            raise StateError("the region is open read-only", reason="READ_ONLY")
        if ownership.key_check:
            self._make_room_for_key_check()
        self._owner.store(ownership)

    def _make_room_for_key_check(self) -> None:
        """Programs that do not know the newer slot would take the older one for true, and its
        generation: they must not open the region any more, before there is such a slot."""
        version = version_for(self._definition.cipher)
        if self._definition.format_version < version:
            self.raise_version(version)

    def raise_version(self, version: int) -> None:
        """Stores the definition anew, with a newer format version. DataError."""
        newer = replace(self._definition, format_version=version)
        write_definition(self.disk, newer, self.layout)
        self._definition = newer

    # --- flush

    def put_off_flush(self, number: int, generation: int) -> None:
        """The next one does its work; see Engine.put_off_flush."""
        self.extents.put_off(generation, number)

    def put_off_no_more(self) -> None:
        """As if none had been put off; see Engine.put_off_no_more."""
        self.extents.put_off_no_more()

    def begin_flush(self, number: int, generation: int, snapshot: str = "") -> FlushWork:
        """Freezes what has changed so far; see Engine.begin_flush."""
        self._check_idle("a flush")
        self._check_writable()
        if len(self.void.records) >= VOID_MAX:
            self.checkpoint_now()
        if self.log.active_bytes >= self.tuning.log_bytes_max:
            self.checkpoint_now()
        taken = no_snapshots()
        if snapshot:
            taken = region_snapshots.entries_to_take(self, snapshot, generation, number)
        entries = self.extents.freeze(generation, number)
        remaps = self.chunks.freeze()
        job = self._job_of(
            entries,
            taken,
            number=number,
            generation=generation,
            arena=self.overlay.freeze(),
            remaps=remaps,
        )
        job.homes = [self.chunks.fresh[physical] for physical in remaps.values() if physical]
        job.discards = self.overlay.take_discards()
        return job

    def _job_of(
        self,
        extents: ExtentEntries,
        snapshots: SnapshotEntries,
        *,
        number: int = 0,
        generation: int = 0,
        arena: Arena | None = None,
        remaps: dict[int, int] | None = None,
    ) -> FlushJob:
        self._job = FlushJob(
            log=self.log,
            data=self.chunks.data,
            block_size=self.layout.geometry.block_size,
            chunk_blocks=self.layout.chunk_blocks,
            number=number,
            generation=generation,
            extents=extents,
            arena=arena,
            remaps=remaps or {},
            homes=[],
            discards={},
            void=self.void.add_record,
            snapshots=snapshots,
        )
        return self._job

    def finish_flush(self, work: FlushWork, error: Exception | None) -> None:
        """Publishes the outcome of `run`."""
        assert work is self._job
        assert isinstance(work, FlushJob)
        self._job = None
        if error is not None or not work.done:
            self._fail(error)
            return
        if work.arena is None and len(work.snapshots):
            region_snapshots.forget(self, work)
            return
        self.extents.publish(work.extents)
        if self.seal is not None:
            self.seal.remapped.update(work.remaps)
        if work.arena is not None:
            self.overlay.publish(work.epoch)
            self.chunks.publish(work.remaps)
            region_snapshots.take(self, work)

    def _fail(self, error: Exception | None) -> None:
        unknown = DataError(f"a flush did not finish: {error!r}", reason="IO_ERROR")
        self._failure = error if isinstance(error, DataError) else unknown
        self.extents.fail()

    def _check_idle(self, what: str) -> None:
        if self._job is not None:
            raise StateError(f"{what} cannot begin while another flush or checkpoint runs")

    # --- checkpoint

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint should run or go on."""
        if self._failure is not None or self._read_only:
            return False
        if self.seal is not None or self.log.active_bytes >= self.tuning.log_bytes:
            return True
        if self.snapshots and self.snapshots.unsettled():
            return True
        # A checkpoint frees the memory of what is flushed, so there must be something.
        return bool(self.overlay.logged) and (
            self.chunks.fresh_bytes >= self.tuning.fresh_context_bytes
            or self.overlay.table_bytes >= self.tuning.table_bytes
        )

    def has_log(self) -> bool:
        """Whether there is something flushed that is not home."""
        return self.writable and (self.seal is not None or bool(self.overlay.logged))

    def begin_checkpoint(self) -> CheckpointWork:
        """The next step; `wants_checkpoint` stays true until the last one is finished."""
        self._check_idle("a checkpoint")
        self._check_writable()
        if self.seal is None:
            self.seal = Seal(
                log=self.log.active,
                epochs=len(self.overlay.logged),
                sequence=self.log.next_sequence,
                chain=self.log.chain,
                stages=stages_of(self.overlay.logged, self.snapshots.unsettled()),
            )
            self.log.switch()
        job = next_job(self, self.seal)
        self._job = job
        return job

    def finish_checkpoint(self, work: CheckpointWork, error: Exception | None) -> None:
        """Publishes the outcome of `run`."""
        assert work is self._job
        assert self.seal is not None
        job = self._job
        self._job = None
        if error is not None:
            self._fail(error)
        elif isinstance(job, PlanJob):
            self.seal.plan = job.plan
        elif isinstance(job, MoveJob):
            finish_move(self, self.seal, job)
        elif isinstance(job, CommitJob):
            finish_commit(self, self.seal, job)
            self.seal = None

    def checkpoint_now(self) -> None:
        """All steps at once, on this thread: the daemon has not kept up, or there is none.
        DataError."""
        while True:
            work = self.begin_checkpoint()
            try:
                work.run()
            except DataError as error:
                self.finish_checkpoint(work, error)
                raise
            self.finish_checkpoint(work, None)
            if self.seal is None:
                return

    # --- snapshots

    def list_snapshots(self) -> Iterator[SnapshotFacts]:
        """All of them, oldest first."""
        return region_snapshots.facts(self)

    def begin_delete_snapshot(self, name: str) -> FlushWork:
        """Deletes one durably; see Engine.begin_delete_snapshot."""
        self._check_idle("a deletion")
        self._check_writable()
        deleted = region_snapshots.entries_to_delete(self, name)
        return self._job_of(self.extents.durable[:0], deleted)

    # --- repair

    def repair_begin(self, marks: Marks) -> FlushWork:
        """Marks the extents incomplete; see Engine.repair_begin."""
        self._check_idle("a repair")
        self._check_writable()
        marks = in_order(marks, self.layout.geometry.extent_count)
        wanted = marks["extent"].tolist()
        for extent in self.extents.damaged.intersection(wanted):
            first = extent * self.layout.chunks_per_extent
            for chunk in range(first, first + self.layout.chunks_per_extent):
                self.blocks.drop(chunk)
        entries = self.extents.begin_repair(marks)
        self.repair.begin(wanted)
        return self._job_of(entries, no_snapshots())

    def repair_merge(self, offset: int, contexts: ContextArray, data: Buffer) -> int:
        """Takes blocks from a repair source; see Engine.repair_merge."""
        self._check_change(offset, len(contexts), len(data))
        return repair_work.merge_now(self, offset, contexts, data)

    def begin_merge(self, offset: int, contexts: ContextArray, data: Buffer) -> MergeJob | None:
        """A merge beside the loop; see Engine.begin_merge."""
        self._check_change(offset, len(contexts), len(data))
        return repair_work.merge_of(self, offset, contexts, data)

    def finish_merge(self, work: MergeWork, *, keep: bool) -> int:
        """Its outcome; see Engine.finish_merge."""
        assert isinstance(work, MergeJob)
        return repair_work.finished(self, work, keep=keep)

    def begin_read(self, offset: int, count: int) -> ReadJob | None:
        """A read beside the loop; see Engine.begin_read."""
        return repair_work.read_of(self, offset, count)

    def read_holds(self, work: ReadWork) -> bool:
        """Whether what it read is of one moment; see Engine.read_holds."""
        assert isinstance(work, ReadJob)
        return self.blocks.still_home(work.homes)

    def repair_extent_copied(self, extent: int, generation: int, number: int) -> None:
        """The extent is as the source's; see Engine.repair_extent_copied."""
        self._check_writable()
        if not self.repair.tracks(extent):
            raise StateError(f"extent {extent} is not under repair", reason="NOT_UNDER_REPAIR")
        self.extents.copied(extent, generation, number)

    def repair_end(self) -> None:
        """Stops remembering. StateError while an extent is still marked incomplete."""
        require_whole(self.extents.incomplete_count())
        self.repair.end()

    # --- the rest

    def stored_bytes(self) -> int:
        """Bytes the region takes on its file system."""
        return sum(file.stored_bytes() for file in self.files.values())

    def let_go(self) -> None:
        """Ends all holds."""
        for hold in self.holds:
            hold.close()
        self.holds = []

    def close(self) -> None:
        """Releases files and lock; unflushed writes are lost."""
        self.let_go()
        close_all(self.disk, self.files)

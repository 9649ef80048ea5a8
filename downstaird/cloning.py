"""Fills a new region from one that is served read-only: the shell of `downstaird clone`.

The whole region is marked incomplete first, as at the begin of a repair, then its extents are
copied as in one, a few at a time and checked block by block, with a flush now and then. An extent's
stamp is taken over with its data. Run again after an interruption, everything is compared anew, and
only what differs is fetched.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import numpy as np

from downstaird.core.clone_plan import (
    Expected,
    SourceFacts,
    check_unchanged,
    clone_definition,
    extent_steps,
    is_copy,
)
from downstaird.core.engine import FlushWork, Ownership, RegionDefinition
from downstaird.core.repair_plan import CopySource
from downstaird.core.session_counters import Counters
from downstaird.core.session_effects import CopyExtent
from downstaird.extent_copier import ExtentCopier, open_source
from downstaird.faults import Delays, FaultPlan
from downstaird.region_host import RegionHost
from downstaird.regions import Unfinished
from downstaird.services.mapping import definition_of, ownership_of
from stairlib.model.errors import (
    DataError,
    StairwellError,
    StateError,
    UnavailableError,
    UnsupportedError,
)
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import FLAGS, TlsFiles, explained
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import extent_marks
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb
from stairwell.downstairs.v1 import repair_service_pb2_grpc as repair_grpc

QUESTION_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class CloneProgress:
    """Extents that are as the source's, of how many; bytes that had to be fetched for it."""

    extents_done: int
    extents_total: int
    bytes_copied: int


OnProgress = Callable[[CloneProgress], None]


@dataclass(frozen=True, slots=True)
class CloneTask:
    """What is to be made, and from whom."""

    address: str
    definition: RegionDefinition
    ownership: Ownership
    tls: TlsFiles | None = None


async def ask_source(
    address: str,
    tracing: Tracing,
    region_id: uuid.UUID,
    expected: Expected,
    files: TlsFiles | None = None,
) -> CloneTask:
    """What a clone of the region at `address` has to be. UnavailableError when nobody answers,
    StateError (NOT_A_DOWNSTAIRS) when somebody else does, else as `clone_definition`."""
    async with await open_source(address, tracing, files) as channel:
        try:
            facts = await _facts(channel, address)
        except UnavailableError as error:
            if files is not None:
                raise
            raise await explained(address, error, f"give {', '.join(FLAGS)}") from error
        except UnsupportedError as error:
            raise StateError(
                f"what answers at {address} is not a downstairs of this version: "
                "name one that runs with --mode ro",
                reason="NOT_A_DOWNSTAIRS",
            ) from error
    definition = clone_definition(address, facts, region_id, expected)
    return CloneTask(address, definition, facts.ownership, files)


async def _facts(channel: grpc.aio.Channel, address: str) -> SourceFacts:
    with translated(f"the source at {address}"):
        answer = await region_grpc.RegionServiceStub(channel).GetRegion(
            region_pb.GetRegionRequest(), timeout=QUESTION_SECONDS
        )
    region = answer.region
    return SourceFacts(
        definition_of(region),
        ownership_of(region),
        region.read_only,
        region.incomplete_extents,
        region.faulted_extents,
    )


class Cloning:
    """One run. Owns the engine of `unfinished` from `run` on."""

    def __init__(
        self, task: CloneTask, unfinished: Unfinished, tracing: Tracing, progress: OnProgress
    ) -> None:
        self._ownership = task.ownership
        self._unfinished = unfinished
        self._engine = unfinished.engine
        self._address = task.address
        self._tls = task.tls
        self._tracing = tracing
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._host = RegionHost(
            self._engine,
            read_only=False,
            tracing=tracing,
            delays=Delays(FaultPlan(), random.Random()),
            tls=task.tls,
        )
        self.counters = Counters()
        self._copier = ExtentCopier(self._host, self, lambda: None)
        self._source = CopySource(task.address, self._engine.definition.id, 0, None)
        self._copying: dict[int, asyncio.Future[None]] = {}
        self._stamps: dict[int, tuple[int, int]] = {}

    async def run(self) -> CloneProgress:
        """Copies everything and makes it a region, durably. StairwellError when it could not; what
        was copied is kept for another run."""
        try:
            await self._fill()
            await self._check_source()
            self._engine.promote(self._ownership)
            self._unfinished.publish()
        finally:
            self._copier.close()
            await self._host.close()
        return self._state()

    async def _fill(self) -> None:
        definition = self._engine.definition
        # No stamps are told: a clone is no member of a set until it is whole.
        every = extent_marks(np.arange(definition.geometry.extent_count))
        await self._on_lane(lambda: self._engine.repair_begin(every))
        for extents in extent_steps(definition):
            await asyncio.gather(*(self._copy(extent) for extent in extents))
            await self._on_lane(lambda: self._engine.begin_flush(1, 0))
        self._engine.repair_end()
        if not is_copy(self._engine.extent_states(), self._stamps):
            raise DataError("the clone's stamps are not its source's: clone it again")

    def _copy(self, extent: int) -> asyncio.Future[None]:
        future = self._copying[extent] = self._loop.create_future()
        self._copier.start(CopyExtent(extent, extent, self._source))
        return future

    async def _on_lane(self, begin: Callable[[], FlushWork]) -> None:
        """Runs a flush or the like on the engine's thread, after what runs there now."""
        lane = self._host.lane
        while not lane.free:
            await lane.wait_free()
        await lane.begun(begin())

    async def _check_source(self) -> None:
        """A source that was served for writing for a while, between two copies, gave a mixture."""
        async with await open_source(self._address, self._tracing, self._tls) as channel:
            stub = repair_grpc.RepairServiceStub(channel)
            for extent, copied in self._stamps.items():
                with translated(f"the source at {self._address}"):
                    answer = await stub.GetExtentContexts(
                        repair_pb.GetExtentContextsRequest(
                            upstairs_id=str(self._source.upstairs_id), extent=extent, block_count=1
                        ),
                        timeout=QUESTION_SECONDS,
                    )
                now = (answer.generation, answer.flush_number)
                check_unchanged(self._address, extent, copied, now)

    def _state(self) -> CloneProgress:
        return CloneProgress(
            len(self._stamps),
            self._engine.definition.geometry.extent_count,
            self.counters.copied_bytes,
        )

    # ---- CopyAsker

    def copy_done(self, effect: CopyExtent, stamp: tuple[int, int], copied: int) -> None:
        """The extent is as the source's; the next flush makes it whole."""
        try:
            self._engine.repair_extent_copied(effect.extent, *stamp)
        except StairwellError as error:
            self.copy_failed(effect, error)
            return
        self._stamps[effect.extent] = stamp
        self.counters.copied_bytes += copied
        future = self._copying.pop(effect.extent)
        if not future.done():
            future.set_result(None)
        self._progress(self._state())

    def copy_failed(self, effect: CopyExtent, error: StairwellError) -> None:
        """The copy was given up."""
        future = self._copying.pop(effect.extent)
        if not future.done():
            future.set_exception(error)

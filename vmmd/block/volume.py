"""A volume: the region sets of a construction request, one after another, as one block backend.

A request that lies in one region goes there as it is; one that spans two is cut and put together
again; one that passes the end is refused whole. A flush goes to every region. Paths name regions as
the request does (`sub_volumes[0]`).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate
from uuid import UUID

from stairlib.model.construction import RegionSpec, VolumeSpec
from stairlib.model.errors import InvalidRequestError, UnsupportedError
from stairlib.telemetry.tracing import Tracing
from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Done, Request
from vmmd.upstairs.core.events import Replacement, ReplaceResult
from vmmd.upstairs.core.states import UpstairsState
from vmmd.upstairs.core.status import RegionStatus
from vmmd.upstairs.shell.runner import RegionUpstairs

_CHANGING = frozenset({BlockOp.WRITE, BlockOp.DISCARD})


@dataclass(slots=True)
class VolumeCounters:
    """Since the volume was built. A request counts when it is submitted, a failure when it
    completes."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """`regions`: (path, status) in order. `counters` is a live view."""

    volume_id: str
    state: UpstairsState
    reason: str
    block_size: int
    total_bytes: int
    regions: tuple[tuple[str, RegionStatus], ...]
    counters: VolumeCounters


@dataclass(frozen=True, slots=True)
class RegionDifference:
    """An extent whose copies differ; `digests` by slot."""

    region_path: str
    extent: int
    digests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VolumeVerification:
    """The outcome of comparing all members of all regions. `members_compared` is the fewest of any
    region."""

    equal: bool
    extents_compared: int
    members_compared: int
    differences: tuple[RegionDifference, ...]
    bad_blocks: int
    blocks_read: int


@dataclass(slots=True)
class _Parts:
    """A request that was cut: completes when its last part has."""

    token: object
    left: int
    buffer: bytearray | None
    status: BlockStatus = BlockStatus.OK


@dataclass(slots=True)
class _Part:
    """The token of one part; `at` in bytes within the whole."""

    whole: _Parts
    at: int


@dataclass(slots=True)
class _Region:
    """`start` in blocks of the volume."""

    path: str
    start: int
    upstairs: RegionUpstairs
    batch: list[Request] = field(default_factory=list)


class Volume:
    """See the module. UnsupportedError at construction for what this version does not offer."""

    def __init__(self, spec: VolumeSpec, *, tracing: Tracing, read_only: bool = False) -> None:
        regions = _regions_of(spec)
        sizes = [region.geometry.block_count for region in regions]
        self._starts = list(accumulate(sizes, initial=0))[:-1]
        self._regions = [
            _Region(f"sub_volumes[{index}]", start, RegionUpstairs(region, tracing=tracing))
            for index, (start, region) in enumerate(zip(self._starts, regions, strict=True))
        ]
        self.id: UUID = spec.id
        self.counters = VolumeCounters()
        self._read_only = read_only
        self._info = BackendInfo(
            spec.block_size, sum(sizes), read_only=read_only, supports_discard=not read_only
        )

    # ---- backend

    @property
    def info(self) -> BackendInfo:
        """Known from construction on."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`."""
        self._count(batch)
        refused: list[Completion] = []
        if self._read_only:
            changing = [request for request in batch if request.op in _CHANGING]
            if changing:
                refused = [Completion(r.token, BlockStatus.READ_ONLY) for r in changing]
                batch = [request for request in batch if request.op not in _CHANGING]

        def finished(completions: list[Completion]) -> None:
            self._finished(completions, done)

        if len(self._regions) == 1:
            if batch:
                self._regions[0].upstairs.submit(batch, finished)
        else:
            for request in batch:
                self._route(request, refused)
            for region in self._regions:
                if region.batch:
                    requests, region.batch = region.batch, []
                    region.upstairs.submit(requests, finished)
        if refused:
            self.counters.failed += len(refused)
            done(refused)

    def _count(self, batch: Sequence[Request]) -> None:
        counters, size = self.counters, self._info.block_size
        for request in batch:
            if request.op is BlockOp.READ:
                counters.reads += 1
                counters.read_bytes += request.length * size
            elif request.op is BlockOp.WRITE:
                counters.writes += 1
                counters.write_bytes += request.length * size
            elif request.op is BlockOp.FLUSH:
                counters.flushes += 1
            else:
                counters.discards += 1

    def _route(self, request: Request, refused: list[Completion]) -> None:
        op, token, offset, length, data = request
        if op is BlockOp.FLUSH:
            whole = _Parts(token, len(self._regions), None)
            for region in self._regions:
                region.batch.append(Request(op, _Part(whole, 0)))
            return
        if offset < 0 or length < 0 or offset + length > self._info.block_count:
            refused.append(Completion(token, BlockStatus.OUT_OF_RANGE))
            return
        if op is BlockOp.WRITE and len(data or b"") != length * self._info.block_size:
            refused.append(Completion(token, BlockStatus.FAILED))
            return
        first = max(0, bisect_right(self._starts, offset) - 1)
        last = max(first, bisect_right(self._starts, offset + length - 1) - 1)
        region = self._regions[first]
        if first == last:
            region.batch.append(Request(op, token, offset - region.start, length, data))
        else:
            self._cut(request, self._regions[first : last + 1])

    def _cut(self, request: Request, regions: list[_Region]) -> None:
        op, token, offset, length, data = request
        size = self._info.block_size
        buffer = bytearray(length * size) if op is BlockOp.READ else None
        whole = _Parts(token, len(regions), buffer)
        view = memoryview(data) if data is not None else None
        for region in regions:
            begin = max(offset, region.start)
            end = min(offset + length, region.start + region.upstairs.info.block_count)
            at = (begin - offset) * size
            piece = view[at : at + (end - begin) * size] if view is not None else None
            region.batch.append(
                Request(op, _Part(whole, at), begin - region.start, end - begin, piece)
            )

    def _finished(self, completions: list[Completion], done: Done) -> None:
        if len(self._regions) > 1:
            completions = [c for c in map(self._joined, completions) if c is not None]
        for completion in completions:
            if completion.status is not BlockStatus.OK:
                self.counters.failed += 1
        if completions:
            done(completions)

    def _joined(self, completion: Completion) -> Completion | None:
        part = completion.token
        if not isinstance(part, _Part):
            return completion
        whole = part.whole
        whole.left -= 1
        if completion.status is not BlockStatus.OK:
            whole.status = completion.status
        elif whole.buffer is not None and completion.data is not None:
            whole.buffer[part.at : part.at + len(completion.data)] = completion.data
        if whole.left:
            return None
        data = whole.buffer if whole.status is BlockStatus.OK else None
        return Completion(whole.token, whole.status, data)

    # ---- operations

    async def activate(self, *, timeout_seconds: float | None = None) -> None:
        """Activates every region; returns when all are active, or raises the first one's error."""
        await _all(
            region.upstairs.activate(timeout_seconds=timeout_seconds) for region in self._regions
        )

    async def deactivate(self) -> None:
        """Flushes and lets go of every region; all are tried before the first error is raised."""
        await _all(region.upstairs.deactivate() for region in self._regions)

    async def replace(self, old: str, new: str, replacement_id: str = "") -> Replacement:
        """Asks the regions in order until one knows `old` or `new`; `slot` is -1 when none does."""
        for region in self._regions:
            outcome = await region.upstairs.replace(old, new, replacement_id)
            if outcome.result is not ReplaceResult.MISSING:
                return outcome
        return Replacement(ReplaceResult.MISSING, -1)

    async def verify(self, *, read_data: bool = False) -> VolumeVerification:
        """Compares the members of every region."""
        results = await asyncio.gather(
            *(region.upstairs.verify(read_data=read_data) for region in self._regions)
        )
        return VolumeVerification(
            equal=all(result.equal for result in results),
            extents_compared=sum(result.extents_compared for result in results),
            members_compared=min(result.members_compared for result in results),
            differences=tuple(
                RegionDifference(region.path, difference.extent, difference.digests)
                for region, result in zip(self._regions, results, strict=True)
                for difference in result.differences
            ),
            bad_blocks=sum(result.bad_blocks for result in results),
            blocks_read=sum(result.blocks_read for result in results),
        )

    def set_repair_limit(self, bytes_per_second: int) -> None:
        """Of each region's repair traffic; 0 is no bound."""
        for region in self._regions:
            region.upstairs.set_repair_limit(bytes_per_second)

    def status(self) -> VolumeStatus:
        """The volume and its regions now."""
        regions = tuple((region.path, region.upstairs.status()) for region in self._regions)
        state = _state_of([status.state for _path, status in regions])
        return VolumeStatus(
            volume_id=str(self.id),
            state=state,
            reason="; ".join(status.reason for _path, status in regions if status.reason),
            block_size=self._info.block_size,
            total_bytes=self._info.total_bytes,
            regions=regions,
            counters=self.counters,
        )

    def peers(self) -> tuple[str, ...]:
        """Every downstairs that the volume talks or talked to."""
        return tuple(
            dict.fromkeys(peer for region in self._regions for peer in region.upstairs.peers())
        )

    async def watch(self) -> AsyncGenerator[VolumeStatus, None]:
        """The status now and after changes of any region, coalesced; ends when the volume is
        closed."""
        changed = asyncio.Event()
        open_watches = len(self._regions)

        async def follow(upstairs: RegionUpstairs) -> None:
            nonlocal open_watches
            async with aclosing(upstairs.watch()) as statuses:
                async for _status in statuses:
                    changed.set()
            open_watches -= 1
            changed.set()

        tasks = [asyncio.create_task(follow(region.upstairs)) for region in self._regions]
        try:
            while open_watches:
                await changed.wait()
                changed.clear()
                yield self.status()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Lets everything go, flushed or not."""
        await _all(region.upstairs.close() for region in self._regions)


async def _all(operations: Iterable[Coroutine[None, None, None]]) -> None:
    """Runs all to their end, then raises the first error."""
    results = await asyncio.gather(*operations, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _regions_of(spec: VolumeSpec) -> list[RegionSpec]:
    if spec.read_only_parent is not None:
        raise UnsupportedError("`read_only_parent` is not offered by this version: leave it null")
    regions = []
    for index, child in enumerate(spec.sub_volumes):
        if not isinstance(child, RegionSpec):
            raise UnsupportedError(
                f"sub_volumes[{index}] is not a region: this version builds volumes of regions only"
            )
        if child.block_size != spec.block_size:
            raise InvalidRequestError(
                f"sub_volumes[{index}] has blocks of {child.block_size} bytes, the volume of "
                f"{spec.block_size}: they must be equal"
            )
        regions.append(child)
    if not regions:
        raise UnsupportedError("a volume without sub_volumes is not offered by this version")
    return regions


def _state_of(states: list[UpstairsState]) -> UpstairsState:
    """Of the whole: as bad as the worst region."""
    for state in (
        UpstairsState.DISABLED,
        UpstairsState.DEACTIVATING,
        UpstairsState.GO_ACTIVE,
        UpstairsState.INITIALIZING,
    ):
        if state in states:
            return state
    return UpstairsState.ACTIVE

"""A volume: the tree of a construction request as one block backend, with what is done to it.

Requests go through the tree (`vmmd.block.tree`); operations go to its parts, which are named by
their paths in the request (`sub_volumes[0]`, `read_only_parent`). All parts are activated at once.
A scrub that has ended lets the parent and everything below it go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import cast
from uuid import UUID

from opentelemetry.trace import StatusCode

from stairlib.model.construction import PARENT, Construction, in_parent, join_path, volume_id
from stairlib.model.errors import NotFoundError, StairwellError, StateError
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from vmmd.block.backend import (
    CHANGES,
    BackendInfo,
    BlockStatus,
    Completion,
    Done,
    Request,
)
from vmmd.block.busy_poll import BusyPoll, longest_seconds
from vmmd.block.extent_watch import ExtentLooks, RegionExtents
from vmmd.block.repair_governor import RepairGovernor, RepairRate
from vmmd.block.request_run import Whole
from vmmd.block.scrub import Scrub, ScrubState, ScrubStatus
from vmmd.block.tree import Tree, build
from vmmd.block.volume_history import VolumeHistory
from vmmd.core.guest_meter import GuestMeter, kind_of
from vmmd.core.poll_window import Awaited
from vmmd.core.repair_rate import RepairPolicy
from vmmd.core.replacement_fence import ReplacementFence
from vmmd.core.request_figures import READ, RequestFigures, VolumeCounters, op_of
from vmmd.upstairs.core.events import Replacement, ReplaceResult, SnapshotTaken
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.status import RegionStatus, SlotLoad
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell.runner import WATCH_SECONDS, Peer, RegionUpstairs

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A file or URL of the tree; `kind` is the request's `type`."""

    path: str
    kind: str
    total_bytes: int
    failed: int
    last_error: str


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """`regions`: (path, status) in the order of the request. `counters` is a live view."""

    volume_id: str
    state: UpstairsState
    reason: str
    block_size: int
    total_bytes: int
    regions: tuple[tuple[str, RegionStatus], ...]
    sources: tuple[SourceStatus, ...]
    scrubs: tuple[ScrubStatus, ...]
    counters: VolumeCounters
    repair_rate: RepairRate


@dataclass(frozen=True, slots=True)
class RegionSnapshot:
    """What the members of the region at `path` keep, and their addresses."""

    path: str
    taken: SnapshotTaken
    targets: tuple[str, ...]


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


class Volume:
    """See the module. Make one with `open`."""

    def __init__(
        self, identity: UUID, tree: Tree, tracing: Tracing, *, read_only: bool = False
    ) -> None:
        self.id = identity
        self._tracing = tracing
        for path, region in tree.regions.items():
            region.spans.attributes = {"volume.id": str(identity), "region.path": path}
        self.figures = RequestFigures()
        self.counters = self.figures.counters
        self._tree = tree
        self._root = tree.root
        self._read_only = read_only
        self._active = False
        self._closed = False
        self._scrubs: dict[str, Scrub] = {}
        self._scrubbing: dict[str, asyncio.Task[None]] = {}
        self._stoppable: set[str] = set()
        self._watchers: set[asyncio.Event] = set()
        self._peers: dict[str, Peer] = {}
        self._meter = GuestMeter(monotonic())
        self._poll = BusyPoll(longest_seconds())
        # Batches in flight that are not of reads.
        self._syncs = 0
        self.history = VolumeHistory(self.counters, self._meter)
        self._governor = RepairGovernor(self._regions, self._meter, self.history)
        self._fence = ReplacementFence()
        self._looks = ExtentLooks()
        info = self._root.info
        self._info = BackendInfo(
            info.block_size,
            info.block_count,
            read_only=read_only or info.read_only,
            supports_discard=info.supports_discard and not read_only,
        )

    @classmethod
    async def open(
        cls,
        construction: Construction,
        *,
        tracing: Tracing,
        read_only: bool = False,
        activate_with_two_after: float = 0.0,
    ) -> Volume:
        """Builds the tree; arguments and errors as `tree.build`."""
        tree = await build(
            construction, tracing=tracing, activate_with_two_after=activate_with_two_after
        )
        return cls(volume_id(construction), tree, tracing, read_only=read_only)

    # ---- backend

    @property
    def info(self) -> BackendInfo:
        """Known from construction on."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`."""
        self.figures.asked(batch, self._info.block_size)
        if self._read_only:
            changing = [request for request in batch if request.op in CHANGES]
            if changing:
                for request in changing:
                    self.figures.failed(request.op, BlockStatus.READ_ONLY)
                done([Completion(r.token, BlockStatus.READ_ONLY) for r in changing])
                batch = [request for request in batch if request.op not in CHANGES]
                if not batch:
                    return

        meter, kind, began = self._meter, kind_of(batch), monotonic()
        left = len(batch)

        def finished(completions: Sequence[Completion]) -> None:
            nonlocal left
            now = monotonic()
            count = len(completions)
            meter.ended(kind, count, now - began, now)
            left -= count
            if not left and kind != READ:
                self._syncs -= 1
            if type(completions) is not Whole:
                for completion in completions:
                    if completion.status is not BlockStatus.OK:
                        self.figures.failed(op_of(batch, completion.token), completion.status)
            done(completions)
            self._look_for_more(now)

        meter.begun(left, began)
        if kind != READ:
            self._syncs += 1
        self._root.submit(batch, finished)
        if left:
            self._look_for_more(began)

    def _look_for_more(self, now: float) -> None:
        in_flight = self._meter.in_flight
        beside_reads = Awaited.READ if in_flight else Awaited.REQUEST
        awaited = Awaited.SYNC if self._syncs else beside_reads
        self._poll.came(now, awaited, in_flight)

    @property
    def meter(self) -> GuestMeter:
        """What the guest's requests took, and how many are in flight."""
        return self._meter

    def loads(self) -> list[tuple[str, SlotLoad]]:
        """What is in flight on each member, with the path of its region."""
        return [(p, load) for p, region in self._tree.regions.items() for load in region.loads()]

    # ---- operations

    async def activate(self, *, timeout_seconds: float | None = None) -> None:
        """Activates every region; returns when all are active, or raises the first one's error."""
        self._governor.start()
        await _all(region.activate(timeout_seconds=timeout_seconds) for region in self._regions())
        self._active = True
        self._wake()

    async def deactivate(self) -> None:
        """Ends scrubs, flushes and lets go of every region; all are tried before the first error is
        raised."""
        await self._stop_scrubs()
        self._active = False
        await _all(region.deactivate() for region in self._regions())

    async def replace(
        self, region_path: str, old: str, new: str, replacement_id: str = "", generation: int = 0
    ) -> Replacement:
        """Asks the region at that path; `slot` is -1 when it knows neither address, or is gone.
        `generation` is that of the request it leads to; 0: not told. StateError TARGET_IN_USE when
        `new` is a member of another region of this volume; refused as `ReplacementFence.check` says
        when a newer request was carried out before it came."""
        self._fence.check(region_path, generation, replacement_id)
        region = self._tree.regions.get(region_path)
        if region is None:
            return Replacement(ReplaceResult.MISSING, -1)
        for path, other in self._tree.regions.items():
            if other is not region and any(slot.address == new for slot in other.status().slots):
                raise StateError(
                    f"{new} is a member of {path or 'this volume'} already: name a downstairs that "
                    "is not in use",
                    reason="TARGET_IN_USE",
                    target=new,
                )
        outcome = await region.replace(old, new, replacement_id)
        if outcome.result is not ReplaceResult.MISSING:
            self._fence.begun(region_path, generation, replacement_id)
        return outcome

    def follow_repair(self, region_path: str, slot: int, replacement_id: str) -> None:
        """The repair of a member is told in the trace of the current span from now on. Nothing
        happens when there is no such member: the follower sees that for himself."""
        region = self._tree.regions.get(region_path)
        if region is not None and slot < len(region.status().slots):
            region.follow_repair(slot, replacement_id)

    async def take_back(self, region_path: str, old: str, new: str, replacement_id: str) -> bool:
        """Whether `old` was being replaced by `new`: that is over. A request to replace it that is
        still on its way is refused when it comes. Errors as `RegionUpstairs.take_back`."""
        region = self._tree.regions.get(region_path)
        was_applied = region is not None and await region.take_back(old, new, replacement_id)
        self._fence.taken_back(region_path, replacement_id)
        return was_applied

    def hold_repair(self, region_path: str, slot: int, *, held: bool) -> None:
        """Of one slot of a region; NotFoundError when the region is not there."""
        self._region_at(region_path).hold_repair(slot, held=held)

    async def repair_member(self, region_path: str, slot: int, reason: str, *, whole: bool) -> None:
        """Fills the member of a slot anew; errors as `RegionUpstairs.repair_member`."""
        await self._region_at(region_path).repair_member(slot, reason, whole=whole)

    def _region_at(self, path: str) -> RegionUpstairs:
        region = self._tree.regions.get(path)
        if region is None:
            raise NotFoundError("region", path, f"the volume has no region at {path!r}")
        return region

    async def verify(
        self, *, read_data: bool = False, region_path: str | None = None
    ) -> VolumeVerification:
        """Compares the members of every region, or of one; NotFoundError when that is not there."""
        parts = dict(self._tree.regions)
        if region_path is not None:
            if region_path not in parts:
                raise NotFoundError(
                    "region", region_path, f"the volume has no region at {region_path!r}"
                )
            parts = {region_path: parts[region_path]}
        results = await asyncio.gather(
            *(region.verify(read_data=read_data) for region in parts.values())
        )
        return VolumeVerification(
            equal=all(result.equal for result in results),
            extents_compared=sum(result.extents_compared for result in results),
            members_compared=min((result.members_compared for result in results), default=0),
            differences=tuple(
                RegionDifference(path, difference.extent, difference.digests)
                for path, result in zip(parts, results, strict=True)
                for difference in result.differences
            ),
            bad_blocks=sum(result.bad_blocks for result in results),
            blocks_read=sum(result.blocks_read for result in results),
        )

    async def snapshot(self, name: str) -> list[RegionSnapshot]:
        """Has the members of each region that is written keep, under a name, what the volume holds
        now, at one moment for all regions; errors as `RegionUpstairs.begin_snapshot`, of the first
        region that refuses."""
        regions = {
            path: region
            for path, region in self._tree.regions.items()
            if not in_parent(path) and not region.info.read_only
        }
        if not regions:
            raise StateError("the volume has no region that is written", reason="READ_ONLY")
        # All are asked before the loop goes on: no request of the guest comes in between.
        asked = [region.begin_snapshot(name) for region in regions.values()]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [
            RegionSnapshot(
                path,
                cast("SnapshotTaken", taken),
                tuple(slot.address for slot in region.status().slots),
            )
            for (path, region), taken in zip(regions.items(), outcomes, strict=True)
        ]

    def set_repair_policy(self, policy: RepairPolicy) -> None:
        """Bounds the repair traffic of all regions together from now on."""
        limit = policy.bytes_per_second_max
        if limit != self._governor.status().policy.bytes_per_second_max:
            for region in self._regions():
                region.note_limit(limit)
        self._governor.set_policy(policy)

    # ---- scrubbing

    def start_scrub(self, path: str, bytes_per_second_max: int = 0) -> ScrubStatus:
        """Copies the parent of the volume at `path` into it; with a running scrub, sets its rate.

        Answers DONE when that was done before. NotFoundError when there is no such volume or it has
        no parent; StateError when it may not be written itself.
        """
        known = self._scrubs.get(path)
        if known is not None and known.state is ScrubState.RUNNING:
            known.set_rate(bytes_per_second_max)
        if known is not None and known.state in (ScrubState.RUNNING, ScrubState.DONE):
            return known.status()
        overlay = self._tree.overlays.get(path)
        if overlay is None:
            where = f"the volume at {path!r}" if path else "this volume"
            raise NotFoundError(
                "parent", path, f"{where} has no read_only_parent: there is nothing to copy"
            )
        if self._read_only or overlay.front.info.read_only or in_parent(path):
            raise StateError(
                "a volume that is opened read-only is not filled from its parent",
                reason="SCRUB_READ_ONLY",
                path=path,
            )
        scrub = Scrub(
            overlay,
            path,
            bytes_per_second_max=bytes_per_second_max,
            skip_zeros=not path,
            changed=self._wake,
        )
        self._scrubs[path] = scrub
        self._stoppable.add(path)
        self._scrubbing[path] = asyncio.create_task(self._scrub(path, scrub), name=f"scrub {path}")
        return scrub.status()

    async def stop_scrub(self, path: str) -> ScrubStatus:
        """Ends a running scrub; NotFoundError when there was none."""
        scrub = self._scrubs.get(path)
        if scrub is None:
            raise NotFoundError("scrub", path, f"no scrub was started for the volume at {path!r}")
        await self._stop_scrub(path)
        return scrub.status()

    async def _scrub(self, path: str, scrub: Scrub) -> None:
        """Runs it, under the call that asked for it."""
        with self._tracing.tracer.start_as_current_span(
            "volume.scrub", attributes={"volume.id": str(self.id), "scrub.path": path}
        ) as span:
            try:
                if await scrub.run():
                    # From here on it is not stopped any more.
                    self._stoppable.discard(path)
                    await self._let_go(path)
                    scrub.finished()
            finally:
                status = scrub.status()
                span.set_attribute("bytes_done", status.bytes_done)
                span.set_attribute("bytes_total", status.bytes_total)
                if status.state is ScrubState.FAILED:
                    span.set_status(StatusCode.ERROR, status.reason)

    async def _let_go(self, path: str) -> None:
        """Drops the parent of the volume at `path`, whose blocks are all in it."""
        await self._tree.overlays[path].drop_parent()
        parts = self._tree.below(join_path(path, PARENT))
        self._note_peers()
        self._tree.remove(parts)
        del self._tree.overlays[path]
        try:
            await _all(region.deactivate() for region in parts.regions.values())
            await parts.close()
        except StairwellError as error:
            # Nothing depends on it any more.
            log.warning("parent not let go cleanly", path=path, reason=error.message)

    async def _stop_scrub(self, path: str) -> None:
        task = self._scrubbing.get(path)
        if task is not None:
            stoppable = path in self._stoppable
            if stoppable:
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if stoppable:
                self._scrubs[path].stopped()

    async def _stop_scrubs(self) -> None:
        for path in list(self._scrubbing):
            await self._stop_scrub(path)

    # ---- looking

    def status(self) -> VolumeStatus:
        """The volume and its parts now."""
        regions = tuple((path, part.status()) for path, part in self._tree.regions.items())
        return VolumeStatus(
            volume_id=str(self.id),
            state=self._state([status.state for _path, status in regions]),
            reason="; ".join(status.reason for _path, status in regions if status.reason),
            block_size=self._info.block_size,
            total_bytes=self._info.total_bytes,
            regions=regions,
            sources=tuple(
                SourceStatus(path, part.kind, part.info.total_bytes, part.failed, part.last_error)
                for path, part in self._tree.sources.items()
            ),
            scrubs=tuple(scrub.status() for scrub in self._scrubs.values()),
            counters=self.counters,
            repair_rate=self._governor.status(),
        )

    def _state(self, states: list[UpstairsState]) -> UpstairsState:
        """Of the whole: as bad as the worst region; files and URLs are always there."""
        if not states:
            return UpstairsState.ACTIVE if self._active else UpstairsState.INITIALIZING
        for state in (
            UpstairsState.DISABLED,
            UpstairsState.DEACTIVATING,
            UpstairsState.GO_ACTIVE,
            UpstairsState.INITIALIZING,
        ):
            if state in states:
                return state
        return UpstairsState.ACTIVE

    def peers(self) -> tuple[Peer, ...]:
        """Every downstairs that the volume talks or talked to."""
        self._note_peers()
        return tuple(self._peers.values())

    def _note_peers(self) -> None:
        for region in self._regions():
            self._peers.update((peer.address, peer) for peer in region.peers())

    def _regions(self) -> list[RegionUpstairs]:
        return list(self._tree.regions.values())

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    async def watch(self, interval: float = WATCH_SECONDS) -> AsyncGenerator[VolumeStatus, None]:
        """The status now and after changes of any part, coalesced; ends when the volume is closed.

        Between two that differ in numbers alone are `interval` seconds, never less than a tenth.
        """
        changed = asyncio.Event()

        async def follow(region: RegionUpstairs) -> None:
            async with aclosing(region.watch()) as statuses:
                async for _status in statuses:
                    changed.set()
            changed.set()

        self._watchers.add(changed)
        tasks = [asyncio.create_task(follow(region)) for region in self._regions()]
        try:
            while not self._closed:
                status = self.status()
                yield status
                await self._news(changed, status, interval)
        finally:
            self._watchers.discard(changed)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def extents(self) -> list[RegionExtents]:
        """What is known of the extents of every region; nothing once the volume is closed."""
        regions = {} if self._closed else self._tree.regions
        return [self._looks.look(path, region) for path, region in regions.items()]

    async def _news(self, changed: asyncio.Event, told: VolumeStatus, interval: float) -> None:
        """Returns when there is something to tell after `told`."""
        loop = asyncio.get_running_loop()
        due = loop.time() + interval
        await changed.wait()
        changed.clear()
        await asyncio.sleep(WATCH_SECONDS)
        while not self._closed and _states(self.status()) == _states(told):
            left = due - loop.time()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                return
            changed.clear()
            await asyncio.sleep(min(WATCH_SECONDS, left))

    async def close(self) -> None:
        """Lets everything go, flushed or not."""
        await self._stop_scrubs()
        self._closed = True
        self._governor.close()
        try:
            await self._tree.close()
        finally:
            self._wake()


def _states(status: VolumeStatus) -> tuple[object, ...]:
    """All of a status that is no number."""
    regions = [
        (
            path,
            region.state,
            region.reason,
            tuple((slot.address, slot.state, slot.mode, slot.last_error) for slot in region.slots),
        )
        for path, region in status.regions
    ]
    scrubs = [(scrub.path, scrub.state, scrub.reason) for scrub in status.scrubs]
    return (status.state, *regions, *scrubs)


async def _all(operations: Iterable[Coroutine[None, None, None]]) -> None:
    """Runs all to their end, then raises the first error."""
    results = await asyncio.gather(*operations, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


__all__ = [
    "SlotState",
    "UpstairsState",
    "Volume",
    "VolumeStatus",
    "VolumeVerification",
]

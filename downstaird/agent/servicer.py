"""AgentService over gRPC: check, hand to the host, map."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias, TypeVar
from uuid import UUID

import grpc.aio

from downstaird.agent.core.intent import Record, Wanted
from downstaird.agent.core.region_states import RegionState
from downstaird.agent.core.snapshot_wishes import Wish, WishState
from downstaird.agent.core.upkeep import ProcessState
from downstaird.agent.host import Host
from downstaird.agent.snapshots import Seen
from stairlib.model.cipher import CIPHERS
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.model.geometry import Geometry
from stairlib.rpc.paging import bad_token, page_size, position, token
from stairlib.runtime.addresses import parse_address
from stairwell.agent.v1 import agent_service_pb2 as pb
from stairwell.agent.v1 import agent_service_pb2_grpc as pb_grpc

SERVICE_NAME = "stairwell.agent.v1.AgentService"

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Context: TypeAlias = "grpc.aio.ServicerContext[_Request, _Response]"

_STATES = {
    RegionState.REQUESTED: pb.REGION_STATE_REQUESTED,
    RegionState.CREATING: pb.REGION_STATE_CREATING,
    RegionState.CREATED: pb.REGION_STATE_CREATED,
    RegionState.TOMBSTONED: pb.REGION_STATE_TOMBSTONED,
    RegionState.DESTROYED: pb.REGION_STATE_DESTROYED,
    RegionState.FAILED: pb.REGION_STATE_FAILED,
}
_PROCESS_STATES = {
    ProcessState.NONE: pb.PROCESS_STATE_NONE,
    ProcessState.STARTING: pb.PROCESS_STATE_STARTING,
    ProcessState.RUNNING: pb.PROCESS_STATE_RUNNING,
    ProcessState.WAITING: pb.PROCESS_STATE_WAITING,
    ProcessState.STOPPING: pb.PROCESS_STATE_STOPPING,
}
_WISH_STATES = {
    WishState.REQUESTED: pb.SNAPSHOT_STATE_REQUESTED,
    WishState.TAKING: pb.SNAPSHOT_STATE_TAKING,
    WishState.TAKEN: pb.SNAPSHOT_STATE_TAKEN,
    WishState.FAILED: pb.SNAPSHOT_STATE_FAILED,
    WishState.DELETING: pb.SNAPSHOT_STATE_DELETING,
    WishState.GONE: pb.SNAPSHOT_STATE_GONE,
}
_FIELDS = {
    "block_size": "geometry.block_size",
    "blocks_per_extent": "geometry.extent_size",
    "extent_count": "geometry.extent_count",
}


class AgentServicer(pb_grpc.AgentServiceServicer):
    """Serves one host."""

    def __init__(self, host: Host, version: str) -> None:
        self._host = host
        self._version = version

    async def CreateRegion(
        self,
        request: pb.CreateRegionRequest,
        context: _Context[pb.CreateRegionRequest, pb.CreateRegionResponse],
    ) -> pb.CreateRegionResponse:
        """Records that a region is wanted."""
        del context
        record = await self._host.create(_wanted(request))
        return pb.CreateRegionResponse(region=self._region(record))

    async def GetRegion(
        self,
        request: pb.GetRegionRequest,
        context: _Context[pb.GetRegionRequest, pb.GetRegionResponse],
    ) -> pb.GetRegionResponse:
        """One region as it is now."""
        del context
        region = _id(request.id)
        record = self._host.record(region)
        used = await self._host.used_bytes([region])
        return pb.GetRegionResponse(region=self._region(record, used[region]))

    async def ListRegions(
        self,
        request: pb.ListRegionsRequest,
        context: _Context[pb.ListRegionsRequest, pb.ListRegionsResponse],
    ) -> pb.ListRegionsResponse:
        """A page of the regions, by id."""
        del context
        after = _after(request.page_token)
        records = [
            record
            for region, record in sorted(self._host.intent.records.items())
            if (record.present or request.include_destroyed) and (after is None or region > after)
        ]
        size = page_size(request.page_size)
        page = records[:size]
        used = await self._host.used_bytes([record.id for record in page])
        return pb.ListRegionsResponse(
            regions=[self._region(record, used[record.id]) for record in page],
            next_page_token=token(str(page[-1].id)) if len(records) > size else "",
        )

    async def DestroyRegion(
        self,
        request: pb.DestroyRegionRequest,
        context: _Context[pb.DestroyRegionRequest, pb.DestroyRegionResponse],
    ) -> pb.DestroyRegionResponse:
        """Records that a region is to go."""
        del context
        record = await self._host.destroy(_id(request.id), with_snapshots=request.with_snapshots)
        return pb.DestroyRegionResponse(region=self._region(record))

    async def CreateSnapshot(
        self,
        request: pb.CreateSnapshotRequest,
        context: _Context[pb.CreateSnapshotRequest, pb.CreateSnapshotResponse],
    ) -> pb.CreateSnapshotResponse:
        """Records that a snapshot is wanted."""
        del context
        wish = await self._host.create_snapshot(_id(request.id), request.name)
        return pb.CreateSnapshotResponse(snapshot=_snapshot(wish, None))

    async def ListSnapshots(
        self,
        request: pb.ListSnapshotsRequest,
        context: _Context[pb.ListSnapshotsRequest, pb.ListSnapshotsResponse],
    ) -> pb.ListSnapshotsResponse:
        """Those the region has, and those that are wanted of it."""
        del context
        region = _id(request.id)
        await self._host.snapshots(region)
        return pb.ListSnapshotsResponse(snapshots=self._snapshots(self._host.record(region)))

    async def DeleteSnapshot(
        self,
        request: pb.DeleteSnapshotRequest,
        context: _Context[pb.DeleteSnapshotRequest, pb.DeleteSnapshotResponse],
    ) -> pb.DeleteSnapshotResponse:
        """Records that a snapshot is to go."""
        del context
        wish = await self._host.delete_snapshot(_id(request.id), request.name)
        return pb.DeleteSnapshotResponse(snapshot=_snapshot(wish, None))

    async def WatchRegions(
        self,
        request: pb.WatchRegionsRequest,
        context: _Context[pb.WatchRegionsRequest, pb.WatchRegionsResponse],
    ) -> AsyncIterator[pb.WatchRegionsResponse]:
        """What there is, then what changes, until the caller has enough."""
        del context
        one = _id(request.id) if request.id else None
        told: dict[UUID, pb.Region] = {}
        while True:
            change = self._host.next_change()
            for record in self._watched(one):
                region = self._region(record)
                # One that was gone before anything was told of it is no news.
                news = record.present or record.id in told or one is not None
                if news and told.get(record.id) != region:
                    told[record.id] = region
                    used = await self._host.used_bytes([record.id])
                    answer = pb.WatchRegionsResponse(region=region)
                    # Not a change by itself: it is one with every write.
                    answer.region.used_bytes = used[record.id]
                    yield answer
            await change.wait()

    async def GetHost(
        self,
        request: pb.GetHostRequest,
        context: _Context[pb.GetHostRequest, pb.GetHostResponse],
    ) -> pb.GetHostResponse:
        """What the host has to give."""
        del request, context
        options, facts = self._host.options, self._host.facts()
        return pb.GetHostResponse(
            host_name=self._host.name,
            failure_domain=options.failure_domain,
            root=str(options.root),
            total_bytes=facts.total_bytes,
            free_bytes=facts.free_bytes,
            capacity_bytes=options.limits.capacity,
            provisioned_bytes=facts.provisioned_bytes,
            ports_free=facts.ports_free,
            ports_total=options.limits.ports.places,
            regions=facts.regions,
            regions_running=facts.running,
            regions_failed=facts.failed,
            tls=options.launcher.tls is not None,
            version=self._version,
        )

    def _watched(self, one: UUID | None) -> list[Record]:
        if one is not None:
            return [self._host.record(one)]
        return list(self._host.intent.records.values())

    def _region(self, record: Record, used_bytes: int = 0) -> pb.Region:
        wanted = record.wanted
        return pb.Region(
            id=str(record.id),
            geometry=pb.Geometry(
                block_size=wanted.geometry.block_size,
                extent_size=wanted.geometry.blocks_per_extent,
                extent_count=wanted.geometry.extent_count,
            ),
            cipher=wanted.cipher,
            source=wanted.source,
            read_only=wanted.read_only,
            state=_STATES[record.state],
            reason=record.reason,
            address=self._host.address(record),
            port=record.port,
            process=self._process(record),
            used_bytes=used_bytes,
            snapshots=self._snapshots(record),
        )

    def _snapshots(self, record: Record) -> list[pb.Snapshot]:
        keeper = self._host.keepers.get(record.id)
        seen = (keeper.snapshots.seen if keeper is not None else None) or {}
        troubles = keeper.snapshots.troubles if keeper is not None else {}
        failed = WishState.FAILED
        ours = {wish.name for wish in record.snapshots if wish.state is not failed}
        theirs = [
            _snapshot(Wish(name, WishState.TAKEN), found, asked_here=False)
            for name, found in seen.items()
            if name not in ours
        ]
        return theirs + [
            _snapshot(
                wish,
                # What has the name of one that failed is another one.
                seen.get(wish.name) if wish.state is not failed else None,
                trouble=troubles.get(wish.name, ""),
            )
            for wish in record.snapshots
        ]

    def _process(self, record: Record) -> pb.Process:
        keeper = self._host.keepers.get(record.id)
        if keeper is None:
            return pb.Process(state=pb.PROCESS_STATE_NONE)
        process = keeper.process
        return pb.Process(
            state=_PROCESS_STATES[keeper.upkeep.state],
            pid=process.pid if process is not None else 0,
            restarts=keeper.upkeep.restarts,
            trouble=keeper.trouble,
            adopted=process is not None and process.adopted,
            outdated=process is not None and keeper.outdated,
            last_error=keeper.last_error,
        )


def _snapshot(
    wish: Wish, seen: Seen | None, *, asked_here: bool = True, trouble: str = ""
) -> pb.Snapshot:
    return pb.Snapshot(
        name=wish.name,
        state=_WISH_STATES[wish.state],
        reason=wish.reason or trouble,
        generation=seen.generation if seen is not None else wish.generation,
        flush_number=seen.flush if seen is not None else wish.flush,
        unique_bytes=seen.unique_bytes if seen is not None else 0,
        total_bytes=seen.total_bytes if seen is not None else 0,
        damaged=seen is not None and seen.damaged,
        asked_here=asked_here,
        present=seen is not None,
    )


def _after(page_token: str) -> UUID | None:
    if not page_token:
        return None
    try:
        return UUID(position(page_token))
    except ValueError:
        raise bad_token() from None


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        rule = f"{text[:64]!r} is not a UUID" if text else "is needed: a UUID"
        raise _wrong([FieldViolation("id", rule)]) from None


def _wanted(request: pb.CreateRegionRequest) -> Wanted:
    """The region asked for; the error names every field that is wrong."""
    region = _id(request.id)
    shape = request.geometry
    geometry = Geometry(shape.block_size, shape.extent_size, shape.extent_count)
    wrong = [
        FieldViolation(_FIELDS[field], rule, "OUT_OF_RANGE") for field, rule in geometry.problems()
    ]
    if request.cipher and request.cipher not in CIPHERS:
        rule = f"must be empty or one of {', '.join(CIPHERS)}"
        wrong.append(FieldViolation("cipher", rule, "UNKNOWN_CIPHER"))
    source = ""
    if request.source:
        try:
            source = str(parse_address(request.source))
        except InvalidRequestError as error:
            wrong.append(FieldViolation("source", error.message, error.reason))
    if wrong:
        raise _wrong(wrong)
    return Wanted(region, geometry, request.cipher, source)


def _wrong(violations: list[FieldViolation]) -> InvalidRequestError:
    text = "; ".join(f"{each.field} {each.description}" for each in violations)
    return InvalidRequestError(text, tuple(violations))

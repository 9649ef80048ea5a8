"""The fleet, its policy, drains and placements as messages, and requests as wishes."""

from __future__ import annotations

from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.caretaker import DrainView
from controlplane.core.drain import Member
from controlplane.core.fleet import FaultedMember, FleetPolicy
from controlplane.core.placement import Placement
from controlplane.core.replace_intent import Wish
from controlplane.core.replacement import Replacement
from controlplane.operations.fleet import AgentView, DownstairsView, PolicyWish, RegisterWish
from controlplane.operations.starting import StartAnswer
from stairlib.wire.durations import duration, seconds_of
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb


def timestamp(at: float | None) -> Timestamp | None:
    """Seconds since the epoch as a message; None stays absent."""
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(int(at * 1e9))
    return stamp


def register_wish(request: pb.RegisterDownstairsRequest) -> RegisterWish:
    """The wish of a request; fields that are not set are None."""

    def given(name: Literal["host", "failure_domain", "reserved_for"]) -> str | None:
        value: str = getattr(request, name)
        return value if request.HasField(name) else None

    return RegisterWish(
        address=request.address,
        host=given("host"),
        failure_domain=given("failure_domain"),
        reserved_for=given("reserved_for"),
    )


def policy_wish(request: pb.SetFleetPolicyRequest) -> PolicyWish:
    """The wish of a request; fields that are not set are None."""
    return PolicyWish(
        automatic=request.automatic if request.HasField("automatic") else None,
        grace_seconds=seconds_of(request.grace) if request.HasField("grace") else None,
        maintenance=request.maintenance if request.HasField("maintenance") else None,
        at_once_max=request.at_once_max if request.HasField("at_once_max") else None,
        repair_bytes_per_second=request.repair_bytes_per_second
        if request.HasField("repair_bytes_per_second")
        else None,
    )


def start_wish(request: replacement_pb.StartReplacementRequest) -> Wish:
    """The wish of a request."""
    return Wish(
        slot=request.slot if request.HasField("slot") else None,
        old_target=request.old_target,
        region_path=request.region_path if request.HasField("region_path") else None,
        new_target=request.new_target,
    )


def downstairs_message(view: DownstairsView) -> pb.Downstairs:
    """A downstairs for clients."""
    record, place, look = view.entry.record, view.entry.place, view.entry.look
    message = pb.Downstairs(
        address=record.address,
        region_id=str(record.region_id or ""),
        role=pb.DownstairsRole.Value(f"DOWNSTAIRS_ROLE_{record.role}"),
        volume_id=str(record.volume_id or ""),
        encrypted=record.encrypted,
        host=place.host,
        failure_domain=place.failure_domain,
        agent=place.agent,
        reserved_volume_id=str(place.reserved_for or ""),
        disks=view.disks,
        drain_id=str(view.drain.id) if view.drain is not None else "",
    )
    if record.geometry is not None:
        message.block_size = record.geometry.block_size
        message.blocks_per_extent = record.geometry.blocks_per_extent
        message.extent_count = record.geometry.extent_count
    if look is not None:
        message.MergeFrom(
            pb.Downstairs(
                health=pb.DownstairsHealth.Value(f"DOWNSTAIRS_HEALTH_{look.health}"),
                trouble=look.trouble,
                look_time=timestamp(look.at),
                seen_time=timestamp(look.seen_at),
                stored_bytes=look.stored_bytes,
                free_bytes=look.free_bytes,
                read_only=look.read_only,
            )
        )
    return message


def agent_message(view: AgentView) -> pb.Agent:
    """An agent for clients."""
    message = pb.Agent(
        address=view.place.address,
        host=view.place.host,
        failure_domain=view.place.failure_domain,
        makings=view.makings,
    )
    if isinstance(view.facts, str):
        message.trouble = view.facts
    else:
        message.free_bytes = view.facts.free_bytes
        message.ports_free = view.facts.ports_free
    return message


def policy_message(policy: FleetPolicy) -> pb.FleetPolicy:
    """The policy for clients."""
    return pb.FleetPolicy(
        automatic=policy.automatic,
        grace=duration(policy.grace_seconds),
        maintenance=policy.maintenance,
        at_once_max=policy.at_once_max,
        repair_bytes_per_second=policy.repair_bytes_per_second,
    )


def faulted_message(member: FaultedMember) -> pb.FaultedMember:
    """A faulted member for clients."""
    return pb.FaultedMember(
        disk=member.disk,
        region_path=member.region_path,
        slot=member.slot,
        target=member.target,
        since_time=timestamp(member.since),
        trouble=member.trouble,
        waits_for=member.waits_for,
    )


def drain_message(view: DrainView) -> pb.Drain:
    """A drain for clients."""
    drain = view.drain
    return pb.Drain(
        id=str(drain.id),
        target=drain.target,
        state=pb.DrainState.Value(f"DRAIN_STATE_{drain.state}"),
        create_time=timestamp(drain.created_at),
        update_time=timestamp(drain.updated_at),
        moves=[_move(each) for each in view.moves],
        left=[_left(each) for each in view.left],
    )


def _move(record: Replacement) -> pb.DrainMove:
    return pb.DrainMove(
        replacement_id=str(record.id),
        disk=record.disk,
        region_path=record.region_path,
        slot=record.slot,
        old_target=record.old_target,
        new_target=record.new_target,
        state=replacement_pb.ReplacementState.Value(f"REPLACEMENT_STATE_{record.state}"),
    )


def _left(member: Member) -> pb.DrainMember:
    return pb.DrainMember(
        disk=member.disk,
        region_path=member.region_path,
        slot=member.slot,
        target=member.target,
        waits_for=member.waits_for,
    )


def placement_message(placement: Placement) -> replacement_pb.Placement:
    """A placement for clients."""
    return replacement_pb.Placement(
        chosen=placement.chosen,
        made_by=placement.made_by,
        named=placement.named,
        warnings=placement.warnings,
        rejections=[
            replacement_pb.PlacementRejection(
                address=each.address,
                host=each.host,
                failure_domain=each.failure_domain,
                reason=each.reason,
                detail=each.detail,
            )
            for each in placement.rejections
        ],
    )


def start_answer(
    answer: StartAnswer, replacement: replacement_pb.Replacement | None
) -> replacement_pb.StartReplacementResponse:
    """The answer to a replacement by intent; `replacement` is its message."""
    return replacement_pb.StartReplacementResponse(
        replacement=replacement,
        already=answer.already,
        region_path=answer.found.region_path,
        slot=answer.found.slot,
        old_target=answer.found.target,
        new_target=answer.new_target,
        to_generation=answer.to_generation,
        placement=placement_message(answer.placement),
    )

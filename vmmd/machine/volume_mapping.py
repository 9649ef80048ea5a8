"""A volume's status and its verification as protobuf messages, and nothing else."""

from __future__ import annotations

from stairlib.model.construction_diff import ChangedTarget
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from vmmd.block.extent_watch import RegionExtents
from vmmd.block.repair_governor import RepairRate
from vmmd.block.scrub import ScrubStatus
from vmmd.block.volume import RegionSnapshot, VolumeStatus, VolumeVerification
from vmmd.core.guest_history import Sample
from vmmd.core.repair_rate import RepairPolicy
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.limits import COPIES_IN_FLIGHT_MAX
from vmmd.upstairs.core.status import RegionStatus, RepairProgress, SlotStatus


def volume_message(
    machine_id: str,
    disk: str,
    status: VolumeStatus,
    *,
    nbd_uri: str,
    vhost_user_socket: str,
    vfio_user_socket: str,
    guest_device: str,
) -> pb.VolumeInfo:
    """The whole volume, region by region, and where it is exported."""
    counters = status.counters
    return pb.VolumeInfo(
        machine_id=machine_id,
        disk=disk,
        volume_id=status.volume_id,
        state=pb.VolumeState.ValueType(status.state),
        reason=status.reason,
        block_size=status.block_size,
        total_bytes=status.total_bytes,
        regions=[_region(path, region) for path, region in status.regions],
        nbd_uri=nbd_uri,
        vhost_user_socket=vhost_user_socket,
        vfio_user_socket=vfio_user_socket,
        guest_device=guest_device,
        sources=[
            pb.SourceInfo(
                path=source.path,
                type=source.kind,
                total_bytes=source.total_bytes,
                failed=source.failed,
                last_error=source.last_error,
            )
            for source in status.sources
        ],
        scrubs=map(scrub_message, status.scrubs),
        repair_rate=rate_message(status.repair_rate),
        counters=pb.VolumeCounters(
            reads=counters.reads,
            writes=counters.writes,
            flushes=counters.flushes,
            discards=counters.discards,
            read_bytes=counters.read_bytes,
            write_bytes=counters.write_bytes,
            failed=counters.failed,
            read_mismatches=sum(region.read_mismatches for _path, region in status.regions),
            blocks_healed=sum(region.blocks_healed for _path, region in status.regions),
        ),
    )


def extents_message(extents: RegionExtents) -> pb.RegionExtents:
    """The columns of one region."""
    return pb.RegionExtents(
        path=extents.path,
        extent_count=extents.extent_count,
        extent_bytes=extents.extent_bytes,
        columns=[
            pb.ExtentColumn(slot=column.slot, address=column.address, runs=column.runs)
            for column in extents.columns
        ],
    )


def sample_message(sample: Sample) -> pb.VolumeSample:
    """One interval of a volume's history."""
    message = pb.VolumeSample(
        seconds=sample.seconds,
        reads=sample.reads,
        writes=sample.writes,
        flushes=sample.flushes,
        discards=sample.discards,
        read_bytes=sample.read_bytes,
        write_bytes=sample.write_bytes,
        completed=sample.completed,
        p50_milliseconds=sample.p50 * 1e3,
        p99_milliseconds=sample.p99 * 1e3,
        max_milliseconds=sample.longest * 1e3,
        repair_bytes=sample.repair_bytes,
        members_filled=sample.members_filled,
        repair_bytes_per_second_max=sample.rate_max,
    )
    message.end_time.FromNanoseconds(round(sample.end * 1e9))
    return message


def snapshot_message(taken: RegionSnapshot) -> pb.RegionSnapshot:
    """One region's snapshot."""
    return pb.RegionSnapshot(
        path=taken.path,
        generation=taken.taken.generation,
        flush_number=taken.taken.flush_number,
        targets=taken.targets,
    )


def scrub_message(scrub: ScrubStatus) -> pb.ScrubInfo:
    """One scrub as it is now."""
    return pb.ScrubInfo(
        path=scrub.path,
        state=pb.ScrubState.ValueType(scrub.state),
        bytes_done=scrub.bytes_done,
        bytes_total=scrub.bytes_total,
        bytes_per_second_max=scrub.bytes_per_second_max,
        elapsed_seconds=scrub.elapsed_seconds,
        reason=scrub.reason,
    )


def rate_message(rate: RepairRate) -> pb.RepairRate:
    """How fast repairs may go, and what was asked for."""
    policy = rate.policy
    return pb.RepairRate(
        bytes_per_second_max=rate.bytes_per_second,
        reason=pb.RepairRateReason.ValueType(rate.reason),
        bytes_per_second=rate.measured,
        stress=rate.stress,
        limits=pb.RepairLimits(
            bytes_per_second_max=policy.bytes_per_second_max,
            bytes_per_second_min=policy.bytes_per_second_min,
            extents_in_flight_max=policy.extents_in_flight_max,
            adaptive=policy.adaptive,
            fleet_share=policy.fleet_share,
        ),
    )


def policy_of(limits: pb.RepairLimits) -> RepairPolicy:
    """What is asked for, the defaults filled in; InvalidRequestError names what is wrong."""
    default = RepairPolicy()
    in_flight = limits.extents_in_flight_max or default.extents_in_flight_max
    if in_flight > COPIES_IN_FLIGHT_MAX:
        why = f"{in_flight} is above {COPIES_IN_FLIGHT_MAX}: each extent in flight takes memory"
        field = FieldViolation("limits.extents_in_flight_max", why, "TOO_LARGE")
        raise InvalidRequestError(f"extents_in_flight_max: {why}", (field,))
    return RepairPolicy(
        bytes_per_second_max=limits.bytes_per_second_max,
        bytes_per_second_min=limits.bytes_per_second_min or default.bytes_per_second_min,
        extents_in_flight_max=in_flight,
        adaptive=limits.adaptive if limits.HasField("adaptive") else default.adaptive,
        fleet_share=limits.fleet_share,
    )


def _region(path: str, region: RegionStatus) -> pb.RegionInfo:
    return pb.RegionInfo(
        path=path,
        upstairs_id=region.upstairs_id,
        session_id=region.session_id,
        generation=region.generation,
        state=pb.VolumeState.ValueType(region.state),
        reason=region.reason,
        slots=map(_slot, region.slots),
        flush_number=region.flush_number,
        cipher=region.cipher,
        read_only=region.read_only,
    )


def _slot(slot: SlotStatus) -> pb.SlotInfo:
    return pb.SlotInfo(
        slot=slot.slot,
        address=slot.address,
        region_id=slot.region_id,
        state=pb.SlotState.ValueType(slot.state),
        mode=pb.SlotMode.ValueType(slot.mode),
        last_error=slot.last_error,
        repair=None if slot.repair is None else _repair(slot.repair),
        repairs_completed=slot.repairs_completed,
        repaired_bytes=slot.repaired_bytes,
        repairs_aborted=slot.repairs_aborted,
        departing_address=slot.departing_address,
        bad_blocks=slot.bad_blocks,
        repair_held=slot.repair_held,
    )


def _repair(repair: RepairProgress) -> pb.RepairProgress:
    return pb.RepairProgress(
        extents_done=repair.extents_done,
        extents_total=repair.extents_total,
        bytes_done=repair.bytes_done,
        bytes_total=repair.bytes_total,
        bytes_copied=repair.bytes_copied,
        bytes_per_second=repair.bytes_per_second,
        elapsed_seconds=repair.elapsed_seconds,
        bytes_per_second_max=repair.bytes_per_second_max,
        attempt=repair.attempt,
        extents_in_flight_max=repair.copies_in_flight_max,
    )


def replaced_message(result: ReplaceResult, changed: ChangedTarget) -> pb.ReplaceVcrResponse:
    """What the volume did with a change of one target."""
    return pb.ReplaceVcrResponse(
        result=pb.VcrReplaceResult.ValueType(result),
        slot=changed.slot,
        old_target=changed.old,
        new_target=changed.new,
        region_path=changed.region_path,
    )


def verified_message(verification: VolumeVerification) -> pb.VerifyReport:
    """The outcome of a comparison of all members."""
    return pb.VerifyReport(
        equal=verification.equal,
        extents_compared=verification.extents_compared,
        members_compared=verification.members_compared,
        differences=[
            pb.ExtentDifference(
                region_path=difference.region_path,
                extent=difference.extent,
                digests=difference.digests,
            )
            for difference in verification.differences
        ],
        bad_blocks=verification.bad_blocks,
        blocks_read=verification.blocks_read,
    )

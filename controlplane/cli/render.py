"""From messages of the control plane to what people read. Pure: no call, no clock, no printing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controlplane.cli.plain import enum_word
from controlplane.cli.units import (
    format_bytes,
    format_limit,
    format_rate,
    format_seconds,
)
from stairwell.controlplane.v1.disk_service_pb2 import Disk, ReplaceResult, ReplaceVcrResponse
from stairwell.controlplane.v1.instance_service_pb2 import Instance, InstanceState
from stairwell.controlplane.v1.replacement_service_pb2 import (
    CancelOutcome,
    CancelReplacementResponse,
    Replacement,
    ReplacementState,
    SetRepairLimitsResponse,
)
from stairwell.vmmd.v1.volume_service_pb2 import (
    RepairLimits,
    RepairRateReason,
    VerifyReport,
    VolumeState,
)

# Words that mean good and bad health, for colour on terminals.
_GOOD = frozenset({"running", "active", "done", "member"})
_BAD = frozenset({"failed", "cancelled", "faulted", "offline"})
# More differing extents than this say no more than their number does.
DIFFERENCES_SHOWN = 10


def word(text: str) -> Text:
    """A state's name, coloured where it is plainly good or bad."""
    style = "green" if text in _GOOD else "red" if text in _BAD else ""
    return Text(text, style=style)


def instance_word(state: int) -> str:
    """An instance state's name."""
    return enum_word(InstanceState.DESCRIPTOR, state)


def replacement_word(state: int) -> str:
    """A replacement state's name."""
    return enum_word(ReplacementState.DESCRIPTOR, state)


def clock(stamp: Timestamp) -> str:
    """A moment in UTC to the second, or "-" when there is none."""
    if not stamp.seconds:
        return "-"
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")


def _when(stamp: Timestamp) -> str:
    """A moment, or nothing."""
    return clock(stamp) if stamp.seconds else ""


def _state_word(state: int) -> str:
    """A replacement state's name, or nothing."""
    return replacement_word(state) if state else ""


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without lines; the columns in `right` hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def fields(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values under each other, one thing described; empty texts are left out."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in ("", None):
            table.add_row(name, value)
    return table


# ----- instances


def instance_view(instance: Instance) -> RenderableType:
    """One instance."""
    return fields(
        [
            ("name", instance.name),
            ("id", instance.id),
            ("state", word(instance_word(instance.state))),
            ("reason", instance.reason),
            ("disks", ", ".join(instance.disks) or "none"),
            ("vmmd", instance.vmmd),
        ]
    )


def instance_change(instance: Instance) -> str:
    """One line of `monitor`."""
    reason = f" ({instance.reason})" if instance.reason else ""
    return (
        f"{instance.name} InstanceState: {instance_word(instance.state)}{reason} "
        f"[{instance.state_generation}]"
    )


def overview(instances: Sequence[Instance], disks: Sequence[Disk]) -> RenderableType:
    """What there is: instances and their disks."""
    if not instances and not disks:
        return "no instances; make one with `stairwell new NAME --crucible-disks FILE`"
    machines = new_table("INSTANCE", "STATE", "DISKS", "ID", "VMMD")
    for one in instances:
        state = word(instance_word(one.state))
        machines.add_row(one.name, state, ", ".join(one.disks) or "-", one.id, one.vmmd or "-")
    volumes = new_table(
        "DISK", "INSTANCE", "DEVICE", "PCI", "GEN", "STATE", "VOLUME", right=["GEN"]
    )
    for disk in disks:
        volume_state = volume_word(disk) if disk.HasField("volume") else "-"
        generation = str(disk.recorded_generation)
        volumes.add_row(
            disk.name,
            disk.instance or "-",
            disk.device,
            disk.pci_path,
            generation,
            word(volume_state),
            disk.id,
        )
    return Group(machines, "", volumes) if disks else machines


# ----- disks


def volume_word(disk: Disk) -> str:
    """What state the disk's volume is in."""
    return enum_word(VolumeState.DESCRIPTOR, disk.volume.state)


def percent(done: int, total: int) -> str:
    """A share that says 100 % only when all is done."""
    if total <= 0:
        return "0 %"
    return f"{100 * done // total} %"


def verify_view(name: str, report: VerifyReport) -> str:
    """The result of a comparison of all members."""
    lines = []
    compared = f"{report.members_compared} members, {report.extents_compared} extents compared" + (
        f", {report.blocks_read} stored blocks read and checked" * bool(report.blocks_read)
    )
    if report.equal and not report.bad_blocks:
        return f"{name}: all members agree block for block ({compared})"
    lines.append(f"{name}: the members DIFFER ({compared})")
    if report.bad_blocks:
        lines.append(f"  {report.bad_blocks} blocks do not match their context")
    for difference in report.differences[:DIFFERENCES_SHOWN]:
        digests = " ".join(f"{digest:016x}" for digest in difference.digests)
        lines.append(f"  {difference.region_path} extent {difference.extent}: {digests}")
    hidden = len(report.differences) - DIFFERENCES_SHOWN
    if hidden > 0:
        lines.append(f"  and {hidden} more extents")
    return "\n".join(lines)


# ----- replacements


def replace_result(response: ReplaceVcrResponse) -> str:
    """The typed answer to a replacement request, in one or two lines."""
    result = enum_word(ReplaceResult.DESCRIPTOR, response.result)
    lines = [result]
    if response.new_target:
        path = f" ({response.path})" if response.path else ""
        lines[0] += f": slot {response.slot} {response.old_target} -> {response.new_target}{path}"
    if response.result == ReplaceResult.REPLACE_RESULT_VCR_MATCHES:
        lines[0] += ": the disk is already what this request asks for"
    if response.replacement_id:
        lines.append(f"replacement {response.replacement_id}")
    return "\n".join(lines)


def replacement_view(replacement: Replacement) -> RenderableType:
    """One replacement with its history."""
    change = (
        f"{replacement.region_path or 'region'} slot {replacement.slot}: "
        f"{replacement.old_target} -> {replacement.new_target}"
    )
    progress = (
        f"{percent(replacement.bytes_done, replacement.bytes_total)}, "
        f"{replacement.extents_done}/{replacement.extents_total} extents, "
        f"{format_bytes(replacement.bytes_copied)} copied"
    )
    rows: list[tuple[str, RenderableType]] = [
        ("replacement", replacement.id),
        ("disk", f"{replacement.disk} ({replacement.volume_id})"),
        ("state", word(replacement_word(replacement.state))),
        ("change", change),
        ("generation", f"{replacement.from_generation} -> {replacement.to_generation}"),
        ("progress", progress),
        *_rate_rows(replacement),
        ("paused in", _state_word(replacement.paused_in)),
        ("failed in", _state_word(replacement.failed_in)),
        ("blocked on", replacement.blocked_on),
        ("blocked since", _when(replacement.blocked_since_time)),
        ("last error", replacement.last_error),
        ("next attempt", _when(replacement.next_attempt_time)),
        ("begun anew", f"{replacement.restarts} times" if replacement.restarts else ""),
        ("filled again", f"{replacement.mended} times" if replacement.mended else ""),
        ("attempt", str(replacement.attempt) if replacement.attempt > 1 else ""),
        ("trace", replacement.trace_id),
        ("started", clock(replacement.create_time)),
        ("updated", clock(replacement.update_time)),
    ]
    return Group(fields(rows), "", _transitions(replacement))


# Why the rate is what it is; the numbers are those of the enum.
_RATE_REASONS = {
    RepairRateReason.REPAIR_RATE_REASON_UNLIMITED: "nothing bounds it",
    RepairRateReason.REPAIR_RATE_REASON_LIMIT: "the limit that was set",
    RepairRateReason.REPAIR_RATE_REASON_FLEET_SHARE: "its share of the fleet's rate",
    RepairRateReason.REPAIR_RATE_REASON_FLOOR: "the floor: the guest is busy",
    RepairRateReason.REPAIR_RATE_REASON_ADAPTING: "by how the guest fares",
    RepairRateReason.REPAIR_RATE_REASON_IDLE: "the guest is idle",
}


def _rate_rows(replacement: Replacement) -> list[tuple[str, RenderableType]]:
    if not replacement.HasField("repair_rate"):
        return [("limit", format_limit(replacement.repair_bytes_per_second_max))]
    rate = replacement.repair_rate
    rows: list[tuple[str, RenderableType]] = [("limits", limits_words(rate.limits))]
    if rate.reason in _RATE_REASONS:
        now = f"{format_limit(rate.bytes_per_second_max)}: {_RATE_REASONS[rate.reason]}"
        rows.append(("in force", now))
        rows.append(("copying", format_rate(rate.bytes_per_second)))
    return rows


def limits_words(limits: RepairLimits) -> str:
    """As "50 MiB/s, floor 8 MiB/s, 2 extents at once, adaptive"."""
    words = [format_limit(limits.bytes_per_second_max)]
    if limits.fleet_share:
        words.append(f"fleet share {format_rate(limits.fleet_share)}")
    if limits.bytes_per_second_min:
        words.append(f"floor {format_rate(limits.bytes_per_second_min)}")
    if limits.extents_in_flight_max:
        words.append(f"{limits.extents_in_flight_max} extents at once")
    adaptive = limits.adaptive or not limits.HasField("adaptive")
    words.append("adaptive" if adaptive else "not adaptive")
    return ", ".join(words)


def limits_view(response: SetRepairLimitsResponse) -> str:
    """What is stored now, and whether the machine has it."""
    lines = [limits_words(response.limits)]
    if response.HasField("replacement"):
        lines[0] = f"{response.replacement.id}: {lines[0]}"
    if not response.told:
        lines.append("its machine does not answer or does not run; it is told when it is there")
    return "\n".join(lines)


_CANCELLED = {
    CancelOutcome.CANCEL_OUTCOME_UNDONE: "undone",
    CancelOutcome.CANCEL_OUTCOME_FINISHED_FORWARD: "not undone, finished forward",
    CancelOutcome.CANCEL_OUTCOME_REPLACE_AGAIN: "not undone, stopped",
    CancelOutcome.CANCEL_OUTCOME_PENDING: "not known yet",
}


def cancelled(response: CancelReplacementResponse) -> str:
    """What became of a cancelled replacement, why, and what to do."""
    name = response.replacement.id
    lines = [f"{name}: {_CANCELLED.get(response.outcome, 'cancelled')}: {response.reason}"]
    if response.outcome == CancelOutcome.CANCEL_OUTCOME_REPLACE_AGAIN:
        lines.append(f"`stairwell replacement retry {name}` goes on with it")
    elif response.outcome != CancelOutcome.CANCEL_OUTCOME_UNDONE:
        lines.append(f"`stairwell replacement watch {name}` follows it")
    return "\n".join(lines)


def member_words(replacement: Replacement) -> str:
    """The slot that is replaced, with its region where that is not the plain disk's one."""
    where = replacement.region_path
    plain = where in ("", "sub_volumes[0]")
    return f"slot {replacement.slot} of {replacement.disk}" + ("" if plain else f", {where},")


def _transitions(replacement: Replacement) -> Table:
    table = new_table("AFTER", "STATE", "EVENT", "DETAIL", right=["AFTER"])
    start = replacement.create_time.ToNanoseconds()
    for step in replacement.transitions:
        offset = max(0, step.time.ToNanoseconds() - start) / 1e9
        table.add_row(
            format_seconds(offset), word(replacement_word(step.state)), step.event, step.detail
        )
    return table


def replacements_table(replacements: Sequence[Replacement]) -> RenderableType:
    """All replacements, newest last as the control plane sends them."""
    if not replacements:
        return "no replacement has been asked for"
    table = new_table(
        "REPLACEMENT", "DISK", "REGION", "STATE", "SLOT", "OLD", "NEW", "DONE", "STARTED"
    )
    for one in replacements:
        table.add_row(
            one.id,
            one.disk,
            one.region_path or "region",
            word(replacement_word(one.state)),
            str(one.slot),
            one.old_target,
            one.new_target,
            percent(one.bytes_done, one.bytes_total),
            clock(one.create_time),
        )
    return table
